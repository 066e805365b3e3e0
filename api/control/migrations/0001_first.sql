-- Numbers with names: last_time_ms (highest time written at), generation (grows when a backup is
-- restored), key_set_serial (highest serial handed out).
CREATE TABLE meta (
    name TEXT PRIMARY KEY,
    value INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
INSERT INTO meta (name, value) VALUES ('last_time_ms', 0), ('generation', 1), ('key_set_serial', 0);

-- Tenants, their quota, and counters that always equal a count of their jobs.
CREATE TABLE orgs (
    org TEXT PRIMARY KEY,
    queued INTEGER NOT NULL DEFAULT 0,
    running INTEGER NOT NULL DEFAULT 0,
    max_running INTEGER NOT NULL,
    max_queued INTEGER NOT NULL,
    quota_version INTEGER NOT NULL DEFAULT 1
) STRICT, WITHOUT ROWID;
CREATE INDEX orgs_waiting ON orgs (org) WHERE queued > 0;

-- state as in nimbus.control.v1.JobState. spec is a JobSpec without its bundles.
CREATE TABLE jobs (
    job TEXT PRIMARY KEY,
    org TEXT NOT NULL REFERENCES orgs (org),
    state INTEGER NOT NULL,
    spec BLOB NOT NULL,
    platform TEXT NOT NULL,
    cpu_millis INTEGER NOT NULL,
    memory_bytes INTEGER NOT NULL,
    pids INTEGER NOT NULL,
    attempt INTEGER NOT NULL DEFAULT 0,
    attempts_max INTEGER NOT NULL,
    runtime_seconds_max INTEGER NOT NULL,
    not_before_ms INTEGER NOT NULL,
    created_ms INTEGER NOT NULL,
    ended_ms INTEGER NOT NULL DEFAULT 0,
    exit_code INTEGER,
    reason TEXT NOT NULL DEFAULT '',
    message TEXT NOT NULL DEFAULT '',
    version INTEGER NOT NULL DEFAULT 1
) STRICT;
CREATE INDEX jobs_org ON jobs (org, job);
CREATE INDEX jobs_queued ON jobs (org, job) WHERE state = 1;
CREATE INDEX jobs_retry ON jobs (not_before_ms) WHERE state = 1;

-- A JobSpec with nothing but bundles.
CREATE TABLE bundles (
    job TEXT PRIMARY KEY REFERENCES jobs (job),
    bundles BLOB NOT NULL
) STRICT;

CREATE TABLE requests (
    org TEXT NOT NULL,
    request_id TEXT NOT NULL,
    body_sha256 BLOB NOT NULL,
    job TEXT NOT NULL,
    created_ms INTEGER NOT NULL,
    PRIMARY KEY (org, request_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX requests_age ON requests (created_ms);

CREATE TABLE nodes (
    node TEXT PRIMARY KEY,
    thumbprint BLOB NOT NULL UNIQUE,
    spki BLOB NOT NULL,
    joined_ms INTEGER NOT NULL,
    last_seen_ms INTEGER NOT NULL DEFAULT 0,
    event_seq INTEGER NOT NULL DEFAULT 0,
    version TEXT NOT NULL DEFAULT '',
    policy_serial INTEGER NOT NULL DEFAULT 0,
    capacity BLOB NOT NULL DEFAULT x'',
    max_jobs INTEGER NOT NULL DEFAULT 0
) STRICT, WITHOUT ROWID;

-- claims is the JSON of the newest LeaseClaims. revoked is the code it was revoked with, or ''.
CREATE TABLE attempts (
    job TEXT NOT NULL REFERENCES jobs (job),
    number INTEGER NOT NULL,
    lease_id TEXT NOT NULL UNIQUE,
    node TEXT NOT NULL REFERENCES nodes (node),
    claims TEXT NOT NULL,
    issued_ms INTEGER NOT NULL,
    lease_until_ms INTEGER NOT NULL,
    leased_ms INTEGER NOT NULL,
    started_ms INTEGER NOT NULL DEFAULT 0,
    ended_ms INTEGER NOT NULL DEFAULT 0,
    cpu_millis INTEGER NOT NULL,
    memory_bytes INTEGER NOT NULL,
    pids INTEGER NOT NULL,
    log_bytes INTEGER NOT NULL,
    exit_code INTEGER,
    reason TEXT NOT NULL DEFAULT '',
    message TEXT NOT NULL DEFAULT '',
    oom_killed INTEGER NOT NULL DEFAULT 0,
    revoked TEXT NOT NULL DEFAULT '',
    receipt BLOB NOT NULL DEFAULT x'',
    PRIMARY KEY (job, number)
) STRICT, WITHOUT ROWID;
CREATE INDEX attempts_live ON attempts (node) WHERE ended_ms = 0;
CREATE INDEX attempts_due ON attempts (lease_until_ms) WHERE ended_ms = 0;

CREATE TABLE tokens (
    secret_sha256 BLOB PRIMARY KEY,
    node TEXT NOT NULL,
    expires_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE policies (
    serial INTEGER PRIMARY KEY,
    id TEXT NOT NULL,
    not_after_ms INTEGER NOT NULL,
    document_sha256 BLOB NOT NULL,
    envelope BLOB NOT NULL,
    applied_ms INTEGER NOT NULL
) STRICT;

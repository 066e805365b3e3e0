-- Jobs that a node claimed for a container of another client of containerd; a Claimed (protobuf) says
-- for people of which. ticket is the one that its pod showed, or ''.
CREATE TABLE claimed (
    job TEXT PRIMARY KEY REFERENCES jobs (job),
    node TEXT NOT NULL REFERENCES nodes (node),
    namespace TEXT NOT NULL,
    container TEXT NOT NULL,
    ticket TEXT NOT NULL DEFAULT '',
    shown BLOB NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX claimed_container ON claimed (node, namespace, container);

-- What pods show. node is the only one that it is good on, or ''. bundles is a JobSpec with nothing
-- but bundles. revoked_ms is 0 when it was not.
CREATE TABLE tickets (
    ticket TEXT PRIMARY KEY,
    org TEXT NOT NULL,
    secret_sha256 BLOB NOT NULL UNIQUE,
    node TEXT NOT NULL DEFAULT '',
    uses_max INTEGER NOT NULL,
    uses INTEGER NOT NULL DEFAULT 0,
    bundles BLOB NOT NULL,
    created_ms INTEGER NOT NULL,
    expires_ms INTEGER NOT NULL,
    revoked_ms INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX tickets_org ON tickets (org, ticket);
CREATE INDEX tickets_end ON tickets (expires_ms);

-- One row a pod, by its sandbox container; uses is their number.
CREATE TABLE redemptions (
    ticket TEXT NOT NULL REFERENCES tickets (ticket) ON DELETE CASCADE,
    node TEXT NOT NULL,
    sandbox TEXT NOT NULL,
    redeemed_ms INTEGER NOT NULL,
    PRIMARY KEY (ticket, node, sandbox)
) STRICT, WITHOUT ROWID;

//! Submitting, reading and cancelling jobs.

use nimbus_api::proto::control::v1::{self as pb, JobState};
use nimbus_api::{Digest, Refusal, RefusalCode};
use prost::Message as _;
use rusqlite::types::Value;
use rusqlite::{Connection, OptionalExtension as _, named_params};

use super::rows::{self, JobHead, Listed, Move};
use super::{Store, StoreError, signed};
use crate::limits::REQUEST_ID_KEPT_MS;

/// A job that has been checked.
#[derive(Debug, Clone)]
pub(crate) struct NewJob {
    /// Id that it gets unless the request is known.
    pub(crate) job: String,
    /// The tenant.
    pub(crate) org: String,
    /// With all defaults filled in.
    pub(crate) spec: pb::JobSpec,
    /// The caller's id of the request.
    pub(crate) request_id: String,
    /// Digest of the request's body.
    pub(crate) body: Digest,
}

/// What became of a submission.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Enqueued {
    /// It is a new job.
    New(String),
    /// The same request came before and made this job.
    Known(String),
}

impl Enqueued {
    pub(crate) fn job(&self) -> &str {
        match self {
            Self::New(job) | Self::Known(job) => job,
        }
    }
}

/// One page of a list.
#[derive(Debug, Clone)]
pub(crate) struct JobPage {
    /// None means all.
    pub(crate) org: Option<String>,
    /// None means all.
    pub(crate) states: Vec<i32>,
    /// Only jobs with lower ids.
    pub(crate) before: Option<String>,
    /// How many.
    pub(crate) size: u32,
}

/// What became of a cancellation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Cancelled {
    /// Nothing to do: it has ended or was cancelled before.
    Already,
    /// It waited, and has ended now.
    Ended,
    /// A node must be told; the lease and the node.
    Revoked {
        /// Lease to revoke.
        lease_id: String,
        /// Node that holds it.
        node: String,
    },
}

impl Store {
    /// Makes a job, once for each request id.
    pub(crate) async fn enqueue(&self, job: NewJob, now_ms: i64) -> Result<Enqueued, StoreError> {
        self.write(now_ms, move |connection| enqueue(connection, &job, now_ms)).await
    }

    /// One job with its bundles, if it is this org's (or any org's, for none).
    pub(crate) async fn job(
        &self,
        org: Option<String>,
        job: String,
    ) -> Result<Option<pb::Job>, StoreError> {
        self.read(move |connection| read_job(connection, org.as_deref(), &job)).await
    }

    /// One job without its bundles, for those who watch it.
    pub(crate) async fn job_brief(&self, job: String) -> Result<Option<pb::Job>, StoreError> {
        self.read(move |connection| {
            Ok(rows::jobs_where(connection, "job = ?1", &[job.into()])?.jobs.pop())
        })
        .await
    }

    /// A page of jobs without bundles, newest first.
    pub(crate) async fn jobs(&self, page: JobPage) -> Result<Listed, StoreError> {
        self.read(move |connection| read_jobs(connection, &page)).await
    }

    /// Ends a job, or has its lease revoked.
    pub(crate) async fn cancel(&self, job: String, now_ms: i64) -> Result<Cancelled, StoreError> {
        self.write(now_ms, move |connection| cancel(connection, &job, now_ms)).await
    }

    /// Forgets request ids that are older than they are kept.
    pub(crate) async fn forget_requests(&self, now_ms: i64) -> Result<usize, StoreError> {
        self.write(now_ms, move |connection| {
            let before = now_ms.saturating_sub(REQUEST_ID_KEPT_MS);
            let forgotten = connection
                .prepare_cached("DELETE FROM requests WHERE created_ms < ?1")?
                .execute([before])?;
            Ok(forgotten)
        })
        .await
    }
}

pub(super) fn enqueue(
    connection: &Connection,
    new: &NewJob,
    now_ms: i64,
) -> Result<Enqueued, StoreError> {
    if let Some(known) = known_request(connection, new, now_ms)? {
        return Ok(Enqueued::Known(known));
    }
    rows::ensure_org(connection, &new.org)?;
    let (queued, max): (i64, i64) = connection
        .prepare_cached("SELECT queued, max_queued FROM orgs WHERE org = ?1")?
        .query_row([&new.org], |row| Ok((row.get(0)?, row.get(1)?)))?;
    if queued >= max {
        let detail = format!("{queued} jobs wait, at most {max} may");
        return Err(StoreError::Refused(Refusal::with(RefusalCode::QuotaQueued, detail)));
    }
    insert(connection, (&new.job, &new.org), &new.spec, now_ms)?;
    remember_request(connection, new, now_ms)?;
    rows::count(connection, &new.org, 1, 0)?;
    Ok(Enqueued::New(new.job.clone()))
}

fn known_request(
    connection: &Connection,
    new: &NewJob,
    now_ms: i64,
) -> Result<Option<String>, StoreError> {
    let known: Option<(Vec<u8>, String)> = connection
        .prepare_cached(
            "SELECT body_sha256, job FROM requests
             WHERE org = ?1 AND request_id = ?2 AND created_ms >= ?3",
        )?
        .query_row((&new.org, &new.request_id, now_ms.saturating_sub(REQUEST_ID_KEPT_MS)), |row| {
            Ok((row.get(0)?, row.get(1)?))
        })
        .optional()?;
    match known {
        None => Ok(None),
        Some((body, job)) if body == new.body.as_bytes() => Ok(Some(job)),
        Some(_other) => Err(RefusalCode::RequestConflict.into()),
    }
}

/// Makes a job that waits; its org's counters are for the caller.
pub(super) fn insert(
    connection: &Connection,
    (job, org): (&str, &str),
    spec: &pb::JobSpec,
    now_ms: i64,
) -> Result<(), StoreError> {
    let mut spec = spec.clone();
    let bundles = pb::JobSpec { bundles: std::mem::take(&mut spec.bundles), ..Default::default() };
    let resources = spec.resources.unwrap_or_default();
    let platform = spec.image.as_ref().map_or("", |image| image.platform.as_str());
    connection
        .prepare_cached(
            "INSERT INTO jobs (job, org, state, spec, platform, cpu_millis, memory_bytes, pids,
                attempts_max, runtime_seconds_max, not_before_ms, created_ms)
             VALUES (:job, :org, :state, :spec, :platform, :cpu, :memory, :pids, :attempts, :runtime,
                :now, :now)",
        )?
        .execute(named_params! {
            ":job": job, ":org": org, ":state": JobState::Queued as i32,
            ":spec": spec.encode_to_vec(), ":platform": platform,
            ":cpu": resources.cpu_millis, ":memory": signed(resources.memory_bytes),
            ":pids": resources.pids, ":attempts": spec.max_attempts,
            ":runtime": spec.max_runtime_seconds, ":now": now_ms,
        })?;
    if !bundles.bundles.is_empty() {
        connection
            .prepare_cached("INSERT INTO bundles (job, bundles) VALUES (?1, ?2)")?
            .execute((job, bundles.encode_to_vec()))?;
    }
    Ok(())
}

fn remember_request(connection: &Connection, new: &NewJob, now_ms: i64) -> Result<(), StoreError> {
    connection
        .prepare_cached(
            "INSERT OR REPLACE INTO requests (org, request_id, body_sha256, job, created_ms)
             VALUES (?1, ?2, ?3, ?4, ?5)",
        )?
        .execute((&new.org, &new.request_id, &new.body.as_bytes()[..], &new.job, now_ms))?;
    Ok(())
}

fn read_job(
    connection: &Connection,
    org: Option<&str>,
    job: &str,
) -> Result<Option<pb::Job>, StoreError> {
    let key = Value::from(job.to_owned());
    let mut found = match org {
        Some(org) => {
            rows::jobs_where(connection, "job = ?1 AND org = ?2", &[key, org.to_owned().into()])?
        }
        None => rows::jobs_where(connection, "job = ?1", &[key])?,
    };
    let Some(mut found) = found.jobs.pop() else { return Ok(None) };
    if let Some(spec) = found.spec.as_mut() {
        rows::add_bundles(connection, job, spec)?;
    }
    Ok(Some(found))
}

fn read_jobs(connection: &Connection, page: &JobPage) -> Result<Listed, StoreError> {
    let mut condition = String::from("1");
    let mut values: Vec<Value> = Vec::new();
    if let Some(org) = &page.org {
        values.push(org.clone().into());
        condition.push_str(" AND org = ?");
    }
    if let Some(before) = &page.before {
        values.push(before.clone().into());
        condition.push_str(" AND job < ?");
    }
    if !page.states.is_empty() {
        let marks = vec!["?"; page.states.len()].join(", ");
        condition = format!("{condition} AND state IN ({marks})");
        values.extend(page.states.iter().map(|state| Value::from(*state)));
    }
    values.push(i64::from(page.size).into());
    condition.push_str(" ORDER BY job DESC LIMIT ?");
    rows::jobs_where(connection, &condition, &values)
}

pub(super) fn cancel(
    connection: &Connection,
    job: &str,
    now_ms: i64,
) -> Result<Cancelled, StoreError> {
    let Some(head) = rows::head(connection, job)? else {
        return Err(RefusalCode::JobNotFound.into());
    };
    let code = RefusalCode::JobCancelled;
    match head.state {
        JobState::Done | JobState::Dead | JobState::Cancelled | JobState::Unspecified => {
            Ok(Cancelled::Already)
        }
        JobState::Queued => {
            end_queued(connection, job, &head, code, now_ms)?;
            Ok(Cancelled::Ended)
        }
        JobState::Leased | JobState::Running => revoke_live(connection, job, code),
    }
}

fn end_queued(
    connection: &Connection,
    job: &str,
    head: &JobHead,
    code: RefusalCode,
    now_ms: i64,
) -> Result<(), StoreError> {
    let message = Refusal::new(code).to_string();
    let to = JobState::Cancelled;
    let change = Move { to, reason: code.as_str(), message: &message, ..Move::default() };
    rows::move_job(connection, job, head, &change, now_ms)
}

fn revoke_live(
    connection: &Connection,
    job: &str,
    code: RefusalCode,
) -> Result<Cancelled, StoreError> {
    let live: Option<(String, String, String)> = connection
        .prepare_cached(
            "SELECT lease_id, node, revoked FROM attempts WHERE job = ?1 AND ended_ms = 0",
        )?
        .query_row([job], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
        .optional()?;
    let Some((lease_id, node, revoked)) = live else {
        return Err(StoreError::Corrupt(format!("{job} is leased but has no live attempt")));
    };
    if revoked == code.as_str() {
        return Ok(Cancelled::Already);
    }
    connection
        .prepare_cached("UPDATE attempts SET revoked = ?2 WHERE lease_id = ?1")?
        .execute((&lease_id, code.as_str()))?;
    connection
        .prepare_cached("UPDATE jobs SET version = version + 1 WHERE job = ?1")?
        .execute([job])?;
    Ok(Cancelled::Revoked { lease_id, node })
}

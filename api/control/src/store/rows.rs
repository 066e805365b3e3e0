//! Rows as protobuf, and the one function that changes a job's state.

use nimbus_api::proto::control::v1::{self as pb, JobState};
use prost::Message as _;
use rusqlite::types::Value;
use rusqlite::{Connection, OptionalExtension as _, Row, named_params};

use super::{StoreError, small, unsigned};
use crate::limits::{LIST_BYTES_MAX, QUOTA_QUEUED_DEFAULT, QUOTA_RUNNING_DEFAULT};

/// What decisions need of a job.
#[derive(Debug, Clone)]
pub(super) struct JobHead {
    pub(super) org: String,
    pub(super) state: JobState,
    pub(super) attempt: u32,
    /// None when it is never tried again: what was claimed for one container.
    pub(super) attempts_max: Option<u32>,
}

pub(super) fn head(connection: &Connection, job: &str) -> Result<Option<JobHead>, StoreError> {
    let read = |row: &Row<'_>| -> rusqlite::Result<(String, i32, i64, Option<i64>)> {
        Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))
    };
    let found = connection
        .prepare_cached(
            "SELECT org, state, attempt,
                CASE WHEN NOT EXISTS (SELECT 1 FROM claimed WHERE claimed.job = jobs.job)
                    THEN attempts_max END
             FROM jobs WHERE job = ?1",
        )?
        .query_row([job], read)
        .optional()?;
    let Some((org, state, attempt, attempts_max)) = found else { return Ok(None) };
    let state = state_of(state)?;
    let attempts_max = attempts_max.map(small);
    Ok(Some(JobHead { org, state, attempt: small(attempt), attempts_max }))
}

pub(super) fn state_of(number: i32) -> Result<JobState, StoreError> {
    JobState::try_from(number).map_err(|_unknown| StoreError::Corrupt(format!("state {number}")))
}

/// Where a job goes.
#[derive(Debug, Clone, Default)]
pub(super) struct Move<'a> {
    pub(super) to: JobState,
    pub(super) attempt: Option<u32>,
    pub(super) not_before_ms: Option<i64>,
    pub(super) exit_code: Option<i32>,
    pub(super) reason: &'a str,
    pub(super) message: &'a str,
}

pub(super) const fn is_final(state: JobState) -> bool {
    matches!(state, JobState::Done | JobState::Dead | JobState::Cancelled)
}

const fn is_running(state: JobState) -> bool {
    matches!(state, JobState::Leased | JobState::Running)
}

/// Changes a job's state, and its org's counters with it. The only place that does.
pub(super) fn move_job(
    connection: &Connection,
    job: &str,
    from: &JobHead,
    change: &Move<'_>,
    now_ms: i64,
) -> Result<(), StoreError> {
    if is_final(from.state) {
        return Err(StoreError::Corrupt(format!("{job} has ended and cannot change")));
    }
    let ended = if is_final(change.to) { now_ms } else { 0 };
    connection
        .prepare_cached(
            "UPDATE jobs SET state = :to, attempt = coalesce(:attempt, attempt),
                not_before_ms = coalesce(:not_before, not_before_ms), ended_ms = :ended,
                exit_code = :exit_code, reason = :reason, message = :message, version = version + 1
             WHERE job = :job",
        )?
        .execute(named_params! {
            ":to": change.to as i32, ":attempt": change.attempt, ":not_before": change.not_before_ms,
            ":ended": ended, ":exit_code": change.exit_code, ":reason": change.reason,
            ":message": change.message, ":job": job,
        })?;
    if is_final(change.to) {
        // They were for the node; up to 3 MiB a job would outlive it for nothing.
        connection.prepare_cached("DELETE FROM bundles WHERE job = ?1")?.execute([job])?;
    }
    let delta = |test: &dyn Fn(JobState) -> bool| {
        i64::from(test(change.to)).saturating_sub(i64::from(test(from.state)))
    };
    let queued = delta(&|state| state == JobState::Queued);
    count(connection, &from.org, queued, delta(&is_running))
}

/// Changes an org's counters.
pub(super) fn count(
    connection: &Connection,
    org: &str,
    queued: i64,
    running: i64,
) -> Result<(), StoreError> {
    if queued != 0 || running != 0 {
        connection
            .prepare_cached(
                "UPDATE orgs SET queued = queued + ?2, running = running + ?3 WHERE org = ?1",
            )?
            .execute((org, queued, running))?;
    }
    Ok(())
}

/// Makes an org's row when it has none.
pub(super) fn ensure_org(connection: &Connection, org: &str) -> Result<(), StoreError> {
    connection
        .prepare_cached(
            "INSERT INTO orgs (org, max_running, max_queued) VALUES (?1, ?2, ?3)
             ON CONFLICT (org) DO NOTHING",
        )?
        .execute((org, QUOTA_RUNNING_DEFAULT, QUOTA_QUEUED_DEFAULT))?;
    Ok(())
}

const JOB_COLUMNS: &str = "job, org, state, spec, created_ms, ended_ms, exit_code, reason, message, version, \
    (SELECT shown FROM claimed WHERE claimed.job = jobs.job)";

/// Jobs that were read.
#[derive(Debug)]
pub(crate) struct Listed {
    pub(crate) jobs: Vec<pb::Job>,
    /// More match, which would have been too long for one answer.
    pub(crate) cut: bool,
}

/// Reads jobs by a condition, up to [`LIST_BYTES_MAX`] and at least one; without bundles.
pub(super) fn jobs_where(
    connection: &Connection,
    condition: &str,
    values: &[Value],
) -> Result<Listed, StoreError> {
    let text = format!("SELECT {JOB_COLUMNS} FROM jobs WHERE {condition}");
    let mut statement = connection.prepare_cached(&text)?;
    let mut rows = statement.query(rusqlite::params_from_iter(values))?;
    let (mut jobs, mut bytes) = (Vec::new(), 0_usize);
    while let Some(row) = rows.next()? {
        let job = job_of(connection, row)?;
        bytes = bytes.saturating_add(job.encoded_len());
        if bytes > LIST_BYTES_MAX && !jobs.is_empty() {
            return Ok(Listed { jobs, cut: true });
        }
        jobs.push(job);
    }
    Ok(Listed { jobs, cut: false })
}

fn job_of(connection: &Connection, row: &Row<'_>) -> Result<pb::Job, StoreError> {
    let (job, org): (String, String) = (row.get(0)?, row.get(1)?);
    let (spec, claimed): (Vec<u8>, Option<Vec<u8>>) = (row.get(3)?, row.get(10)?);
    Ok(pb::Job {
        name: format!("orgs/{org}/jobs/{job}"),
        spec: Some(spec_of(&spec)?),
        state: row.get(2)?,
        attempts: attempts_of(connection, &job)?,
        created_at_ms: row.get(4)?,
        ended_at_ms: row.get(5)?,
        exit_code: row.get(6)?,
        reason: row.get(7)?,
        message: row.get(8)?,
        version: unsigned(row.get(9)?),
        claimed: claimed.as_deref().map(claimed_of).transpose()?,
    })
}

fn claimed_of(bytes: &[u8]) -> Result<pb::Claimed, StoreError> {
    pb::Claimed::decode(bytes).map_err(|error| StoreError::Corrupt(error.to_string()))
}

pub(super) fn spec_of(bytes: &[u8]) -> Result<pb::JobSpec, StoreError> {
    pb::JobSpec::decode(bytes).map_err(|error| StoreError::Corrupt(error.to_string()))
}

fn attempts_of(connection: &Connection, job: &str) -> Result<Vec<pb::Attempt>, StoreError> {
    let mut statement = connection.prepare_cached(
        "SELECT number, lease_id, node, leased_ms, started_ms, ended_ms, exit_code, reason, message,
            oom_killed, receipt FROM attempts WHERE job = ?1 ORDER BY number",
    )?;
    let rows = statement.query_map([job], |row| {
        let node: String = row.get(2)?;
        Ok(pb::Attempt {
            number: small(row.get(0)?),
            lease_id: row.get(1)?,
            node: format!("nodes/{node}"),
            leased_at_ms: row.get(3)?,
            started_at_ms: row.get(4)?,
            ended_at_ms: row.get(5)?,
            exit_code: row.get(6)?,
            reason: row.get(7)?,
            message: row.get(8)?,
            oom_killed: row.get(9)?,
            receipt: row.get(10)?,
        })
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Adds the bundles to a job's specification: its own, or those of the ticket that its pod showed,
/// for as long as it has not ended.
pub(super) fn add_bundles(
    connection: &Connection,
    job: &str,
    spec: &mut pb::JobSpec,
) -> Result<(), StoreError> {
    let bundles: Option<Vec<u8>> = connection
        .prepare_cached(
            "SELECT bundles FROM bundles WHERE job = ?1
             UNION ALL SELECT tickets.bundles FROM claimed
                JOIN jobs USING (job) JOIN tickets USING (ticket)
                WHERE job = ?1 AND jobs.ended_ms = 0",
        )?
        .query_row([job], |row| row.get(0))
        .optional()?;
    if let Some(bundles) = bundles {
        spec.bundles = spec_of(&bundles)?.bundles;
    }
    Ok(())
}

/// Reads a number with a name.
pub(super) fn meta(connection: &Connection, name: &str) -> Result<u64, StoreError> {
    let value: i64 = connection
        .prepare_cached("SELECT value FROM meta WHERE name = ?1")?
        .query_row([name], |row| row.get(0))?;
    Ok(unsigned(value))
}

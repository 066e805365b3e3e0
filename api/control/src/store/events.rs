//! What nodes report, and what becomes of leases that nobody reports on.
//!
//! Events are applied once, in the order of their sequence numbers, and fence themselves: one about
//! an attempt that is not the job's present one, or about a lease that this node does not hold,
//! changes nothing and is acknowledged.

use nimbus_api::proto::control::v1::JobState;
use nimbus_api::{Refusal, RefusalCode};
use rusqlite::{Connection, OptionalExtension as _, Row, named_params};

use super::rows::{self, Move};
use super::{Store, StoreError, leases, signed, small, unsigned};
use crate::decide::{self, End, Next};
use crate::limits::SWEEP_BATCH;

/// One event of a node's spool.
#[derive(Debug, Clone)]
pub(crate) struct Event {
    pub(crate) node: String,
    pub(crate) seq: u64,
    pub(crate) lease_id: String,
    pub(crate) job: String,
    pub(crate) attempt: u32,
    pub(crate) at_ms: i64,
    pub(crate) kind: EventKind,
}

/// What happened.
#[derive(Debug, Clone)]
pub(crate) enum EventKind {
    /// The process runs. None is a receipt that was not believed.
    Started(Option<Vec<u8>>),
    /// The lease is no longer used.
    Finished {
        exit_code: Option<i32>,
        /// Empty when the process ended by itself.
        reason: String,
        message: String,
        oom_killed: bool,
    },
    /// A kind that this version does not know.
    Unknown,
}

/// What an event did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Applied {
    /// Everything up to here is durable.
    pub(crate) seq: u64,
    /// The job that changed.
    pub(crate) job: Option<String>,
    /// The lease is to be revoked with this code.
    pub(crate) revoke: Option<RefusalCode>,
}

struct Live {
    attempt: u32,
    job: String,
    started_ms: i64,
    leased_ms: i64,
    revoked: String,
}

/// A lease that ran out without a word.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Lost {
    pub(crate) lease_id: String,
    pub(crate) job: String,
    pub(crate) node: String,
}

impl Store {
    /// Applies an event once.
    pub(crate) async fn apply(&self, event: Event, now_ms: i64) -> Result<Applied, StoreError> {
        self.write(now_ms, move |connection| apply(connection, &event, now_ms)).await
    }

    /// Ends a lease that its node no longer has; the job, if there was such a lease.
    pub(crate) async fn lose(
        &self,
        lease_id: String,
        now_ms: i64,
    ) -> Result<Option<String>, StoreError> {
        self.write(now_ms, move |connection| lose(connection, &lease_id, now_ms)).await
    }

    /// Whether a lease ended before this time without its node saying so.
    pub(crate) async fn any_due(&self, before_ms: i64) -> Result<bool, StoreError> {
        self.read(move |connection| {
            let due = connection
                .prepare_cached(
                    "SELECT EXISTS (SELECT 1 FROM attempts WHERE ended_ms = 0 AND lease_until_ms < ?1)",
                )?
                .query_row([before_ms], |row| row.get(0))?;
            Ok(due)
        })
        .await
    }

    /// The longest life of a lease that has not ended, from its issue, seconds; none when all have.
    pub(crate) async fn longest_life_seconds(&self) -> Result<Option<u64>, StoreError> {
        self.read(|connection| {
            let longest: Option<i64> = connection
                .prepare_cached(
                    "SELECT max(lease_until_ms - issued_ms) FROM attempts WHERE ended_ms = 0",
                )?
                .query_row([], |row| row.get(0))?;
            Ok(longest.map(|ms| unsigned(ms).div_ceil(1000)))
        })
        .await
    }

    /// Ends leases that ended before this time.
    pub(crate) async fn expire_due(
        &self,
        before_ms: i64,
        now_ms: i64,
    ) -> Result<Vec<Lost>, StoreError> {
        self.write(now_ms, move |connection| expire_due(connection, before_ms, now_ms)).await
    }
}

pub(super) fn apply(
    connection: &Connection,
    event: &Event,
    now_ms: i64,
) -> Result<Applied, StoreError> {
    let last: i64 = connection
        .prepare_cached("SELECT event_seq FROM nodes WHERE node = ?1")?
        .query_row([&event.node], |row| row.get(0))?;
    let last = unsigned(last);
    if event.seq <= last {
        return Ok(Applied { seq: last, ..Applied::default() });
    }
    let expected = last.saturating_add(1);
    if event.seq != expected {
        return Err(StoreError::Gap { expected, found: event.seq });
    }
    connection
        .prepare_cached("UPDATE nodes SET event_seq = ?2 WHERE node = ?1")?
        .execute((&event.node, signed(event.seq)))?;
    let mut applied = Applied { seq: event.seq, ..Applied::default() };
    let live = live(connection, &event.lease_id, Some(&event.node))?
        .filter(|live| live.attempt == event.attempt && live.job == event.job);
    let Some(live) = live else { return Ok(applied) };
    match &event.kind {
        EventKind::Started(Some(receipt)) => {
            started(connection, event, &live, receipt, now_ms)?;
            applied.job = Some(live.job);
        }
        EventKind::Started(None) => {
            leases::revoke(connection, &event.lease_id, RefusalCode::LeaseRevoked)?;
            applied.revoke = Some(RefusalCode::LeaseRevoked);
            applied.job = Some(live.job);
        }
        EventKind::Finished { exit_code, reason, message, oom_killed } => {
            let end = match (exit_code, reason.is_empty()) {
                (Some(exit), true) => End::Exited(*exit),
                (None, true) => End::Refused(RefusalCode::NodeInternal.as_str().to_owned()),
                (_, false) => End::Refused(reason.clone()),
            };
            let told = Told { exit_code: *exit_code, message, oom_killed: *oom_killed };
            finish(connection, &event.lease_id, &live, &end, &told, now_ms)?;
            applied.job = Some(live.job);
        }
        EventKind::Unknown => {}
    }
    Ok(applied)
}

fn live(
    connection: &Connection,
    lease_id: &str,
    node: Option<&str>,
) -> Result<Option<Live>, StoreError> {
    let read = |row: &Row<'_>| -> rusqlite::Result<Live> {
        Ok(Live {
            attempt: small(row.get(0)?),
            job: row.get(1)?,
            started_ms: row.get(2)?,
            leased_ms: row.get(3)?,
            revoked: row.get(4)?,
        })
    };
    let found = connection
        .prepare_cached(
            "SELECT number, job, started_ms, leased_ms, revoked FROM attempts
             WHERE lease_id = ?1 AND ended_ms = 0 AND (?2 IS NULL OR node = ?2)",
        )?
        .query_row((lease_id, node), read)
        .optional()?;
    Ok(found)
}

fn started(
    connection: &Connection,
    event: &Event,
    live: &Live,
    receipt: &[u8],
    now_ms: i64,
) -> Result<(), StoreError> {
    if live.started_ms != 0 {
        return Ok(());
    }
    // The node's clock is a claim: it cannot have started before the lease or after now.
    let at_ms = event.at_ms.max(live.leased_ms).min(now_ms.max(live.leased_ms)).max(1);
    connection
        .prepare_cached("UPDATE attempts SET started_ms = ?2, receipt = ?3 WHERE lease_id = ?1")?
        .execute((&event.lease_id, at_ms, receipt))?;
    let head = present_head(connection, live)?;
    rows::move_job(
        connection,
        &live.job,
        &head,
        &Move { to: JobState::Running, ..Move::default() },
        now_ms,
    )
}

fn present_head(connection: &Connection, live: &Live) -> Result<rows::JobHead, StoreError> {
    rows::head(connection, &live.job)?
        .filter(|head| head.attempt == live.attempt)
        .ok_or_else(|| StoreError::Corrupt(format!("{} has a live attempt of the past", live.job)))
}

/// What the node said beside how it ended.
struct Told<'a> {
    exit_code: Option<i32>,
    message: &'a str,
    oom_killed: bool,
}

fn finish(
    connection: &Connection,
    lease_id: &str,
    live: &Live,
    end: &End,
    told: &Told<'_>,
    now_ms: i64,
) -> Result<(), StoreError> {
    let head = present_head(connection, live)?;
    let revoked = Some(live.revoked.as_str()).filter(|revoked| !revoked.is_empty());
    let next = decide::after_end(end, revoked, live.attempt, head.attempts_max);
    let lost = || Refusal::new(RefusalCode::NodeLost).to_string();
    let (reason, message) = match end {
        End::Exited(_) => ("", told.message.to_owned()),
        End::Refused(reason) => (reason.as_str(), told.message.to_owned()),
        End::Lost => (RefusalCode::NodeLost.as_str(), lost()),
    };
    connection
        .prepare_cached(
            "UPDATE attempts SET ended_ms = :now, exit_code = :exit, reason = :reason,
                message = :message, oom_killed = :oom WHERE lease_id = :lease",
        )?
        .execute(named_params! {
            ":now": now_ms.max(1), ":exit": told.exit_code, ":reason": reason,
            ":message": message, ":oom": told.oom_killed, ":lease": lease_id,
        })?;
    let own_words = |code: &str| match code.parse::<RefusalCode>() {
        Ok(known) if code != reason => Refusal::new(known).to_string(),
        Ok(_) | Err(_) => message.clone(),
    };
    let cancelled = RefusalCode::JobCancelled.as_str();
    let (to, reason, text, exit_code, not_before_ms) = match &next {
        Next::Done(exit) => (JobState::Done, "", String::new(), Some(*exit), None),
        Next::Dead(code) => (JobState::Dead, code.as_str(), own_words(code), None, None),
        Next::Cancelled => (JobState::Cancelled, cancelled, own_words(cancelled), None, None),
        Next::Retry(after) => {
            (JobState::Queued, "", String::new(), None, Some(now_ms.saturating_add(*after)))
        }
    };
    let change = Move { to, exit_code, reason, message: &text, not_before_ms, attempt: None };
    rows::move_job(connection, &live.job, &head, &change, now_ms)
}

pub(super) fn lose(
    connection: &Connection,
    lease_id: &str,
    now_ms: i64,
) -> Result<Option<String>, StoreError> {
    let Some(live) = live(connection, lease_id, None)? else { return Ok(None) };
    let told = Told { exit_code: None, message: "", oom_killed: false };
    finish(connection, lease_id, &live, &End::Lost, &told, now_ms)?;
    Ok(Some(live.job))
}

pub(super) fn expire_due(
    connection: &Connection,
    before_ms: i64,
    now_ms: i64,
) -> Result<Vec<Lost>, StoreError> {
    let limit = i64::try_from(SWEEP_BATCH).unwrap_or(i64::MAX);
    let due: Vec<(String, String)> = connection
        .prepare_cached(
            "SELECT lease_id, node FROM attempts WHERE ended_ms = 0 AND lease_until_ms < ?1 LIMIT ?2",
        )?
        .query_map((before_ms, limit), |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect::<Result<_, _>>()?;
    let mut lost = Vec::new();
    for (lease_id, node) in due {
        if let Some(job) = lose(connection, &lease_id, now_ms)? {
            lost.push(Lost { lease_id, job, node });
        }
    }
    Ok(lost)
}

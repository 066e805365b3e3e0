//! The memory of the control service: one SQLite database, one writer, several readers.
//!
//! Every method is a whole transaction with an intent, takes the time from its caller, and answers
//! only after what it did is on disk (WAL, `synchronous = FULL`). Writes from many callers share a
//! commit, each in its own savepoint, so that one refused request undoes only itself. Times are Unix
//! milliseconds.
//!
//! Invariants, property-tested in `tests.rs`: a job is in exactly one state; at most one attempt of
//! a job has not ended; attempts of a job are numbered 1, 2, 3 … without gaps; the counters of an
//! org equal what counting its jobs gives; what is done, dead or cancelled never changes again; at most
//! one live lease is claimed for a container of a node.

mod claims;
mod clock;
mod events;
mod jobs;
mod leases;
mod nodes;
mod policies;
mod quotas;
mod rows;
mod schema;
mod tickets;
mod writer;

#[cfg(test)]
mod tests;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use nimbus_api::error::Chain;
use nimbus_api::{Refusal, RefusalCode};
use rusqlite::{Connection, OpenFlags};
use tokio::sync::Semaphore;

use crate::limits::READERS;

pub(crate) use claims::{Answerable, ClaimTerms, Leased, NewClaim};
pub(crate) use clock::ClockRecord;
pub(crate) use events::{Event, EventKind, Lost};
pub(crate) use jobs::{Cancelled, JobPage, NewJob};
pub(crate) use leases::{LeaseTerms, LiveLease, Offer};
pub(crate) use nodes::{JoinNode, NodeHello, NodeRow};
pub(crate) use policies::PolicyRow;
pub(crate) use quotas::QuotaRow;
pub(crate) use rows::Listed;
pub use schema::OpenError;
pub(crate) use tickets::{NewTicket, TicketRow};

/// The open store.
#[derive(Clone)]
pub(crate) struct Store {
    writer: writer::Writer,
    readers: Arc<Readers>,
}

struct Readers {
    path: PathBuf,
    idle: Mutex<Vec<Connection>>,
    permits: Arc<Semaphore>,
}

/// Why a request to the store gave nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    /// The database failed.
    #[error("the database failed")]
    Sqlite(#[source] rusqlite::Error),
    /// The writer is gone.
    #[error("the store is closed")]
    Closed,
    /// A row that this version cannot have written.
    #[error("the database holds a row that cannot be read: {0}")]
    Corrupt(String),
    /// The request cannot be granted as things are.
    #[error("the request was refused")]
    Refused(#[source] Refusal),
    /// A node's event came out of turn.
    #[error("expected event {expected}, found {found}")]
    Gap {
        /// The next sequence number.
        expected: u64,
        /// The one that came.
        found: u64,
    },
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error)
    }
}

impl From<RefusalCode> for StoreError {
    fn from(code: RefusalCode) -> Self {
        Self::Refused(code.into())
    }
}

impl StoreError {
    /// What the caller is told: its own refusal, or that control cannot answer (and the log says why).
    pub(crate) fn into_refusal(self) -> Refusal {
        match self {
            Self::Refused(refusal) => refusal,
            Self::Sqlite(_) | Self::Closed | Self::Corrupt(_) | Self::Gap { .. } => {
                tracing::error!(error = %Chain(&self), "store");
                Refusal::new(RefusalCode::ControlUnavailable)
            }
        }
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").field("path", &self.readers.path).finish_non_exhaustive()
    }
}

impl Store {
    /// Opens or makes the database and brings it to this version's schema. Refuses a newer schema,
    /// and a clock that is behind the last time in it.
    pub(crate) fn open(path: &Path, now_ms: i64) -> Result<Self, OpenError> {
        let connection = schema::open(path, now_ms)?;
        let writer = writer::Writer::start(connection).map_err(OpenError::Thread)?;
        let readers = Readers {
            path: path.to_owned(),
            idle: Mutex::new(Vec::new()),
            permits: Arc::new(Semaphore::new(READERS)),
        };
        Ok(Self { writer, readers: Arc::new(readers) })
    }

    /// Runs a change in the writer and answers after its commit.
    pub(crate) async fn write<T: Send + 'static>(
        &self,
        now_ms: i64,
        change: impl FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.writer.run(now_ms, change).await
    }

    /// Runs a question on a connection of its own.
    pub(crate) async fn read<T: Send + 'static>(
        &self,
        question: impl FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let readers = Arc::clone(&self.readers);
        let permit = Arc::clone(&self.readers.permits).acquire_owned().await;
        let permit = permit.map_err(|_closed| StoreError::Closed)?;
        let ran = tokio::task::spawn_blocking(move || {
            // Given back when the question has been answered, not when nobody waits for it any more.
            let _permit = permit;
            let connection = readers.take()?;
            // One snapshot for all statements of a question.
            connection.execute_batch("BEGIN")?;
            let answer = question(&connection);
            connection.execute_batch("ROLLBACK")?;
            readers.idle.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
            answer
        });
        ran.await.unwrap_or(Err(StoreError::Closed))
    }

    /// Commits what is under way and closes the database.
    pub(crate) async fn close(&self) {
        self.writer.close().await;
        self.readers.idle.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

impl Readers {
    fn take(&self) -> Result<Connection, StoreError> {
        if let Some(connection) = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop() {
            return Ok(connection);
        }
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(&self.path, flags)?;
        connection.set_prepared_statement_cache_capacity(64);
        Ok(connection)
    }
}

/// A number as SQLite keeps it.
pub(crate) fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// A number that SQLite kept.
pub(crate) fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

/// A small number that SQLite kept.
pub(crate) fn small(number: i64) -> u32 {
    u32::try_from(number).unwrap_or(0)
}

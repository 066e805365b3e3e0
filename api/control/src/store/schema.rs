//! Opening the database: settings, migrations, and what stops a start.

use std::path::{Path, PathBuf};

use rusqlite::{Connection, OptionalExtension as _};

use crate::limits::CLOCK_BACK_MS_MAX;

/// Pages of WAL after which a commit moves them into the database.
const CHECKPOINT_PAGES: i64 = 4000;

/// One step each; a database at version N has had the first N. Never change one that was released.
const MIGRATIONS: &[&str] = &[
    include_str!("../../migrations/0001_first.sql"),
    include_str!("../../migrations/0002_clock.sql"),
    include_str!("../../migrations/0003_claims.sql"),
];

/// Why the store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The database failed.
    #[error("cannot open the database {}", path.display())]
    Sqlite {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: rusqlite::Error,
    },
    /// A newer version wrote it.
    #[error(
        "the database has schema {found}, this version knows up to {known}; use the newer version"
    )]
    SchemaNewer {
        /// Found.
        found: i64,
        /// Known.
        known: i64,
    },
    /// The clock went back.
    #[error(
        "the clock is {behind_ms} ms behind the last time in the database; set the clock right"
    )]
    ClockBack {
        /// By how much.
        behind_ms: i64,
    },
    /// No thread.
    #[error("cannot start the writer")]
    Thread(#[source] std::io::Error),
}

pub(super) fn open(path: &Path, now_ms: i64) -> Result<Connection, OpenError> {
    let sqlite = |source| OpenError::Sqlite { path: path.to_owned(), source };
    let mut connection = Connection::open(path).map_err(sqlite)?;
    configure(&connection).map_err(sqlite)?;
    migrate(&mut connection, now_ms).map_err(|error| match error {
        Migrate::Sqlite(source) => sqlite(source),
        Migrate::Newer(error) => error,
    })?;
    let last = last_time(&connection).map_err(sqlite)?;
    let behind_ms = last.saturating_sub(now_ms);
    if behind_ms > CLOCK_BACK_MS_MAX {
        return Err(OpenError::ClockBack { behind_ms });
    }
    Ok(connection)
}

fn configure(connection: &Connection) -> Result<(), rusqlite::Error> {
    connection.set_prepared_statement_cache_capacity(128);
    // page_size before the first table; WAL and FULL: a commit is on disk before it is answered.
    connection.execute_batch("PRAGMA page_size = 4096; PRAGMA foreign_keys = ON;")?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    // The WAL file keeps its size: a commit that grows a file costs a journal commit of the
    // file system more.
    connection.pragma_update(None, "journal_size_limit", -1)?;
    connection.pragma_update(None, "wal_autocheckpoint", CHECKPOINT_PAGES)
}

enum Migrate {
    Sqlite(rusqlite::Error),
    Newer(OpenError),
}

impl From<rusqlite::Error> for Migrate {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error)
    }
}

fn migrate(connection: &mut Connection, now_ms: i64) -> Result<(), Migrate> {
    let found: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    let known = i64::try_from(MIGRATIONS.len()).unwrap_or(i64::MAX);
    if found > known {
        return Err(Migrate::Newer(OpenError::SchemaNewer { found, known }));
    }
    for (index, step) in MIGRATIONS.iter().enumerate() {
        let version = i64::try_from(index).unwrap_or(i64::MAX).saturating_add(1);
        if version <= found {
            continue;
        }
        let transaction = connection.transaction()?;
        transaction.execute_batch(step)?;
        record_time(&transaction, now_ms)?;
        transaction.pragma_update(None, "user_version", version)?;
        transaction.commit()?;
    }
    Ok(())
}

/// Remembers the highest time that anything was written at.
pub(super) fn record_time(connection: &Connection, now_ms: i64) -> Result<(), rusqlite::Error> {
    connection
        .prepare_cached("UPDATE meta SET value = max(value, ?1) WHERE name = 'last_time_ms'")?
        .execute([now_ms])
        .map(|_rows| ())
}

fn last_time(connection: &Connection) -> Result<i64, rusqlite::Error> {
    let found = connection
        .query_row("SELECT value FROM meta WHERE name = 'last_time_ms'", [], |row| row.get(0))
        .optional()?;
    Ok(found.unwrap_or(i64::MIN))
}

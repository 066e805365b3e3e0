//! What was last seen of the machine's clocks, so that a step while control was down is noticed.

use nimbus_api::clock::BootNanos;
use rusqlite::{Connection, OptionalExtension as _};

use super::{Store, StoreError, signed, unsigned};

/// The machine's clocks as they were seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ClockRecord {
    /// Of which boot of the machine the other two speak.
    pub(crate) boot_id: String,
    /// Wall clock minus time since boot, milliseconds.
    pub(crate) offset_ms: i64,
    /// No lease counts as run out before.
    pub(crate) not_before: BootNanos,
}

impl Store {
    /// The clocks as they were last recorded; none in a new store.
    pub(crate) async fn clock(&self) -> Result<Option<ClockRecord>, StoreError> {
        self.read(read).await
    }

    /// Records the clocks.
    pub(crate) async fn note_clock(
        &self,
        record: ClockRecord,
        now_ms: i64,
    ) -> Result<(), StoreError> {
        self.write(now_ms, move |connection| note(connection, &record)).await
    }
}

fn read(connection: &Connection) -> Result<Option<ClockRecord>, StoreError> {
    let found = connection
        .prepare_cached("SELECT boot_id, offset_ms, not_before_ns FROM clock")?
        .query_row([], |row| {
            Ok(ClockRecord {
                boot_id: row.get(0)?,
                offset_ms: row.get(1)?,
                not_before: BootNanos(unsigned(row.get(2)?)),
            })
        })
        .optional()?;
    Ok(found)
}

fn note(connection: &Connection, record: &ClockRecord) -> Result<(), StoreError> {
    connection
        .prepare_cached(
            "INSERT OR REPLACE INTO clock (only, boot_id, offset_ms, not_before_ns)
             VALUES (1, ?1, ?2, ?3)",
        )?
        .execute((&record.boot_id, record.offset_ms, signed(record.not_before.0)))?;
    Ok(())
}

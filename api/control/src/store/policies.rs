//! Policy documents as they were handed over. Control cannot check their signature.

use nimbus_api::{Digest, Refusal, RefusalCode};
use rusqlite::{Connection, OptionalExtension as _};

use super::{Store, StoreError, signed, unsigned};

/// A policy document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PolicyRow {
    pub(crate) serial: u64,
    pub(crate) id: String,
    pub(crate) not_after_ms: i64,
    pub(crate) document: Digest,
    pub(crate) envelope: Vec<u8>,
}

impl Store {
    /// The policy with the highest serial.
    pub(crate) async fn policy(&self) -> Result<Option<PolicyRow>, StoreError> {
        self.read(read).await
    }

    /// Keeps a policy whose serial is higher than the present one's. The very same document again
    /// is no error.
    pub(crate) async fn apply_policy(
        &self,
        policy: PolicyRow,
        now_ms: i64,
    ) -> Result<(), StoreError> {
        self.write(now_ms, move |connection| apply(connection, &policy, now_ms)).await
    }
}

fn read(connection: &Connection) -> Result<Option<PolicyRow>, StoreError> {
    let found = connection
        .prepare_cached(
            "SELECT serial, id, not_after_ms, document_sha256, envelope FROM policies
             ORDER BY serial DESC LIMIT 1",
        )?
        .query_row([], |row| {
            let document: [u8; 32] = row.get(3)?;
            Ok(PolicyRow {
                serial: unsigned(row.get(0)?),
                id: row.get(1)?,
                not_after_ms: row.get(2)?,
                document: Digest::from_bytes(document),
                envelope: row.get(4)?,
            })
        })
        .optional()?;
    Ok(found)
}

fn apply(connection: &Connection, policy: &PolicyRow, now_ms: i64) -> Result<(), StoreError> {
    if let Some(present) = read(connection)? {
        if present.serial == policy.serial && present.envelope == policy.envelope {
            return Ok(());
        }
        if present.serial >= policy.serial {
            let detail = format!("found {}, expected more than {}", policy.serial, present.serial);
            return Err(StoreError::Refused(Refusal::with(RefusalCode::PolicyRolledBack, detail)));
        }
    }
    connection
        .prepare_cached(
            "INSERT INTO policies (serial, id, not_after_ms, document_sha256, envelope, applied_ms)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        )?
        .execute((
            signed(policy.serial),
            &policy.id,
            policy.not_after_ms,
            &policy.document.as_bytes()[..],
            &policy.envelope,
            now_ms,
        ))?;
    Ok(())
}

//! Quotas of orgs.

use nimbus_api::Refusal;
use nimbus_api::RefusalCode;
use rusqlite::{Connection, OptionalExtension as _};

use super::{Store, StoreError, rows, small};
use crate::limits::{QUOTA_QUEUED_DEFAULT, QUOTA_RUNNING_DEFAULT};

/// Quota and use of an org.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct QuotaRow {
    pub(crate) max_running: u32,
    pub(crate) max_queued: u32,
    pub(crate) running: u32,
    pub(crate) queued: u32,
    /// Changes with every change of the quota.
    pub(crate) version: u32,
}

impl Store {
    /// The quota of an org; the default one when it has none.
    pub(crate) async fn quota(&self, org: String) -> Result<QuotaRow, StoreError> {
        self.read(move |connection| read(connection, &org)).await
    }

    /// Sets the quota of an org. A version, when given, must be the present one.
    pub(crate) async fn set_quota(
        &self,
        org: String,
        max: (u32, u32),
        version: Option<u32>,
        now_ms: i64,
    ) -> Result<QuotaRow, StoreError> {
        self.write(now_ms, move |connection| set(connection, &org, max, version)).await
    }
}

fn read(connection: &Connection, org: &str) -> Result<QuotaRow, StoreError> {
    let found = connection
        .prepare_cached(
            "SELECT max_running, max_queued, running, queued, quota_version FROM orgs WHERE org = ?1",
        )?
        .query_row([org], |row| {
            Ok(QuotaRow {
                max_running: small(row.get(0)?),
                max_queued: small(row.get(1)?),
                running: small(row.get(2)?),
                queued: small(row.get(3)?),
                version: small(row.get(4)?),
            })
        })
        .optional()?;
    Ok(found.unwrap_or(QuotaRow {
        max_running: QUOTA_RUNNING_DEFAULT,
        max_queued: QUOTA_QUEUED_DEFAULT,
        running: 0,
        queued: 0,
        version: 1,
    }))
}

fn set(
    connection: &Connection,
    org: &str,
    (running, queued): (u32, u32),
    version: Option<u32>,
) -> Result<QuotaRow, StoreError> {
    let present = read(connection, org)?;
    if version.is_some_and(|version| version != present.version) {
        let detail = "etag: the quota has changed since it was read";
        return Err(StoreError::Refused(Refusal::with(RefusalCode::RequestConflict, detail)));
    }
    rows::ensure_org(connection, org)?;
    connection
        .prepare_cached(
            "UPDATE orgs SET max_running = ?2, max_queued = ?3, quota_version = quota_version + 1
             WHERE org = ?1",
        )?
        .execute((org, running, queued))?;
    read(connection, org)
}

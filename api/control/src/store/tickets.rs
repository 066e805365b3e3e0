//! Tickets: what pods show to be leased, kept as hashes, and which pods have.
//!
//! A ticket is redeemed by the first container of a pod that shows it; the other containers of that
//! sandbox use the same redemption, also after the ticket's end, until it is revoked.

use nimbus_api::proto::control::v1 as pb;
use nimbus_api::{Digest, Refusal, RefusalCode};
use prost::Message as _;
use rusqlite::{Connection, OptionalExtension as _, Row, named_params};

use super::{Store, StoreError, small};
use crate::limits::{TICKET_KEPT_MS, TICKETS_PER_ORG_MAX};

/// A ticket that has been checked.
#[derive(Debug, Clone)]
pub(crate) struct NewTicket {
    /// Its public id.
    pub(crate) ticket: String,
    pub(crate) org: String,
    /// SHA-256 of the secret.
    pub(crate) secret: Digest,
    /// The only node that it is good on; empty is any.
    pub(crate) node: String,
    pub(crate) max_uses: u32,
    pub(crate) bundles: Vec<Vec<u8>>,
    pub(crate) expires_ms: i64,
}

/// A ticket as it is listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TicketRow {
    pub(crate) ticket: String,
    pub(crate) org: String,
    pub(crate) node: String,
    pub(crate) max_uses: u32,
    pub(crate) uses: u32,
    pub(crate) created_ms: i64,
    pub(crate) expires_ms: i64,
    pub(crate) revoked_ms: i64,
}

/// What a redeemed ticket says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Redeemed {
    pub(super) ticket: String,
    pub(super) org: String,
}

impl Redeemed {
    /// Its resource name.
    pub(super) fn name(&self) -> String {
        format!("orgs/{}/tickets/{}", self.org, self.ticket)
    }
}

impl Store {
    /// Keeps a new ticket.
    pub(crate) async fn add_ticket(
        &self,
        new: NewTicket,
        now_ms: i64,
    ) -> Result<TicketRow, StoreError> {
        self.write(now_ms, move |connection| add(connection, &new, now_ms)).await
    }

    /// Tickets of an org, newest first, with ids lower than this.
    pub(crate) async fn tickets(
        &self,
        org: String,
        before: Option<String>,
        size: u32,
    ) -> Result<Vec<TicketRow>, StoreError> {
        self.read(move |connection| {
            let mut statement = connection.prepare_cached(&format!(
                "SELECT {COLUMNS} FROM tickets WHERE org = ?1 AND (?2 IS NULL OR ticket < ?2)
                 ORDER BY ticket DESC LIMIT ?3"
            ))?;
            let rows = statement.query_map((org, before, size), row_of)?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
        .await
    }

    /// No further container is leased by it.
    pub(crate) async fn revoke_ticket(
        &self,
        org: String,
        ticket: String,
        now_ms: i64,
    ) -> Result<TicketRow, StoreError> {
        self.write(now_ms, move |connection| revoke(connection, &org, &ticket, now_ms)).await
    }

    /// Forgets tickets that ended long ago and that no pod runs by.
    pub(crate) async fn forget_tickets(&self, now_ms: i64) -> Result<usize, StoreError> {
        self.write(now_ms, move |connection| forget(connection, now_ms)).await
    }
}

const COLUMNS: &str = "ticket, org, node, uses_max, uses, created_ms, expires_ms, revoked_ms";

fn row_of(row: &Row<'_>) -> rusqlite::Result<TicketRow> {
    Ok(TicketRow {
        ticket: row.get(0)?,
        org: row.get(1)?,
        node: row.get(2)?,
        max_uses: small(row.get(3)?),
        uses: small(row.get(4)?),
        created_ms: row.get(5)?,
        expires_ms: row.get(6)?,
        revoked_ms: row.get(7)?,
    })
}

fn read(connection: &Connection, org: &str, ticket: &str) -> Result<TicketRow, StoreError> {
    let found = connection
        .prepare_cached(&format!("SELECT {COLUMNS} FROM tickets WHERE org = ?1 AND ticket = ?2"))?
        .query_row((org, ticket), row_of)
        .optional()?;
    found.ok_or_else(|| RefusalCode::TicketNotFound.into())
}

pub(super) fn add(
    connection: &Connection,
    new: &NewTicket,
    now_ms: i64,
) -> Result<TicketRow, StoreError> {
    let held: i64 = connection
        .prepare_cached("SELECT count(*) FROM tickets WHERE org = ?1")?
        .query_row([&new.org], |row| row.get(0))?;
    if held >= TICKETS_PER_ORG_MAX {
        let found = format!("{held} tickets of {}, at most {TICKETS_PER_ORG_MAX}", new.org);
        return Err(StoreError::Refused(Refusal::with(RefusalCode::QuotaTickets, found)));
    }
    let bundles = pb::JobSpec { bundles: new.bundles.clone(), ..Default::default() };
    connection
        .prepare_cached(
            "INSERT INTO tickets (ticket, org, secret_sha256, node, uses_max, bundles, created_ms,
                expires_ms)
             VALUES (:ticket, :org, :secret, :node, :uses, :bundles, :now, :expires)",
        )?
        .execute(named_params! {
            ":ticket": new.ticket, ":org": new.org, ":secret": &new.secret.as_bytes()[..],
            ":node": new.node, ":uses": new.max_uses, ":bundles": bundles.encode_to_vec(),
            ":now": now_ms, ":expires": new.expires_ms,
        })?;
    read(connection, &new.org, &new.ticket)
}

pub(super) fn revoke(
    connection: &Connection,
    org: &str,
    ticket: &str,
    now_ms: i64,
) -> Result<TicketRow, StoreError> {
    connection
        .prepare_cached(
            "UPDATE tickets SET revoked_ms = ?3 WHERE org = ?1 AND ticket = ?2 AND revoked_ms = 0",
        )?
        .execute((org, ticket, now_ms.max(1)))?;
    read(connection, org, ticket)
}

pub(super) fn forget(connection: &Connection, now_ms: i64) -> Result<usize, StoreError> {
    let before = now_ms.saturating_sub(TICKET_KEPT_MS);
    let forgotten = connection
        .prepare_cached(
            "DELETE FROM tickets WHERE expires_ms < ?1 AND NOT EXISTS (
                SELECT 1 FROM redemptions JOIN claimed ON claimed.node = redemptions.node
                    AND claimed.namespace = ?2 AND claimed.container = redemptions.sandbox
                JOIN attempts USING (job)
                WHERE redemptions.ticket = tickets.ticket AND attempts.ended_ms = 0)",
        )?
        .execute((before, nimbus_api::policy::CRI_NAMESPACE))?;
    Ok(forgotten)
}

/// Uses a ticket for a pod, once for each; says whose it is.
pub(super) fn redeem(
    connection: &Connection,
    secret: &Digest,
    (node, sandbox): (&str, &str),
    now_ms: i64,
) -> Result<Redeemed, StoreError> {
    let invalid =
        |found: &str| StoreError::Refused(Refusal::with(RefusalCode::ClaimTicketInvalid, found));
    let found = connection
        .prepare_cached(&format!("SELECT {COLUMNS} FROM tickets WHERE secret_sha256 = ?1"))?
        .query_row([&secret.as_bytes()[..]], row_of)
        .optional()?;
    let ticket = found.ok_or_else(|| invalid("it is not known"))?;
    if ticket.revoked_ms != 0 {
        return Err(invalid("it was revoked"));
    }
    if !ticket.node.is_empty() && ticket.node != node {
        return Err(invalid("it is for another node"));
    }
    let redeemed = Redeemed { ticket: ticket.ticket, org: ticket.org };
    let known: bool = connection
        .prepare_cached(
            "SELECT EXISTS (SELECT 1 FROM redemptions
                WHERE ticket = ?1 AND node = ?2 AND sandbox = ?3)",
        )?
        .query_row((&redeemed.ticket, node, sandbox), |row| row.get(0))?;
    if known {
        return Ok(redeemed);
    }
    if ticket.expires_ms <= now_ms {
        return Err(invalid("it has ended"));
    }
    if ticket.uses >= ticket.max_uses {
        return Err(invalid("it is used up"));
    }
    connection
        .prepare_cached(
            "INSERT INTO redemptions (ticket, node, sandbox, redeemed_ms) VALUES (?1, ?2, ?3, ?4)",
        )?
        .execute((&redeemed.ticket, node, sandbox, now_ms))?;
    connection
        .prepare_cached("UPDATE tickets SET uses = uses + 1 WHERE ticket = ?1")?
        .execute([&redeemed.ticket])?;
    Ok(redeemed)
}

//! Join tokens and nodes.

use nimbus_api::proto::control::v1::Resources;
use nimbus_api::{Digest, Refusal, RefusalCode};
use prost::Message as _;
use rusqlite::{Connection, OptionalExtension as _, Row};

use super::{Store, StoreError, rows, signed, small, unsigned};

/// A node.
#[derive(Debug, Clone)]
pub(crate) struct NodeRow {
    pub(crate) node: String,
    pub(crate) thumbprint: Digest,
    pub(crate) spki: Vec<u8>,
    pub(crate) last_seen_ms: i64,
    pub(crate) version: String,
    pub(crate) policy_serial: u64,
    pub(crate) capacity: Resources,
    pub(crate) max_jobs: u32,
    pub(crate) running: u32,
}

/// A machine that wants to be a node.
#[derive(Debug, Clone)]
pub(crate) struct JoinNode {
    /// SHA-256 of the token's secret.
    pub(crate) secret: Digest,
    /// SubjectPublicKeyInfo of the identity key.
    pub(crate) spki: Vec<u8>,
}

/// What a node says of itself.
#[derive(Debug, Clone)]
pub(crate) struct NodeHello {
    pub(crate) version: String,
    pub(crate) policy_serial: u64,
    pub(crate) capacity: Resources,
    pub(crate) max_jobs: u32,
}

impl Store {
    /// Keeps the hash of a join token.
    pub(crate) async fn add_token(
        &self,
        secret: Digest,
        node: String,
        expires_ms: i64,
        now_ms: i64,
    ) -> Result<(), StoreError> {
        self.write(now_ms, move |connection| {
            connection
                .prepare_cached("DELETE FROM tokens WHERE expires_ms <= ?1")?
                .execute([now_ms])?;
            connection
                .prepare_cached(
                    "INSERT INTO tokens (secret_sha256, node, expires_ms) VALUES (?1, ?2, ?3)",
                )?
                .execute((&secret.as_bytes()[..], node, expires_ms))?;
            Ok(())
        })
        .await
    }

    /// Uses up a token and makes the node; its name.
    pub(crate) async fn join(&self, join: JoinNode, now_ms: i64) -> Result<String, StoreError> {
        self.write(now_ms, move |connection| take_token(connection, &join, now_ms)).await
    }

    /// One node.
    pub(crate) async fn node(&self, node: String) -> Result<Option<NodeRow>, StoreError> {
        self.read(move |connection| {
            let mut statement = connection
                .prepare_cached(&format!("SELECT {COLUMNS} FROM nodes WHERE node = ?1"))?;
            Ok(statement.query_row([node], node_of).optional()?)
        })
        .await
    }

    /// Nodes in the order of their names.
    pub(crate) async fn nodes(&self, after: String, size: u32) -> Result<Vec<NodeRow>, StoreError> {
        self.read(move |connection| {
            let text =
                format!("SELECT {COLUMNS} FROM nodes WHERE node > ?1 ORDER BY node LIMIT ?2");
            let mut statement = connection.prepare_cached(&text)?;
            let rows = statement.query_map((after, size), node_of)?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
        .await
    }

    /// Records what a node said in its hello; the sequence number of its last event.
    pub(crate) async fn hello(
        &self,
        node: String,
        hello: NodeHello,
        now_ms: i64,
    ) -> Result<u64, StoreError> {
        self.write(now_ms, move |connection| {
            connection
                .prepare_cached(
                    "UPDATE nodes SET version = ?2, policy_serial = ?3, capacity = ?4, max_jobs = ?5,
                        last_seen_ms = max(last_seen_ms, ?6) WHERE node = ?1",
                )?
                .execute((
                    &node,
                    &hello.version,
                    signed(hello.policy_serial),
                    hello.capacity.encode_to_vec(),
                    hello.max_jobs,
                    now_ms,
                ))?;
            let seq: i64 = connection
                .prepare_cached("SELECT event_seq FROM nodes WHERE node = ?1")?
                .query_row([&node], |row| row.get(0))?;
            Ok(unsigned(seq))
        })
        .await
    }

    /// Records which policy is in force on a node.
    pub(crate) async fn node_policy(
        &self,
        node: String,
        serial: u64,
        now_ms: i64,
    ) -> Result<(), StoreError> {
        self.write(now_ms, move |connection| {
            connection
                .prepare_cached("UPDATE nodes SET policy_serial = ?2 WHERE node = ?1")?
                .execute((node, signed(serial)))?;
            Ok(())
        })
        .await
    }

    /// Records when a node was last heard of.
    pub(crate) async fn seen(&self, node: String, now_ms: i64) -> Result<(), StoreError> {
        self.write(now_ms, move |connection| {
            connection
                .prepare_cached(
                    "UPDATE nodes SET last_seen_ms = max(last_seen_ms, ?2) WHERE node = ?1",
                )?
                .execute((node, now_ms))?;
            Ok(())
        })
        .await
    }

    /// Store generation and the highest key set serial.
    pub(crate) async fn key_state(&self) -> Result<(u64, u64), StoreError> {
        self.read(|connection| {
            Ok((rows::meta(connection, "generation")?, rows::meta(connection, "key_set_serial")?))
        })
        .await
    }

    /// Remembers the serial of a key set, so that a lost file cannot turn it back.
    pub(crate) async fn note_key_set(&self, serial: u64, now_ms: i64) -> Result<(), StoreError> {
        self.write(now_ms, move |connection| {
            connection
                .prepare_cached(
                    "UPDATE meta SET value = ?1 WHERE name = 'key_set_serial' AND value < ?1",
                )?
                .execute([signed(serial)])?;
            Ok(())
        })
        .await
    }
}

const COLUMNS: &str = "node, thumbprint, spki, last_seen_ms, version, policy_serial, \
    capacity, max_jobs, (SELECT count(*) FROM attempts \
    WHERE attempts.node = nodes.node AND ended_ms = 0)";

fn node_of(row: &Row<'_>) -> rusqlite::Result<NodeRow> {
    let capacity: Vec<u8> = row.get(6)?;
    Ok(NodeRow {
        node: row.get(0)?,
        thumbprint: Digest::from_bytes(row.get(1)?),
        spki: row.get(2)?,
        last_seen_ms: row.get(3)?,
        version: row.get(4)?,
        policy_serial: unsigned(row.get(5)?),
        capacity: Resources::decode(capacity.as_slice()).unwrap_or_default(),
        max_jobs: small(row.get(7)?),
        running: small(row.get(8)?),
    })
}

pub(super) fn take_token(
    connection: &Connection,
    join: &JoinNode,
    now_ms: i64,
) -> Result<String, StoreError> {
    let secret = &join.secret.as_bytes()[..];
    let node: Option<String> = connection
        .prepare_cached("SELECT node FROM tokens WHERE secret_sha256 = ?1 AND expires_ms > ?2")?
        .query_row((secret, now_ms), |row| row.get(0))
        .optional()?;
    let node = node.ok_or(RefusalCode::JoinTokenInvalid)?;
    let thumbprint = Digest::of(&join.spki);
    let known: Option<[u8; 32]> = connection
        .prepare_cached("SELECT thumbprint FROM nodes WHERE node = ?1")?
        .query_row([&node], |row| row.get(0))
        .optional()?;
    match known {
        Some(known) if Digest::from_bytes(known) != thumbprint => {
            let detail = "a node of this name exists with another key";
            return Err(StoreError::Refused(Refusal::with(RefusalCode::RequestForbidden, detail)));
        }
        Some(_same) => {}
        None => {
            let other: i64 = connection
                .prepare_cached("SELECT count(*) FROM nodes WHERE thumbprint = ?1")?
                .query_row([&thumbprint.as_bytes()[..]], |row| row.get(0))?;
            if other != 0 {
                let detail = "this key is another node's";
                return Err(StoreError::Refused(Refusal::with(
                    RefusalCode::RequestForbidden,
                    detail,
                )));
            }
            connection
                .prepare_cached(
                    "INSERT INTO nodes (node, thumbprint, spki, joined_ms) VALUES (?1, ?2, ?3, ?4)",
                )?
                .execute((&node, &thumbprint.as_bytes()[..], &join.spki, now_ms))?;
        }
    }
    connection.prepare_cached("DELETE FROM tokens WHERE secret_sha256 = ?1")?.execute([secret])?;
    Ok(node)
}

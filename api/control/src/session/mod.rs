//! The link to the nodes: which are here now, and the way to tell them something.
//!
//! One live session a node; a newer one ends the older by taking its place. Whoever wants to tell a
//! node something puts a [`Command`] into its session's bounded queue. A session that cannot keep up
//! is ended: everything that a command says is durable in the store, and the next session begins by
//! comparing.

mod claims;
mod outbox;
mod receipt;
mod run;
mod service;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nimbus_api::clock::BootNanos;
use nimbus_api::lease::{LeaseClaims, NONCE_BYTES};
use nimbus_api::proto::control::v1::Resources;
use nimbus_api::{Digest, RefusalCode};
use tokio::sync::mpsc;

use crate::limits::{NONCE_FRESH, SESSION_COMMANDS};
use crate::store::Offer;

pub(crate) use service::{SessionService, certificate};

/// What a node is to be told.
#[derive(Debug, Clone)]
pub(crate) enum Command {
    /// A new lease, already durable.
    Grant(Box<LeaseClaims>),
    /// A lease is over.
    Revoke {
        /// Which.
        lease_id: String,
        /// Why.
        code: RefusalCode,
    },
    /// A new key set (DSSE).
    KeySet(Arc<[u8]>),
    /// A new policy (DSSE).
    Policy(Arc<[u8]>),
}

/// What is known of a node that is here.
#[derive(Debug, Clone)]
pub(crate) struct Present {
    pub(crate) thumbprint: Digest,
    pub(crate) platform: String,
    pub(crate) capacity: Resources,
    pub(crate) max_jobs: u32,
    /// Whether the node reads the leases that we make.
    pub(crate) reads_leases: bool,
    pub(crate) nonce: [u8; NONCE_BYTES],
    /// When that nonce came, on our clock.
    pub(crate) nonce_at: BootNanos,
    pub(crate) last_seen_ms: i64,
}

impl Present {
    fn is_fresh(&self, now: BootNanos) -> bool {
        self.nonce_at.until(now) <= NONCE_FRESH
    }
}

struct Entry {
    id: u64,
    commands: mpsc::Sender<Command>,
    present: Present,
}

impl Entry {
    /// What the node can take now.
    fn offer(&self, node: &str, now: BootNanos) -> Option<Offer> {
        let ready =
            self.present.reads_leases && self.present.is_fresh(now) && !self.commands.is_closed();
        ready.then(|| Offer {
            node: node.to_owned(),
            thumbprint: self.present.thumbprint,
            platform: self.present.platform.clone(),
            capacity: self.present.capacity,
            max_jobs: self.present.max_jobs,
            nonce: self.present.nonce,
        })
    }
}

/// Who is here.
#[derive(Clone, Default)]
pub(crate) struct Registry(Arc<Mutex<Sessions>>);

#[derive(Default)]
struct Sessions {
    next_id: u64,
    by_node: HashMap<String, Entry>,
}

impl std::fmt::Debug for Registry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registry").field("sessions", &self.lock().by_node.len()).finish()
    }
}

impl Registry {
    fn lock(&self) -> MutexGuard<'_, Sessions> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a node's place; whoever had it sees its commands end.
    pub(crate) fn enter(&self, node: &str, present: Present) -> (u64, mpsc::Receiver<Command>) {
        let (commands, receiver) = mpsc::channel(SESSION_COMMANDS);
        let mut sessions = self.lock();
        sessions.next_id = sessions.next_id.saturating_add(1);
        let id = sessions.next_id;
        sessions.by_node.insert(node.to_owned(), Entry { id, commands, present });
        (id, receiver)
    }

    /// Leaves the place, if it is still this session's.
    pub(crate) fn leave(&self, node: &str, id: u64) {
        let mut sessions = self.lock();
        if sessions.by_node.get(node).is_some_and(|entry| entry.id == id) {
            sessions.by_node.remove(node);
        }
    }

    /// Records a heartbeat; whether the nonce before it was too old to lease with. None when the
    /// place has been taken.
    pub(crate) fn beat(
        &self,
        (node, id): (&str, u64),
        nonce: [u8; NONCE_BYTES],
        now: BootNanos,
        now_ms: i64,
    ) -> Option<bool> {
        let mut sessions = self.lock();
        let entry = sessions.by_node.get_mut(node).filter(|entry| entry.id == id)?;
        let was_stale = !entry.present.is_fresh(now);
        (entry.present.nonce, entry.present.nonce_at) = (nonce, now);
        entry.present.last_seen_ms = now_ms;
        Some(was_stale)
    }

    /// The newest nonce of a node, if it is fresh.
    pub(crate) fn nonce(&self, node: &str, now: BootNanos) -> Option<[u8; NONCE_BYTES]> {
        let sessions = self.lock();
        let entry = sessions.by_node.get(node)?;
        entry.present.is_fresh(now).then_some(entry.present.nonce)
    }

    /// Tells a node something. A node that is not here is told when it comes back, by comparing.
    pub(crate) fn tell(&self, node: &str, command: Command) {
        let mut sessions = self.lock();
        let Some(entry) = sessions.by_node.get(node) else { return };
        if entry.commands.try_send(command).is_err() {
            tracing::warn!(node, "the session does not keep up and is ended");
            sessions.by_node.remove(node);
        }
    }

    /// Tells every node that is here.
    pub(crate) fn tell_all(&self, command: &Command) {
        let nodes: Vec<_> = self.lock().by_node.keys().cloned().collect();
        for node in nodes {
            self.tell(&node, command.clone());
        }
    }

    /// Nodes that can take leases now.
    pub(crate) fn offers(&self, now: BootNanos) -> Vec<Offer> {
        let sessions = self.lock();
        sessions.by_node.iter().filter_map(|(node, entry)| entry.offer(node, now)).collect()
    }

    /// A node, if it can take leases now.
    pub(crate) fn offer(&self, node: &str, now: BootNanos) -> Option<Offer> {
        self.lock().by_node.get(node)?.offer(node, now)
    }

    /// When a node that is here was last heard of; none when it is not here.
    pub(crate) fn last_seen_ms(&self, node: &str) -> Option<i64> {
        self.lock().by_node.get(node).map(|entry| entry.present.last_seen_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn present(at: BootNanos) -> Present {
        Present {
            thumbprint: Digest::of(b"n"),
            platform: "linux/amd64".to_owned(),
            capacity: Resources::default(),
            max_jobs: 1,
            reads_leases: true,
            nonce: [1; NONCE_BYTES],
            nonce_at: at,
            last_seen_ms: 0,
        }
    }

    #[tokio::test]
    async fn a_newer_session_ends_the_older_and_the_older_cannot_end_the_newer() {
        let registry = Registry::default();
        let now = BootNanos(1);
        let (old, mut old_commands) = registry.enter("n", present(now));
        let (new, _new_commands) = registry.enter("n", present(now));
        assert!(old_commands.recv().await.is_none());
        registry.leave("n", old);
        assert!(registry.beat(("n", old), [2; NONCE_BYTES], now, 0).is_none());
        assert_eq!(registry.beat(("n", new), [2; NONCE_BYTES], now, 0), Some(false));
        assert_eq!(registry.nonce("n", now), Some([2; NONCE_BYTES]));
    }

    #[test]
    fn a_node_whose_nonce_is_old_gets_no_lease() {
        let registry = Registry::default();
        let start = BootNanos(1);
        let (_id, _commands) = registry.enter("n", present(start));
        assert_eq!(registry.offers(start.plus_seconds(6)).len(), 1);
        assert!(registry.offers(start.plus_seconds(7)).is_empty());
        assert_eq!(registry.nonce("n", start.plus_seconds(7)), None);
    }

    #[test]
    fn a_session_that_does_not_keep_up_is_ended() {
        let registry = Registry::default();
        let (_id, _commands) = registry.enter("n", present(BootNanos(1)));
        for _ in 0..=SESSION_COMMANDS {
            registry.tell("n", Command::KeySet(Arc::from([])));
        }
        assert_eq!(registry.last_seen_ms("n"), None);
    }
}

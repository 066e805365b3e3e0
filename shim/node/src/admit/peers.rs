//! Connected shims by lease, and what is pushed to them.

use std::collections::HashMap;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};

use nimbus_api::clock::BootNanos;
use nimbus_api::error::Chain;
use nimbus_api::frame::{self, FrameError};
use nimbus_api::id::LeaseId;
use nimbus_api::proto::admit::v1::agent_message::Kind;
use nimbus_api::proto::admit::v1::{AgentMessage, Deadline, Revoked as RevokedMessage};
use prost::Message as _;

use crate::agent::lock;
use crate::ledger::Revoked;

/// The writing side of one connection.
#[derive(Debug)]
pub struct Peer {
    stream: UnixStream,
    /// The highest deadline sent; also orders writers.
    sent: Mutex<BootNanos>,
}

impl Peer {
    /// Over a clone of the connection's socket.
    pub fn new(stream: UnixStream) -> Self {
        Self { stream, sent: Mutex::new(BootNanos(0)) }
    }

    fn push_deadline(&self, deadline: BootNanos) -> Result<(), FrameError> {
        let mut sent = lock(&self.sent);
        if deadline <= *sent {
            return Ok(());
        }
        let kind = Kind::Deadline(Deadline { boottime_ns: deadline.0 });
        write(&self.stream, kind)?;
        *sent = deadline;
        Ok(())
    }

    fn push_revoked(&self, revoked: &Revoked) -> Result<(), FrameError> {
        let _order = lock(&self.sent);
        let code = revoked.code.as_str().to_owned();
        write(
            &self.stream,
            Kind::Revoked(RevokedMessage { code, sentence: revoked.message.clone() }),
        )
    }
}

fn write(stream: &UnixStream, kind: Kind) -> Result<(), FrameError> {
    frame::write_frame(stream, &AgentMessage { kind: Some(kind) }.encode_to_vec(), &[])
}

/// All of them.
#[derive(Debug, Default)]
pub struct Peers {
    by_lease: Mutex<HashMap<LeaseId, Arc<Peer>>>,
}

impl Peers {
    /// This connection is the lease's from now on; an older one is forgotten.
    pub fn register(&self, id: &LeaseId, peer: &Arc<Peer>) {
        lock(&self.by_lease).insert(id.clone(), Arc::clone(peer));
    }

    /// The connection is gone; a newer one of the same lease stays.
    pub fn unregister(&self, id: &LeaseId, peer: &Arc<Peer>) {
        let mut by_lease = lock(&self.by_lease);
        if by_lease.get(id).is_some_and(|known| Arc::ptr_eq(known, peer)) {
            by_lease.remove(id);
        }
    }

    /// Whether a shim is connected for a lease.
    pub fn is_connected(&self, id: &LeaseId) -> bool {
        lock(&self.by_lease).contains_key(id)
    }

    /// Tells the shim of a deadline that is later than any told before. A shim that is not connected
    /// hears it when it resumes.
    pub fn push_deadline(&self, id: &LeaseId, deadline: BootNanos) {
        if let Some(peer) = self.get(id) {
            log_failure(id, peer.push_deadline(deadline));
        }
    }

    /// Tells the shim to kill.
    pub fn push_revoked(&self, id: &LeaseId, revoked: &Revoked) {
        if let Some(peer) = self.get(id) {
            log_failure(id, peer.push_revoked(revoked));
        }
    }

    fn get(&self, id: &LeaseId) -> Option<Arc<Peer>> {
        lock(&self.by_lease).get(id).cloned()
    }
}

fn log_failure(id: &LeaseId, result: Result<(), FrameError>) {
    if let Err(error) = result {
        tracing::warn!(lease = %id, error = %Chain(&error), "a shim did not take a message");
    }
}

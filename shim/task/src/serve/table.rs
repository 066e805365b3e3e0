//! The containers that are here, by their ids.
//!
//! Behind a lock that is held for a few instructions and never across an await. What has been deleted is
//! not found any more, and is forgotten as soon as somebody asks for it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::Context;
use super::container::Container;
use crate::log::Log;
use crate::state::Phase;
use crate::status::TaskError;

/// One of them, and what its parts need.
#[derive(Debug, Clone)]
pub(super) struct Held {
    /// The container.
    pub container: Arc<Container>,
    /// What is its own: key, log and runtime.
    pub context: Context,
}

impl Held {
    fn is_deleted(&self) -> bool {
        self.container.snapshot().phase == Phase::Deleted
    }
}

/// All of them.
#[derive(Debug, Clone, Default)]
pub(super) struct Table(Arc<Mutex<BTreeMap<String, Held>>>);

impl Table {
    /// Whether none is here.
    pub(super) fn is_empty(&self) -> bool {
        self.held().values().all(Held::is_deleted)
    }

    /// The one of this id.
    pub(super) fn get(&self, id: &str) -> Result<Held, TaskError> {
        let found = self.held().get(id).filter(|held| !held.is_deleted()).cloned();
        found.ok_or_else(|| TaskError::NotFound(format!("container {}", id.escape_debug())))
    }

    /// Adds one; `room` is how many there may be.
    pub(super) fn add(&self, held: &Held, room: usize) -> Result<(), TaskError> {
        let id = held.container.key().id.to_string();
        let mut all = self.held();
        all.retain(|_id, held| !held.is_deleted());
        if all.contains_key(&id) {
            return Err(TaskError::AlreadyExists(id));
        }
        if all.len() >= room {
            let text = format!("the pod has {room} containers that were not deleted");
            return Err(TaskError::Exhausted(text));
        }
        all.insert(id, held.clone());
        Ok(())
    }

    /// Forgets those that were deleted. Their logs end with them; `server`'s goes on in another's.
    pub(super) fn forget_deleted(&self, server: &Log) {
        let mut all = self.held();
        let mut gone = Vec::new();
        all.retain(|_id, held| {
            if held.is_deleted() {
                gone.push(held.context.log.clone());
            }
            !held.is_deleted()
        });
        // The only container that a process is for logs as the process does, which goes on until it ends.
        gone.retain(|log| !log.is(server));
        if gone.is_empty() {
            return;
        }
        if let Some(other) = all.values().next() {
            server.follow(&other.context.log);
        }
        for log in gone {
            log.close();
        }
    }

    fn held(&self) -> MutexGuard<'_, BTreeMap<String, Held>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

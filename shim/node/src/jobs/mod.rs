//! Jobs: one task for each lease that is held, from the grant to the report of its end.
//!
//! [`grant`] takes what control sends, [`driver`] walks one job through containerd, [`reconcile`] puts
//! ledger and containerd together again after either was away.

pub mod containerd;
pub mod driver;
pub mod grant;
pub mod reconcile;
pub mod spec;

use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nimbus_api::id::LeaseId;
use tokio::sync::Semaphore;

use crate::agent::{Agent, lock};
use crate::ledger::End;
use crate::logs::LogTable;
use containerd::Containerd;

/// Between two tries to record an end.
const FINISH_PAUSE: Duration = Duration::from_secs(5);

/// What every job's task needs.
#[derive(Debug)]
pub struct Jobs {
    /// The agent's state.
    pub agent: Arc<Agent>,
    /// containerd.
    pub containerd: Containerd,
    /// Output on its way to control.
    pub logs: Arc<LogTable>,
    active: Mutex<HashSet<LeaseId>>,
    /// Places for images being fetched: one a job that this node takes, so that an honest control
    /// never waits for one and no other fills the threads that its messages need.
    preparing: Arc<Semaphore>,
}

/// A lease whose task is running; ends with it.
#[derive(Debug)]
struct Active {
    jobs: Arc<Jobs>,
    id: LeaseId,
}

impl Drop for Active {
    fn drop(&mut self) {
        lock(&self.jobs.active).remove(&self.id);
    }
}

impl Jobs {
    /// None is running yet.
    pub fn new(agent: Arc<Agent>, containerd: Containerd, logs: Arc<LogTable>) -> Arc<Self> {
        let places = usize::try_from(agent.config.capacity.max_jobs).unwrap_or(usize::MAX);
        let preparing = Arc::new(Semaphore::new(places.min(Semaphore::MAX_PERMITS)));
        Arc::new(Self { agent, containerd, logs, active: Mutex::default(), preparing })
    }

    /// Claims a lease for one task; none when another has it.
    fn claim(self: &Arc<Self>, id: &LeaseId) -> Option<Active> {
        let claimed = lock(&self.active).insert(id.clone());
        claimed.then(|| Active { jobs: Arc::clone(self), id: id.clone() })
    }

    fn is_active(&self, id: &LeaseId) -> bool {
        lock(&self.active).contains(id)
    }

    /// Finishes a lease that nobody drives.
    pub(crate) fn end_soon(self: &Arc<Self>, id: &LeaseId, end: End) {
        let Some(active) = self.claim(id) else { return };
        let jobs = Arc::clone(self);
        tokio::spawn(async move {
            jobs.finish(&active.id, end).await;
            drop(active);
        });
    }

    /// Records and spools the end of a lease, off the event loop because it waits for the disk. Tries
    /// until it is done: a full disk is emptied some day, and an end that is not told holds a place.
    async fn finish(self: &Arc<Self>, id: &LeaseId, end: End) {
        loop {
            let (jobs, id, end) = (Arc::clone(self), id.clone(), end.clone());
            let done = tokio::task::spawn_blocking(move || {
                if jobs.agent.ledger.get(&id).is_none() {
                    jobs.agent.networks.release(&id);
                    // Reported by its shim and forgotten since: there is nothing to record.
                    return Ok(());
                }
                // Its container is gone. What cannot be removed now is removed by a later look.
                jobs.agent.networks.release(&id);
                let finished = jobs.agent.finish(&id, end);
                if let Some(entry) = jobs.agent.ledger.get(&id) {
                    jobs.logs.finish(&entry.claims.job, entry.claims.attempt);
                }
                finished.inspect_err(|refusal| {
                    tracing::error!(lease = %id, %refusal, "an end could not be recorded");
                })
            });
            match done.await {
                Ok(Ok(())) => return,
                Ok(Err(_told)) => {}
                Err(error) => tracing::error!(%error, "recording an end broke off"),
            }
            tokio::time::sleep(FINISH_PAUSE).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{self, World};

    #[tokio::test]
    async fn the_end_of_a_lease_that_was_forgotten_is_no_work_for_ever() {
        let dir = tempfile::tempdir().unwrap();
        let agent = World::new().agent(dir.path());
        let logs = Arc::new(LogTable::load(&dir.path().join("logs"), |_, _| true).unwrap());
        let jobs = Jobs::new(agent, Containerd::new(&dir.path().join("none")), logs);
        let id = testing::claims().lease_id;
        let finished = tokio::time::timeout(FINISH_PAUSE, jobs.finish(&id, End::unknown())).await;
        finished.expect("it tries again and again");
    }
}

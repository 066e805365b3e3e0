//! Who waits for news of which job. A bell says that something changed, never what: whoever hears it
//! reads the store again, so a bell that rings twice or too often does no harm.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

use crate::limits::WATCHERS_MAX;

/// All bells.
#[derive(Debug, Clone, Default)]
pub(crate) struct Watchers(Arc<Mutex<Bells>>);

#[derive(Debug, Default)]
struct Bells {
    jobs: HashMap<String, (watch::Sender<()>, usize)>,
    watchers: usize,
}

/// One who waits; leaving is dropping it.
#[derive(Debug)]
pub(crate) struct Watcher {
    watchers: Watchers,
    job: String,
    bell: watch::Receiver<()>,
}

impl Watchers {
    /// Begins to wait; none when too many do.
    pub(crate) fn join(&self, job: &str) -> Option<Watcher> {
        let mut bells = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if bells.watchers >= WATCHERS_MAX {
            return None;
        }
        bells.watchers += 1;
        let entry = bells.jobs.entry(job.to_owned()).or_insert_with(|| (watch::Sender::new(()), 0));
        entry.1 += 1;
        let bell = entry.0.subscribe();
        Some(Watcher { watchers: self.clone(), job: job.to_owned(), bell })
    }

    /// Says that a job, or its output, has changed.
    pub(crate) fn ring(&self, job: &str) {
        let bells = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((bell, _)) = bells.jobs.get(job) {
            bell.send_replace(());
        }
    }
}

impl Watcher {
    /// Waits for the next ring since the last.
    pub(crate) async fn rung(&mut self) {
        // The sender lives as long as we are counted.
        drop(self.bell.changed().await);
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        let mut bells = self.watchers.0.lock().unwrap_or_else(PoisonError::into_inner);
        bells.watchers = bells.watchers.saturating_sub(1);
        if let Some(entry) = bells.jobs.get_mut(&self.job) {
            entry.1 = entry.1.saturating_sub(1);
            if entry.1 == 0 {
                bells.jobs.remove(&self.job);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_ring_is_heard_once_and_nothing_is_left_behind() {
        let watchers = Watchers::default();
        let mut watcher = watchers.join("j1").unwrap();
        watchers.ring("j2");
        watchers.ring("j1");
        watcher.rung().await;
        drop(watcher);
        let bells = watchers.0.lock().unwrap();
        assert!(bells.jobs.is_empty() && bells.watchers == 0);
    }
}

//! What all parts of the running service share.

use std::sync::{Arc, PoisonError, RwLock};

use nimbus_api::clock::Clock;
use nimbus_api::lease::LeasedPolicy;
use nimbus_api::policy::Policy;
use nimbus_api::{Refusal, RefusalCode};
use tokio::sync::{Notify, watch};

use crate::keyring::KeyRing;
use crate::logs::Logs;
use crate::pki::Ca;
use crate::session::{Command, Registry};
use crate::store::{PolicyRow, Store};
use crate::watchers::Watchers;

/// Times of leases.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Terms {
    pub(crate) ttl_seconds: u32,
    pub(crate) extension_seconds: u32,
}

/// The shared parts.
pub(crate) struct App {
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) store: Store,
    pub(crate) logs: Logs,
    pub(crate) keys: KeyRing,
    pub(crate) ca: Ca,
    pub(crate) registry: Registry,
    pub(crate) watchers: Watchers,
    /// Rung when there may be something to lease.
    pub(crate) dispatch: Notify,
    pub(crate) terms: Terms,
    /// True when the service stops.
    pub(crate) stop: watch::Receiver<bool>,
    /// Address of the API as nodes are told it.
    pub(crate) api_address: String,
    policy: RwLock<Option<CurrentPolicy>>,
}

struct CurrentPolicy {
    leased: LeasedPolicy,
    envelope: Arc<[u8]>,
    /// Or why this version cannot read what an earlier one took.
    document: Result<Arc<Policy>, Refusal>,
}

impl std::fmt::Debug for App {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("App").field("store", &self.store).finish_non_exhaustive()
    }
}

/// What an [`App`] is made of.
pub(crate) struct Parts {
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) store: Store,
    pub(crate) logs: Logs,
    pub(crate) keys: KeyRing,
    pub(crate) ca: Ca,
    pub(crate) terms: Terms,
    pub(crate) stop: watch::Receiver<bool>,
    pub(crate) api_address: String,
    pub(crate) policy: Option<PolicyRow>,
}

impl App {
    pub(crate) fn new(parts: Parts) -> Arc<Self> {
        let Parts { clock, store, logs, keys, ca, terms, stop, api_address, policy } = parts;
        Arc::new(Self {
            clock,
            store,
            logs,
            keys,
            ca,
            registry: Registry::default(),
            watchers: Watchers::default(),
            dispatch: Notify::new(),
            terms,
            stop,
            api_address,
            policy: RwLock::new(policy.as_ref().map(|row| {
                let read = crate::policy::document(&row.envelope);
                current(row, read.map(|(_bytes, document)| Arc::new(document)))
            })),
        })
    }

    /// A job has changed: whoever watches it, and the scheduler, look again.
    pub(crate) fn changed(&self, job: &str) {
        self.watchers.ring(job);
        self.dispatch.notify_one();
    }

    /// The policy that leases name.
    pub(crate) fn leased_policy(&self) -> Option<LeasedPolicy> {
        let policy = self.policy.read().unwrap_or_else(PoisonError::into_inner);
        policy.as_ref().map(|policy| policy.leased)
    }

    /// The policy that claims are decided by, and its name.
    pub(crate) fn policy(&self) -> Result<(Arc<Policy>, LeasedPolicy), Refusal> {
        let policy = self.policy.read().unwrap_or_else(PoisonError::into_inner);
        let policy = policy.as_ref().ok_or(RefusalCode::PolicyMissing)?;
        Ok((policy.document.clone()?, policy.leased))
    }

    /// The policy to hand to nodes.
    pub(crate) fn policy_envelope(&self) -> Option<Arc<[u8]>> {
        let policy = self.policy.read().unwrap_or_else(PoisonError::into_inner);
        policy.as_ref().map(|policy| Arc::clone(&policy.envelope))
    }

    /// Hands a policy, already durable, to every node, then names it in new leases.
    pub(crate) fn set_policy(&self, row: &PolicyRow, document: Policy) {
        let fresh = current(row, Ok(Arc::new(document)));
        let mut policy = self.policy.write().unwrap_or_else(PoisonError::into_inner);
        if policy.as_ref().is_some_and(|present| present.leased.serial > row.serial) {
            return;
        }
        self.registry.tell_all(&Command::Policy(Arc::clone(&fresh.envelope)));
        *policy = Some(fresh);
    }
}

fn current(row: &PolicyRow, document: Result<Arc<Policy>, Refusal>) -> CurrentPolicy {
    CurrentPolicy {
        leased: LeasedPolicy { serial: row.serial, sha256: row.document },
        envelope: row.envelope.as_slice().into(),
        document,
    }
}

/// Waits until the service stops.
pub(crate) async fn stopped(stop: &mut watch::Receiver<bool>) {
    drop(stop.wait_for(|stop| *stop).await);
}

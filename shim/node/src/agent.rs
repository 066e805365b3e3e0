//! The agent's state, shared by session, admission and jobs, and what it needs from outside.
//!
//! Each part has its own lock, taken for the moment of one look or one durable step; none is held
//! across a call to containerd, a registry, the verifier or a peer (rule 12).

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nimbus_api::clock::{BootNanos, Clock};
use nimbus_api::error::Chain;
use nimbus_api::id::{ContainerKey, LeaseId};
use nimbus_api::lease::{LeaseClaims, LeaseToken, LeasedImage, VerifiedLease};
use nimbus_api::plan::Plan;
use nimbus_api::{Digest, Refusal, RefusalCode};
use nimbus_hooks::facts::{Facts, HeartbeatFact, MeasuredImage};

use crate::admit::peers::Peers;
use crate::bundles::BundleStore;
use crate::claims::desk::Desk;
use crate::claims::record::Records;
use crate::claims::sandbox::Running;
use crate::config::NodeConfig;
use crate::identity::Identity;
use crate::image::Stop;
use crate::ledger::{End, Entry, Ledger, Revoked, Stage, Step};
use crate::network::Networks;
use crate::network::pods::PodNetworks;
use crate::nonces::NonceTable;
use crate::report;
use crate::scratch::Scratches;
use crate::spool::Spool;
use crate::trust::TrustStore;
use crate::verify::Attestations;

/// The containerd namespace that the agent uses.
pub const NAMESPACE: &str = "nimbus";
/// The runtime that the agent's containers have.
pub const RUNTIME: &str = "io.containerd.nimbus.v1";
/// What a deadline is shortened by, seconds (rule 10).
pub const SKEW_SECONDS: u64 = 2;
/// `os/architecture` of the images that run here.
pub const PLATFORM: &str =
    if cfg!(target_arch = "aarch64") { "linux/arm64" } else { "linux/amd64" };

/// The image store, as the agent needs it. All calls block.
pub trait Images: Send + Sync {
    /// Fetches, checks and unpacks what is missing, until `stop` says that nobody wants it.
    fn prepare(&self, image: &LeasedImage, stop: &Stop) -> Result<MeasuredImage, Refusal>;
    /// The same out of a directory of blobs on this machine: containerd's content.
    fn prepare_content(
        &self,
        image: &LeasedImage,
        content: &Path,
        stop: &Stop,
    ) -> Result<MeasuredImage, Refusal>;
    /// What is there already.
    fn measured(&self, image: &LeasedImage) -> Result<MeasuredImage, Refusal>;
    /// One detached mount a layer, lowest first.
    fn open_layers(&self, image: &MeasuredImage) -> Result<Vec<OwnedFd>, Refusal>;
}

/// A compiled seccomp filter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    /// `sock_filter` structs, native endian.
    pub program: Vec<u8>,
    /// SHA-256 of `program`.
    pub program_sha256: Digest,
    /// SHA-256 of the profile's text.
    pub profile_sha256: Digest,
    /// How many instructions.
    pub instructions: u32,
}

/// The seccomp compiler, as the agent needs it.
pub trait Filters: Send + Sync {
    /// Compiles a profile for these capabilities.
    fn compile(&self, profile: &str, capabilities: &[String]) -> Result<Filter, Refusal>;
}

/// The decision of admission.
pub type Admission = dyn Fn(&Facts) -> Result<Plan, Refusal> + Send + Sync;

/// What the agent is put together from.
pub struct Parts {
    /// Configuration.
    pub config: NodeConfig,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// `/proc/sys/kernel/random/boot_id`.
    pub boot_id: String,
    /// Who this node is; none before it has joined.
    pub identity: Option<Identity>,
    /// What it believes.
    pub trust: TrustStore,
    /// What is held.
    pub ledger: Ledger,
    /// What control has not acknowledged.
    pub spool: Spool,
    /// Attestations of granted leases.
    pub bundles: BundleStore,
    /// Networks of jobs that have one.
    pub networks: Networks,
    /// What pods never reach.
    pub pod_networks: PodNetworks,
    /// Writable space on disk.
    pub scratch: Scratches,
    /// The image store.
    pub images: Arc<dyn Images>,
    /// What is on record about containers of others.
    pub records: Arc<dyn Records>,
    /// The seccomp compiler.
    pub filters: Arc<dyn Filters>,
    /// The verifier with its cache.
    pub attestations: Attestations,
    /// `nimbus_hooks::admit`.
    pub admission: Arc<Admission>,
}

impl std::fmt::Debug for Parts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Parts").field("boot_id", &self.boot_id).finish_non_exhaustive()
    }
}

/// The agent's state.
pub struct Agent {
    /// Configuration.
    pub config: NodeConfig,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// This boot of the machine.
    pub boot_id: String,
    /// What is held.
    pub ledger: Ledger,
    /// What control has not acknowledged.
    pub spool: Spool,
    /// Attestations of granted leases.
    pub bundles: BundleStore,
    /// Networks of jobs that have one.
    pub networks: Networks,
    /// What pods never reach.
    pub pod_networks: PodNetworks,
    /// The image store.
    pub images: Arc<dyn Images>,
    /// What is on record about containers of others.
    pub records: Arc<dyn Records>,
    /// Writable space on disk.
    pub scratch: Scratches,
    /// Claims that wait for control.
    pub desk: Desk,
    /// The verifier with its cache.
    pub attestations: Attestations,
    /// The decision.
    pub admission: Arc<Admission>,
    /// Shims that are connected.
    pub peers: Peers,
    jobs_woken: tokio::sync::Notify,
    filters: Arc<dyn Filters>,
    compiled: Mutex<Compiled>,
    identity: Mutex<Option<Arc<Identity>>>,
    trust: Mutex<TrustStore>,
    nonces: Mutex<NonceTable>,
}

/// Compiled filters by profile and capabilities.
type Compiled = HashMap<(String, Vec<String>), Arc<Filter>>;

/// Most compiled filters kept; more empties the cache.
const FILTERS_MAX: usize = 64;

impl std::fmt::Debug for Agent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Agent").field("boot_id", &self.boot_id).finish_non_exhaustive()
    }
}

impl Agent {
    /// Puts it together.
    pub fn new(parts: Parts) -> Arc<Self> {
        Arc::new(Self {
            config: parts.config,
            clock: parts.clock,
            boot_id: parts.boot_id,
            ledger: parts.ledger,
            spool: parts.spool,
            bundles: parts.bundles,
            networks: parts.networks,
            pod_networks: parts.pod_networks,
            images: parts.images,
            records: parts.records,
            scratch: parts.scratch,
            desk: Desk::default(),
            attestations: parts.attestations,
            admission: parts.admission,
            peers: Peers::default(),
            jobs_woken: tokio::sync::Notify::new(),
            filters: parts.filters,
            compiled: Mutex::default(),
            identity: Mutex::new(parts.identity.map(Arc::new)),
            trust: Mutex::new(parts.trust),
            nonces: Mutex::default(),
        })
    }

    /// Who this node is.
    pub fn identity(&self) -> Option<Arc<Identity>> {
        lock(&self.identity).clone()
    }

    /// Takes a renewed identity into use.
    pub fn set_identity(&self, identity: Identity) {
        *lock(&self.identity) = Some(Arc::new(identity));
    }

    /// What the node believes.
    pub fn trust(&self) -> MutexGuard<'_, TrustStore> {
        lock(&self.trust)
    }

    /// A new heartbeat nonce; its time counts from now, before it is sent.
    pub fn new_nonce(&self) -> [u8; nimbus_api::lease::NONCE_BYTES] {
        let nonce = *uuid::Uuid::new_v4().as_bytes();
        let now = self.clock.boottime();
        lock(&self.nonces).record(nonce, now);
        nonce
    }

    /// When the heartbeat was sent that a lease echoes.
    pub fn heartbeat(&self, claims: &LeaseClaims) -> HeartbeatFact {
        let now = self.clock.boottime();
        let sent = claims.nonce_bytes().and_then(|nonce| lock(&self.nonces).sent_at(&nonce, now));
        sent.map_or(HeartbeatFact::Unknown, HeartbeatFact::Sent)
    }

    /// Checks a token and remembers its time as the clock's floor, unless it could never be acted on
    /// here: a control whose clock is ahead, or that was stolen, does not move this node's.
    pub fn verify_lease(&self, token: &LeaseToken) -> Result<VerifiedLease, Refusal> {
        let keys = self.trust().keys()?;
        let lease = token.verify(&keys)?;
        if self.plausible(&lease.claims).is_ok() {
            self.trust().raise_floor(lease.claims.iat).map_err(|error| ledger_failed(&error))?;
        }
        Ok(lease)
    }

    /// [`nimbus_hooks::plausible`], here and now.
    pub fn plausible(&self, claims: &LeaseClaims) -> Result<(), Refusal> {
        let here = self.identity().map(|identity| identity.thumbprint);
        nimbus_hooks::plausible(claims, here, self.clock.unix())
    }

    /// Tells control that a lease will not be used, without a place in the ledger for it.
    pub fn decline(&self, claims: &LeaseClaims, refusal: &Refusal) -> Result<(), Refusal> {
        if self.spool.is_full() || self.spool.holds(claims.lease_id.as_str(), true) {
            return Ok(());
        }
        let entry = Entry::granted(claims.clone()).after(Step::End(End::refused(refusal)))?;
        let event = report::finished(&entry, self.clock.unix_millis());
        self.spool.append(event).map(drop).map_err(|error| ledger_failed(&error))
    }

    /// A compiled filter, from the cache if it has been compiled before.
    pub fn filter(&self, profile: &str, capabilities: &[String]) -> Result<Arc<Filter>, Refusal> {
        let key = (profile.to_owned(), capabilities.to_vec());
        if let Some(filter) = lock(&self.compiled).get(&key) {
            return Ok(Arc::clone(filter));
        }
        let filter = Arc::new(self.filters.compile(profile, capabilities)?);
        let mut compiled = lock(&self.compiled);
        if compiled.len() >= FILTERS_MAX {
            compiled.clear();
        }
        compiled.insert(key, Arc::clone(&filter));
        Ok(filter)
    }

    /// Takes a new token of a held lease: moves the deadline, durable, then tells the shim.
    pub fn extend(&self, token: &LeaseToken) -> Result<LeaseId, Refusal> {
        let lease = self.verify_lease(token)?;
        self.plausible(&lease.claims)?;
        let HeartbeatFact::Sent(sent) = self.heartbeat(&lease.claims) else {
            return Err(Refusal::new(RefusalCode::LeaseUnknownNonce));
        };
        let lifetime = lease.claims.lifetime_seconds().saturating_sub(SKEW_SECONDS);
        let deadline = sent.plus_seconds(lifetime);
        let id = lease.claims.lease_id.clone();
        let step = Step::Extend { claims: Box::new(lease.claims), deadline };
        let entry = self.ledger.step(&id, step)?;
        if let Some(usage) = entry.usage {
            self.peers.push_deadline(&id, usage.deadline);
        }
        Ok(id)
    }

    /// Control takes a lease back: durable, then the shim is told. None when it is unknown.
    pub fn revoke(&self, id: &LeaseId, revoked: &Revoked) -> Option<Entry> {
        let entry = match self.ledger.step(id, Step::Revoke(revoked.clone())) {
            Ok(entry) => entry,
            Err(refusal) => {
                tracing::warn!(lease = %id, %refusal, "a revocation was not recorded");
                self.ledger.get(id)?
            }
        };
        self.peers.push_revoked(id, revoked);
        self.wake_jobs();
        Some(entry)
    }

    /// Ends a lease and spools the end, once.
    pub fn finish(&self, id: &LeaseId, end: End) -> Result<(), Refusal> {
        let entry = self.ledger.step(id, Step::End(end))?;
        if entry.reported {
            return Ok(());
        }
        if !self.spool.holds(id.as_str(), true) {
            let event = report::finished(&entry, self.clock.unix_millis());
            self.spool.append(event).map_err(|error| ledger_failed(&error))?;
        }
        self.ledger.step(id, Step::Report)?;
        self.bundles.forget(id);
        Ok(())
    }

    /// A container's process runs: the receipt is signed and spooled, then the ledger says so.
    /// `running` is its process, where others will enter its namespaces.
    pub fn started(&self, entry: &Entry, running: Option<Running>) -> Result<(), Refusal> {
        if entry.stage != Stage::Used {
            // A shim says it again after it has connected anew.
            return Ok(());
        }
        let id = &entry.claims.lease_id;
        let identity = self.identity().ok_or_else(|| Refusal::new(RefusalCode::NodeNotJoined))?;
        if !self.spool.holds(id.as_str(), false) {
            let event = report::started(entry, &identity, self.clock.unix_millis())?;
            self.spool.append(event).map_err(|error| ledger_failed(&error))?;
        }
        self.ledger.step(id, Step::Start(running))?;
        Ok(())
    }

    /// Something changed that a job may wait for: a release, a revocation.
    pub fn wake_jobs(&self) {
        self.jobs_woken.notify_waiters();
    }

    /// Completes at the next [`Agent::wake_jobs`]; ask before looking, so that nothing is missed.
    pub fn jobs_woken(&self) -> tokio::sync::futures::Notified<'_> {
        self.jobs_woken.notified()
    }

    /// The deadline of a live container, none when it has none on this boot.
    pub fn deadline_of(&self, id: &LeaseId) -> Option<BootNanos> {
        let usage = self.ledger.get(id)?.usage?;
        (usage.boot_id == self.boot_id).then_some(usage.deadline)
    }

    /// The container that the agent makes for a lease.
    pub fn container_of(claims: &LeaseClaims) -> Result<ContainerKey, Refusal> {
        let internal =
            |error: &dyn std::fmt::Display| Refusal::with(RefusalCode::NodeInternal, error);
        let id = format!("{}-{}", claims.job, claims.attempt);
        Ok(ContainerKey {
            namespace: NAMESPACE.parse().map_err(|error| internal(&error))?,
            id: id.parse().map_err(|error| internal(&error))?,
        })
    }
}

fn ledger_failed(error: &dyn std::error::Error) -> Refusal {
    Refusal::with(RefusalCode::NodeLedgerFailed, Chain(error))
}

/// Takes a lock; a panic elsewhere has not broken what these locks protect: every change to it is one
/// assignment or is durable before.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{self, World};
    use nimbus_api::Digest;
    use nimbus_api::proto::node::v1::event::Kind;

    /// Claims that control signed and that this node can never act on.
    fn implausible() -> Vec<(RefusalCode, LeaseClaims)> {
        let changed = |change: &dyn Fn(&mut LeaseClaims)| {
            let mut claims = testing::claims();
            change(&mut claims);
            claims
        };
        vec![
            (RefusalCode::LeaseWrongNode, changed(&|claims| claims.node = Digest::of(b"other"))),
            (RefusalCode::LeaseNotYetValid, changed(&|claims| claims.iat.0 += 3600)),
            (RefusalCode::LeaseNotYetValid, changed(&|claims| claims.nbf.0 += 3600)),
            (RefusalCode::LeaseUnsupported, changed(&|claims| claims.exp.0 = i64::MAX)),
        ]
    }

    #[test]
    fn a_lease_that_cannot_be_meant_leaves_nothing_behind() {
        for (code, mut claims) in implausible() {
            let dir = tempfile::tempdir().unwrap();
            let agent = World::new().agent(dir.path());
            let floor = agent.trust().floor();
            claims.nonce = hex::encode(agent.new_nonce());
            let token = testing::sign(&claims);
            let lease = agent.verify_lease(&token).unwrap();
            assert_eq!(agent.plausible(&lease.claims).unwrap_err().code, code);
            assert_eq!(agent.trust().floor(), floor, "{code}");
            assert_eq!(agent.extend(&token).unwrap_err().code, code);
            agent.decline(&lease.claims, &Refusal::new(code)).unwrap();
            agent.decline(&lease.claims, &Refusal::new(code)).unwrap();
            assert!(agent.ledger.all().is_empty());
            assert_eq!(agent.spool.waiting(), 1, "control is told, once");
            let Some(Kind::Finished(told)) = agent.spool.after(0).unwrap().kind else {
                panic!("not an end")
            };
            assert_eq!(told.reason, code.as_str());
        }
    }
}

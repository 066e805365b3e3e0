//! Putting the agent together and running it until it is told to stop.
//!
//! Order: locks, what is on disk, what cannot go on is ended, then the socket, then the links. When
//! the agent stops, jobs go on: their shims hold the deadline (rule 10) and connect again.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nimbus_api::Refusal;
use nimbus_api::clock::{Clock, SystemClock};
use nimbus_api::id::JobId;
use nimbus_api::plan;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::admit;
use crate::agent::{Agent, Filters, Images, Parts};
use crate::bundles::BundleStore;
use crate::claims::containerd::ContainerdRecords;
use crate::config::NodeConfig;
use crate::files::{self, FileError, FileLock};
use crate::identity::{Identity, IdentityError};
use crate::jobs::containerd::Containerd;
use crate::jobs::{Jobs, reconcile};
use crate::ledger::{Ledger, Stage};
use crate::logs::LogTable;
use crate::network::Networks;
use crate::network::pods::PodNetworks;
use crate::scratch::Scratches;
use crate::session;
use crate::spool::{Spool, SpoolError};
use crate::trust::{TrustError, TrustStore};
use crate::verify::{Attestations, VerifierProcess};

/// Threads of the event loop: it waits for peers and little else.
const WORKERS: usize = 2;
/// How long unfinished writes have when the agent stops.
const STOP_PATIENCE: Duration = Duration::from_secs(5);
/// Descriptors of the agent itself: files, sockets, control, containerd.
const DESCRIPTORS_OWN: u64 = 256;
/// Descriptors of one job: its image's layers while it is fetched or admitted, and as many again for
/// blobs, a registry, a shim, output.
const DESCRIPTORS_JOB: u64 = 2 * plan::LAYERS_MAX as u64;
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
const BOOT_ID_BYTES_MAX: usize = 64;

/// Why the agent did not start.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Another agent has the directories.
    #[error("another process uses {path:?}")]
    Busy {
        /// The lock.
        path: PathBuf,
    },
    /// There is no identity.
    #[error("this node has not joined: nimbus-node join")]
    NotJoined,
    /// The identity.
    #[error("cannot use the node's identity")]
    Identity(#[from] IdentityError),
    /// The trust state.
    #[error("cannot use what the node believes")]
    Trust(#[from] TrustError),
    /// The spool.
    #[error("cannot use the spool")]
    Spool(#[from] SpoolError),
    /// A file.
    #[error("cannot use the node's files")]
    File(#[from] FileError),
    /// The image store.
    #[error("cannot use the image store: {0}")]
    Images(String),
    /// What was held could not be settled.
    #[error("cannot settle what an earlier run left")]
    Settle(#[source] Refusal),
    /// Threads, signals.
    #[error("cannot start")]
    Start(#[source] std::io::Error),
}

/// What `status` reads of a running agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunningState {
    /// The agent's process.
    pub pid: u32,
    /// Whether it is in session with control.
    pub linked: bool,
    /// Since when, Unix milliseconds.
    pub since_ms: i64,
}

/// Where [`RunningState`] is.
pub fn state_path(config: &NodeConfig) -> PathBuf {
    config.run_dir.join("node.json")
}

/// Takes the lock of a directory.
pub fn hold(path: PathBuf) -> Result<FileLock, ServeError> {
    FileLock::take(&path)?.ok_or(ServeError::Busy { path })
}

/// Reads which boot of the machine this is.
pub fn boot_id() -> Result<String, FileError> {
    let bytes = files::read_bounded(Path::new(BOOT_ID), BOOT_ID_BYTES_MAX)?.unwrap_or_default();
    Ok(String::from_utf8_lossy(&bytes).trim().to_owned())
}

/// Runs the agent until SIGTERM or SIGINT.
pub fn run(config: NodeConfig) -> Result<(), ServeError> {
    files::ensure_dir(&config.data_dir)?;
    files::ensure_dir(&config.run_dir)?;
    let _data = hold(config.data_dir.join("lock"))?;
    let _run = hold(config.run_dir.join("node.lock"))?;
    allow_descriptors(&config)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .enable_all()
        .build()
        .map_err(ServeError::Start)?;
    let agent = open(config, runtime.handle())?;
    reconcile::settle(&agent).map_err(ServeError::Settle)?;
    let over = |job: &JobId, attempt: u32| is_over(&agent, job, attempt);
    let logs = Arc::new(LogTable::load(&agent.config.log_root(), over)?);
    let listener = admit::bind(&agent.config.socket())?;
    let _accept = admit::serve(&agent, listener).map_err(ServeError::Start)?;
    let containerd = {
        let _context = runtime.enter();
        Containerd::new(&agent.config.containerd_address)
    };
    let jobs = Jobs::new(Arc::clone(&agent), containerd, logs);
    tracing::info!(socket = ?agent.config.socket(), "serving");
    let stopped = runtime.block_on(until_stopped(jobs));
    files::remove(&agent.config.socket())?;
    files::remove(&state_path(&agent.config))?;
    runtime.shutdown_timeout(STOP_PATIENCE);
    stopped.map_err(ServeError::Start)
}

/// Raises the limit of open files to what the configured number of jobs may need. Less goes, until
/// that many big images come at once: then some are refused.
fn allow_descriptors(config: &NodeConfig) -> Result<(), ServeError> {
    let wanted = DESCRIPTORS_OWN + DESCRIPTORS_JOB * u64::from(config.capacity.max_jobs);
    let old = getrlimit(Resource::Nofile);
    if old.current.is_none_or(|now| now >= wanted) {
        return Ok(());
    }
    let current = old.maximum.map_or(wanted, |most| most.min(wanted));
    if current < wanted {
        tracing::warn!(
            current,
            wanted,
            "few open files are allowed: raise LimitNOFILE= of the unit"
        );
    }
    let new = Rlimit { current: Some(current), maximum: old.maximum };
    setrlimit(Resource::Nofile, new).map_err(|error| ServeError::Start(error.into()))
}

fn open(config: NodeConfig, runtime: &tokio::runtime::Handle) -> Result<Arc<Agent>, ServeError> {
    let data = config.data_dir.clone();
    let identity = Identity::load(&data)?.ok_or(ServeError::NotJoined)?;
    let root = (identity.record.root_key, identity.record.trust_domain.clone());
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let verifier = Box::new(VerifierProcess::find(runtime.clone()));
    Ok(Agent::new(Parts {
        boot_id: boot_id()?,
        identity: Some(identity),
        trust: TrustStore::open(&data.join("trust"), &config.policy_key, Some(root))?,
        ledger: Ledger::open(&data.join("ledger"))?,
        spool: Spool::open(&data.join("spool"))?,
        bundles: BundleStore::open(&data.join("bundles"))?,
        networks: Networks::open(
            &data.join("network"),
            config.network.clone(),
            boot_id()?,
            runtime.clone(),
        )?,
        pod_networks: PodNetworks::new(config.network.clone(), runtime.clone()),
        scratch: Scratches::open(&data.join("scratch"), config.scratch.clone(), runtime.clone())?,
        images: images(&config)?,
        records: Arc::new(ContainerdRecords::new(&config.containerd_address, runtime.clone())),
        filters: filters(),
        attestations: Attestations::new(verifier, Arc::clone(&clock)),
        admission: Arc::new(nimbus_hooks::admit),
        clock,
        config,
    }))
}

fn is_over(agent: &Agent, job: &JobId, attempt: u32) -> bool {
    let mut entries = agent.ledger.all().into_iter();
    let found = entries.find(|e| e.claims.job == *job && e.claims.attempt == attempt);
    found.is_none_or(|entry| entry.stage == Stage::Ended)
}

async fn until_stopped(jobs: Arc<Jobs>) -> std::io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let (linked, link) = watch::channel(false);
    let state = tokio::spawn(publish(Arc::clone(&jobs.agent), link));
    let look = tokio::spawn(reconcile::run(Arc::clone(&jobs)));
    let rules = tokio::spawn(reconcile::watch_networks(Arc::clone(&jobs)));
    let session = tokio::spawn(session::run(jobs, linked));
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("stopping; jobs go on");
    for task in [state, look, rules, session] {
        task.abort();
    }
    Ok(())
}

/// Keeps [`RunningState`] on disk.
async fn publish(agent: Arc<Agent>, mut link: watch::Receiver<bool>) {
    loop {
        let state = RunningState {
            pid: std::process::id(),
            linked: *link.borrow_and_update(),
            since_ms: agent.clock.unix_millis(),
        };
        let path = state_path(&agent.config);
        let json = serde_json::to_vec(&state).unwrap_or_default();
        let written = tokio::task::spawn_blocking(move || files::write_durable(&path, &json)).await;
        if let Ok(Err(error)) = written {
            tracing::warn!(error = %nimbus_api::error::Chain(&error), "status not written");
        }
        if link.changed().await.is_err() {
            return;
        }
    }
}

fn images(config: &NodeConfig) -> Result<Arc<dyn Images>, ServeError> {
    crate::parts::open_images(config).map_err(ServeError::Images)
}

fn filters() -> Arc<dyn Filters> {
    crate::parts::filters()
}

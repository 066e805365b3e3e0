//! Networks of jobs whose lease has an allow-list: a namespace, a pair of devices, rules.
//!
//! In this order: the record, durable; a network namespace that nothing but a descriptor of ours holds;
//! the CNI plugin `bridge`, which puts one end of a pair into it; the rules. Only then is there a network
//! that `Admit` hands over, by descriptor. Nothing is mounted and nobody can enter it by a name. When the
//! job is over the namespace ends with its last process; the device is seen to be gone, then the rules,
//! the addresses and the record go.
//!
//! After a restart the records say what there was: a job that still runs keeps its rules, everything else
//! is undone. What a lost table of the firewall would open is looked at every [`WATCH_SECONDS`].
//!
//! Limits: one network a lease, which the ledger bounds; programs as [`program`] says.
//! Deliberately absent: decisions (what a lease may name is `nimbus_hooks`'), names, and switching on the
//! host's forwarding, which is the administrator's.

pub mod plugin;
pub mod pods;
pub mod record;
pub mod rules;

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use nimbus_api::egress::EgressRules;
use nimbus_api::error::Chain;
use nimbus_api::id::LeaseId;
use nimbus_api::lease::{LeaseClaims, LeasedEgress};
use nimbus_api::{Refusal, RefusalCode};
use nimbus_hooks::facts::NetworkFact;
use nix::sched::CloneFlags;
use rustix::net::{AddressFamily, SocketType, netdevice, socket};

use crate::agent::lock;
use crate::config::NetworkConfig;
use crate::files::FileError;
use crate::program::{Call, ProgramError};
use plugin::{Device, Families};
use record::{RECORD_VERSION, Record};

/// How often it is seen that the rules are there.
pub const WATCH_SECONDS: u64 = 5;
/// How long a namespace has to end after its last process.
const GONE_PATIENCE: Duration = Duration::from_secs(5);
const GONE_PAUSE: Duration = Duration::from_millis(20);
const FORWARDING_IPV4: &str = "/proc/sys/net/ipv4/ip_forward";
const FORWARDING_IPV6: &str = "/proc/sys/net/ipv6/conf/all/forwarding";
const NO_IPV6: &str = "/proc/sys/net/ipv6/conf/default/disable_ipv6";

/// Why a network could not be made, or undone.
#[derive(Debug, thiserror::Error)]
enum NetworkError {
    #[error("cannot use the network's record")]
    Record(#[source] FileError),
    #[error("cannot make a network namespace")]
    Namespace(#[source] std::io::Error),
    #[error("{key} is not 1 on this node: the administrator switches forwarding on, with sysctl")]
    Forwarding { key: &'static str },
    #[error("a program failed")]
    Program(#[source] ProgramError),
    #[error("a plugin answered something odd")]
    Answer(#[source] plugin::AnswerError),
    #[error("cannot look at a network device")]
    Device(#[source] std::io::Error),
    #[error("it is made already")]
    Twice,
}

/// The networks of this node.
#[derive(Debug)]
pub struct Networks {
    config: NetworkConfig,
    dir: PathBuf,
    boot_id: String,
    runtime: tokio::runtime::Handle,
    /// Held while devices and rules are changed: one change at a time.
    turn: Mutex<()>,
    known: Mutex<BTreeMap<LeaseId, Known>>,
}

#[derive(Debug)]
struct Known {
    record: Record,
    namespace: Option<OwnedFd>,
    /// The rules are in force.
    ready: bool,
}

impl Networks {
    /// Reads what an earlier run left; nothing is changed yet.
    pub fn open(
        dir: &Path,
        config: NetworkConfig,
        boot_id: String,
        runtime: tokio::runtime::Handle,
    ) -> Result<Self, FileError> {
        let known = record::read_all(dir)?
            .into_iter()
            .map(|record| (record.lease.clone(), Known { record, namespace: None, ready: false }));
        let known = Mutex::new(known.collect());
        Ok(Self { config, dir: dir.to_owned(), boot_id, runtime, turn: Mutex::default(), known })
    }

    /// Makes the network of a lease. Blocks. When it fails nothing is left, or [`Networks::sweep`] will
    /// remove it.
    pub fn prepare(&self, lease: &LeaseId, rules: &EgressRules) -> Result<(), Refusal> {
        let started = Instant::now();
        let _turn = lock(&self.turn);
        let made = self.make(lease, rules);
        let Err(error) = made else {
            tracing::info!(%lease, ms = started.elapsed().as_millis(), "network made");
            return Ok(());
        };
        tracing::error!(%lease, error = %Chain(&error), "network not made");
        if !matches!(error, NetworkError::Twice) {
            match self.leave(lease) {
                Ok(()) => self.undo_and_tell(lease),
                Err(error) => tracing::error!(%lease, error = %Chain(&error), "nor left"),
            }
        }
        Err(Refusal::with(RefusalCode::NetworkUnavailable, Chain(&error)))
    }

    /// What admission may know: there is a network under this lease with exactly these rules.
    pub fn fact(&self, claims: &LeaseClaims) -> NetworkFact {
        let LeasedEgress::Allow(rules) = &claims.egress else { return NetworkFact::Missing };
        let known = lock(&self.known);
        let is_it = |known: &&Known| {
            known.ready && known.namespace.is_some() && known.record.rules.as_ref() == Some(rules)
        };
        match known.get(&claims.lease_id).filter(is_it) {
            Some(_) => NetworkFact::Ready,
            None => NetworkFact::Missing,
        }
    }

    /// A network that nobody has made.
    #[cfg(test)]
    pub(crate) fn pretend(&self, lease: &LeaseId, rules: EgressRules, namespace: OwnedFd) {
        let (boot_id, rules) = (self.boot_id.clone(), Some(rules));
        let lease = lease.clone();
        let record = Record { version: RECORD_VERSION, lease, boot_id, rules, attached: None };
        let lease = record.lease.clone();
        let known = Known { record, namespace: Some(namespace), ready: true };
        lock(&self.known).insert(lease, known);
    }

    /// The namespace of a lease, to be handed over.
    pub fn namespace(&self, lease: &LeaseId) -> Result<OwnedFd, Refusal> {
        let missing = || Refusal::with(RefusalCode::NetworkUnavailable, "it is not there any more");
        let known = lock(&self.known);
        let found = known.get(lease).filter(|known| known.ready).ok_or_else(missing)?;
        let namespace = found.namespace.as_ref().ok_or_else(missing)?;
        namespace.try_clone().map_err(|error| Refusal::with(RefusalCode::NetworkUnavailable, error))
    }

    /// Removes the network of a lease whose job is over. Blocks.
    pub fn release(&self, lease: &LeaseId) {
        if !lock(&self.known).contains_key(lease) {
            return;
        }
        // The kernel takes its time to end a namespace, and others need not wait for it.
        if let Err(error) = self.leave(lease) {
            tracing::error!(%lease, error = %Chain(&error), "a network is not left yet");
            return;
        }
        let _turn = lock(&self.turn);
        self.undo_and_tell(lease);
    }

    /// Removes the networks of all leases of which `over` says so. Blocks.
    pub fn sweep(&self, over: impl Fn(&LeaseId) -> bool) {
        let leases: Vec<LeaseId> = lock(&self.known).keys().cloned().collect();
        for lease in leases.iter().filter(|lease| over(lease)) {
            tracing::warn!(%lease, "a network is left of a job that is over");
            self.release(lease);
        }
    }

    /// At the agent's start: what is left of jobs that are over is removed, what runs is kept to its
    /// rules. Blocks.
    pub fn settle(&self, over: impl Fn(&LeaseId) -> bool) {
        self.sweep(over);
        let _turn = lock(&self.turn);
        let boot_id = &self.boot_id;
        let runs = |known: &Known| {
            known.record.boot_id == *boot_id
                && known.record.attached.is_some()
                && known.record.rules.is_some()
        };
        let mut any = false;
        for known in lock(&self.known).values_mut() {
            known.ready = runs(known);
            any |= known.ready;
        }
        if any && let Err(error) = self.apply() {
            tracing::error!(error = %Chain(&error), "the rules of running jobs are not in force");
        }
    }

    /// Sees that the rules are there, and puts them back. Blocks.
    pub fn watch(&self) {
        if !lock(&self.known).values().any(|known| known.ready) {
            return;
        }
        let _turn = lock(&self.turn);
        if !lock(&self.known).values().any(|known| known.ready) {
            return;
        }
        let seen = ["bridge", "inet"].iter().all(|family| {
            let chain = if *family == "inet" { rules::WITNESS } else { "forward" };
            self.nft(&["list", "chain", family, rules::TABLE, chain], String::new()).is_ok()
        });
        if seen {
            return;
        }
        tracing::error!("somebody has removed the rules of running jobs, putting them back");
        if let Err(error) = self.apply() {
            tracing::error!(error = %Chain(&error), "they cannot be put back");
        }
    }

    fn make(&self, lease: &LeaseId, rules: &EgressRules) -> Result<(), NetworkError> {
        if lock(&self.known).contains_key(lease) {
            return Err(NetworkError::Twice);
        }
        let families = families(rules);
        check_forwarding(families)?;
        let (boot_id, rules) = (self.boot_id.clone(), Some(rules.clone()));
        let lease = lease.clone();
        let mut record = Record { version: RECORD_VERSION, lease, boot_id, rules, attached: None };
        record::write(&self.dir, &record).map_err(NetworkError::Record)?;
        let namespace = new_namespace(families)?;
        let path = format!("/proc/{}/fd/{}", std::process::id(), namespace.as_fd().as_raw_fd());
        let known = Known { record: record.clone(), namespace: Some(namespace), ready: false };
        lock(&self.known).insert(record.lease.clone(), known);
        let answer = self.plugin("ADD", &record.lease, &path, families)?;
        let attached =
            plugin::attached(&answer, &self.config, families).map_err(NetworkError::Answer)?;
        self.isolate(&attached.device)?;
        record.attached = Some(attached);
        record::write(&self.dir, &record).map_err(NetworkError::Record)?;
        if let Some(known) = lock(&self.known).get_mut(&record.lease) {
            known.record.clone_from(&record);
            known.ready = true;
        }
        self.apply()
    }

    fn undo_and_tell(&self, lease: &LeaseId) {
        match self.undo(lease) {
            Ok(()) => tracing::info!(%lease, "network removed"),
            Err(error) => {
                tracing::error!(%lease, error = %Chain(&error), "a network is not removed yet");
            }
        }
    }

    /// Lets a namespace go and waits until nobody can be in it: its rules stay until then.
    fn leave(&self, lease: &LeaseId) -> Result<(), NetworkError> {
        let attached = {
            let mut all = lock(&self.known);
            let Some(known) = all.get_mut(lease) else { return Ok(()) };
            known.namespace = None;
            let here = known.record.boot_id == self.boot_id;
            known.record.attached.clone().filter(|_| here)
        };
        attached.map_or(Ok(()), |attached| self.wait_gone(&attached.device))
    }

    /// Removes everything of a network that was left; what is gone already is no error.
    fn undo(&self, lease: &LeaseId) -> Result<(), NetworkError> {
        let Some(record) = lock(&self.known).get(lease).map(|known| known.record.clone()) else {
            // It has no more than a record, if that.
            return record::remove(&self.dir, lease).map_err(NetworkError::Record);
        };
        let was_ready = {
            let mut all = lock(&self.known);
            all.get_mut(lease).is_some_and(|known| std::mem::replace(&mut known.ready, false))
        };
        if was_ready || record.attached.is_some() {
            self.apply()?;
        }
        let families = record.rules.as_ref().map_or(Families { ipv4: true, ipv6: true }, families);
        self.plugin("DEL", lease, "", families)?;
        record::remove(&self.dir, lease).map_err(NetworkError::Record)?;
        lock(&self.known).remove(lease);
        Ok(())
    }

    /// Waits for the end of a pair, which ends with its namespace; one that does not is ended.
    fn wait_gone(&self, device: &Device) -> Result<(), NetworkError> {
        let until = Instant::now() + GONE_PATIENCE;
        while exists(device)? {
            if Instant::now() > until {
                tracing::warn!(device = device.as_str(), "a device outlives its job, removing it");
                self.ip(&["link", "delete", "dev", device.as_str()])?;
                break;
            }
            std::thread::sleep(GONE_PAUSE);
        }
        Ok(())
    }

    /// Makes the rules what the known networks need.
    fn apply(&self) -> Result<(), NetworkError> {
        let script = {
            let all = lock(&self.known);
            let ready = all.values().filter(|known| known.ready);
            let ports: Vec<_> = ready
                .filter_map(|known| {
                    let attached = known.record.attached.as_ref()?;
                    Some(rules::Port { attached, rules: known.record.rules.as_ref()? })
                })
                .collect();
            rules::script(&self.config, &ports)
        };
        self.nft(&["-f", "-"], script)
    }

    /// Ports of the bridge that are isolated do not reach each other, whatever becomes of the rules.
    fn isolate(&self, device: &Device) -> Result<(), NetworkError> {
        let port = ["link", "set", "dev", device.as_str(), "type", "bridge_slave"];
        self.ip(&[port.as_slice(), &["isolated", "on"]].concat())
    }

    fn nft(&self, args: &[&str], script: String) -> Result<(), NetworkError> {
        let call = Call { program: &self.config.nft, args, env: &[], input: script.into_bytes() };
        crate::program::run(&self.runtime, call).map(drop).map_err(NetworkError::Program)
    }

    fn ip(&self, args: &[&str]) -> Result<(), NetworkError> {
        let call = Call { program: &self.config.ip, args, env: &[], input: Vec::new() };
        crate::program::run(&self.runtime, call).map(drop).map_err(NetworkError::Program)
    }

    fn plugin(
        &self,
        verb: &str,
        lease: &LeaseId,
        namespace: &str,
        families: Families,
    ) -> Result<Vec<u8>, NetworkError> {
        let plugins = self.config.plugins.to_string_lossy();
        let env = [
            ("CNI_COMMAND", verb),
            ("CNI_CONTAINERID", lease.as_str()),
            ("CNI_NETNS", namespace),
            ("CNI_IFNAME", plugin::INSIDE),
            ("CNI_PATH", &plugins),
        ];
        let input = plugin::configuration(&self.config, families, &self.dir.join("addresses"));
        let program = self.config.plugins.join("bridge");
        let call = Call { program: &program, args: &[], env: &env, input };
        crate::program::run(&self.runtime, call).map_err(NetworkError::Program)
    }
}

/// A job has addresses of the families that it may connect to.
fn families(rules: &EgressRules) -> Families {
    let any = |is_ipv4| rules.as_slice().iter().any(|rule| rule.to.is_ipv4() == is_ipv4);
    Families { ipv4: any(true), ipv6: any(false) }
}

/// The plugin would switch it on for the whole host without asking.
fn check_forwarding(families: Families) -> Result<(), NetworkError> {
    let wanted = [
        (families.ipv4, FORWARDING_IPV4, "net.ipv4.ip_forward"),
        (families.ipv6, FORWARDING_IPV6, "net.ipv6.conf.all.forwarding"),
    ];
    for (_, path, key) in wanted.into_iter().filter(|(wanted, _, _)| *wanted) {
        let found = std::fs::read_to_string(path).unwrap_or_default();
        if found.trim() != "1" {
            return Err(NetworkError::Forwarding { key });
        }
    }
    Ok(())
}

/// A network namespace that ends with the descriptor, or with the last process in it.
fn new_namespace(families: Families) -> Result<OwnedFd, NetworkError> {
    // A namespace is a thread's; this one takes it along when it ends.
    let make = move || {
        nix::sched::unshare(CloneFlags::CLONE_NEWNET)?;
        if !families.ipv6 && Path::new(NO_IPV6).exists() {
            // For devices to come; loopback keeps its own.
            std::fs::write(NO_IPV6, "1")?;
        }
        File::open("/proc/thread-self/ns/net")
    };
    let thread = std::thread::Builder::new().name("network".to_owned()).spawn(make);
    let made = thread.map_err(NetworkError::Namespace)?.join();
    let broken = |_panic| Err(std::io::Error::other("the thread broke off"));
    made.unwrap_or_else(broken).map(OwnedFd::from).map_err(NetworkError::Namespace)
}

fn exists(device: &Device) -> Result<bool, NetworkError> {
    let failed = |error: rustix::io::Errno| NetworkError::Device(error.into());
    let socket = socket(AddressFamily::UNIX, SocketType::DGRAM, None).map_err(failed)?;
    match netdevice::name_to_index(&socket, device.as_str()) {
        Ok(_) => Ok(true),
        Err(rustix::io::Errno::NODEV) => Ok(false),
        Err(error) => Err(failed(error)),
    }
}

//! A whole Nimbus in one directory.
//!
//! Inputs: the directory of the programs (`NIMBUS_BIN_DIR`, else where this test was built) and a
//! [`Setting`]. Everything a lab makes is below one directory with a unique name; servers listen on
//! loopback and on sockets in it. [`Lab::close`] stops everything and fails when anything is left;
//! dropping a lab without closing it kills and removes what it can find.

mod jobs;
mod pods;
mod programs;
mod settle;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

pub use jobs::{Ended, Submission, Submitted};
pub use settle::end;
pub(crate) use settle::sweep;

use crate::child::{Program, tail};
use crate::ctl::Ctl;
use crate::ctr::Ctr;
use crate::gate::Gate;
use crate::images::{Published, busybox_with};
use crate::mint::Stolen;
use crate::policy::Keys;
use crate::specimen::Specimen;
use crate::{Failure, Outcome, containerd, cri, leftovers};
use pods::PodImages;

/// The trust domain of every lab: control's default.
pub const DOMAIN: &str = "nimbus.local";
/// The name of a lab's node.
pub const NODE: &str = "lab-node";
/// What a lab's directory is called, up to its unique end.
pub const PREFIX: &str = "nimbus-lab-";
/// How long a specimen's heartbeat is young enough for leases of some minutes.
const SPECIMEN_AGE: Duration = Duration::from_mins(2);
/// containerd's socket in a lab's directory.
pub const CONTAINERD_SOCKET: &str = containerd::SOCKET;
/// Lines of each log that are shown when a case fails.
const LOG_LINES: usize = 40;

/// How a lab is set up.
#[derive(Debug, Clone)]
pub struct Setting {
    /// How long a lease lasts, seconds.
    pub lease_ttl: u64,
    /// How often it is extended, seconds.
    pub lease_extension: u64,
    /// Whether the policy is applied.
    pub policy: bool,
    /// Whether there is a [`Gate`] between the node agent and containerd.
    pub gate: bool,
    /// Whether containerd has its CRI plugin, and the policy rules for pods.
    pub cri: bool,
    /// Where the programs are; none means as [`bin_dir`] finds them.
    pub bin_dir: Option<PathBuf>,
}

impl Default for Setting {
    fn default() -> Self {
        Self {
            lease_ttl: 900,
            lease_extension: 300,
            policy: true,
            gate: false,
            cri: false,
            bin_dir: None,
        }
    }
}

/// A running Nimbus.
#[derive(Debug)]
pub struct Lab {
    dir: PathBuf,
    bin: PathBuf,
    setting: Setting,
    keys: Keys,
    registry_address: String,
    api: String,
    join: String,
    registry: Option<Program>,
    containerd: Option<Program>,
    control: Option<Program>,
    node: Option<Program>,
    gate: Option<Gate>,
    serial: u64,
    ids: BTreeSet<String>,
    guards_before: BTreeSet<PathBuf>,
    parents_before: BTreeSet<PathBuf>,
    networks_before: BTreeSet<PathBuf>,
    pods: Option<PodImages>,
    hello: Option<Published>,
    specimen: Option<(Instant, Specimen)>,
    settled: bool,
}

impl Lab {
    /// Makes the directory, starts everything, joins the node and waits until it is connected.
    pub fn start(setting: Setting) -> Result<Self, Failure> {
        let dir = tempfile::Builder::new().prefix(PREFIX).tempdir()?.keep();
        let mut lab = Self {
            bin: setting.bin_dir.clone().map_or_else(bin_dir, Ok)?,
            setting,
            keys: Keys::generate()?,
            registry_address: String::new(),
            api: "127.0.0.1:0".to_owned(),
            join: "127.0.0.1:0".to_owned(),
            registry: None,
            containerd: None,
            control: None,
            node: None,
            gate: None,
            serial: 0,
            ids: BTreeSet::new(),
            guards_before: leftovers::guards(),
            parents_before: leftovers::parents(),
            networks_before: cri::network::names(),
            pods: None,
            hello: None,
            specimen: None,
            settled: false,
            dir,
        };
        for name in ["logs", "fifos", "layouts", "files"] {
            std::fs::create_dir(lab.path(name))?;
        }
        if lab.setting.cri {
            // What pods leave is in cgroups of this name.
            lab.remember(&lab.pod_cgroups());
        }
        let begun = lab.begin();
        if let Err(failure) = begun {
            return Err(Failure::new(format!("{}\n{}", failure.text(), lab.logs())));
        }
        Ok(lab)
    }

    fn begin(&mut self) -> Outcome {
        self.start_registry()?;
        if self.setting.cri {
            self.publish_pod_images()?;
        }
        self.start_containerd()?;
        if self.setting.gate {
            let (gate, containerd) = (self.containerd_of_node(), self.path(CONTAINERD_SOCKET));
            self.gate = Some(Gate::open(&gate, &containerd)?);
        }
        self.start_control()?;
        if self.setting.policy {
            self.apply_policy()?;
        }
        self.join_node()?;
        self.start_node()?;
        self.wait_connected()
    }

    /// Its directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A path in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Where shim and agent meet.
    pub fn run_dir(&self) -> PathBuf {
        self.path(containerd::RUN_DIR)
    }

    /// Control's data directory.
    pub fn control_dir(&self) -> PathBuf {
        self.path("control")
    }

    /// The node agent's data directory.
    pub fn node_dir(&self) -> PathBuf {
        self.path("node")
    }

    /// The socket at which the node agent finds containerd.
    fn containerd_of_node(&self) -> PathBuf {
        self.path(if self.setting.gate { "gate.sock" } else { CONTAINERD_SOCKET })
    }

    /// What stands between the node agent and containerd.
    pub fn gate(&self) -> Result<&Gate, Failure> {
        self.gate.as_ref().ok_or_else(|| Failure::new("this lab has no gate"))
    }

    /// Where the node's ledger keeps what it knows of a lease that it was granted.
    pub fn ledger_entry(&self, lease: &nimbus_api::id::LeaseId) -> PathBuf {
        self.node_dir().join("ledger").join(format!("{lease}.json"))
    }

    /// `host:port` of the registry.
    pub fn registry(&self) -> &str {
        &self.registry_address
    }

    /// `host:port` of control's API.
    pub fn api(&self) -> &str {
        &self.api
    }

    /// Everything that may sign.
    pub const fn keys(&self) -> &Keys {
        &self.keys
    }

    /// Serial of the policy applied last.
    pub const fn serial(&self) -> u64 {
        self.serial
    }

    /// One of the programs under test.
    pub fn program(&self, name: &str) -> PathBuf {
        self.bin.join(name)
    }

    /// A client of the control service, as its first admin.
    pub fn ctl(&self) -> Ctl {
        Ctl::new(&self.program("nimbusctl"), &self.control_dir().join("admin.json"))
    }

    /// A client of the containerd.
    pub fn ctr(&self) -> Ctr {
        Ctr::new(&self.path(CONTAINERD_SOCKET), &self.path("fifos"))
    }

    /// The keys that control holds.
    pub fn stolen(&self) -> Result<Stolen, Failure> {
        Stolen::from(&self.control_dir(), DOMAIN)
    }

    /// Puts an image into the registry under a repository and the tag `latest`.
    pub fn publish(
        &self,
        repository: &str,
        image: &nimbus_forge::Image,
    ) -> Result<Published, Failure> {
        let digest = image.push(&self.registry_address, repository, "latest")?;
        Ok(Published { name: format!("{}/{repository}", self.registry_address), digest })
    }

    /// busybox that the policy has a rule for.
    pub fn hello(&mut self) -> Result<Published, Failure> {
        if let Some(published) = &self.hello {
            return Ok(published.clone());
        }
        let published = self.publish("apps/hello", &busybox_with("hello")?)?;
        self.hello = Some(published.clone());
        Ok(published)
    }

    /// An image of its own that the policy has a rule for and nobody has attested yet.
    pub fn unattested(&self, name: &str) -> Result<Published, Failure> {
        self.publish(&format!("apps/{name}"), &busybox_with(name)?)
    }

    /// Remembers the id of something that may leave something behind.
    pub fn remember(&mut self, id: &str) {
        self.ids.insert(id.to_owned());
    }

    /// A container that the node agent made, caught not long ago under this boot of the agent.
    pub fn specimen(&mut self) -> Result<Specimen, Failure> {
        match &self.specimen {
            Some((taken, specimen)) if taken.elapsed() < SPECIMEN_AGE => Ok(specimen.clone()),
            _ => {
                let specimen = self.catch()?;
                self.specimen = Some((Instant::now(), specimen.clone()));
                Ok(specimen)
            }
        }
    }

    /// Starts a job, catches its container and cancels it.
    fn catch(&mut self) -> Result<Specimen, Failure> {
        let submission = self.good(&["/bin/sh", "-c", "while :; do sleep 1; done"])?;
        let job = self.submit(&submission)?.job()?;
        let id = self.wait_running(&job)?;
        let specimen = Specimen::of(self, &id);
        self.cancel(&job)?;
        self.wait_ended(&job)?;
        self.nothing_left_of(&id)?;
        specimen
    }

    /// Fails when anything of a container is left after a while.
    pub fn nothing_left_of(&self, id: &str) -> Outcome {
        leftovers::none_of_container(&self.run_dir(), id)
    }

    /// The ends of all logs.
    pub fn logs(&self) -> String {
        let ends = ["registry", "containerd", "control", "node"].map(|name| {
            let log = self.path("logs").join(name);
            format!("\n--- {name}\n{}", tail(&log, LOG_LINES))
        });
        format!("lab {}{}", self.dir.display(), ends.concat())
    }
}

/// Where the programs under test are.
pub fn bin_dir() -> Result<PathBuf, Failure> {
    if let Some(dir) = std::env::var_os("NIMBUS_BIN_DIR") {
        return Ok(PathBuf::from(dir));
    }
    let own = std::env::current_exe()?;
    let mut dirs = own.ancestors().skip(1);
    let found = dirs.find(|dir| dir.join("nimbus-control").is_file());
    found.map(Path::to_owned).ok_or_else(|| {
        Failure::new("the programs are not built: use `cargo xtask test`, or set NIMBUS_BIN_DIR")
    })
}

//! The container's first process, from its birth until it is what the container asked for.
//!
//! It is a copy of `nimbus-runtime`, born in the container's namespaces and in its guard. In this order
//! it enters its cgroups, proves that devices are denied, puts its mounts together, leaves the host's
//! behind, and goes on in [`crate::process`]. Nothing of the container's has run when it does. In those of
//! its namespaces that are new it is alone; in those that it joins are others of the same pod, who see a
//! process that is not dumpable.
//!
//! Whatever fails is told over the channel, and ends it; so does the end of the process that made it.
//! Deliberately absent: decisions, and effects on anything that the host sees.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use nimbus_api::RefusalCode;
use nimbus_api::plan::DeviceRule;
use nimbus_api::runtime::CgroupPaths;
use rustix::fs::{Mode, OFlags, open};
use rustix::mount::{MountAttrFlags, UnmountFlags, mount_change, unmount};
use rustix::process::{chdir, fchdir, pivot_root};

use crate::cgroup::hierarchy::Hierarchies;
use crate::cgroup::{devices, join};
use crate::error::{Doing as _, RuntimeError};
use crate::layout::Layout;
use crate::mounts::handed::Handed;
use crate::mounts::kit::Kit;
use crate::mounts::place::{Kind, open_or_make};
use crate::mounts::{attach, bind, cgroup, filesystem, mask};
use crate::namespaces::Namespaces;
use crate::process::channel::Inside;
use crate::process::{Becoming, Gate};
use crate::rootfs::{self, Root};
use crate::spec::model::{Mount, Spec};
use crate::spec::options::{self, Options};
use crate::sys::mount::{Change, change};
use crate::sys::{net, signal};
use crate::sysctl;

/// Exit status when it did not get as far as its program.
const EXIT_STRAY: i32 = 125;
const READ_ONLY: u32 = MountAttrFlags::MOUNT_ATTR_RDONLY.bits();
/// File systems that can be made fresh in a container.
const FRESH: [&str; 5] = ["proc", "tmpfs", "devpts", "mqueue", "sysfs"];
const DOMAIN_NAME: &str = "kernel.domainname";

/// What the process needs to know; everything was opened by the one that makes the container.
#[derive(Debug)]
pub(crate) struct Init<'a> {
    pub(crate) layout: &'a Layout,
    pub(crate) spec: &'a Spec,
    pub(crate) root: &'a Root,
    pub(crate) read_only: bool,
    pub(crate) hosts: &'a Hierarchies,
    pub(crate) cgroup: &'a CgroupPaths,
    pub(crate) namespaces: &'a Namespaces,
    pub(crate) kit: &'a Kit,
    /// In the order that they are attached in.
    pub(crate) binds: &'a [Handed],
    /// The container's `/dev`, filled, for the mount with this number.
    pub(crate) dev: Option<(usize, OwnedFd)>,
    /// When given, that others are denied is proven.
    pub(crate) leased: Option<&'a [DeviceRule]>,
}

/// The rest of its life.
#[derive(Debug)]
pub(crate) struct Next<'a> {
    pub(crate) becoming: Becoming<'a>,
    pub(crate) stdio: Option<[OwnedFd; 3]>,
    pub(crate) gate: Gate,
}

impl Init<'_> {
    /// Runs in the copy and never returns.
    pub(crate) fn live(&self, channel: Inside, next: Next<'_>) -> ! {
        // Unwinding would run the frames of the process that this one is a copy of.
        let lived = catch_unwind(AssertUnwindSafe(|| match self.set_up() {
            Ok(()) => next.becoming.become_init(next.stdio, channel, next.gate),
            Err(error) => channel.refuse(&error.refusal()),
        }));
        drop(lived);
        signal::exit_now(EXIT_STRAY)
    }

    fn set_up(&self) -> Result<(), RuntimeError> {
        join::enter_v1(self.cgroup)?;
        if let Some(leased) = self.leased {
            devices::prove(self.kit, leased)?;
        }
        self.namespaces.enter_own()?;
        if let Some(adjust) = self.spec.process.oom_score_adj {
            fs::write("/proc/self/oom_score_adj", adjust.to_string()).doing("set oom_score_adj")?;
        }
        if self.namespaces.has_new_network() {
            net::loopback_up().doing("bring up the loopback device")?;
        }
        self.name()?;
        let root = self.mount()?;
        leave_host(&root)?;
        self.finish(&root)
    }

    fn name(&self) -> Result<(), RuntimeError> {
        let name = self.spec.hostname.as_deref().filter(|name| !name.is_empty());
        // Somebody else's name stays as it is.
        let Some(name) = name.filter(|_| !self.namespaces.is_named()) else {
            return Ok(());
        };
        if !self.namespaces.own().uts {
            let detail = "a hostname needs a uts namespace";
            return Err(RuntimeError::refused(RefusalCode::RuntimeFailed, detail));
        }
        nix::unistd::sethostname(name).doing("set the hostname")
    }

    /// Puts everything on the root, which is given back.
    fn mount(&self) -> Result<OwnedFd, RuntimeError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        // The directories above are root's alone.
        rootfs::keep_from_host()?;
        let kit = open(self.layout.kit(), flags, Mode::empty()).doing("open a mount point")?;
        self.kit.attach(&kit)?;
        let root = rootfs::assemble(self.layout, self.root, &self.spec.process.cwd)?;
        let mut procfs = None;
        for (number, mount) in self.spec.mounts.iter().enumerate() {
            let made = self.mount_one(&root, number, mount)?;
            if mount.kind == "proc" && mount.destination == "/proc" {
                procfs = made;
            }
        }
        self.set_parameters(procfs)?;
        for bind in self.binds {
            bind.attach(&root)?;
        }
        mask::make_read_only(&root, &self.spec.linux.readonly_paths)?;
        mask::hide(&root, self.kit, &self.spec.linux.masked_paths)?;
        Ok(root)
    }

    /// Gives back the file system that it has made, if any.
    fn mount_one(
        &self,
        root: &OwnedFd,
        number: usize,
        mount: &Mount,
    ) -> Result<Option<OwnedFd>, RuntimeError> {
        let options = options::parse(&mount.options);
        let at = mount.destination.as_str();
        let doing = || format!("mount {at}");
        if options.bind || mount.kind == "bind" {
            let (clone, kind) = bind::clone(Path::new(&mount.source), &options)?;
            attach(clone, open_or_make(root, at, kind)?).doing(doing())?;
            return Ok(None);
        }
        if matches!(mount.kind.as_str(), "cgroup" | "cgroup2") {
            let place = open_or_make(root, at, cgroup::KIND)?;
            cgroup::mount(&place, &options, self.hosts, self.cgroup)?;
            return Ok(None);
        }
        if !FRESH.contains(&mount.kind.as_str()) {
            let detail = format!("{at} of type {:?}", mount.kind);
            return Err(RuntimeError::refused(RefusalCode::SpecMountForbidden, detail));
        }
        let place = open_or_make(root, at, Kind::Directory)?;
        let made = match &self.dev {
            Some((dev, filled)) if *dev == number => {
                attach(filled, &place).doing(doing())?;
                None
            }
            _ => {
                let made = filesystem::make(&mount.kind, &mount.source, &options)?;
                attach(&made, &place).doing(doing())?;
                Some(made)
            }
        };
        if let Some(made) = &made {
            let travels = Options { propagation: options.propagation, ..Options::default() };
            bind::set(made, &travels)?;
        }
        Ok(made)
    }

    fn set_parameters(&self, procfs: Option<OwnedFd>) -> Result<(), RuntimeError> {
        let mut wanted = self.spec.linux.sysctl.clone();
        if let Some(name) = self.spec.domainname.as_ref().filter(|name| !name.is_empty()) {
            wanted.insert(DOMAIN_NAME.to_owned(), name.clone());
        }
        if wanted == BTreeMap::new() {
            return Ok(());
        }
        sysctl::check(&wanted, self.namespaces.own())?;
        let own = || filesystem::make("proc", "proc", &Options::default());
        sysctl::write(&procfs.map_or_else(own, Ok)?, &wanted)
    }

    fn finish(&self, root: &OwnedFd) -> Result<(), RuntimeError> {
        let travels = self.spec.linux.rootfs_propagation.as_str();
        if !travels.is_empty() {
            let flags = options::propagation(travels).ok_or_else(|| {
                let detail = format!("no propagation is named {travels:?}");
                RuntimeError::refused(RefusalCode::SpecPropagationForbidden, detail)
            })?;
            mount_change("/", flags).doing("set how mounts travel")?;
        }
        if self.read_only {
            change(root, &Change { set: READ_ONLY, ..Change::default() })
                .doing("make the root read-only")?;
        }
        Ok(())
    }
}

/// Makes the root `/`, and the host's mounts unreachable.
fn leave_host(root: &OwnedFd) -> Result<(), RuntimeError> {
    fchdir(root).doing("enter the root")?;
    // Old and new in one place, one over the other: the old one is on top and goes.
    pivot_root(".", ".").doing("make the root the container's")?;
    unmount(".", UnmountFlags::DETACH).doing("leave the host's mounts")?;
    chdir("/").doing("enter the root")
}

/// Makes a container's `/dev` where a specification wants a fresh one.
pub(crate) fn dev_of(spec: &Spec) -> Option<(usize, &Mount)> {
    let fresh = |mount: &&Mount| mount.destination == "/dev" && mount.kind == "tmpfs";
    let (number, mount) = spec.mounts.iter().enumerate().find(|(_, mount)| fresh(mount))?;
    Some((number, mount))
}

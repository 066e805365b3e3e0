//! Create: from a plan and its descriptors to an init process that waits, proven to be contained.
//!
//! Order: the directory, locked; the record; then effects. This process makes everything that needs
//! the host's view (cgroups, a filled `/dev`), lets a copy of itself be born in the container's
//! namespaces ([`crate::init`]), waits until it is ready, and looks at it from outside. Whatever fails,
//! and also a panic or the deadline, undoes everything before it is answered. A kill at any instruction
//! leaves the record, from which Delete does the same.
#![forbid(unsafe_code)]

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};

use nimbus_api::RefusalCode;
use nimbus_api::lease::LeasedResources;
use nimbus_api::plan::DeviceRule;
use nimbus_api::runtime::CgroupPaths;
use rustix::fs::Mode;
use serde_json::Value;

use crate::cgroup::hierarchy::{CgroupsPath, Hierarchies, dirs};
use crate::cgroup::{devices, guard, limits, write};
use crate::error::{Doing as _, RuntimeError};
use crate::identity::Identity;
use crate::init::{Init, Next, dev_of};
use crate::layout::Layout;
use crate::mounts::dev::{self, Node};
use crate::mounts::filesystem;
use crate::mounts::handed::Handed;
use crate::mounts::kit::Kit;
use crate::namespaces::{Joins, Namespaces};
use crate::process::channel::{self, Heard, Outside};
use crate::process::credentials::Credentials;
use crate::process::program::give_pipes;
use crate::process::{Becoming, Gate};
use crate::proof::Proven;
use crate::record::Record;
use crate::rootfs::Root;
use crate::spec::model::Spec;
use crate::spec::{self, options};
use crate::sys::fork::{Fork, Forked, Kin, alone, fork};
use crate::sys::mount::{Change, change};
use crate::sys::seccomp::Program;
use crate::sys::signal;
use crate::{delete, proof, report, rootfs};

/// What mounts and cgroups are made with.
const MAKING_UMASK: Mode = Mode::from_raw_mode(0o022);

/// What is to be made.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) spec: Value,
    pub(crate) root: Root,
    pub(crate) read_only: bool,
    /// The whole allow-list; none takes the specification's, which only the development command line
    /// does.
    pub(crate) devices: Option<Vec<DeviceRule>>,
    /// Checked when given.
    pub(crate) limits: Option<LeasedResources>,
    pub(crate) program: Option<Program>,
    /// Namespaces that it joins instead of new ones.
    pub(crate) joins: Joins,
    /// What it sees of the host's, in order.
    pub(crate) binds: Vec<Handed>,
    /// None when it gets a terminal.
    pub(crate) stdio: Option<[OwnedFd; 3]>,
    pub(crate) kin: Kin,
}

/// What has been made.
#[derive(Debug)]
pub(crate) struct Created {
    pub(crate) pid: i32,
    pub(crate) cgroup: CgroupPaths,
    /// The other end of its terminal.
    pub(crate) terminal: Option<OwnedFd>,
}

/// Makes a container.
pub(crate) fn create(layout: &Layout, job: Job) -> Result<Created, RuntimeError> {
    let refused = |detail: String| RuntimeError::refused(RefusalCode::RuntimeFailed, detail);
    let hosts = Hierarchies::of_this_host()?;
    let spec = spec::understand(&job.spec)?;
    let cgroup = hosts.paths(&CgroupsPath::new(&spec.linux.cgroups_path)?);
    if let Some(dir) = dirs(&cgroup).into_iter().find(|dir| dir.exists()) {
        return Err(refused(format!("the cgroup {} exists already", dir.display())));
    }
    let Some(guards) = hosts.guards() else {
        return Err(RuntimeError::unproven("this host has neither a unified nor a freezer cgroup"));
    };
    let own = rustix::process::getpid().as_raw_nonzero().get();
    let record = Record::intent(cgroup, guards.join(layout.guard()), Identity::of(own)?);
    let mut lock = Some(layout.create()?);
    let before = rustix::process::umask(MAKING_UMASK);
    let attempt = catch_unwind(AssertUnwindSafe(|| {
        record.write(layout)?;
        attempt(layout, job, &Making { hosts: &hosts, spec: &spec }, record.clone(), &mut lock)
    }));
    rustix::process::umask(before);
    let made = attempt.unwrap_or_else(|_panic| Err(refused("the runtime panicked".to_owned())));
    made.map(|(proven, terminal)| Created {
        pid: proven.pid(),
        cgroup: record.cgroup.clone(),
        terminal,
    })
    .map_err(|error| undone(layout, &record, error))
}

/// Undoes everything; the error says so if that fails too.
fn undone(layout: &Layout, record: &Record, error: RuntimeError) -> RuntimeError {
    let error = if signal::deadline_passed() {
        RuntimeError::refused(RefusalCode::RuntimeTimeout, error.refusal().sentence())
    } else {
        error
    };
    match delete::erase(layout, record) {
        Ok(()) => error,
        Err(left) => {
            let (error, left) = (error.refusal(), left.refusal());
            let detail = format!("{}, and not all is undone: {left}", error.detail());
            RuntimeError::refused(error.code, detail)
        }
    }
}

/// What is known of the container and of the host.
#[derive(Debug)]
struct Making<'a> {
    hosts: &'a Hierarchies,
    spec: &'a Spec,
}

fn attempt(
    layout: &Layout,
    job: Job,
    making: &Making<'_>,
    mut record: Record,
    lock: &mut Option<OwnedFd>,
) -> Result<(Proven, Option<OwnedFd>), RuntimeError> {
    let Making { hosts, spec } = *making;
    let process = &spec.process;
    let wanted = spec::wanted(process)?;
    let credentials = Credentials::wished(&process.user, &process.capabilities)?;
    let namespaces = Namespaces::open(&spec.linux.namespaces, job.joins)?;
    if let Some(stdio) = &job.stdio {
        give_pipes(stdio, process.user.uid, process.user.gid)?;
    }
    rootfs::make_mount_points(layout)?;
    let leased = job.devices.as_deref();
    let born = make_cgroups(hosts, &record, spec, leased)?;
    let kit = Kit::make(leased.map(devices::not_leased).transpose()?)?;
    let dev = make_dev(spec, leased)?;
    let gate = make_gate(layout)?;
    let (outside, inside) = channel::pair()?;
    namespaces.enter_for_children()?;
    let alone = alone().doing("look at our own threads")?;
    let forked = fork(alone, job.kin, born.as_ref().map(AsFd::as_fd), namespaces.born_in());
    let pid = match forked.doing("make the init process")? {
        Fork::Parent(Forked { pid, .. }) => pid,
        Fork::Child => {
            rustix::process::umask(MAKING_UMASK);
            // Only what is open in the process that makes the container may keep Delete waiting.
            drop((lock.take(), outside));
            let filter = job.program.as_ref();
            let console = wanted.terminal.is_some();
            let becoming =
                Becoming { process: &wanted, credentials: &credentials, filter, console };
            let init = Init {
                layout,
                spec,
                root: &job.root,
                read_only: job.read_only,
                hosts,
                cgroup: &record.cgroup,
                namespaces: &namespaces,
                kit: &kit,
                binds: &job.binds,
                dev,
                leased,
            };
            init.live(inside, Next { becoming, stdio: job.stdio, gate })
        }
    };
    drop((inside, gate, job.stdio, job.root, dev));
    if let Some(limits) = &job.limits {
        limits::check(&record.cgroup, limits)?;
    }
    let terminal = hear(&outside)?;
    if signal::deadline_passed() {
        return Err(RuntimeError::refused(RefusalCode::RuntimeTimeout, "the deadline has passed"));
    }
    record.created(Identity::of(pid)?);
    proof::namespaces(pid, namespaces.came())?;
    proof::binds(pid, &job.binds)?;
    let proven = proof::init(pid, &job.spec, job.program.is_some(), hosts, &record.cgroup)?;
    record.write(layout)?;
    Ok((proven, terminal))
}

/// Makes cgroups with their limits and devices. Gives back where the init process is to be born.
fn make_cgroups(
    hosts: &Hierarchies,
    record: &Record,
    spec: &Spec,
    leased: Option<&[DeviceRule]>,
) -> Result<Option<OwnedFd>, RuntimeError> {
    let resources = &spec.linux.resources;
    write::make(hosts, &record.cgroup)?;
    write::apply(&record.cgroup, resources)?;
    match leased {
        Some(rules) => devices::set(&record.cgroup, rules)?,
        None => devices::set_listed(&record.cgroup, &resources.devices)?,
    }
    let born = match &record.cgroup.unified {
        Some(own) => own,
        None if hosts.is_hybrid() => {
            guard::make(&record.guard)?;
            &record.guard
        }
        None => return Ok(None),
    };
    fs::File::open(born).map(|dir| Some(dir.into())).doing("open the cgroup to be born in")
}

/// A filled `/dev`, and which of the mounts it is.
fn make_dev(
    spec: &Spec,
    leased: Option<&[DeviceRule]>,
) -> Result<Option<(usize, OwnedFd)>, RuntimeError> {
    let Some((number, mount)) = dev_of(spec) else { return Ok(None) };
    let mut options = options::parse(&mount.options);
    let read_only = options.read_only();
    // Once it is filled.
    options.set &= !options::READ_ONLY;
    let dev = filesystem::make(&mount.kind, &mount.source, &options)?;
    let nodes: Vec<Node> = match leased {
        Some(rules) => rules.iter().filter_map(Node::leased).collect(),
        None => Node::usual().chain(spec.linux.devices.iter().map(Node::wished)).collect(),
    };
    dev::fill(&dev, &nodes, spec.process.terminal)?;
    if read_only {
        let read_only = Change { set: options::READ_ONLY, ..Change::default() };
        change(&dev, &read_only).doing("make /dev read-only")?;
    }
    Ok(Some((number, dev)))
}

fn make_gate(layout: &Layout) -> Result<Gate, RuntimeError> {
    Ok(Gate { start: report::make_gate(layout)?, report: report::make_fifo(layout)? })
}

/// Waits until the init process can be looked at.
fn hear(outside: &Outside) -> Result<Option<OwnedFd>, RuntimeError> {
    let mut terminal = None;
    loop {
        match outside.hear()? {
            Heard::Terminal(fd) if terminal.is_none() => terminal = Some(fd),
            Heard::Terminal(_) => return Err(RuntimeError::unproven("a second terminal came")),
            Heard::Ready => return Ok(terminal),
            Heard::Failed(report) => return Err(RuntimeError::Refused(report.refusal())),
            Heard::Refused(refusal) => return Err(RuntimeError::Refused(refusal)),
            Heard::End => return Err(RuntimeError::unproven("the init process ended too early")),
        }
    }
}

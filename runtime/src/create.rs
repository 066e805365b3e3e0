//! Create: from a plan and its descriptors to an init process that waits, proven to be contained.
//!
//! Order: the record, then the guard, then effects. Whatever fails, and also a panic of libcontainer
//! or the deadline, undoes everything before it is answered. A kill at any instruction leaves the
//! record, from which Delete does the same.
#![forbid(unsafe_code)]

use std::fs;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;

use libcontainer::container::builder::ContainerBuilder;
use libcontainer::syscall::syscall::SyscallType;
use nimbus_api::RefusalCode;
use nimbus_api::lease::LeasedResources;
use nimbus_api::plan::DeviceRule;
use nimbus_api::runtime::CgroupPaths;
use rustix::fs::{CWD, Mode, mkdirat};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::Value;

use crate::cgroup::guard::Guard;
use crate::cgroup::hierarchy::{CgroupsPath, Hierarchies, dirs};
use crate::cgroup::{devices, limits};
use crate::error::{Doing as _, RuntimeError};
use crate::executor::JobExecutor;
use crate::identity::Identity;
use crate::layout::{ENGINE_ID, Layout};
use crate::process::program::give_pipes;
use crate::proof::Proven;
use crate::record::Record;
use crate::report::{self, Report};
use crate::spec::{self, Parts};
use crate::sys::seccomp::Program;
use crate::sys::{keyring, net, signal};
use crate::{delete, proof, rootfs};

/// What mounts made in the container's root, and libcontainer's own files, are made with.
const ENGINE_UMASK: Mode = Mode::from_raw_mode(0o022);
/// Exit status of a child of libcontainer's that came back into our code.
const EXIT_STRAY: i32 = 125;

/// Where the root comes from.
#[derive(Debug)]
pub(crate) enum Root {
    /// An overlay of these, lowest first, with scratch space of this many bytes.
    Layers { layers: Vec<OwnedFd>, scratch_bytes: u64 },
    /// A directory as it is. Only the development command line does this.
    Directory(String),
}

/// What is to be made.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) spec: Value,
    pub(crate) root: Root,
    pub(crate) read_only: bool,
    /// The whole allow-list; none leaves libcontainer's, which only the development command line does.
    pub(crate) devices: Option<Vec<DeviceRule>>,
    /// Checked when given.
    pub(crate) limits: Option<LeasedResources>,
    pub(crate) program: Option<Program>,
    pub(crate) stdio: Option<[OwnedFd; 3]>,
    /// Whether the init process becomes our parent's child.
    pub(crate) sibling: bool,
}

/// What has been made.
#[derive(Debug)]
pub(crate) struct Created {
    pub(crate) pid: i32,
    pub(crate) cgroup: CgroupPaths,
    /// Still entered.
    pub(crate) guard: Guard,
}

/// Makes a container.
pub(crate) fn create(layout: &Layout, job: Job) -> Result<Created, RuntimeError> {
    let hosts = Hierarchies::of_this_host()?;
    let path = job.spec.pointer("/linux/cgroupsPath").and_then(Value::as_str).unwrap_or_default();
    let cgroup = hosts.paths(&CgroupsPath::new(path)?);
    if let Some(dir) = dirs(&cgroup).into_iter().find(|dir| dir.exists()) {
        let detail = format!("the cgroup {} exists already", dir.display());
        return Err(RuntimeError::refused(RefusalCode::RuntimeFailed, detail));
    }
    let Some(guards) = hosts.guards() else {
        return Err(RuntimeError::unproven("this host has neither a unified nor a freezer cgroup"));
    };
    let record = Record::intent(cgroup, guards.join(layout.guard()));
    layout.create()?;
    let mut guard = None;
    let own = rustix::process::getpid();
    let attempt = catch_unwind(AssertUnwindSafe(|| {
        record.write(layout)?;
        guard = Some(Guard::enter(&record.guard, guards)?);
        attempt(layout, job, &hosts, record.clone())
    }));
    if rustix::process::getpid() != own {
        // A child of libcontainer's unwound into our frames: undoing is for the parent.
        signal::exit_now(EXIT_STRAY);
    }
    let made = attempt.unwrap_or_else(|_panic| {
        Err(RuntimeError::refused(RefusalCode::RuntimeFailed, "libcontainer panicked"))
    });
    match (made, guard) {
        (Ok(proven), Some(guard)) => {
            Ok(Created { pid: proven.pid(), cgroup: record.cgroup, guard })
        }
        (Ok(_), None) => Err(RuntimeError::unproven("made without a guard")),
        (Err(error), guard) => {
            let error = if signal::deadline_passed() {
                RuntimeError::refused(RefusalCode::RuntimeTimeout, error.refusal().sentence())
            } else {
                error
            };
            Err(match undo(layout, &record, guard.as_ref()) {
                Ok(()) => error,
                Err(left) => {
                    let (error, left) = (error.refusal(), left.refusal());
                    let detail = format!("{}, and not all is undone: {left}", error.detail());
                    RuntimeError::refused(error.code, detail)
                }
            })
        }
    }
}

fn undo(layout: &Layout, record: &Record, guard: Option<&Guard>) -> Result<(), RuntimeError> {
    rustix::process::chdir("/").doing("leave the container's directory")?;
    rootfs::disassemble(layout);
    guard.map_or(Ok(()), Guard::leave)?;
    delete::erase(layout, record)
}

fn attempt(
    layout: &Layout,
    job: Job,
    hosts: &Hierarchies,
    mut record: Record,
) -> Result<Proven, RuntimeError> {
    rootfs::leave_host_mounts()?;
    new_keyring()?;
    // An empty list of groups is no list for libcontainer: ours would be inherited.
    nix::unistd::setgroups(&[]).doing("leave the caller's groups")?;
    let id = |name: &str| {
        let id = job.spec.pointer(name).and_then(Value::as_u64).unwrap_or(0);
        u32::try_from(id).unwrap_or(u32::MAX)
    };
    let (uid, gid) = (id("/process/user/uid"), id("/process/user/gid"));
    if let Some(stdio) = &job.stdio {
        give_pipes(stdio, uid, gid)?;
    }
    let (root, home) = match job.root {
        Root::Layers { layers, scratch_bytes } => {
            let root = rootfs::assemble(layout, layers, scratch_bytes)?;
            let cwd = job.spec.pointer("/process/cwd").and_then(Value::as_str).unwrap_or("/");
            rootfs::make_directory(&root, cwd)?;
            (layout.rootfs().to_string_lossy().into_owned(), rootfs::home(&root, uid))
        }
        Root::Directory(path) => (path, "/".to_owned()),
    };
    let devices = job.devices.as_deref();
    let parts = Parts { root: &root, read_only: job.read_only, devices, home: &home };
    let spec = spec::complete(job.spec, parts);
    write_config(layout, &spec)?;
    let fifo = Rc::new(report::make_fifo(layout)?);
    let filtered = job.program.is_some();
    let executor = JobExecutor::new(job.program, Rc::clone(&fifo));
    let pid = build(layout, executor, job.stdio, job.sibling).map_err(|error| {
        Report::receive(&*fifo).map_or(error, |report| RuntimeError::Refused(report.refusal()))
    })?;
    if signal::deadline_passed() {
        return Err(RuntimeError::refused(RefusalCode::RuntimeTimeout, "the deadline has passed"));
    }
    record.init = Some(Identity::of(pid)?);
    if let Some(rules) = devices {
        devices::enforce(hosts, &record.cgroup, rules)?;
    }
    if let Some(leased) = &job.limits {
        limits::check(&record.cgroup, leased)?;
    }
    let proven = proof::init(pid, &spec, filtered, hosts, &record.cgroup)?;
    bring_up_loopback(pid, &spec)?;
    record.write(layout)?;
    Ok(proven)
}

fn new_keyring() -> Result<(), RuntimeError> {
    match keyring::join_new_session() {
        // A kernel without keyrings has none to inherit.
        Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => Ok(()),
        joined => joined.doing("leave the caller's session keyring"),
    }
}

fn write_config(layout: &Layout, spec: &Value) -> Result<(), RuntimeError> {
    let text = serde_json::to_vec(spec).map_err(std::io::Error::from).doing("write config.json")?;
    let file =
        fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(layout.config());
    let mut file = file.doing("make config.json")?;
    std::io::Write::write_all(&mut file, &text).doing("write config.json")
}

fn build(
    layout: &Layout,
    executor: JobExecutor,
    stdio: Option<[OwnedFd; 3]>,
    sibling: bool,
) -> Result<i32, RuntimeError> {
    let refused = |error| RuntimeError::Container(Box::new(error));
    mkdirat(CWD, layout.engine(), Mode::RWXU).doing("make libcontainer's directory")?;
    let mut builder = ContainerBuilder::new(ENGINE_ID.to_owned(), SyscallType::default())
        .with_root_path(layout.engine())
        .map_err(refused)?
        .with_executor(executor);
    if let Some([stdin, stdout, stderr]) = stdio {
        builder = builder.with_stdin(stdin).with_stdout(stdout).with_stderr(stderr);
    }
    let before = rustix::process::umask(ENGINE_UMASK);
    let built = builder
        .as_init(layout.dir())
        .with_systemd(false)
        .with_detach(true)
        .as_sibling(sibling)
        .build();
    rustix::process::umask(before);
    let pid = built.map_err(refused)?.pid();
    pid.map(i32::from).ok_or_else(|| RuntimeError::unproven("libcontainer made no process"))
}

/// `lo` is down in a fresh network namespace; everything that talks to itself needs it.
fn bring_up_loopback(pid: i32, spec: &Value) -> Result<(), RuntimeError> {
    let namespaces = spec.pointer("/linux/namespaces").and_then(Value::as_array);
    let fresh = |one: &Value| {
        one.get("type").and_then(Value::as_str) == Some("network") && one.get("path").is_none()
    };
    if !namespaces.is_some_and(|all| all.iter().any(fresh)) {
        return Ok(());
    }
    let namespace = fs::File::open(format!("/proc/{pid}/ns/net"))
        .doing("open the container's network namespace")?;
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
        .doing("enter the container's network namespace")?;
    net::loopback_up().doing("bring up the loopback device")
}

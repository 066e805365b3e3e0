//! `start`: spawn the server of a container, or find the one of its pod, and print the bare address of its
//! socket.
//!
//! containerd takes stdout and stderr together as the answer, in every version, so exactly the
//! address is written and nothing else (rule 15). A bare address is understood from containerd 1.6
//! on and means task API v2, with which containerd runs `start` and `delete` for each container.
//! Nothing is decided here (rule 2).
//!
//! One server is for one container, or for those of one pod (see `group`). Where one listens already it is
//! told that a container more will come, and answers: from then on it does not end before that has come
//! or whoever wants it has gone. The address is written into this bundle in either case.
//!
//! The listening socket is made here, so that it exists before the address is told, and is handed
//! to the server as its descriptor 0. As its descriptor 1 it gets the end of a pipe, on which it is told
//! that the address was: when containerd ends this process before that, because its client has gone, the
//! server would be known to nobody, and ends too, unless another `start` has found it meanwhile.
//!
//! Limits: [`FIND_PATIENCE`].

use std::env;
use std::fs;
use std::io::{self, PipeWriter, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::thread::CoreSchedulingScope;

use crate::args::{GROUP_FLAG, Identity};
use crate::ask::{self, Introduced};
use crate::bootstrap::{self, ShimCgroupError};
use crate::group;
use crate::paths::{Paths, address_of};
use crate::socket;

/// Name of the file in a bundle from which containerd finds a shim again after its own restart.
pub(crate) const ADDRESS_FILE: &str = "address";
const PROGRAM: &str = "containerd-shim-nimbus-v1";
/// Set by containerd to ask for a core scheduling domain.
const SCHED_CORE_VARIABLE: &str = "SCHED_CORE";
const OOM_SCORE_ADJ_MAX: i32 = 1000;
/// How long a server that starts or ends at this moment is asked, and how long between.
const FIND_PATIENCE: Duration = Duration::from_secs(8);
const LOOK_PAUSE: Duration = Duration::from_millis(10);
/// What a server is told once its address was.
pub(crate) const TOLD: u8 = 1;

/// Why no server was started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    /// The directory of sockets cannot be made.
    #[error("cannot make the socket directory {path}")]
    SocketDir {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The socket cannot be made.
    #[error("cannot listen on {path}")]
    Listen {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The server that is there already cannot be asked.
    #[error("cannot ask the server at {path}")]
    Ask {
        /// Its socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It does not answer, or ends and does not go.
    #[error("the server at {0} takes no container more; stop it, or look at why it hangs")]
    Silent(PathBuf),
    /// The server cannot be spawned.
    #[error("cannot spawn the shim's server")]
    Spawn(#[source] io::Error),
    /// The address file cannot be written.
    #[error("cannot write the address file")]
    AddressFile(#[source] io::Error),
    /// Not where its admin wants it.
    #[error("the server cannot be put where containerd's configuration says")]
    Cgroup(#[source] ShimCgroupError),
    /// stdout is gone.
    #[error("cannot write the address to stdout")]
    Stdout(#[source] io::Error),
}

/// Starts the server in the working directory, which is the bundle, unless it is there.
pub(crate) fn start(identity: &Identity) -> Result<(), StartError> {
    let cgroup = bootstrap::shim_cgroup().map_err(StartError::Cgroup)?;
    let paths = Paths::from_environment();
    let group = group::of(&identity.key, Path::new("."));
    let socket = paths.socket(&identity.address, &identity.key, group.as_ref());
    let identity = Identity { group, ..identity.clone() };
    let directory = paths.socket_dir();
    socket::make_dir(&directory)
        .map_err(|source| StartError::SocketDir { path: directory, source })?;
    let address = address_of(&socket);
    let told = listen(&socket, &identity, &address)?.map(|listener| {
        let served = begin(&identity, &listener, cgroup.as_deref(), &address);
        // While it is held it cannot be anybody else's that is removed.
        served.inspect_err(|_failed| drop(fs::remove_file(&socket)))
    });
    let told = told.transpose()?;
    let mut stdout = io::stdout().lock();
    stdout
        .write_all(address.as_bytes())
        .and_then(|()| stdout.flush())
        .map_err(StartError::Stdout)?;
    // A server that has ended meanwhile is found out by whoever connects to it.
    let _ended = told.map(|mut told| told.write_all(&[TOLD]));
    Ok(())
}

/// The socket for a new server; none when there is one that waits for this container now.
fn listen(
    socket: &Path,
    identity: &Identity,
    address: &str,
) -> Result<Option<UnixListener>, StartError> {
    let give_up = Instant::now() + FIND_PATIENCE;
    while Instant::now() < give_up {
        let fail = |source| StartError::Listen { path: socket.to_owned(), source };
        if let Some(listener) = socket::listen(socket).map_err(fail)? {
            return Ok(Some(listener));
        }
        // First, so that whoever deletes another container sees that the server is not alone.
        write_address(address)?;
        let asked = ask::introduce(socket, &identity.key.id);
        match asked.map_err(|source| StartError::Ask { path: socket.to_owned(), source })? {
            Introduced::Expected => return Ok(None),
            Introduced::Silent => {}
            Introduced::Gone => std::thread::sleep(LOOK_PAUSE),
        }
    }
    Err(StartError::Silent(socket.to_owned()))
}

/// Spawns the server and places it.
fn begin(
    identity: &Identity,
    listener: &UnixListener,
    cgroup: Option<&Path>,
    address: &str,
) -> Result<PipeWriter, StartError> {
    let (mut child, told) = spawn(identity, listener)?;
    let entered = cgroup.map_or(Ok(()), |cgroup| bootstrap::enter(cgroup, child.id()));
    let placed = entered.map_err(StartError::Cgroup).and_then(|()| write_address(address));
    placed.map(|()| told).inspect_err(|_failed| {
        // A server that containerd could not find again must not stay.
        let _gone = child.kill();
        let _reaped = child.wait();
    })
}

/// The server, and what it waits for.
fn spawn(identity: &Identity, listener: &UnixListener) -> Result<(Child, PipeWriter), StartError> {
    if env::var_os(SCHED_CORE_VARIABLE).is_some_and(|value| !value.is_empty()) {
        // A core of its own against SMT leaks between tenants; kernels without it refuse.
        let _best_effort = rustix::thread::create_core_scheduling_cookie(
            rustix::process::getpid(),
            CoreSchedulingScope::ThreadGroup,
        );
    }
    let listener = listener.try_clone().map_err(StartError::Spawn)?;
    let (waits, told) = io::pipe().map_err(StartError::Spawn)?;
    // By its real path, so that the server's name in a process list is not "exe".
    let program = env::current_exe().unwrap_or_else(|_unknown| PathBuf::from("/proc/self/exe"));
    let mut command = Command::new(program);
    command
        .arg0(PROGRAM)
        .args(["-namespace", identity.key.namespace.as_str()])
        .args(["-id", identity.key.id.as_str()])
        .args(["-address", &identity.address])
        .stdin(Stdio::from(OwnedFd::from(listener)))
        .stdout(Stdio::from(OwnedFd::from(waits)))
        .stderr(Stdio::null())
        .process_group(0);
    if let Some(group) = &identity.group {
        command.args([&format!("-{GROUP_FLAG}"), group.as_str()]);
    }
    if identity.debug {
        command.arg("-debug");
    }
    let child = command.spawn().map_err(StartError::Spawn)?;
    raise_oom_score(child.id());
    Ok((child, told))
}

/// One more than containerd's, so that the kernel takes a shim before it takes containerd.
fn raise_oom_score(server: u32) {
    let Some(parent) = rustix::process::getppid() else { return };
    let read = fs::read_to_string(format!("/proc/{}/oom_score_adj", parent.as_raw_nonzero()));
    let Some(score) = read.ok().and_then(|text| text.trim().parse::<i32>().ok()) else { return };
    let score = score.saturating_add(1).min(OOM_SCORE_ADJ_MAX);
    // Best effort: without CAP_SYS_RESOURCE it can only be raised.
    let _best_effort = fs::write(format!("/proc/{server}/oom_score_adj"), score.to_string());
}

fn write_address(address: &str) -> Result<(), StartError> {
    let temporary = format!(".{ADDRESS_FILE}");
    fs::write(&temporary, address)
        .and_then(|()| fs::rename(&temporary, ADDRESS_FILE))
        .map_err(StartError::AddressFile)
}

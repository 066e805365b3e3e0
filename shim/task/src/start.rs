//! `start`: spawn the server of one container and print the bare address of its socket.
//!
//! containerd takes stdout and stderr together as the answer, in every version, so exactly the
//! address is written and nothing else (rule 15). A bare address is understood from containerd 1.6
//! on and means task API v2, with which containerd runs `start` and `delete` for each container.
//! Nothing is decided here (rule 2). Grouping annotations are not read: one shim a container.
//!
//! The listening socket is made here, so that it exists before the address is told, and is handed
//! to the server as its descriptor 0. As its descriptor 1 it gets the end of a pipe, on which it is told
//! that the address was: when containerd ends this process before that, because its client has gone, the
//! server would be known to nobody, and ends too.

use std::env;
use std::fs::{self, DirBuilder, Permissions};
use std::io::{self, PipeWriter, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::fs::Mode;
use rustix::thread::CoreSchedulingScope;

use crate::args::Identity;
use crate::bootstrap::{self, ShimCgroupError};
use crate::paths::{Paths, address_of};

/// Name of the file in a bundle from which containerd finds a shim again after its own restart.
pub(crate) const ADDRESS_FILE: &str = "address";
const PROGRAM: &str = "containerd-shim-nimbus-v1";
/// Set by containerd to ask for a core scheduling domain.
const SCHED_CORE_VARIABLE: &str = "SCHED_CORE";
const OOM_SCORE_ADJ_MAX: i32 = 1000;
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

/// Starts the server in the working directory, which is the bundle.
pub(crate) fn start(identity: &Identity) -> Result<(), StartError> {
    let cgroup = bootstrap::shim_cgroup().map_err(StartError::Cgroup)?;
    let paths = Paths::from_environment();
    let socket = paths.socket(&identity.address, &identity.key);
    let address = address_of(&socket);
    make_socket_dir(&paths.socket_dir())?;
    let told = if let Some(listener) = listen(&socket)? {
        let served = spawn(identity, listener).and_then(|(mut child, told)| {
            let cgroup = cgroup.iter().try_for_each(|cgroup| bootstrap::enter(cgroup, child.id()));
            let placed = cgroup.map_err(StartError::Cgroup);
            let placed = placed.and_then(|()| write_address(&address));
            placed.map(|()| told).inspect_err(|_failed| {
                // A server that containerd could not find again must not stay.
                let _gone = child.kill();
                let _reaped = child.wait();
            })
        });
        Some(served.inspect_err(|_failed| drop(fs::remove_file(&socket)))?)
    } else {
        write_address(&address)?;
        None
    };
    let mut stdout = io::stdout().lock();
    stdout
        .write_all(address.as_bytes())
        .and_then(|()| stdout.flush())
        .map_err(StartError::Stdout)?;
    // A server that has ended meanwhile is found out by whoever connects to it.
    let _ended = told.map(|mut told| told.write_all(&[TOLD]));
    Ok(())
}

fn make_socket_dir(path: &Path) -> Result<(), StartError> {
    let fail = |source| StartError::SocketDir { path: path.to_owned(), source };
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(fail)
}

/// Listens on a socket that only root can open; none when a live server listens there already.
fn listen(socket: &Path) -> Result<Option<UnixListener>, StartError> {
    let fail = |source| StartError::Listen { path: socket.to_owned(), source };
    let listener = match bind_private(socket) {
        Ok(listener) => listener,
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            if UnixStream::connect(socket).is_ok() {
                return Ok(None);
            }
            // Left behind by a server that was killed.
            fs::remove_file(socket).map_err(fail)?;
            bind_private(socket).map_err(fail)?
        }
        Err(error) => return Err(fail(error)),
    };
    fs::set_permissions(socket, Permissions::from_mode(0o600)).map_err(fail)?;
    Ok(Some(listener))
}

fn bind_private(socket: &Path) -> io::Result<UnixListener> {
    // This process has one thread and ends soon; still, put it back.
    let before = rustix::process::umask(Mode::RWXG | Mode::RWXO | Mode::XUSR);
    let bound = UnixListener::bind(socket);
    rustix::process::umask(before);
    bound
}

/// The server, and what it waits for.
fn spawn(identity: &Identity, listener: UnixListener) -> Result<(Child, PipeWriter), StartError> {
    if env::var_os(SCHED_CORE_VARIABLE).is_some_and(|value| !value.is_empty()) {
        // A core of its own against SMT leaks between tenants; kernels without it refuse.
        let _best_effort = rustix::thread::create_core_scheduling_cookie(
            rustix::process::getpid(),
            CoreSchedulingScope::ThreadGroup,
        );
    }
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

//! The server: one process for a container or for the containers of one pod, on one thread.
//!
//! Each container has its own life, log, runtime calls and conversation with the node agent; what they
//! share is the process, its events' queue and its end. Takes its listening socket as descriptor 0, serves the task API under the names of v2 and v3,
//! and ends when containerd asks it to (Shutdown, with no container left), when it is asked to by
//! `SIGTERM` while nothing runs, when nobody was told its address (see `start`), or when there has been
//! no container for a while. It removes its socket when it ends.
//!
//! Limits: [`IDLE_LOOK`], [`EVENTS_PATIENCE`], [`ANSWER_PAUSE`]; each connection's are ttrpc's.

pub(crate) mod admission;
mod container;
mod create;
mod deadline;
mod events;
mod exec;
mod exit;
mod lifecycle;
mod link;
mod listener;
mod oom;
mod pause;
mod pod;
mod service;
mod session;
mod table;
mod update;

use std::fs;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::{UnixListener as StdUnixListener, UnixStream as StdUnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use containerd_shim_protos::protobuf::MessageField;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::well_known_types::timestamp::Timestamp;
use containerd_shim_protos::shim_async::{Task, create_task};
use containerd_shim_protos::ttrpc::{self, asynchronous::Server};
use nimbus_api::clock::UnixNanos;
use nimbus_api::error::Chain;
use nimbus_api::id::ContainerKey;
use rustix::fs::{FileType, Mode, OFlags};
use rustix::net::sockopt::socket_acceptconn;
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Notify;

use crate::args::Identity;
use crate::log::Log;
use crate::paths::Paths;
use crate::process::Family;
use crate::runtime::Launcher;
use crate::start::TOLD;
use crate::status::TaskError;
use events::Publisher;
use pod::Pod;
use service::TaskService;

/// Where containerd takes events, in its environment.
const EVENTS_VARIABLE: &str = "TTRPC_ADDRESS";
const SERVICE_V3: &str = "containerd.task.v3.Task";
const SERVICE_V2: &str = "containerd.task.v2.Task";
/// How often a server that has no container looks whether containerd is still there.
const IDLE_LOOK: Duration = Duration::from_mins(1);
/// At this many looks in a row without a container and without containerd the server ends.
const LOOKS_ALONE: u32 = 2;
/// At this many without a container it ends in any case: containerd asks for one right after `start`,
/// and if it could not, and could not say so, nobody else ever will.
const LOOKS_IDLE: u32 = 5;
/// How long the last events may take to be delivered.
const EVENTS_PATIENCE: Duration = Duration::from_secs(2);
/// Between the answer to Shutdown and the end of the connection it is written to.
const ANSWER_PAUSE: Duration = Duration::from_millis(20);
/// Blocking work: writing log files, and rarely a long request to the runtime.
const BLOCKING_THREADS_MAX: usize = 3;
const BLOCKING_STACK_BYTES: usize = 256 << 10;
const BACKLOG: i32 = 128;
const NANOS_PER_SECOND: i64 = 1_000_000_000;

/// Why there is no server.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ServeError {
    /// Descriptor 0 is something else.
    #[error("standard input is not a listening socket; containerd starts this program")]
    NoListener,
    /// A step of setting up the process.
    #[error("cannot {0}")]
    Setup(&'static str, #[source] io::Error),
    /// The server could not begin.
    #[error("cannot serve")]
    Serve(#[source] ttrpc::Error),
}

/// What every part of the server needs: key, log and launcher are of one container, the one that the
/// process was started for until [`Context::of`] another.
#[derive(Debug, Clone)]
pub(crate) struct Context {
    /// Which container.
    pub key: ContainerKey,
    /// Whose containers are taken.
    pub pod: Arc<Pod>,
    /// Where things are.
    pub paths: Paths,
    /// The log.
    pub log: Log,
    /// Events for containerd.
    pub events: Publisher,
    /// How the runtime is called.
    pub launcher: Launcher,
    /// Our children.
    pub family: Family,
    /// Where this server is found.
    pub socket: Arc<SocketFile>,
    /// Rung when the server is to end.
    pub shutdown: Arc<Notify>,
}

/// The file of the listening socket. It goes as soon as the server is to end: a server that starts
/// for the same container meanwhile has its own there then, which is not ours to remove.
#[derive(Debug)]
pub(crate) struct SocketFile {
    path: PathBuf,
    ending: AtomicBool,
}

impl SocketFile {
    const fn new(path: PathBuf) -> Self {
        Self { path, ending: AtomicBool::new(false) }
    }

    /// Removes it, once.
    fn remove(&self) {
        if !self.ending.swap(true, Ordering::SeqCst) {
            let _gone = fs::remove_file(&self.path);
        }
    }

    /// Whether the server is to end.
    fn is_ending(&self) -> bool {
        self.ending.load(Ordering::SeqCst)
    }
}

/// Serves until it is told to end.
pub(crate) fn serve(identity: Identity) -> Result<(), ServeError> {
    let listener = take_listener()?;
    let told = take_told()?;
    // Orphans of the runtime come to us and are reaped.
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
        .map_err(|error| ServeError::Setup("become a subreaper", error.into()))?;
    let event_loop = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .thread_stack_size(BLOCKING_STACK_BYTES)
        .build()
        .map_err(|error| ServeError::Setup("make an event loop", error))?;
    let paths = Paths::from_environment();
    let socket = paths.socket(&identity.address, &identity.key, identity.group.as_ref());
    let socket = Arc::new(SocketFile::new(socket));
    let taken = (listener, told, Arc::clone(&socket));
    let served = event_loop.block_on(run(identity, paths, taken));
    // A disk that hangs must not keep the process.
    event_loop.shutdown_timeout(Duration::ZERO);
    socket.remove();
    served
}

/// The socket that `start` made, moved away from descriptor 0.
fn take_listener() -> Result<StdUnixListener, ServeError> {
    let setup = |what| move |error| ServeError::Setup(what, error);
    let stdin = io::stdin();
    if !socket_acceptconn(&stdin).unwrap_or(false) {
        return Err(ServeError::NoListener);
    }
    let listener = stdin
        .as_fd()
        .try_clone_to_owned()
        .map(StdUnixListener::from)
        .map_err(setup("take the socket"))?;
    let null = rustix::fs::open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
    null.and_then(rustix::stdio::dup2_stdin)
        .map_err(|error| ServeError::Setup("let go of standard input", error.into()))?;
    // Once more by this process: whoever connects sees our pid as its peer, see `delete`.
    rustix::net::listen(&listener, BACKLOG)
        .map_err(|error| ServeError::Setup("listen", error.into()))?;
    listener.set_nonblocking(true).map_err(setup("make the socket non-blocking"))?;
    Ok(listener)
}

/// The pipe on which `start` says that the address was told, moved away from descriptor 1; none when a
/// person has started this program.
fn take_told() -> Result<Option<OwnedFd>, ServeError> {
    let setup = |what| move |error: rustix::io::Errno| ServeError::Setup(what, error.into());
    let stdout = io::stdout();
    let stat = rustix::fs::fstat(&stdout).map_err(setup("look at standard output"))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Fifo {
        return Ok(None);
    }
    let told = stdout.as_fd().try_clone_to_owned();
    let told = told.map_err(|error| ServeError::Setup("take the pipe of start", error))?;
    rustix::io::ioctl_fionbio(&told, true).map_err(setup("make a pipe non-blocking"))?;
    rustix::fs::open("/dev/null", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
        .and_then(rustix::stdio::dup2_stdout)
        .map_err(setup("let go of standard output"))?;
    Ok(Some(told))
}

async fn run(
    identity: Identity,
    paths: Paths,
    (listener, told, socket): (StdUnixListener, Option<OwnedFd>, Arc<SocketFile>),
) -> Result<(), ServeError> {
    let bundle = identity.bundle.as_deref().unwrap_or(Path::new("."));
    let log = Log::open(bundle, identity.key.id.as_str(), identity.debug);
    let family = Family::default();
    let launcher = Launcher::new(&paths, identity.key.clone(), log.clone(), family.clone());
    let namespace = identity.key.namespace.as_str().to_owned();
    let events_address = std::env::var_os(EVENTS_VARIABLE).map(PathBuf::from);
    let pod = Arc::new(Pod::new(identity.key.clone(), identity.group));
    let context = Context {
        key: identity.key,
        paths,
        events: Publisher::spawn(events_address, namespace, pod.room(), log.clone()),
        pod,
        log,
        launcher,
        family,
        socket,
        shutdown: Arc::new(Notify::new()),
    };
    let service = Arc::new(TaskService::new(context.clone()));
    let mut server = serve_tasks(&service, listener)?;
    server.start().await.map_err(ServeError::Serve)?;
    context.log.debug("serving");
    let containerd = PathBuf::from(identity.address);
    tokio::select! {
        () = context.shutdown.notified() => tokio::time::sleep(ANSWER_PAUSE).await,
        () = service.deserted() => context.log.info("ending: nobody came"),
        () = idle(&service, &containerd) => context.log.warn("ending: there is nothing to do"),
        () = untold(&service, told) => context.log.warn("ending: nobody was told where this server is"),
        done = signals(&service, &context) => done?,
    }
    context.socket.remove();
    if !context.events.flush(EVENTS_PATIENCE).await {
        context.log.warn("ending with events that containerd did not take");
    }
    context.log.close();
    server.shutdown().await.map_err(ServeError::Serve)
}

fn serve_tasks(
    service: &Arc<TaskService>,
    listener: StdUnixListener,
) -> Result<Server, ServeError> {
    let listener = tokio::net::UnixListener::from_std(listener)
        .map_err(|error| ServeError::Setup("watch the socket", error))?;
    // The two versions are the same on the wire; only the name differs.
    let task: Arc<dyn Task + Send + Sync> = Arc::<TaskService>::clone(service);
    let v3 = create_task(Arc::clone(&task));
    let v2 = create_task(task)
        .into_iter()
        .map(|(name, methods)| (name.replace(SERVICE_V3, SERVICE_V2), methods))
        .collect();
    Ok(Server::new()
        .add_listener(listener::only_root(listener))
        .register_service(v3)
        .register_service(v2))
}

/// Returns when no container has been here for some looks: fewer when containerd is away as well.
async fn idle(service: &TaskService, containerd: &Path) {
    let (mut idle, mut alone) = (0, 0);
    while idle < LOOKS_IDLE && alone < LOOKS_ALONE {
        tokio::time::sleep(IDLE_LOOK).await;
        idle = if service.is_idle() { idle + 1 } else { 0 };
        let away = idle > 0 && StdUnixStream::connect(containerd).is_err();
        alone = if away { alone + 1 } else { 0 };
    }
}

/// Returns when `start` has ended without telling anybody. Whoever has made a container here, or said that
/// one will come, knows the server from another one.
async fn untold(service: &TaskService, told: Option<OwnedFd>) {
    let told = told.and_then(|told| pipe::Receiver::from_owned_fd(told).ok());
    let Some(mut told) = told else { return std::future::pending().await };
    let mut byte = [0];
    match told.read(&mut byte).await {
        Ok(1) if byte == [TOLD] => std::future::pending().await,
        Ok(_) | Err(_) if !service.is_unknown() => std::future::pending().await,
        Ok(_) | Err(_) => {}
    }
}

/// Reaps orphans; returns when asked to end while nothing runs.
async fn signals(service: &TaskService, context: &Context) -> Result<(), ServeError> {
    let mut child = listen_to(SignalKind::child())?;
    let mut terminate = listen_to(SignalKind::terminate())?;
    let mut interrupt = listen_to(SignalKind::interrupt())?;
    loop {
        tokio::select! {
            _ = child.recv() => {
                context.family.reap_orphans();
                continue;
            }
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        if service.is_idle() {
            return Ok(());
        }
        context.log.warn("asked to end by a signal; a container is here, so it stays");
    }
}

fn listen_to(kind: SignalKind) -> Result<Signal, ServeError> {
    signal(kind).map_err(|error| ServeError::Setup("listen to signals", error))
}

/// The JSON of a part of the OCI specification, as containerd's clients send it. What stands before the
/// part's name in the type is theirs to choose.
pub(crate) fn oci_json(given: MessageField<Any>, part: &str) -> Result<Vec<u8>, TaskError> {
    let given = given.into_option().unwrap_or_default();
    if given.type_url.rsplit_once('/').is_some_and(|(_, name)| name == part) {
        return Ok(given.value);
    }
    let found = given.type_url.escape_debug();
    Err(TaskError::Invalid(format!("expected an OCI {part}, found {found}")))
}

/// A time as containerd's messages carry it.
pub(crate) fn timestamp(at: UnixNanos) -> MessageField<Timestamp> {
    let nanos = i32::try_from(at.0.rem_euclid(NANOS_PER_SECOND)).unwrap_or(0);
    let seconds = at.0.div_euclid(NANOS_PER_SECOND);
    MessageField::some(Timestamp { seconds, nanos, ..Timestamp::default() })
}

impl Context {
    /// The same for this container. In the process of a pod it logs to its own bundle.
    fn of(&self, key: ContainerKey, bundle: &Path) -> Self {
        if self.pod.room() == 1 {
            return self.clone();
        }
        let log = self.log.of(bundle, key.id.as_str());
        let launcher = self.launcher.of(key.clone(), log.clone());
        Self { key, log, launcher, ..self.clone() }
    }

    /// Logs an error with all its causes.
    pub(crate) fn warn_chain(&self, error: &dyn std::error::Error) {
        self.log.warn(Chain(error));
    }
}

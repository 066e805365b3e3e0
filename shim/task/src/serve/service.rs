//! The task service as containerd calls it.
//!
//! Create, Start, Delete, Pause and Resume, of processes too, run as tasks of their own: ttrpc drops a handler whose connection ends
//! or whose caller is out of patience, and half a Create must not be. Everything else answers at
//! once, also while those run, of this container or another. What does not exist in this version answers
//! Unimplemented.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use containerd_shim_protos::api::{
    CheckpointTaskRequest, CloseIORequest, ConnectRequest, ConnectResponse, CreateTaskRequest,
    CreateTaskResponse, DeleteRequest, DeleteResponse, Empty, ExecProcessRequest, KillRequest,
    PauseRequest, PidsRequest, PidsResponse, ProcessInfo, ResizePtyRequest, ResumeRequest,
    ShutdownRequest, StartRequest, StartResponse, StateRequest, StateResponse, StatsRequest,
    StatsResponse, Status, UpdateTaskRequest, WaitRequest, WaitResponse,
};
use containerd_shim_protos::protobuf::MessageField;
use containerd_shim_protos::shim::oci::ProcessDetails;
use containerd_shim_protos::shim_async::Task;
use containerd_shim_protos::ttrpc::{self, r#async::TtrpcContext};
use nimbus_api::{Refusal, RefusalCode};
use tokio::sync::Notify;

use super::container::{Container, Description};
use super::exec::Exec;
use super::table::{Held, Table};
use super::{Context, create, events, exec, lifecycle, pause, timestamp, update};
use crate::exec_state::ExecPhase;
use crate::info::VERSION;
use crate::state::Phase;
use crate::stats;
use crate::status::TaskError;
use crate::stdio::{Streams, Uris};

/// How long a container that was announced is waited for when another one's end asks the server to end.
const EXPECTED_PATIENCE: Duration = Duration::from_secs(10);

/// The service of one process, which is for one container or for those of a pod.
#[derive(Debug)]
pub(super) struct TaskService {
    context: Context,
    containers: Table,
    /// Whom the server was started for or whoever was announced, and has not come; and since when.
    expected: Mutex<BTreeMap<String, Instant>>,
    /// Whether anybody has found this server.
    found: AtomicBool,
    /// Rung when the server was asked to end and waits for whoever was announced.
    put_off: Notify,
}

impl TaskService {
    /// Without a container yet.
    pub(super) fn new(context: Context) -> Self {
        let first = (context.key.id.to_string(), Instant::now());
        Self {
            context,
            containers: Table::default(),
            expected: Mutex::new(BTreeMap::from([first])),
            found: AtomicBool::new(false),
            put_off: Notify::new(),
        }
    }

    /// Whether no container is here.
    pub(super) fn is_idle(&self) -> bool {
        self.containers.is_empty()
    }

    /// Whether no container is here and nobody has said that one will be.
    pub(super) fn is_unknown(&self) -> bool {
        self.is_idle() && !self.found.load(Ordering::SeqCst)
    }

    fn expected(&self) -> MutexGuard<'_, BTreeMap<String, Instant>> {
        self.expected.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Somebody has found this server and says for which container.
    fn announce(&self, id: &str) {
        self.found.store(true, Ordering::SeqCst);
        let mut expected = self.expected();
        expected.retain(|_id, since| since.elapsed() < EXPECTED_PATIENCE);
        if self.containers.get(id).is_err() && expected.len() < self.context.pod.room() {
            expected.insert(id.to_owned(), Instant::now());
        }
    }

    /// The process that is meant.
    fn target(&self, id: &str, exec_id: &str) -> Result<(Context, Target), TaskError> {
        let Held { container, context } = self.containers.get(id)?;
        if exec_id.is_empty() {
            return Ok((context, Target::Init(container)));
        }
        match container.execs().get(exec_id) {
            Some(exec) => Ok((context, Target::Exec(container, exec))),
            None => Err(TaskError::NotFound(format!("process {}", exec_id.escape_debug()))),
        }
    }

    /// Makes room for a container.
    fn reserve(&self, request: &CreateTaskRequest) -> Result<Held, TaskError> {
        let key = self.context.pod.key(&request.id)?;
        if !request.bundle.starts_with('/') {
            return Err(TaskError::Invalid("the bundle is not an absolute path".to_owned()));
        }
        if self.context.socket.is_ending() {
            return Err(TaskError::Ending);
        }
        let context = self.context.of(key.clone(), Path::new(&request.bundle));
        let container = Arc::new(Container::new(Description {
            key,
            bundle: request.bundle.clone(),
            uris: Uris {
                stdin: request.stdin.clone(),
                stdout: request.stdout.clone(),
                stderr: request.stderr.clone(),
            },
            terminal: request.terminal,
        }));
        let held = Held { container, context };
        self.containers.add(&held, self.context.pod.room())?;
        self.expected().remove(&request.id);
        Ok(held)
    }

    fn awaits(&self) -> bool {
        self.expected().values().any(|since| since.elapsed() < EXPECTED_PATIENCE)
    }

    /// Ends the server for the sake of this container, unless another is here or will be.
    fn end(&self, id: &str) {
        self.expected().remove(id);
        if !self.is_idle() {
            return;
        }
        if self.awaits() {
            self.put_off.notify_one();
            return;
        }
        // Before the answer: whoever starts a server for this container next gets a new one.
        self.context.socket.remove();
        self.context.shutdown.notify_one();
    }

    /// Returns when whoever was announced has not come, and the server had been asked to end before.
    pub(super) async fn deserted(&self) {
        loop {
            self.put_off.notified().await;
            while self.is_idle() {
                if !self.awaits() {
                    return;
                }
                tokio::time::sleep(EXPECTED_PATIENCE).await;
            }
        }
    }

    /// Runs to its end whatever becomes of the caller; what is deleted then is forgotten.
    async fn whole<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, TaskError>> + Send + 'static,
    ) -> ttrpc::Result<T> {
        let (containers, log) = (self.containers.clone(), self.context.log.clone());
        let work = async move {
            let done = work.await;
            containers.forget_deleted(&log);
            done
        };
        let done = tokio::spawn(work).await.unwrap_or_else(|join| {
            Err(Refusal::with(RefusalCode::RuntimeFailed, format_args!("shim: {join}")).into())
        });
        done.map_err(Into::into)
    }
}

/// A process that a request is about.
enum Target {
    Init(Arc<Container>),
    Exec(Arc<Container>, Arc<Exec>),
}

impl Target {
    /// The copies of its streams, once it has been made.
    fn streams(&self) -> Result<Option<Arc<Streams>>, TaskError> {
        match self {
            Self::Init(container) => Ok(Some(container.made()?.streams)),
            Self::Exec(_, exec) => Ok(exec.streams()),
        }
    }
}

const fn exec_status_of(phase: ExecPhase) -> Status {
    match phase {
        ExecPhase::Added | ExecPhase::Starting => Status::CREATED,
        ExecPhase::Running => Status::RUNNING,
        ExecPhase::Stopped | ExecPhase::Deleted => Status::STOPPED,
    }
}

const fn status_of(phase: Phase) -> Status {
    match phase {
        Phase::Creating => Status::UNKNOWN,
        Phase::Created | Phase::Starting => Status::CREATED,
        Phase::Running => Status::RUNNING,
        Phase::Pausing => Status::PAUSING,
        Phase::Paused => Status::PAUSED,
        Phase::Stopped | Phase::Deleting | Phase::Deleted => Status::STOPPED,
    }
}

fn unimplemented<T>(what: &'static str) -> ttrpc::Result<T> {
    Err(TaskError::Unimplemented(what).into())
}

#[async_trait]
impl Task for TaskService {
    async fn create(
        &self,
        _context: &TtrpcContext,
        request: CreateTaskRequest,
    ) -> ttrpc::Result<CreateTaskResponse> {
        let Held { container, context } = self.reserve(&request)?;
        let pid = self.whole(create::create(context, container, request)).await?;
        Ok(CreateTaskResponse { pid, ..Default::default() })
    }

    async fn start(
        &self,
        _context: &TtrpcContext,
        request: StartRequest,
    ) -> ttrpc::Result<StartResponse> {
        let (context, target) = self.target(&request.id, &request.exec_id)?;
        let pid = match target {
            Target::Init(container) => self.whole(lifecycle::start(context, container)).await?,
            Target::Exec(container, one) => {
                self.whole(exec::start(context, container, one)).await?
            }
        };
        Ok(StartResponse { pid, ..Default::default() })
    }

    async fn delete(
        &self,
        _context: &TtrpcContext,
        request: DeleteRequest,
    ) -> ttrpc::Result<DeleteResponse> {
        let (context, target) = self.target(&request.id, &request.exec_id)?;
        match target {
            Target::Init(container) => self.whole(lifecycle::delete(context, container)).await,
            Target::Exec(container, one) => self.whole(exec::delete(context, container, one)).await,
        }
    }

    async fn state(
        &self,
        _context: &TtrpcContext,
        request: StateRequest,
    ) -> ttrpc::Result<StateResponse> {
        let (_context, target) = self.target(&request.id, &request.exec_id)?;
        let (container, status, pid, exit, uris, terminal) = match target {
            Target::Init(container) => {
                let snapshot = container.snapshot();
                let Description { uris, terminal, .. } = container.description().clone();
                let pid = container.pid();
                (container, status_of(snapshot.phase), pid, snapshot.exit, uris, terminal)
            }
            Target::Exec(container, exec) => {
                let (status, uris) = (exec_status_of(exec.phase()), exec.uris().clone());
                (container, status, exec.pid(), exec.exit(), uris, exec.terminal())
            }
        };
        let id = if request.exec_id.is_empty() { &request.id } else { &request.exec_id };
        Ok(StateResponse {
            id: id.clone(),
            bundle: container.description().bundle.clone(),
            pid,
            status: status.into(),
            stdin: uris.stdin,
            stdout: uris.stdout,
            stderr: uris.stderr,
            terminal,
            exit_status: exit.map_or(0, |exit| exit.status),
            exited_at: exit.map(|exit| timestamp(exit.at)).unwrap_or_default(),
            exec_id: request.exec_id,
            ..Default::default()
        })
    }

    async fn wait(
        &self,
        _context: &TtrpcContext,
        request: WaitRequest,
    ) -> ttrpc::Result<WaitResponse> {
        let exit = match self.target(&request.id, &request.exec_id)?.1 {
            Target::Init(container) => container.wait().await,
            Target::Exec(_, exec) => exec.wait().await,
        };
        let exit = exit.ok_or_else(|| TaskError::NotFound("the process".to_owned()))?;
        Ok(WaitResponse {
            exit_status: exit.status,
            exited_at: timestamp(exit.at),
            ..Default::default()
        })
    }

    async fn kill(&self, _context: &TtrpcContext, request: KillRequest) -> ttrpc::Result<Empty> {
        let signal = lifecycle::signal(request.signal)?;
        match self.target(&request.id, &request.exec_id)?.1 {
            Target::Init(container) => lifecycle::kill(&container, signal, request.all)?,
            Target::Exec(_, exec) => exec.kill(signal)?,
        }
        Ok(Empty::default())
    }

    async fn pids(
        &self,
        _context: &TtrpcContext,
        request: PidsRequest,
    ) -> ttrpc::Result<PidsResponse> {
        let container = self.containers.get(&request.id)?.container;
        let pids = container.snapshot().made.map(|made| made.cgroup.pids()).unwrap_or_default();
        let mut execs = container.execs().running();
        let details = |exec_id| {
            let details = ProcessDetails { exec_id, ..Default::default() };
            events::pack(&details)
        };
        let processes = pids
            .into_iter()
            .filter_map(|pid| u32::try_from(pid).ok())
            .map(|pid| {
                let info = execs.remove(&pid).map(details).unwrap_or_default();
                ProcessInfo { pid, info, ..Default::default() }
            })
            .collect();
        Ok(PidsResponse { processes, ..Default::default() })
    }

    async fn close_io(
        &self,
        _context: &TtrpcContext,
        request: CloseIORequest,
    ) -> ttrpc::Result<Empty> {
        let streams = self.target(&request.id, &request.exec_id)?.1.streams()?;
        if let Some(streams) = streams.filter(|_streams| request.stdin) {
            streams.close_stdin();
        }
        Ok(Empty::default())
    }

    async fn stats(
        &self,
        _context: &TtrpcContext,
        request: StatsRequest,
    ) -> ttrpc::Result<StatsResponse> {
        let made = self.containers.get(&request.id)?.container.made()?;
        let stats = stats::collect(&made.cgroup, &made.init.net_dev())
            .map_err(|error| TaskError::Invalid(format!("cannot encode the figures: {error}")))?;
        Ok(StatsResponse { stats: MessageField::some(stats), ..Default::default() })
    }

    async fn connect(
        &self,
        _context: &TtrpcContext,
        request: ConnectRequest,
    ) -> ttrpc::Result<ConnectResponse> {
        if self.context.socket.is_ending() {
            return Err(TaskError::Ending.into());
        }
        self.announce(&request.id);
        let task_pid = self.containers.get(&request.id).map_or(0, |held| held.container.pid());
        Ok(ConnectResponse {
            shim_pid: std::process::id(),
            task_pid,
            version: VERSION.to_owned(),
            ..Default::default()
        })
    }

    async fn shutdown(
        &self,
        _context: &TtrpcContext,
        request: ShutdownRequest,
    ) -> ttrpc::Result<Empty> {
        self.end(&request.id);
        Ok(Empty::default())
    }

    async fn pause(&self, _context: &TtrpcContext, request: PauseRequest) -> ttrpc::Result<Empty> {
        let Held { container, context } = self.containers.get(&request.id)?;
        self.whole(pause::pause(context, container)).await?;
        Ok(Empty::default())
    }

    async fn resume(
        &self,
        _context: &TtrpcContext,
        request: ResumeRequest,
    ) -> ttrpc::Result<Empty> {
        let Held { container, context } = self.containers.get(&request.id)?;
        self.whole(pause::resume(context, container)).await?;
        Ok(Empty::default())
    }

    async fn checkpoint(
        &self,
        _context: &TtrpcContext,
        _: CheckpointTaskRequest,
    ) -> ttrpc::Result<Empty> {
        unimplemented("Checkpoint")
    }

    async fn exec(
        &self,
        _context: &TtrpcContext,
        request: ExecProcessRequest,
    ) -> ttrpc::Result<Empty> {
        let held = self.containers.get(&request.id)?;
        exec::add(&held.context.events, &held.container, request)?;
        Ok(Empty::default())
    }

    async fn resize_pty(
        &self,
        _context: &TtrpcContext,
        request: ResizePtyRequest,
    ) -> ttrpc::Result<Empty> {
        let size = |number: u32| {
            u16::try_from(number).map_err(|_range| {
                TaskError::Invalid(format!("no terminal is {number} wide or high"))
            })
        };
        let (rows, columns) = (size(request.height)?, size(request.width)?);
        if let Some(streams) = self.target(&request.id, &request.exec_id)?.1.streams()? {
            streams.resize(rows, columns).map_err(|error| {
                TaskError::Invalid(format!("the terminal takes no size: {error}"))
            })?;
        }
        Ok(Empty::default())
    }

    async fn update(
        &self,
        _context: &TtrpcContext,
        request: UpdateTaskRequest,
    ) -> ttrpc::Result<Empty> {
        let Held { container, context } = self.containers.get(&request.id)?;
        self.whole(update::update(context, container, request)).await?;
        Ok(Empty::default())
    }
}

#[cfg(test)]
mod tests {
    use nimbus_api::id::ContainerKey;

    use super::super::SocketFile;
    use super::super::events::Publisher;
    use super::super::pod::{CONTAINERS_MAX, Pod};
    use super::*;
    use crate::log::Log;
    use crate::paths::Paths;
    use crate::process::Family;
    use crate::runtime::Launcher;
    use crate::state::Machine;

    fn key(id: &str) -> ContainerKey {
        ContainerKey { namespace: "n".parse().unwrap(), id: id.parse().unwrap() }
    }

    fn service(dir: &Path, sandbox: Option<&str>) -> TaskService {
        let paths = Paths::at(dir);
        let log = Log::open(dir, "c", false);
        let family = Family::default();
        let pod = Pod::new(key("c"), sandbox.map(|id| id.parse().unwrap()));
        TaskService::new(Context {
            launcher: Launcher::new(&paths, key("c"), log.clone(), family.clone()),
            events: Publisher::spawn(None, "n".to_owned(), pod.room(), log.clone()),
            key: key("c"),
            pod: Arc::new(pod),
            paths,
            log,
            family,
            socket: Arc::new(SocketFile::new(dir.join("socket"))),
            shutdown: Arc::new(Notify::new()),
        })
    }

    fn request(id: &str) -> CreateTaskRequest {
        let (id, bundle) = (id.to_owned(), "/bundle".to_owned());
        CreateTaskRequest { id, bundle, ..CreateTaskRequest::default() }
    }

    #[tokio::test]
    async fn a_server_that_ends_is_not_found_and_takes_nothing_and_leaves_its_successor_alone() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("socket");
        std::fs::write(&socket, "ours").unwrap();
        let busy = service(dir.path(), None);
        busy.reserve(&request("c")).unwrap();
        busy.end("c");
        assert!(socket.exists(), "it has a container");

        let ending = service(dir.path(), None);
        ending.end("c");
        assert!(!socket.exists());
        assert_eq!(ending.reserve(&request("c")).unwrap_err(), TaskError::Ending);
        std::fs::write(&socket, "the successor's").unwrap();
        ending.end("c");
        ending.context.socket.remove();
        assert!(socket.exists());
    }

    #[tokio::test]
    async fn a_server_that_another_container_was_announced_to_waits_for_it() {
        let dir = tempfile::tempdir().unwrap();
        let pod = service(dir.path(), Some("c"));
        assert!(pod.is_unknown());
        pod.announce("d");
        assert!(pod.is_idle() && !pod.is_unknown());
        // What it was started for has not come either.
        pod.end("d");
        assert!(!pod.context.socket.is_ending());
        pod.announce("d");
        pod.end("c");
        assert!(!pod.context.socket.is_ending());
        // It comes, and is there; or whoever wanted it has gone.
        pod.reserve(&request("d")).unwrap();
        pod.end("c");
        assert!(!pod.context.socket.is_ending());
        let other = service(dir.path(), Some("c"));
        other.announce("d");
        other.end("d");
        other.end("c");
        assert!(other.context.socket.is_ending());
    }

    #[tokio::test]
    async fn a_process_takes_one_container_and_that_of_a_pod_as_many_as_its_limit() {
        let dir = tempfile::tempdir().unwrap();
        let single = service(dir.path(), None);
        assert!(matches!(single.reserve(&request("d")), Err(TaskError::Invalid(_))));
        single.reserve(&request("c")).unwrap();
        assert!(matches!(single.reserve(&request("c")), Err(TaskError::AlreadyExists(_))));

        let pod = service(dir.path(), Some("c"));
        assert!(matches!(pod.reserve(&request("../d")), Err(TaskError::Invalid(_))));
        let held: Vec<_> =
            (0..CONTAINERS_MAX).map(|n| pod.reserve(&request(&format!("c{n}"))).unwrap()).collect();
        assert!(matches!(pod.reserve(&request("c7")), Err(TaskError::AlreadyExists(_))));
        assert!(matches!(pod.reserve(&request("more")), Err(TaskError::Exhausted(_))));
        let events = &pod.context.events;
        held[7].container.step("create", events, Machine::create_failed).unwrap();
        assert!(pod.containers.get("c7").is_err() && pod.containers.get("c8").is_ok());
        pod.reserve(&request("more")).unwrap();
    }
}

//! The task service as containerd calls it.
//!
//! Create, Start, Delete, Pause and Resume, of processes too, run as tasks of their own: ttrpc drops a handler whose connection ends
//! or whose caller is out of patience, and half a Create must not be. Everything else answers at
//! once, also while those run. What does not exist in this version answers Unimplemented.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

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

use super::container::{Container, Description};
use super::exec::Exec;
use super::{Context, create, events, exec, lifecycle, pause, timestamp, update};
use crate::exec_state::ExecPhase;
use crate::info::VERSION;
use crate::state::Phase;
use crate::stats;
use crate::status::TaskError;
use crate::stdio::{Streams, Uris};

/// The service of one process, which is for one container.
#[derive(Debug)]
pub(super) struct TaskService {
    context: Context,
    container: Mutex<Option<Arc<Container>>>,
}

impl TaskService {
    /// Without a container yet.
    pub(super) const fn new(context: Context) -> Self {
        Self { context, container: Mutex::new(None) }
    }

    /// Whether no container is here.
    pub(super) fn is_empty(&self) -> bool {
        let present = self.slot().as_ref().map(|container| container.snapshot().phase);
        present.is_none_or(|phase| phase == Phase::Deleted)
    }

    fn slot(&self) -> MutexGuard<'_, Option<Arc<Container>>> {
        self.container.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The container of this id, if it is here.
    fn container(&self, id: &str) -> Result<Arc<Container>, TaskError> {
        let found = self.slot().clone().filter(|container| {
            container.key().id.as_str() == id && container.snapshot().phase != Phase::Deleted
        });
        found.ok_or_else(|| TaskError::NotFound(format!("container {}", id.escape_debug())))
    }

    /// The process that is meant.
    fn target(&self, id: &str, exec_id: &str) -> Result<Target, TaskError> {
        let container = self.container(id)?;
        if exec_id.is_empty() {
            return Ok(Target::Init(container));
        }
        match container.execs().get(exec_id) {
            Some(exec) => Ok(Target::Exec(container, exec)),
            None => Err(TaskError::NotFound(format!("process {}", exec_id.escape_debug()))),
        }
    }

    /// Makes room for a container; one is all there may be.
    fn reserve(&self, request: &CreateTaskRequest) -> Result<Arc<Container>, TaskError> {
        let key = self.context.key.clone();
        if request.id != key.id.as_str() {
            return Err(TaskError::Invalid(format!("this shim is for container {} only", key.id)));
        }
        if !request.bundle.starts_with('/') {
            return Err(TaskError::Invalid("the bundle is not an absolute path".to_owned()));
        }
        if self.context.socket.is_ending() {
            return Err(TaskError::Ending);
        }
        if !self.is_empty() {
            return Err(TaskError::AlreadyExists(key.id.to_string()));
        }
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
        *self.slot() = Some(Arc::clone(&container));
        Ok(container)
    }
}

impl TaskService {
    /// Ends the server, unless a container is here.
    fn end(&self) {
        if self.is_empty() {
            // Before the answer: whoever starts a server for this container next gets a new one.
            self.context.socket.remove();
            self.context.shutdown.notify_one();
        }
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

/// Runs to its end whatever becomes of the caller.
async fn whole<T: Send + 'static>(
    work: impl Future<Output = Result<T, TaskError>> + Send + 'static,
) -> ttrpc::Result<T> {
    let done = tokio::spawn(work).await.unwrap_or_else(|join| {
        Err(Refusal::with(RefusalCode::RuntimeFailed, format_args!("shim: {join}")).into())
    });
    done.map_err(Into::into)
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
        let container = self.reserve(&request)?;
        let pid = whole(create::create(self.context.clone(), container, request)).await?;
        Ok(CreateTaskResponse { pid, ..Default::default() })
    }

    async fn start(
        &self,
        _context: &TtrpcContext,
        request: StartRequest,
    ) -> ttrpc::Result<StartResponse> {
        let context = self.context.clone();
        let pid = match self.target(&request.id, &request.exec_id)? {
            Target::Init(container) => whole(lifecycle::start(context, container)).await?,
            Target::Exec(container, one) => whole(exec::start(context, container, one)).await?,
        };
        Ok(StartResponse { pid, ..Default::default() })
    }

    async fn delete(
        &self,
        _context: &TtrpcContext,
        request: DeleteRequest,
    ) -> ttrpc::Result<DeleteResponse> {
        let context = self.context.clone();
        match self.target(&request.id, &request.exec_id)? {
            Target::Init(container) => whole(lifecycle::delete(context, container)).await,
            Target::Exec(container, one) => whole(exec::delete(context, container, one)).await,
        }
    }

    async fn state(
        &self,
        _context: &TtrpcContext,
        request: StateRequest,
    ) -> ttrpc::Result<StateResponse> {
        let target = self.target(&request.id, &request.exec_id)?;
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
        let exit = match self.target(&request.id, &request.exec_id)? {
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
        match self.target(&request.id, &request.exec_id)? {
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
        let container = self.container(&request.id)?;
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
        let streams = self.target(&request.id, &request.exec_id)?.streams()?;
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
        let made = self.container(&request.id)?.made()?;
        let stats = stats::collect(&made.cgroup, &made.init.net_dev())
            .map_err(|error| TaskError::Invalid(format!("cannot encode the figures: {error}")))?;
        Ok(StatsResponse { stats: MessageField::some(stats), ..Default::default() })
    }

    async fn connect(
        &self,
        _context: &TtrpcContext,
        request: ConnectRequest,
    ) -> ttrpc::Result<ConnectResponse> {
        let task_pid = self.container(&request.id).map_or(0, |container| container.pid());
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
        _request: ShutdownRequest,
    ) -> ttrpc::Result<Empty> {
        self.end();
        Ok(Empty::default())
    }

    async fn pause(&self, _context: &TtrpcContext, request: PauseRequest) -> ttrpc::Result<Empty> {
        let container = self.container(&request.id)?;
        whole(pause::pause(self.context.clone(), container)).await?;
        Ok(Empty::default())
    }

    async fn resume(
        &self,
        _context: &TtrpcContext,
        request: ResumeRequest,
    ) -> ttrpc::Result<Empty> {
        let container = self.container(&request.id)?;
        whole(pause::resume(self.context.clone(), container)).await?;
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
        let container = self.container(&request.id)?;
        exec::add(&self.context.events, &container, request)?;
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
        if let Some(streams) = self.target(&request.id, &request.exec_id)?.streams()? {
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
        let container = self.container(&request.id)?;
        whole(update::update(self.context.clone(), container, request)).await?;
        Ok(Empty::default())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use nimbus_api::id::ContainerKey;
    use tokio::sync::Notify;

    use super::super::SocketFile;
    use super::super::events::Publisher;
    use super::*;
    use crate::log::Log;
    use crate::paths::Paths;
    use crate::process::Family;
    use crate::runtime::Launcher;

    fn service(dir: &Path) -> TaskService {
        let key = ContainerKey { namespace: "n".parse().unwrap(), id: "c".parse().unwrap() };
        let paths = Paths::at(dir);
        let log = Log::open(dir, "c", false);
        let family = Family::default();
        TaskService::new(Context {
            launcher: Launcher::new(&paths, key.clone(), log.clone(), family.clone()),
            events: Publisher::spawn(None, "n".to_owned(), log.clone()),
            key,
            paths,
            log,
            family,
            socket: Arc::new(SocketFile::new(dir.join("socket"))),
            shutdown: Arc::new(Notify::new()),
        })
    }

    #[tokio::test]
    async fn a_server_that_ends_is_not_found_and_takes_nothing_and_leaves_its_successor_alone() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("socket");
        let request = CreateTaskRequest {
            id: "c".to_owned(),
            bundle: "/bundle".to_owned(),
            ..CreateTaskRequest::default()
        };
        std::fs::write(&socket, "ours").unwrap();
        let busy = service(dir.path());
        busy.reserve(&request).unwrap();
        busy.end();
        assert!(socket.exists(), "it has a container");

        let ending = service(dir.path());
        ending.end();
        assert!(!socket.exists());
        assert_eq!(ending.reserve(&request).unwrap_err(), TaskError::Ending);
        std::fs::write(&socket, "the successor's").unwrap();
        ending.end();
        ending.context.socket.remove();
        assert!(socket.exists());
    }
}

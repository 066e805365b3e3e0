//! The task service as containerd calls it.
//!
//! Create, Start, Delete, Pause and Resume run as tasks of their own: ttrpc drops a handler whose connection ends
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
use containerd_shim_protos::shim_async::Task;
use containerd_shim_protos::ttrpc::{self, r#async::TtrpcContext};
use nimbus_api::{Refusal, RefusalCode};

use super::container::{Container, Description};
use super::{Context, create, lifecycle, pause, timestamp};
use crate::info::VERSION;
use crate::state::Phase;
use crate::stats;
use crate::status::TaskError;
use crate::stdio::Uris;

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

    /// The container, when its init is what is meant.
    fn init(&self, id: &str, exec_id: &str) -> Result<Arc<Container>, TaskError> {
        if exec_id.is_empty() {
            return self.container(id);
        }
        Err(TaskError::NotFound(format!("process {}", exec_id.escape_debug())))
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

/// Runs to its end whatever becomes of the caller.
async fn whole<T: Send + 'static>(
    work: impl Future<Output = Result<T, TaskError>> + Send + 'static,
) -> ttrpc::Result<T> {
    let done = tokio::spawn(work).await.unwrap_or_else(|join| {
        Err(Refusal::with(RefusalCode::RuntimeFailed, format_args!("shim: {join}")).into())
    });
    done.map_err(Into::into)
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
        let container = self.init(&request.id, &request.exec_id)?;
        let pid = whole(lifecycle::start(self.context.clone(), container)).await?;
        Ok(StartResponse { pid, ..Default::default() })
    }

    async fn delete(
        &self,
        _context: &TtrpcContext,
        request: DeleteRequest,
    ) -> ttrpc::Result<DeleteResponse> {
        let container = self.init(&request.id, &request.exec_id)?;
        whole(lifecycle::delete(self.context.clone(), container)).await
    }

    async fn state(
        &self,
        _context: &TtrpcContext,
        request: StateRequest,
    ) -> ttrpc::Result<StateResponse> {
        let container = self.init(&request.id, &request.exec_id)?;
        let snapshot = container.snapshot();
        let description = container.description().clone();
        let exit = snapshot.exit;
        Ok(StateResponse {
            id: request.id,
            bundle: description.bundle,
            pid: container.pid(),
            status: status_of(snapshot.phase).into(),
            stdin: description.uris.stdin,
            stdout: description.uris.stdout,
            stderr: description.uris.stderr,
            terminal: description.terminal,
            exit_status: exit.map_or(0, |exit| exit.status),
            exited_at: exit.map(|exit| timestamp(exit.at)).unwrap_or_default(),
            ..Default::default()
        })
    }

    async fn wait(
        &self,
        _context: &TtrpcContext,
        request: WaitRequest,
    ) -> ttrpc::Result<WaitResponse> {
        let container = self.init(&request.id, &request.exec_id)?;
        let exit = container.wait().await.ok_or_else(|| container.not_found())?;
        Ok(WaitResponse {
            exit_status: exit.status,
            exited_at: timestamp(exit.at),
            ..Default::default()
        })
    }

    async fn kill(&self, _context: &TtrpcContext, request: KillRequest) -> ttrpc::Result<Empty> {
        let container = self.init(&request.id, &request.exec_id)?;
        lifecycle::kill(&container, request.signal, request.all)?;
        Ok(Empty::default())
    }

    async fn pids(
        &self,
        _context: &TtrpcContext,
        request: PidsRequest,
    ) -> ttrpc::Result<PidsResponse> {
        let container = self.container(&request.id)?;
        let pids = container.snapshot().made.map(|made| made.cgroup.pids()).unwrap_or_default();
        let processes = pids
            .into_iter()
            .filter_map(|pid| u32::try_from(pid).ok())
            .map(|pid| ProcessInfo { pid, ..Default::default() })
            .collect();
        Ok(PidsResponse { processes, ..Default::default() })
    }

    async fn close_io(
        &self,
        _context: &TtrpcContext,
        request: CloseIORequest,
    ) -> ttrpc::Result<Empty> {
        let container = self.init(&request.id, &request.exec_id)?;
        if request.stdin {
            container.made()?.streams.close_stdin();
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

    async fn exec(&self, _context: &TtrpcContext, _: ExecProcessRequest) -> ttrpc::Result<Empty> {
        unimplemented("Exec")
    }

    async fn resize_pty(
        &self,
        _context: &TtrpcContext,
        _: ResizePtyRequest,
    ) -> ttrpc::Result<Empty> {
        unimplemented("ResizePty")
    }

    async fn update(&self, _context: &TtrpcContext, _: UpdateTaskRequest) -> ttrpc::Result<Empty> {
        unimplemented("Update")
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

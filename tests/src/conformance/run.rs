//! One container of one scenario, and what is seen of it.
//!
//! Every step is a call to containerd. What it comes to is text without ids, pids, times and sentences:
//! what two runtimes can be compared by.

use std::path::PathBuf;
use std::time::Duration;

use containerd_client::services::v1::container::Runtime;
use containerd_client::services::v1::containers_client::ContainersClient;
use containerd_client::services::v1::tasks_client::TasksClient;
use containerd_client::services::v1::{
    CloseIoRequest, Container, CreateContainerRequest, CreateTaskRequest, DeleteContainerRequest,
    DeleteProcessRequest, DeleteTaskRequest, ExecProcessRequest, GetRequest, KillRequest,
    PauseTaskRequest, ResizePtyRequest, ResumeTaskRequest, StartRequest, UpdateTaskRequest,
    WaitRequest, WaitResponse,
};
use containerd_client::tonic::transport::Channel;
use containerd_client::tonic::{Request, Status};
use containerd_client::types::Mount;
use containerd_client::types::v1::Status as Phase;
use containerd_client::with_namespace;
use nimbus_api::Refusal;
use prost_types::Any;
use serde_json::Value;
use tokio::task::JoinHandle;

use super::ground::{Answer, Ground, NAMESPACE, Side};
use super::spec;
use super::streams::{Output, Uris};
use crate::wait::until_within;
use crate::{Failure, Outcome};

/// Type of a specification.
const SPEC_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/Spec";
/// Type of a process.
const PROCESS_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/Process";
/// Type of limits.
const RESOURCES_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources";
/// How long an event may take that must come.
const EVENT_PATIENCE: Duration = Duration::from_secs(10);
/// SIGKILL.
pub(super) const KILL: u32 = 9;
/// SIGTERM.
pub(super) const TERM: u32 = 15;
/// The init, where a process is named.
pub(super) const INIT: &str = "";

/// A container.
#[derive(Debug)]
pub(super) struct Run<'a> {
    ground: &'a mut Ground,
    id: String,
    seen: Vec<(String, String)>,
    made: bool,
}

impl<'a> Run<'a> {
    /// A container of this name, which is not there yet.
    pub(super) const fn new(ground: &'a mut Ground, id: String) -> Self {
        Self { ground, id, seen: Vec::new(), made: false }
    }

    /// Its containerd.
    pub(super) const fn ground(&self) -> &Ground {
        self.ground
    }

    /// Its containerd, to be killed and the like.
    pub(super) const fn ground_mut(&mut self) -> &mut Ground {
        self.ground
    }

    /// Its id.
    pub(super) fn id(&self) -> &str {
        &self.id
    }

    /// A file of its own.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.ground.dir().join(format!("{}.{name}", self.id))
    }

    /// Streams for a process: two fifos that are read. One for both would do for us; runc's shim opens it
    /// twice, and waits for ever when its reader has gone in between.
    pub(super) fn outputs(&self, name: &str) -> Result<(Uris, Output, Output), Failure> {
        let (out, err) = (self.path(&format!("{name}.out")), self.path(&format!("{name}.err")));
        let (stdout, stderr) = (out.display().to_string(), err.display().to_string());
        let uris = Uris { stdout, stderr, ..Uris::default() };
        Ok((uris, Output::read(&out)?, Output::read(&err)?))
    }

    /// Something was seen.
    pub(super) fn see(&mut self, what: &str, found: impl Into<String>) {
        let numbered = (1..).map(|number| match number {
            1 => what.to_owned(),
            _ => format!("{what} ({number})"),
        });
        let seen = |name: &String| self.seen.iter().any(|(known, _)| known == name);
        if let Some(name) = numbered.into_iter().find(|name| !seen(name)) {
            self.seen.push((name, found.into()));
        }
    }

    /// A call came to this.
    pub(super) fn see_answer<T>(&mut self, what: &str, answer: &Answer<T>) {
        self.see(what, said(answer));
    }

    /// What was seen of it, ids taken out.
    pub(super) fn into_seen(self) -> Vec<(String, String)> {
        let id = self.id;
        let clean = |text: String| {
            text.replace(&id, "ID").replace('\n', " ⏎ ").replace('\t', " ").replace('|', "¦")
        };
        self.seen.into_iter().map(|(what, found)| (what, clean(found))).collect()
    }

    fn tasks(&self) -> TasksClient<Channel> {
        TasksClient::new(self.ground.channel())
    }

    /// Makes container and task.
    pub(super) fn make(&mut self, spec: &Value, uris: Uris) -> Answer<()> {
        let mut containers = ContainersClient::new(self.ground.channel());
        let container = Container {
            id: self.id.clone(),
            runtime: Some(Runtime { name: self.ground.side().runtime().to_owned(), options: None }),
            spec: Some(any(SPEC_TYPE, spec)),
            ..Container::default()
        };
        let request = CreateContainerRequest { container: Some(container) };
        self.ground.ask(containers.create(with_namespace!(request, NAMESPACE)))?;
        self.made = true;
        self.make_task(uris)
    }

    /// Makes the task.
    pub(super) fn make_task(&self, uris: Uris) -> Answer<()> {
        let request = CreateTaskRequest {
            container_id: self.id.clone(),
            rootfs: self.rootfs().map_err(|failure| Status::internal(failure.text()))?,
            stdin: uris.stdin,
            stdout: uris.stdout,
            stderr: uris.stderr,
            terminal: uris.terminal,
            ..CreateTaskRequest::default()
        };
        let mut tasks = self.tasks();
        self.ground.ask(tasks.create(with_namespace!(request, NAMESPACE))).map(drop)
    }

    /// What a snapshotter would have containerd mount. Ours never uses it.
    fn rootfs(&self) -> Result<Vec<Mount>, Failure> {
        if self.ground.side() == Side::Nimbus {
            return Ok(Vec::new());
        }
        let (upper, work) = (self.path("upper"), self.path("work"));
        std::fs::create_dir_all(&upper)?;
        std::fs::create_dir_all(&work)?;
        let options = vec![
            format!("workdir={}", work.display()),
            format!("upperdir={}", upper.display()),
            format!("lowerdir={}", self.ground.layer().display()),
        ];
        let (r#type, source) = ("overlay".to_owned(), "overlay".to_owned());
        Ok(vec![Mount { r#type, source, options, ..Mount::default() }])
    }

    /// Makes a container of this process and sees what that comes to.
    pub(super) fn create(&mut self, process: &Value) -> bool {
        self.create_with(&spec::specification(&self.id, process), Uris::default())
    }

    /// The same with everything.
    pub(super) fn create_with(&mut self, spec: &Value, uris: Uris) -> bool {
        let made = self.make(spec, uris);
        self.see_answer("create", &made);
        made.is_ok()
    }

    /// Creates and starts.
    pub(super) fn begin(&mut self, process: &Value) -> Outcome {
        let spec = spec::specification(&self.id, process);
        self.begin_with(&spec, Uris::default())
    }

    /// Creates and starts a container that must start.
    pub(super) fn begin_with(&mut self, spec: &Value, uris: Uris) -> Outcome {
        self.make(spec, uris).map_err(|status| failed("create", &status))?;
        self.start(INIT).map(drop).map_err(|status| failed("start", &status))
    }

    /// Starts a process.
    pub(super) fn start(&self, exec: &str) -> Answer<u32> {
        let request = StartRequest { container_id: self.id.clone(), exec_id: exec.to_owned() };
        let mut tasks = self.tasks();
        self.ground.ask(tasks.start(with_namespace!(request, NAMESPACE))).map(|started| started.pid)
    }

    /// Waits for a process: its exit status.
    pub(super) fn wait(&self, exec: &str) -> Answer<u32> {
        let waiter = self.waiter(exec);
        self.ground.finish(waiter).map(|ended| ended.exit_status)
    }

    /// Begins to wait.
    pub(super) fn waiter(&self, exec: &str) -> JoinHandle<Answer<WaitResponse>> {
        let request = WaitRequest { container_id: self.id.clone(), exec_id: exec.to_owned() };
        let mut tasks = self.tasks();
        self.ground.begin(async move { tasks.wait(with_namespace!(request, NAMESPACE)).await })
    }

    /// How a process stands.
    pub(super) fn state(&self, exec: &str) -> String {
        let request = GetRequest { container_id: self.id.clone(), exec_id: exec.to_owned() };
        let mut tasks = self.tasks();
        let process = match self.ground.ask(tasks.get(with_namespace!(request, NAMESPACE))) {
            Ok(answer) => answer.process.unwrap_or_default(),
            Err(status) => return code(&status),
        };
        let status = Phase::try_from(process.status).unwrap_or_default();
        let mut text = status.as_str_name().to_lowercase();
        if status == Phase::Stopped {
            text = format!("{text} {}", process.exit_status);
            if process.exited_at.is_none_or(|at| at.seconds <= 0) {
                text.push_str(" (no time)");
            }
        }
        if process.pid == 0 {
            text.push_str(" (no pid)");
        }
        if process.terminal {
            text.push_str(" (terminal)");
        }
        text
    }

    /// Signals a process, or everybody.
    pub(super) fn kill(&self, exec: &str, signal: u32, all: bool) -> Answer<()> {
        let request =
            KillRequest { container_id: self.id.clone(), exec_id: exec.to_owned(), signal, all };
        let mut tasks = self.tasks();
        self.ground.ask(tasks.kill(with_namespace!(request, NAMESPACE))).map(drop)
    }

    /// SIGKILL to the init.
    pub(super) fn kill9(&self) -> Answer<()> {
        self.kill(INIT, KILL, false)
    }

    /// Deletes the task: its exit status.
    pub(super) fn delete(&self) -> Answer<u32> {
        let request = DeleteTaskRequest { container_id: self.id.clone() };
        let mut tasks = self.tasks();
        let answer = self.ground.ask(tasks.delete(with_namespace!(request, NAMESPACE)));
        answer.map(|deleted| deleted.exit_status)
    }

    /// Adds a process.
    pub(super) fn exec(&self, exec: &str, process: &Value, uris: Uris) -> Answer<()> {
        let request = ExecProcessRequest {
            container_id: self.id.clone(),
            exec_id: exec.to_owned(),
            spec: Some(any(PROCESS_TYPE, process)),
            stdin: uris.stdin,
            stdout: uris.stdout,
            stderr: uris.stderr,
            terminal: uris.terminal,
        };
        let mut tasks = self.tasks();
        self.ground.ask(tasks.exec(with_namespace!(request, NAMESPACE))).map(drop)
    }

    /// Adds and starts a process that must start.
    pub(super) fn exec_started(&self, exec: &str, process: &Value) -> Outcome {
        self.exec(exec, process, Uris::default()).map_err(|status| failed("exec", &status))?;
        self.start(exec).map(drop).map_err(|status| failed("start of an exec", &status))
    }

    /// Deletes an added process: its exit status.
    pub(super) fn delete_exec(&self, exec: &str) -> Answer<u32> {
        let (container_id, exec_id) = (self.id.clone(), exec.to_owned());
        let request = DeleteProcessRequest { container_id, exec_id };
        let mut tasks = self.tasks();
        let answer = self.ground.ask(tasks.delete_process(with_namespace!(request, NAMESPACE)));
        answer.map(|deleted| deleted.exit_status)
    }

    /// Closes the input of a process.
    pub(super) fn close_stdin(&self, exec: &str) -> Answer<()> {
        let (container_id, exec_id) = (self.id.clone(), exec.to_owned());
        let request = CloseIoRequest { container_id, exec_id, stdin: true };
        let mut tasks = self.tasks();
        self.ground.ask(tasks.close_io(with_namespace!(request, NAMESPACE))).map(drop)
    }

    /// Sets the size of a terminal.
    pub(super) fn resize(&self, exec: &str, width: u32, height: u32) -> Answer<()> {
        let (container_id, exec_id) = (self.id.clone(), exec.to_owned());
        let request = ResizePtyRequest { container_id, exec_id, width, height };
        let mut tasks = self.tasks();
        self.ground.ask(tasks.resize_pty(with_namespace!(request, NAMESPACE))).map(drop)
    }

    /// Lets it stand still.
    pub(super) fn pause(&self) -> Answer<()> {
        let request = PauseTaskRequest { container_id: self.id.clone() };
        let mut tasks = self.tasks();
        self.ground.ask(tasks.pause(with_namespace!(request, NAMESPACE))).map(drop)
    }

    /// Lets it go on.
    pub(super) fn resume(&self) -> Answer<()> {
        let request = ResumeTaskRequest { container_id: self.id.clone() };
        let mut tasks = self.tasks();
        self.ground.ask(tasks.resume(with_namespace!(request, NAMESPACE))).map(drop)
    }

    /// Changes its limits.
    pub(super) fn update(&self, resources: &Value) -> Answer<()> {
        let request = UpdateTaskRequest {
            container_id: self.id.clone(),
            resources: Some(any(RESOURCES_TYPE, resources)),
            ..UpdateTaskRequest::default()
        };
        let mut tasks = self.tasks();
        self.ground.ask(tasks.update(with_namespace!(request, NAMESPACE))).map(drop)
    }

    /// Waits until something was told about it.
    pub(super) fn told(&self, wanted: &str) -> bool {
        let events = self.ground.events();
        let told = until_within(wanted, EVENT_PATIENCE, || {
            Ok(events.of(&self.id).iter().any(|one| one.starts_with(wanted)).then_some(()))
        });
        told.is_ok()
    }

    /// Waits for the end of the task's life and sees what was told of it, in order.
    pub(super) fn see_events(&mut self) {
        let ended = self.told("delete");
        let mut events = self.ground.events().of(&self.id);
        if !ended {
            events.push("(no delete)".to_owned());
        }
        self.see("events", events.join(", "));
    }

    /// Kills and deletes whatever is left of it.
    pub(super) fn clean_up(&mut self) -> Outcome {
        if !self.made {
            return Ok(());
        }
        let state = self.state(INIT);
        if state != "NotFound" {
            // Each may be superfluous: only what is left afterwards matters.
            drop(self.resume());
            drop(self.kill(INIT, KILL, true));
            drop(self.wait(INIT));
            drop(self.delete());
        }
        let mut containers = ContainersClient::new(self.ground.channel());
        let request = DeleteContainerRequest { id: self.id.clone() };
        let deleted = self.ground.ask(containers.delete(with_namespace!(request, NAMESPACE)));
        deleted.map(drop).map_err(|status| failed("delete the container", &status))
    }
}

/// What a call came to, in a word.
pub(super) fn said<T>(answer: &Answer<T>) -> String {
    answer.as_ref().map_or_else(code, |_done| "ok".to_owned())
}

/// The same with the exit status that it answered with.
pub(super) fn said_status(answer: &Answer<u32>) -> String {
    answer.as_ref().map_or_else(code, |status| format!("ok, {status}"))
}

/// The code, and ours if there is one: sentences are nobody's promise.
pub(super) fn code(status: &Status) -> String {
    let ours = Refusal::code_in(status.message());
    let ours = ours.map(|code| format!(" {code}")).unwrap_or_default();
    format!("{:?}{ours}", status.code())
}

fn any(type_url: &str, value: &Value) -> Any {
    Any { type_url: type_url.to_owned(), value: value.to_string().into_bytes() }
}

fn failed(what: &str, status: &Status) -> Failure {
    Failure::new(format!("{what}: {:?}: {}", status.code(), status.message()))
}

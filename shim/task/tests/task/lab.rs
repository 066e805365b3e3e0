//! A bundle, a run directory and the shim program, as containerd would have them.

use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use containerd_shim_protos::TaskClient;
use containerd_shim_protos::api::{
    ConnectRequest, CreateTaskRequest, DeleteRequest, DeleteResponse, ShutdownRequest,
    StartRequest, WaitRequest, WaitResponse,
};
use containerd_shim_protos::protobuf::{Enum as _, Message as _};
use containerd_shim_protos::ttrpc::{self, Client, Server, context::Context};
use nimbus_api::id::ContainerKey;
use rustix::fs::{FileType, Mode, OFlags};
use rustix::process::{Pid, Signal, kill_process};

use crate::agent::{Agent, Answer};
use crate::events::Sink;

pub(crate) const NAMESPACE: &str = "nimbus-test";
const PROGRAM: &str = env!("CARGO_BIN_EXE_containerd-shim-nimbus-v1");
const CALL: Duration = Duration::from_mins(1);
const PATIENCE: Duration = Duration::from_secs(20);
/// Tells containers of this test binary apart.
static NUMBER: AtomicU32 = AtomicU32::new(0);

/// Everything of one test; what is left of a shim is ended when it goes.
pub(crate) struct Lab {
    pub dir: tempfile::TempDir,
    pub key: ContainerKey,
    pub events: Sink,
    _events_server: Server,
    log: File,
}

impl Lab {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let n = NUMBER.fetch_add(1, Ordering::SeqCst);
        let key = ContainerKey {
            namespace: NAMESPACE.parse().unwrap(),
            id: format!("t{}-{n}", std::process::id()).parse().unwrap(),
        };
        fs::create_dir(dir.path().join("run")).unwrap();
        fs::create_dir(dir.path().join("bundle")).unwrap();
        fs::write(dir.path().join("bundle/config.json"), "{}").unwrap();
        let log = dir.path().join("bundle/log");
        fifo(&log);
        let (events, server) = Sink::listen(&dir.path().join("events.sock"));
        let flags = OFlags::RDWR | OFlags::NONBLOCK;
        let log = File::from(rustix::fs::open(&log, flags, Mode::empty()).unwrap());
        Self { dir, key, events, _events_server: server, log }
    }

    pub(crate) fn agent(&self, answer: Answer) -> Agent {
        Agent::listen(&self.run_dir().join("node.sock"), answer)
    }

    pub(crate) fn run_dir(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    pub(crate) fn bundle(&self) -> PathBuf {
        self.dir.path().join("bundle")
    }

    /// The shim program with this action, as containerd runs it.
    pub(crate) fn command(&self, action: &[&str]) -> Command {
        program(self.dir.path(), &self.key, &self.bundle(), action)
    }

    pub(crate) fn run(&self, action: &[&str]) -> Output {
        self.command(action).output().unwrap()
    }

    /// `start`; the address.
    pub(crate) fn start(&self) -> String {
        let output = self.run(&["start"]);
        assert!(output.status.success(), "{output:?}");
        assert_eq!(String::from_utf8_lossy(&output.stderr), "", "stderr is protocol");
        String::from_utf8(output.stdout).unwrap()
    }

    /// `delete`; the answer.
    pub(crate) fn delete(&self) -> DeleteResponse {
        let bundle = self.bundle().display().to_string();
        let output = self.run(&["-bundle", &bundle, "delete"]);
        assert!(output.status.success(), "{output:?}");
        DeleteResponse::parse_from_bytes(&output.stdout).unwrap()
    }

    pub(crate) fn shim(&self) -> Shim {
        let address = self.start();
        Shim::connect(&address, self)
    }

    /// What the shim has logged.
    pub(crate) fn log(&self) -> String {
        let mut bytes = vec![0; 256 << 10];
        let count = (&self.log).read(&mut bytes).unwrap_or(0);
        String::from_utf8_lossy(&bytes[..count]).into_owned()
    }

    /// That nothing of a container or shim is left but the bundle.
    pub(crate) fn assert_nothing_left(&self) {
        let sockets: Vec<_> = fs::read_dir(self.run_dir().join("s")).unwrap().collect();
        assert!(sockets.is_empty(), "{sockets:?}");
        let state = self.run_dir().join("runtime").join(NAMESPACE).join(self.key.id.as_str());
        assert!(!state.exists(), "state left");
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(self.dir.path().to_str().unwrap()), "mount left");
        assert_eq!(cgroups_named(self.key.id.as_str()), Vec::<PathBuf>::new());
    }
}

/// The shim program with this action for this container, as containerd runs it; `dir` has a run directory
/// and takes events.
pub(crate) fn program(dir: &Path, key: &ContainerKey, bundle: &Path, action: &[&str]) -> Command {
    let mut command = Command::new(PROGRAM);
    command
        .current_dir(bundle)
        .env("NIMBUS_RUN_DIR", dir.join("run"))
        .env("TTRPC_ADDRESS", dir.join("events.sock"))
        .env("GOMAXPROCS", "2")
        .env("SCHED_CORE", "1")
        .stdin(Stdio::null())
        .args(["-namespace", key.namespace.as_str(), "-address", "/nowhere/containerd.sock"])
        .args(["-publish-binary", "/usr/bin/containerd", "-id", key.id.as_str()])
        .args(action);
    command
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            std::io::Write::write_all(&mut std::io::stderr(), log.as_bytes()).unwrap_or_default();
        }
        let bundle = self.bundle().display().to_string();
        let _ended = self.run(&["-bundle", &bundle, "delete"]);
    }
}

/// A connection to a server.
pub(crate) struct Shim {
    pub client: Client,
    pub task: TaskClient,
    pub pid: u32,
    id: String,
    bundle: String,
}

impl Shim {
    pub(crate) fn connect(address: &str, lab: &Lab) -> Self {
        Self::of(address, lab.key.id.to_string(), &lab.bundle())
    }

    /// For this container.
    pub(crate) fn of(address: &str, id: String, bundle: &Path) -> Self {
        let client = Client::connect(address).unwrap();
        let task = TaskClient::new(client.clone());
        let request = ConnectRequest { id: id.clone(), ..Default::default() };
        let pid = task.connect(call(), &request).unwrap().shim_pid;
        Self { client, task, pid, id, bundle: bundle.display().to_string() }
    }

    pub(crate) fn create_request(&self) -> CreateTaskRequest {
        CreateTaskRequest { id: self.id.clone(), bundle: self.bundle.clone(), ..Default::default() }
    }

    /// Create with output to these files or fifos.
    pub(crate) fn create(&self, stdout: &str, stderr: &str) -> Result<u32, (i32, String)> {
        let request = CreateTaskRequest {
            stdout: stdout.to_owned(),
            stderr: stderr.to_owned(),
            ..self.create_request()
        };
        self.create_with(&request)
    }

    pub(crate) fn create_with(&self, request: &CreateTaskRequest) -> Result<u32, (i32, String)> {
        status(self.task.create(call(), request)).map(|created| created.pid)
    }

    pub(crate) fn start(&self) -> Result<u32, (i32, String)> {
        let request = StartRequest { id: self.id.clone(), ..Default::default() };
        status(self.task.start(call(), &request)).map(|started| started.pid)
    }

    /// Sends the server a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.pid).unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
    }

    pub(crate) fn wait(&self) -> WaitResponse {
        let request = WaitRequest { id: self.id.clone(), ..Default::default() };
        self.task.wait(call(), &request).unwrap()
    }

    pub(crate) fn delete(&self) -> Result<DeleteResponse, (i32, String)> {
        let request = DeleteRequest { id: self.id.clone(), ..Default::default() };
        status(self.task.delete(call(), &request))
    }

    /// Shutdown, which a server that has a container does not hear.
    pub(crate) fn ask_to_end(&self) {
        let request = ShutdownRequest { id: self.id.clone(), ..Default::default() };
        self.task.shutdown(call(), &request).unwrap();
    }

    /// Shutdown, and waits until the process has ended.
    pub(crate) fn shut_down(self) {
        self.ask_to_end();
        wait_until("the shim ends", || !alive(self.pid));
    }
}

pub(crate) fn call() -> Context {
    ttrpc::context::with_duration(CALL)
}

/// The status that a client sees.
pub(crate) fn status<T>(answer: ttrpc::Result<T>) -> Result<T, (i32, String)> {
    answer.map_err(|error| {
        let ttrpc::Error::RpcStatus(status) = error else { panic!("{error}") };
        (status.code().value(), status.message)
    })
}

pub(crate) fn alive(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with('Z'))
}

pub(crate) fn wait_until(what: &str, done: impl Fn() -> bool) {
    let step = Duration::from_millis(10);
    for _ in 0..PATIENCE.as_millis() / step.as_millis() {
        if done() {
            return;
        }
        std::thread::sleep(step);
    }
    panic!("waited too long until {what}");
}

pub(crate) fn fifo(path: &Path) {
    rustix::fs::mknodat(rustix::fs::CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
}

pub(crate) fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

pub(crate) fn cgroups_named(part: &str) -> Vec<PathBuf> {
    // On a unified host the root itself is the hierarchy.
    let root = PathBuf::from("/sys/fs/cgroup");
    let below = fs::read_dir(&root).unwrap().flatten().map(|entry| entry.path());
    below
        .chain([root.clone()])
        .filter_map(|hierarchy| fs::read_dir(hierarchy).ok())
        .flat_map(|groups| groups.flatten().map(|group| group.path()).collect::<Vec<_>>())
        .filter(|path| path.to_string_lossy().contains(part))
        .collect()
}

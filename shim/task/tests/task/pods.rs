//! The containers of one pod in one process: what they share and what not.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use containerd_shim_protos::api::{
    CreateTaskRequest, DeleteResponse, ExecProcessRequest, KillRequest, PidsRequest, StartRequest,
    StateRequest, StatsRequest, Status, UpdateTaskRequest, WaitRequest,
};
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{Message as _, MessageField};
use containerd_shim_protos::ttrpc::Server;
use nimbus_api::id::ContainerKey;
use nimbus_api::lease::LeasedPod;
use nimbus_api::plan::Plan;
use nimbus_api::proto::admit::v1::{Admit, Revoked, agent_message, shim_message};
use nimbus_api::{Refusal, RefusalCode};
use rustix::fs::{Mode, OFlags};
use rustix::process::Signal;
use serde_json::json;

use crate::agent::{Agent, Answer};
use crate::events::Sink;
use crate::granted::{KILLED, build_runtime};
use crate::lab::{Shim, alive, call, cgroups_named, fifo, program, status, wait_until};
use crate::plan::{busybox_root, detached, granted, plan, sealed_filter, soon};

pub(crate) const KUBERNETES: &str = "k8s.io";
const SLEEPER: &str = "exec sleep 600";
const NOT_FOUND: i32 = 5;
const NOT_NOW: i32 = 9;
static NUMBER: AtomicU32 = AtomicU32::new(0);

/// One pod's containers, and the agent that grants what the test says of each.
pub(crate) struct Pod {
    pub dir: tempfile::TempDir,
    pub agent: Agent,
    pub events: Sink,
    plans: Arc<Mutex<BTreeMap<String, Plan>>>,
    namespace: &'static str,
    number: u32,
    _events_server: Server,
}

/// One container of it.
pub(crate) struct Member {
    pub id: String,
    pub bundle: PathBuf,
    key: ContainerKey,
    root: PathBuf,
    log: File,
}

/// One container of it, and its connection to the server.
struct Running {
    member: Member,
    shim: Shim,
}

impl Pod {
    pub(crate) fn new() -> Self {
        Self::in_namespace(KUBERNETES)
    }

    pub(crate) fn in_namespace(namespace: &'static str) -> Self {
        build_runtime();
        let dir = tempfile::tempdir().unwrap();
        for name in ["run", "bundles"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        let layer = busybox_root(dir.path());
        let plans: Arc<Mutex<BTreeMap<String, Plan>>> = Arc::default();
        let known = Arc::clone(&plans);
        let choose = move |admit: &Admit| {
            let plan = known.lock().unwrap().get(&admit.id).cloned()?;
            let mut layers = vec![detached(&layer)];
            for n in 1..plan.rootfs.layers.len() {
                layers.push(detached(&layer.parent().unwrap().join(format!("layer{n}"))));
            }
            layers.insert(0, sealed_filter());
            Some((granted(&plan), layers))
        };
        let agent =
            Agent::listen(&dir.path().join("run/node.sock"), Answer::Choose(Box::new(choose)));
        let (events, server) = Sink::listen(&dir.path().join("events.sock"));
        let number = NUMBER.fetch_add(1, Ordering::SeqCst);
        Self { dir, agent, events, plans, namespace, number, _events_server: server }
    }

    fn id(&self, name: &str) -> String {
        format!("p{}-{}-{name}", std::process::id(), self.number)
    }

    /// The bundle of a container that says that it is of this pod.
    pub(crate) fn member(&self, name: &str) -> Member {
        let id = self.id(name);
        let bundle = self.dir.path().join("bundles").join(&id);
        fs::create_dir(&bundle).unwrap();
        let config = json!({"annotations": {"io.kubernetes.cri.sandbox-id": self.id("sandbox")}});
        fs::write(bundle.join("config.json"), config.to_string()).unwrap();
        fifo(&bundle.join("log"));
        let flags = OFlags::RDWR | OFlags::NONBLOCK;
        let log = File::from(rustix::fs::open(bundle.join("log"), flags, Mode::empty()).unwrap());
        let key =
            ContainerKey { namespace: self.namespace.parse().unwrap(), id: id.parse().unwrap() };
        Member { id, bundle, key, root: self.dir.path().to_owned(), log }
    }

    /// The agent will grant this; `change` makes something else of it.
    fn grant(&self, member: &Member, script: &str, change: impl FnOnce(&mut Plan)) {
        let mut plan = plan_in_pod(&member.key, &self.id("sandbox"), script);
        change(&mut plan);
        self.plans.lock().unwrap().insert(member.id.clone(), plan);
    }

    /// A container that has been made.
    fn created(&self, name: &str, script: &str) -> Running {
        let member = self.member(name);
        self.grant(&member, script, |_plan| ());
        let shim = member.shim();
        shim.create_with(&member.create_request()).unwrap();
        Running { member, shim }
    }

    /// A container that runs.
    fn running(&self, name: &str, script: &str) -> Running {
        let running = self.created(name, script);
        running.shim.start().unwrap();
        running
    }

    pub(crate) fn sockets(&self) -> usize {
        fs::read_dir(self.dir.path().join("run/s")).unwrap().count()
    }

    /// That nothing is left but bundles.
    pub(crate) fn assert_nothing_left(&self) {
        assert_eq!(self.sockets(), 0);
        let state = self.dir.path().join("run/runtime").join(self.namespace);
        assert_eq!(fs::read_dir(state).map_or(0, Iterator::count), 0, "state left");
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(self.dir.path().to_str().unwrap()), "mount left");
        assert_eq!(cgroups_named(&self.id("")), Vec::<PathBuf>::new());
        wait_until("no server is left", || self.servers().is_empty());
    }

    /// Servers of any container of this pod.
    pub(crate) fn servers(&self) -> Vec<u32> {
        let name = self.id("");
        let pids = fs::read_dir("/proc").unwrap().flatten();
        pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .filter(|pid| {
                let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                let server = line.starts_with("containerd-shim") && !line.contains("\0start\0");
                server && line.contains(&name) && alive(*pid)
            })
            .collect()
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        // What a failed test left.
        for bundle in fs::read_dir(self.dir.path().join("bundles")).unwrap().flatten() {
            let id = bundle.file_name().into_string().unwrap();
            let key = ContainerKey {
                namespace: self.namespace.parse().unwrap(),
                id: id.parse().unwrap(),
            };
            let path = bundle.path();
            let action = ["-bundle", path.to_str().unwrap(), "delete"];
            let _ended = program(self.dir.path(), &key, &path, &action).output();
        }
    }
}

impl Member {
    pub(crate) fn command(&self, action: &[&str]) -> Command {
        program(&self.root, &self.key, &self.bundle, action)
    }

    /// `start`; the address.
    pub(crate) fn start(&self) -> String {
        told(&self.command(&["start"]).output().unwrap())
    }

    pub(crate) fn shim(&self) -> Shim {
        Shim::of(&self.start(), self.id.clone(), &self.bundle)
    }

    /// `delete`; the answer.
    pub(crate) fn delete(&self) -> DeleteResponse {
        let bundle = self.bundle.display().to_string();
        let output = self.command(&["-bundle", &bundle, "delete"]).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        DeleteResponse::parse_from_bytes(&output.stdout).unwrap()
    }

    fn log(&self) -> String {
        let mut bytes = vec![0; 256 << 10];
        let count = (&self.log).read(&mut bytes).unwrap_or(0);
        String::from_utf8_lossy(&bytes[..count]).into_owned()
    }

    fn file(&self, name: &str) -> PathBuf {
        self.root.join(format!("{}.{name}", self.id))
    }

    fn text(&self, name: &str) -> String {
        fs::read_to_string(self.file(name)).unwrap_or_default()
    }

    fn create_request(&self) -> CreateTaskRequest {
        CreateTaskRequest {
            id: self.id.clone(),
            bundle: self.bundle.display().to_string(),
            stdout: format!("file://{}", self.file("out").display()),
            ..Default::default()
        }
    }
}

/// Runs a shell script in the pod of this sandbox.
pub(crate) fn plan_in_pod(key: &ContainerKey, sandbox: &str, script: &str) -> Plan {
    let mut plan = plan(key, script);
    plan.pod = Some(LeasedPod {
        sandbox: sandbox.parse().unwrap(),
        namespace: "default".to_owned(),
        name: "pod".to_owned(),
        uid: "u".to_owned(),
        container: (key.id.as_str() != sandbox).then(|| "c".to_owned()),
        restart: 0,
    });
    plan
}

/// The address that `start` told, and nothing else.
pub(crate) fn told(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "", "stderr is protocol");
    String::from_utf8(output.stdout.clone()).unwrap()
}

impl Running {
    fn id(&self) -> String {
        self.member.id.clone()
    }

    fn state(&self) -> Status {
        let request = StateRequest { id: self.id(), ..Default::default() };
        self.shim.task.state(call(), &request).unwrap().status()
    }

    fn pids(&self) -> Vec<u32> {
        let request = PidsRequest { id: self.id(), ..Default::default() };
        let pids = self.shim.task.pids(call(), &request).unwrap().processes;
        pids.into_iter().map(|process| process.pid).collect()
    }

    fn kill(&self) {
        let request = KillRequest { id: self.id(), signal: 9, ..Default::default() };
        self.shim.task.kill(call(), &request).unwrap();
    }

    /// Adds a process that runs this; its pid.
    fn exec(&self, name: &str, script: &str) -> u32 {
        let process = json!({
            "user": {"uid": 0, "gid": 0}, "args": ["/bin/sh", "-c", script],
            "env": ["PATH=/bin"], "cwd": "/"});
        let spec = Any {
            type_url: "types.containerd.io/opencontainers/runtime-spec/1/Process".to_owned(),
            value: process.to_string().into_bytes(),
            ..Any::default()
        };
        let request = ExecProcessRequest {
            id: self.id(),
            exec_id: name.to_owned(),
            spec: MessageField::some(spec),
            stdout: format!("file://{}", self.member.file(name).display()),
            ..Default::default()
        };
        self.shim.task.exec(call(), &request).unwrap();
        let start = StartRequest { id: self.id(), exec_id: name.to_owned(), ..Default::default() };
        self.shim.task.start(call(), &start).unwrap().pid
    }

    fn wait_exec(&self, name: &str) -> u32 {
        let request = WaitRequest { id: self.id(), exec_id: name.into(), ..Default::default() };
        self.shim.task.wait(call(), &request).unwrap().exit_status
    }

    fn ends_by_itself(self) {
        assert_eq!(self.shim.wait().exit_status, 0);
        self.ended();
    }

    /// As containerd goes on once a container has ended: Delete, Shutdown, and `delete`, bundle and all.
    fn ended(self) {
        self.shim.delete().unwrap();
        self.shim.ask_to_end();
        self.member.delete();
        fs::remove_dir_all(&self.member.bundle).unwrap();
    }

    fn ends(self) {
        self.kill();
        assert_eq!(self.shim.wait().exit_status, KILLED);
        self.ended();
    }
}

#[test]
fn the_containers_of_a_pod_are_in_one_process_and_live_apart() {
    let pod = Pod::new();
    let sandbox = pod.running("sandbox", SLEEPER);
    let app = pod.running("app", "echo from the app; sleep 0.5; exit 7");
    assert_eq!(app.shim.pid, sandbox.shim.pid);
    assert_eq!(pod.servers(), [app.shim.pid]);
    let address = |member: &Member| fs::read_to_string(member.bundle.join("address")).unwrap();
    assert_eq!(address(&app.member), address(&sandbox.member));
    assert_eq!(app.shim.wait().exit_status, 7);
    assert_eq!((app.state(), sandbox.state()), (Status::STOPPED, Status::RUNNING));
    assert_eq!(app.member.text("out"), "from the app\n");
    let (of_app, of_sandbox) = (app.id(), sandbox.id());
    app.ended();
    assert_eq!(pod.agent.released_of(&of_app).exit_status, 7);
    assert_eq!(pod.agent.heard_of(&of_app), ["admit", "started", "released"]);
    assert_eq!(pod.agent.heard_of(&of_sandbox), ["admit", "started"]);
    let told = pod.events.of(&of_app, "delete");
    assert_eq!(told, ["create", "start", "exit", "delete"]);
    // Its name is not known any more; whoever asks for another is not answered with the other's.
    let state = StateRequest { id: of_app.clone(), ..Default::default() };
    assert_eq!(status(sandbox.shim.task.state(call(), &state)).unwrap_err().0, NOT_FOUND);
    assert_eq!(sandbox.state(), Status::RUNNING);
    // kubelet makes it anew, under another id, in the same process.
    let again = pod.running("again", SLEEPER);
    assert_eq!(again.shim.pid, sandbox.shim.pid);
    again.ends();
    let server = sandbox.shim.pid;
    sandbox.ends();
    assert_eq!(pod.events.of(&of_sandbox, "delete"), ["create", "start", "exit", "delete"]);
    wait_until("the server has ended with its last container", || !alive(server));
    pod.assert_nothing_left();
}

#[test]
fn processes_are_added_to_either_and_end_with_their_own() {
    let pod = Pod::new();
    let (sandbox, app) = (pod.running("sandbox", SLEEPER), pod.running("app", SLEEPER));
    // The same name in both.
    let in_sandbox = sandbox.exec("e1", "echo sandbox; exec sleep 600");
    let in_app = app.exec("e1", "echo app; exec sleep 600");
    wait_until("both have written", || {
        sandbox.member.text("e1") == "sandbox\n" && app.member.text("e1") == "app\n"
    });
    assert!(sandbox.pids().contains(&in_sandbox) && !sandbox.pids().contains(&in_app));
    assert!(app.pids().contains(&in_app) && !app.pids().contains(&in_sandbox));
    app.kill();
    assert_eq!(app.shim.wait().exit_status, KILLED);
    assert_eq!(app.wait_exec("e1"), KILLED);
    assert!(!alive(in_app));
    assert!(alive(in_sandbox), "the other one's goes on");
    let told = ["create", "start", "exec-added", "exec-started", "exit", "exit"];
    let id = app.id();
    wait_until("both ends are told", || pod.events.of(&id, "exit").len() == told.len());
    assert_eq!(pod.events.of(&id, "exit"), told);
    assert_eq!(pod.events.of(&sandbox.id(), "exec-started"), told[..4]);
    app.ended();
    sandbox.exec("e2", "exit 3");
    assert_eq!(sandbox.wait_exec("e2"), 3);
    sandbox.ends();
    pod.assert_nothing_left();
}

#[test]
fn while_one_waits_for_the_agent_the_other_is_served() {
    let pod = Pod::new();
    let sandbox = pod.running("sandbox", SLEEPER);
    // The agent is silent about what it has no plan for.
    let member = pod.member("app");
    let shim = member.shim();
    let request = member.create_request();
    let creating = Shim::of(&member.start(), member.id.clone(), &member.bundle);
    let created = std::thread::spawn(move || creating.create_with(&request));
    pod.agent.hear(|kind| {
        let shim_message::Kind::Admit(admit) = kind else { return None };
        (admit.id == member.id).then_some(())
    });
    assert_eq!((sandbox.state(), sandbox.pids().len()), (Status::RUNNING, 1));
    sandbox.exec("e1", "exit 4");
    assert_eq!(sandbox.wait_exec("e1"), 4);
    let third = pod.running("third", "exit 5");
    assert_eq!(third.shim.wait().exit_status, 5);
    third.ended();
    assert_eq!(shim.delete().unwrap_err().0, NOT_FOUND);
    let (_, text) = created.join().unwrap().unwrap_err();
    assert_eq!(Refusal::code_in(&text), Some(RefusalCode::JobCancelled));
    sandbox.ends();
    pod.assert_nothing_left();
}

#[test]
fn a_want_of_memory_a_deadline_and_a_revocation_are_of_one_only() {
    let pod = Pod::new();
    let (sandbox, hungry) =
        (pod.running("sandbox", SLEEPER), pod.running("hungry", "tail /dev/zero"));
    assert_eq!(hungry.shim.wait().exit_status, KILLED);
    let id = hungry.id();
    hungry.ended();
    assert!(pod.agent.released_of(&id).oom_killed);
    assert_eq!(pod.events.of(&id, "delete"), ["create", "start", "oom", "exit", "delete"]);

    let member = pod.member("late");
    pod.grant(&member, SLEEPER, |plan| plan.deadline = soon(crate::granted::after_start_ms()));
    let shim = member.shim();
    shim.create_with(&member.create_request()).unwrap();
    shim.start().unwrap();
    assert_eq!(shim.wait().exit_status, KILLED);
    let late = Running { member, shim };
    let id = late.id();
    late.ended();
    assert_eq!(pod.agent.released_of(&id).reason, "lease.ended");

    let revoked = pod.running("revoked", SLEEPER);
    let code = Revoked { code: "lease.revoked".to_owned(), sentence: String::new() };
    pod.agent.say_of(&revoked.id(), agent_message::Kind::Revoked(code));
    assert_eq!(revoked.shim.wait().exit_status, KILLED);
    revoked.ended();

    assert_eq!(pod.events.of(&sandbox.id(), "start"), ["create", "start"]);
    assert_eq!(sandbox.state(), Status::RUNNING);
    sandbox.ends();
    pod.assert_nothing_left();
}

#[test]
fn what_was_granted_for_another_org_or_pod_is_not_made_here() {
    let pod = Pod::new();
    let sandbox = pod.running("sandbox", SLEEPER);
    let other_org = |plan: &mut Plan| plan.lease.org = "other".parse().unwrap();
    let other_sandbox = |plan: &mut Plan| {
        plan.pod.as_mut().unwrap().sandbox = "another".parse().unwrap();
    };
    let no_pod = |plan: &mut Plan| plan.pod = None;
    for (name, change) in [("a", other_org as fn(&mut Plan)), ("b", other_sandbox), ("c", no_pod)] {
        let member = pod.member(name);
        pod.grant(&member, "echo ran", change);
        let shim = member.shim();
        let (code, text) = shim.create_with(&member.create_request()).unwrap_err();
        assert_eq!((code, Refusal::code_in(&text)), (7, Some(RefusalCode::PodMismatch)), "{text}");
        assert_eq!(pod.agent.released_of(&member.id).reason, "pod.mismatch");
        assert_eq!(pod.agent.heard_of(&member.id), ["admit", "released"]);
        let state = StateRequest { id: member.id.clone(), ..Default::default() };
        assert_eq!(status(shim.task.state(call(), &state)).unwrap_err().0, NOT_FOUND);
        assert_eq!(shim.delete().unwrap_err().0, NOT_FOUND);
        shim.ask_to_end();
        assert!(!member.file("out").exists());
        assert_eq!(cgroups_named(&member.id), Vec::<PathBuf>::new());
        member.delete();
    }
    assert_eq!(sandbox.state(), Status::RUNNING);
    sandbox.ends();
    pod.assert_nothing_left();
}

#[test]
fn a_shim_without_a_group_takes_what_is_of_no_pod_or_its_own_sandbox() {
    let pod = Pod::in_namespace("nimbus-test");
    let own = pod.running("sandbox", SLEEPER);
    own.ends();
    let member = pod.member("app");
    pod.grant(&member, SLEEPER, |_plan| ());
    let shim = member.shim();
    let (_, text) = shim.create_with(&member.create_request()).unwrap_err();
    assert_eq!(Refusal::code_in(&text), Some(RefusalCode::PodMismatch), "{text}");
    shim.shut_down();
    pod.assert_nothing_left();
}

#[test]
fn delete_of_one_leaves_the_others_whether_it_runs_or_not() {
    let pod = Pod::new();
    let sandbox = pod.running("sandbox", SLEEPER);
    let (first, second) = (pod.running("a", SLEEPER), pod.created("b", SLEEPER));
    // containerd has lost its connection to each and takes them for dead.
    for one in [first, second] {
        let [pid] = one.pids()[..] else { panic!("{:?}", one.pids()) };
        let deleted = one.member.delete();
        assert_eq!((deleted.pid, deleted.exit_status), (pid, KILLED));
        assert!(!alive(pid));
        assert_eq!(pod.agent.released_of(&one.id()).exit_status, KILLED);
        assert_eq!(cgroups_named(&one.id()), Vec::<PathBuf>::new());
        one.member.delete();
        fs::remove_dir_all(&one.member.bundle).unwrap();
        assert_eq!(sandbox.state(), Status::RUNNING);
    }
    // The last one takes the server with it.
    sandbox.member.delete();
    wait_until("the server has ended", || !alive(sandbox.shim.pid));
    pod.assert_nothing_left();
}

#[test]
fn when_the_server_is_killed_each_delete_cleans_up_its_own() {
    let pod = Pod::new();
    let (sandbox, app) = (pod.running("sandbox", SLEEPER), pod.running("app", SLEEPER));
    let added = app.exec("e1", SLEEPER);
    let pid = |one: &Running| one.pids()[0];
    let (of_sandbox, of_app) = (pid(&sandbox), pid(&app));
    sandbox.shim.signal(Signal::KILL);
    wait_until("it is dead", || !alive(sandbox.shim.pid));
    assert_eq!(app.member.delete().exit_status, KILLED);
    wait_until("all of the app is dead", || !alive(of_app) && !alive(added));
    assert!(alive(of_sandbox), "the other one has its own delete");
    assert_eq!(sandbox.member.delete().pid, of_sandbox);
    wait_until("the sandbox is dead", || !alive(of_sandbox));
    pod.assert_nothing_left();
    app.member.delete();
}

#[test]
fn a_server_that_hangs_is_killed_by_the_last_delete_only() {
    let pod = Pod::new();
    let (sandbox, app) = (pod.running("sandbox", SLEEPER), pod.running("app", SLEEPER));
    let [of_app] = app.pids()[..] else { panic!("{:?}", app.pids()) };
    sandbox.shim.signal(Signal::STOP);
    assert_eq!(app.member.delete().pid, of_app);
    assert!(!alive(of_app), "the runtime has ended it");
    assert!(alive(sandbox.shim.pid), "it has another container");
    fs::remove_dir_all(&app.member.bundle).unwrap();
    sandbox.member.delete();
    assert!(!alive(sandbox.shim.pid));
    pod.assert_nothing_left();
}

#[test]
fn each_logs_to_its_own_bundle_and_the_process_where_one_is_left() {
    let pod = Pod::new();
    // Not the sandbox first: whichever it is, its bundle goes.
    let (first, second) = (pod.running("first", "exit 1"), pod.running("second", SLEEPER));
    assert_eq!(first.shim.wait().exit_status, 1);
    let id = first.id();
    wait_until("its end is told", || !pod.events.of(&id, "exit").is_empty());
    let log = first.member.log();
    assert!(log.contains(&format!("init ended with status 1\" id={id}\n")), "{log}");
    assert!(!second.member.log().contains(&id));
    first.ended();
    // What is said about the whole process.
    second.shim.signal(Signal::TERM);
    wait_until("it is told", || second.member.log().contains("so it stays"));
    second.ends();
    pod.assert_nothing_left();
}

#[test]
fn figures_and_limits_are_of_each() {
    let pod = Pod::new();
    let (sandbox, app) = (pod.running("sandbox", SLEEPER), pod.running("app", SLEEPER));
    app.exec("e1", SLEEPER);
    let limit = |one: &Running| {
        let request = StatsRequest { id: one.id(), ..Default::default() };
        let stats = one.shim.task.stats(call(), &request).unwrap().stats.unwrap();
        crate::granted::figures(&stats)
    };
    assert_eq!((limit(&sandbox), limit(&app)), ((64 << 20, 1), (64 << 20, 2)));
    let resources = Any {
        type_url: "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources".to_owned(),
        value: json!({"memory": {"limit": 32 << 20}}).to_string().into_bytes(),
        ..Any::default()
    };
    let resources = MessageField::some(resources);
    let request = UpdateTaskRequest { id: app.id(), resources, ..Default::default() };
    app.shim.task.update(call(), &request).unwrap();
    assert_eq!((limit(&sandbox).0, limit(&app).0), (64 << 20, 32 << 20));
    assert_eq!(app.shim.start().unwrap_err().0, NOT_NOW);
    app.ends();
    sandbox.ends();
    pod.assert_nothing_left();
}

#[test]
fn as_many_layers_as_a_plan_may_have_are_handed_on() {
    const LAYERS: usize = nimbus_api::plan::LAYERS_MAX;
    let pod = Pod::new();
    for n in 1..LAYERS {
        let layer = pod.dir.path().join(format!("layer{n}"));
        fs::create_dir(&layer).unwrap();
        fs::write(layer.join(format!("of-layer-{n}")), "").unwrap();
    }
    let member = pod.member("sandbox");
    let script = "echo /of-layer-* | { read all; set -- $all; echo $#; }";
    pod.grant(&member, script, |plan| {
        let digest = plan.rootfs.layers[0];
        plan.rootfs.layers = vec![digest; LAYERS];
    });
    let shim = member.shim();
    shim.create_with(&member.create_request()).unwrap();
    shim.start().unwrap();
    assert_eq!(shim.wait().exit_status, 0);
    let running = Running { member, shim };
    running.shim.delete().unwrap();
    assert_eq!(running.member.text("out"), format!("{}\n", LAYERS - 1));
    running.shim.shut_down();
    pod.assert_nothing_left();
}

#[test]
fn a_process_keeps_nothing_of_the_containers_that_went() {
    const MANY: usize = 12;
    let pod = Pod::new();
    let sandbox = pod.running("sandbox", SLEEPER);
    let all: Vec<_> = (0..MANY).map(|n| pod.running(&format!("c{n}"), SLEEPER)).collect();
    assert_eq!(pod.servers(), [sandbox.shim.pid]);
    for one in all {
        assert_eq!(one.pids().len(), 1);
        one.ends();
    }
    let descriptors =
        || fs::read_dir(Path::new("/proc").join(sandbox.shim.pid.to_string()).join("fd"));
    let before = descriptors().unwrap().count();
    for round in 0..3 {
        pod.running(&format!("r{round}"), "exit 0").ends_by_itself();
    }
    wait_until("as few descriptors as before", || descriptors().unwrap().count() <= before);
    sandbox.ends();
    pod.assert_nothing_left();
}

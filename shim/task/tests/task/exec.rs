//! Processes that are added to a container: how they live, what they may be, who is told.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};

use containerd_shim_protos::api::{
    CloseIORequest, DeleteRequest, DeleteResponse, ExecProcessRequest, KillRequest, PidsRequest,
    ResizePtyRequest, StartRequest, StateRequest, StateResponse, Status, WaitRequest,
};
use containerd_shim_protos::protobuf::Message as _;
use containerd_shim_protos::protobuf::MessageField;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::shim::oci::ProcessDetails;
use nimbus_api::RefusalCode;
use nimbus_api::plan::Plan;
use rustix::fs::{Mode, OFlags};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::granted::{Job, KILLED};
use crate::lab::{alive, call, fifo, status, wait_until};
use crate::plan::{node, soon};

/// How containerd's clients name the type of an OCI process.
const PROCESS: &str = "types.containerd.io/opencontainers/runtime-spec/1/Process";
const SLEEPER: &str = "exec sleep 600";
const INVALID: i32 = 3;
const NOT_FOUND: i32 = 5;
const EXISTS: i32 = 6;
const DENIED: i32 = 7;
const EXHAUSTED: i32 = 8;
const NOT_NOW: i32 = 9;
/// As many as a container may have.
const EXECS_MAX: usize = 128;

type Outcome<T> = Result<T, (i32, String)>;

fn process(args: &[&str]) -> Value {
    json!({"user": {"uid": 0, "gid": 0}, "args": args, "env": ["PATH=/bin"], "cwd": "/"})
}

fn sh(script: &str) -> Value {
    process(&["/bin/sh", "-c", script])
}

impl Job {
    fn exec_request(&self, name: &str, process: &Value) -> ExecProcessRequest {
        let spec = Any {
            type_url: PROCESS.to_owned(),
            value: process.to_string().into_bytes(),
            ..Any::default()
        };
        ExecProcessRequest {
            id: self.id(),
            exec_id: name.to_owned(),
            spec: MessageField::some(spec),
            ..Default::default()
        }
    }

    fn add(&self, name: &str, process: &Value) -> Outcome<()> {
        let mut request = self.exec_request(name, process);
        request.stdout = self.uri(name);
        self.add_with(&request)
    }

    fn add_with(&self, request: &ExecProcessRequest) -> Outcome<()> {
        status(self.shim.task.exec(call(), request)).map(drop)
    }

    fn start_exec(&self, name: &str) -> Outcome<u32> {
        let request = StartRequest { id: self.id(), exec_id: name.into(), ..Default::default() };
        status(self.shim.task.start(call(), &request)).map(|started| started.pid)
    }

    fn wait_exec(&self, name: &str) -> u32 {
        let request = WaitRequest { id: self.id(), exec_id: name.into(), ..Default::default() };
        self.shim.task.wait(call(), &request).unwrap().exit_status
    }

    fn delete_exec(&self, name: &str) -> Outcome<DeleteResponse> {
        let request = DeleteRequest { id: self.id(), exec_id: name.into(), ..Default::default() };
        status(self.shim.task.delete(call(), &request))
    }

    fn exec_state(&self, name: &str) -> Outcome<StateResponse> {
        let request = StateRequest { id: self.id(), exec_id: name.into(), ..Default::default() };
        status(self.shim.task.state(call(), &request))
    }

    fn kill_exec(&self, name: &str, signal: u32) -> Outcome<()> {
        let exec_id = name.into();
        let request = KillRequest { id: self.id(), exec_id, signal, ..Default::default() };
        status(self.shim.task.kill(call(), &request)).map(drop)
    }

    /// Add, start, wait, delete: what it printed and its exit status.
    fn exec(&self, name: &str, process: &Value) -> (String, u32) {
        self.add(name, process).unwrap();
        self.start_exec(name).unwrap();
        let exit = self.wait_exec(name);
        assert_eq!(self.delete_exec(name).unwrap().exit_status, exit);
        (self.text(name), exit)
    }

    /// Names of processes by their pids.
    fn names(&self) -> Vec<(u32, String)> {
        let request = PidsRequest { id: self.id(), ..Default::default() };
        let pids = self.shim.task.pids(call(), &request).unwrap();
        let named = pids.processes.into_iter().map(|process| {
            let info = process.info.into_option().unwrap_or_default();
            let details = ProcessDetails::parse_from_bytes(&info.value).unwrap();
            (process.pid, details.exec_id)
        });
        named.collect()
    }

    fn finish(self) {
        self.kill(9, false).unwrap();
        assert_eq!(self.shim.wait().exit_status, KILLED);
        self.end();
    }
}

#[test]
fn a_process_lives_beside_the_first_and_everybody_is_told_in_order() {
    let job = Job::new(SLEEPER);
    let init = job.start();
    job.add("e1", &sh("echo hello; sleep 600")).unwrap();
    assert_eq!(job.exec_state("e1").unwrap().status(), Status::CREATED);
    assert_eq!(job.kill_exec("e1", 9).unwrap_err().0, NOT_NOW);
    let pid = job.start_exec("e1").unwrap();
    assert_eq!(job.start_exec("e1").unwrap_err().0, NOT_NOW);
    wait_until("it has written", || job.text("e1") == "hello\n");
    let state = job.exec_state("e1").unwrap();
    assert_eq!((state.status(), state.pid, state.id.as_str()), (Status::RUNNING, pid, "e1"));
    assert_eq!(job.delete_exec("e1").unwrap_err().0, NOT_NOW);
    let names = job.names();
    assert!(names.contains(&(pid, "e1".to_owned())), "{names:?}");
    assert!(names.contains(&(init, String::new())), "{names:?}");
    job.kill_exec("e1", 15).unwrap();
    assert_eq!(job.wait_exec("e1"), 143);
    let state = job.exec_state("e1").unwrap();
    assert_eq!((state.status(), state.exit_status), (Status::STOPPED, 143));
    assert_eq!(job.kill_exec("e1", 15).unwrap_err().0, NOT_FOUND);
    let deleted = job.delete_exec("e1").unwrap();
    assert_eq!((deleted.pid, deleted.exit_status), (pid, 143));
    assert_eq!(job.delete_exec("e1").unwrap_err().0, NOT_FOUND);
    let told = ["create", "start", "exec-added", "exec-started", "exit"];
    let told = told.map(|what| format!("/tasks/{what}"));
    assert_eq!(job.lab.events.until("/tasks/exit"), told);
    assert_eq!(job.lab.events.exits(), ["e1"]);
    assert_eq!(job.state(), Status::RUNNING, "the first goes on");
    job.finish();
}

#[test]
fn the_end_of_the_first_ends_all_and_is_told_last() {
    let job = Job::new(SLEEPER);
    job.start();
    for name in ["e1", "e2", "e3"] {
        job.add(name, &process(&["/bin/sleep", "600"])).unwrap();
        job.start_exec(name).unwrap();
    }
    job.add("never", &sh("true")).unwrap();
    job.kill(9, false).unwrap();
    assert_eq!(job.shim.wait().exit_status, KILLED);
    let id = job.id();
    wait_until("all are told", || job.lab.events.exits().contains(&id));
    let exits = job.lab.events.exits();
    assert_eq!((exits.len(), exits.last()), (4, Some(&id)), "{exits:?}");
    assert_eq!(job.wait_exec("e2"), KILLED);
    assert_eq!(job.start_exec("never").unwrap_err().0, NOT_NOW);
    assert_eq!(job.add("late", &sh("true")).unwrap_err().0, NOT_NOW);
    job.end();
}

#[test]
fn a_demand_for_more_than_the_plan_allows_is_refused_and_told_to_nobody() {
    let job = Job::with(SLEEPER, |plan| plan.exec.capabilities = vec!["CAP_KILL".to_owned()]);
    job.start();
    let mut more = sh("true");
    more["capabilities"] = json!({"bounding": ["CAP_SYS_ADMIN"]});
    let (code, text) = job.add("e1", &more).unwrap_err();
    assert_eq!(code, DENIED);
    assert!(text.contains(RefusalCode::SpecCapabilityForbidden.as_str()), "{text}");
    let mut other = job.exec_request("e1", &sh("true"));
    other.spec.as_mut().unwrap().type_url = "types.containerd.io/else".to_owned();
    assert_eq!(job.add_with(&other).unwrap_err().0, INVALID);
    for name in ["", "../e", "e/1", "a b"] {
        assert_eq!(job.add(name, &sh("true")).unwrap_err().0, INVALID, "{name:?}");
    }
    let mut odd = job.exec_request("e1", &sh("true"));
    odd.stdout = "binary:///bin/sh".to_owned();
    assert!(job.add_with(&odd).unwrap_err().1.contains("spec.stdio_forbidden"));
    assert_eq!(job.start_exec("e1").unwrap_err().0, NOT_FOUND);
    assert_eq!(job.lab.events.so_far(), ["/tasks/create", "/tasks/start"]);
    let mut both = sh("grep -h CapEff /proc/self/status 2>/dev/null || cat /proc/self/status");
    both["capabilities"] = json!({
        "bounding": ["CAP_KILL", "CAP_CHOWN"], "permitted": ["CAP_KILL", "CAP_CHOWN"]});
    let (out, _) = job.exec("e2", &both);
    assert!(out.contains("CapEff:\t0000000000000020"), "{out}");
    job.finish();
}

#[test]
fn a_program_that_is_not_there_can_be_told_and_the_process_forgotten() {
    let job = Job::new(SLEEPER);
    job.start();
    job.add("e1", &process(&["/bin/none"])).unwrap();
    for _ in 0..2 {
        let (code, text) = job.start_exec("e1").unwrap_err();
        assert_eq!(code, NOT_NOW, "{text}");
        assert!(text.contains(RefusalCode::RuntimeExec.as_str()), "{text}");
    }
    // containerd's clients wait before they start, and are answered although it never ran.
    let waiting = std::thread::scope(|threads| {
        let waiting = threads.spawn(|| job.wait_exec("e1"));
        std::thread::sleep(std::time::Duration::from_millis(200));
        assert_eq!(job.delete_exec("e1").unwrap().pid, 0);
        waiting.join().unwrap()
    });
    assert_eq!(waiting, 255);
    assert_eq!(job.exec("e1", &sh("exit 5")).1, 5, "its name is free again");
    job.finish();
}

#[test]
fn no_container_has_more_processes_than_the_limit() {
    let job = Job::new(SLEEPER);
    job.start();
    for n in 0..EXECS_MAX {
        job.add(&format!("e{n}"), &sh("true")).unwrap();
    }
    assert_eq!(job.add("e0", &sh("true")).unwrap_err().0, EXISTS);
    assert_eq!(job.add("more", &sh("true")).unwrap_err().0, EXHAUSTED);
    job.delete_exec("e7").unwrap();
    job.add("more", &sh("true")).unwrap();
    job.finish();
}

#[test]
fn a_paused_container_starts_none() {
    let job = Job::new(SLEEPER);
    job.start();
    job.add("e1", &sh("echo ran")).unwrap();
    job.pause().unwrap();
    assert_eq!(job.start_exec("e1").unwrap_err().0, NOT_NOW);
    assert_eq!(job.add("e2", &sh("true")).unwrap_err().0, NOT_NOW);
    job.resume().unwrap();
    job.start_exec("e1").unwrap();
    assert_eq!(job.wait_exec("e1"), 0);
    job.delete_exec("e1").unwrap();
    assert_eq!(job.text("e1"), "ran\n");
    job.finish();
}

#[test]
fn all_output_of_a_container_counts_as_one() {
    let job = Job::with(SLEEPER, |plan: &mut Plan| plan.resources.log_bytes = 10);
    job.start();
    assert_eq!(job.exec("e1", &sh("echo 1234567")).0, "1234567\n");
    assert_eq!(job.exec("e2", &sh("echo 1234567")).0, "12\n[nimbus] output limit reached\n");
    assert_eq!(job.exec("e3", &sh("echo 1234567")).0, "");
    job.finish();
}

#[test]
fn input_ends_when_the_client_closes_it() {
    let job = Job::new(SLEEPER);
    job.start();
    fifo(&job.file("typed"));
    let mut request = job.exec_request("e1", &process(&["/bin/cat"]));
    request.stdin = job.file("typed").display().to_string();
    request.stdout = job.uri("e1");
    job.add_with(&request).unwrap();
    job.start_exec("e1").unwrap();
    File::options().write(true).open(job.file("typed")).unwrap().write_all(b"to the end").unwrap();
    let close = CloseIORequest {
        id: job.id(),
        exec_id: "e1".to_owned(),
        stdin: true,
        ..Default::default()
    };
    job.shim.task.close_io(call(), &close).unwrap();
    assert_eq!(job.wait_exec("e1"), 0);
    job.delete_exec("e1").unwrap();
    assert_eq!(job.text("e1"), "to the end");
    job.finish();
}

/// A plan with a devpts and the rules for one terminal.
pub(crate) fn with_terminals(plan: &mut Plan) {
    let options = ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"];
    let mount = json!({
        "destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": options});
    plan.spec["mounts"].as_array_mut().unwrap().push(mount);
    for (name, major, minor) in [("ptmx", 5, 2), ("pts/0", 136, 0)] {
        let rule = node(name, major, minor);
        plan.devices.push(nimbus_api::plan::DeviceRule { mode: None, ..rule });
    }
    plan.devices.push(node("tty", 5, 0));
}

#[test]
fn a_terminal_is_typed_into_read_from_and_resized() {
    let job = Job::with(SLEEPER, with_terminals);
    job.start();
    for name in ["typed", "shown"] {
        fifo(&job.file(name));
    }
    let script = "tty; stty size; read line; stty size; echo got $line; exit 6";
    let mut process = sh(script);
    process["consoleSize"] = json!({"height": 24, "width": 80});
    let mut request = job.exec_request("e1", &process);
    request.terminal = true;
    request.stdin = job.file("typed").display().to_string();
    request.stdout = job.file("shown").display().to_string();
    job.add_with(&request).unwrap();
    assert!(job.exec_state("e1").unwrap().terminal);
    let flags = OFlags::RDONLY | OFlags::NONBLOCK;
    let out = rustix::fs::open(job.file("shown"), flags, Mode::empty()).unwrap();
    job.start_exec("e1").unwrap();
    rustix::fs::fcntl_setfl(&out, OFlags::empty()).unwrap();
    let mut out = File::from(out);
    let mut read = String::new();
    while !read.contains("24 80\r\n") {
        let mut bytes = [0; 256];
        let count = out.read(&mut bytes).unwrap();
        read.push_str(std::str::from_utf8(&bytes[..count]).unwrap());
    }
    assert!(read.contains("/dev/pts/0\r\n"), "{read}");
    let resize = ResizePtyRequest {
        id: job.id(),
        exec_id: "e1".to_owned(),
        height: 50,
        width: 132,
        ..Default::default()
    };
    job.shim.task.resize_pty(call(), &resize).unwrap();
    let wide = ResizePtyRequest { width: 1 << 16, ..resize };
    assert_eq!(status(job.shim.task.resize_pty(call(), &wide)).unwrap_err().0, INVALID);
    File::options().write(true).open(job.file("typed")).unwrap().write_all(b"hello\n").unwrap();
    assert_eq!(job.wait_exec("e1"), 6);
    job.delete_exec("e1").unwrap();
    let mut rest = Vec::new();
    std::io::copy(&mut out, &mut rest).unwrap();
    read.push_str(std::str::from_utf8(&rest).unwrap());
    assert!(read.contains("50 132\r\ngot hello\r\n"), "{read}");
    job.finish();
}

#[test]
fn a_deadline_ends_them_with_everything_else() {
    let job = Job::with(SLEEPER, |plan| plan.deadline = soon(1500));
    job.start();
    job.add("e1", &process(&["/bin/sleep", "600"])).unwrap();
    let pid = job.start_exec("e1").unwrap();
    assert_eq!(job.wait_exec("e1"), KILLED);
    assert!(!alive(pid));
    job.ends_killed_for("lease.ended");
}

#[test]
fn a_killed_shim_leaves_no_process_after_delete() {
    let job = Job::new(SLEEPER);
    let init = job.start();
    job.add("e1", &process(&["/bin/sleep", "600"])).unwrap();
    let pid = job.start_exec("e1").unwrap();
    job.shim.signal(Signal::KILL);
    assert_eq!(job.lab.delete().exit_status, KILLED);
    wait_until("nobody is left", || !alive(pid) && !alive(init));
    job.lab.assert_nothing_left();
}

/// A health probe is one after the other, for as long as a pod lives.
#[test]
fn processes_one_after_the_other_leave_nothing_open() {
    let job = Job::new(SLEEPER);
    job.start();
    let descriptors = || fs::read_dir(format!("/proc/{}/fd", job.shim.pid)).unwrap().count();
    let probe = |n: u32| {
        let name = format!("e{n}");
        job.add_with(&job.exec_request(&name, &process(&["/bin/true"]))).unwrap();
        job.start_exec(&name).unwrap();
        assert_eq!(job.wait_exec(&name), 0);
        job.delete_exec(&name).unwrap();
    };
    (0..10).for_each(probe);
    let before = descriptors();
    (10..300).for_each(probe);
    wait_until("as few descriptors as before", || descriptors() <= before);
    let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", job.shim.pid));
    assert_eq!(children.unwrap().split_ascii_whitespace().count(), 1);
    job.finish();
}

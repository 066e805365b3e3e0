//! Real containers through the real `nimbus-runtime`.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Once, OnceLock};
use std::time::Instant;

use containerd_shim_protos::api::{
    CloseIORequest, KillRequest, PidsRequest, StateRequest, StatsRequest, Status,
};
use containerd_shim_protos::cgroups::metrics::Metrics as V1Metrics;
use containerd_shim_protos::cgroups_v2::metrics::Metrics as V2Metrics;
use containerd_shim_protos::protobuf::Message as _;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use nimbus_api::plan::Plan;
use nimbus_api::proto::admit::v1::{
    Deadline, Refused, Released, Revoked, agent_message, shim_message,
};
use nimbus_api::{Refusal, RefusalCode};
use rustix::process::Signal;

use crate::agent::Agent;
use crate::lab::{Lab, Shim, alive, call, fifo, mode, status, wait_until};
use crate::plan::{busybox_root, grant, plan, soon};

pub(crate) const KILLED: u32 = 137;
const LIFE: [&str; 4] = ["/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"];

/// The shim looks for the runtime beside itself; cargo builds another package's program only when
/// it is asked to. `cargo xtask test` has built it there already and says so by `NIMBUS_BIN_DIR`:
/// building it once more, alone, would compile its dependencies again with other features.
pub(crate) fn build_runtime() {
    static BUILT: Once = Once::new();
    BUILT.call_once(|| {
        let here = Path::new(env!("CARGO_BIN_EXE_containerd-shim-nimbus-v1")).parent().unwrap();
        if std::env::var_os("NIMBUS_BIN_DIR").is_some_and(|dir| Path::new(&dir) == here) {
            assert!(here.join("nimbus-runtime").is_file(), "NIMBUS_BIN_DIR has no nimbus-runtime");
            return;
        }
        let mut command = Command::new(env!("CARGO"));
        command.args([
            "build",
            "--quiet",
            "--package",
            "nimbus-runtime",
            "--bin",
            "nimbus-runtime",
        ]);
        if env!("CARGO_BIN_EXE_containerd-shim-nimbus-v1").contains("/release/") {
            command.arg("--release");
        }
        assert!(command.status().unwrap().success());
    });
}

/// How far off a deadline must be for a job to be started before it, whatever machine this is: several
/// times what one start takes here. An emulated machine needs seconds for it.
pub(crate) fn after_start_ms() -> u64 {
    const AT_LEAST_MS: u64 = 1_500;
    const TIMES: u64 = 4;
    static MEASURED: OnceLock<u64> = OnceLock::new();
    *MEASURED.get_or_init(|| {
        let job = Job::new("true");
        let begun = Instant::now();
        job.start();
        let taken = u64::try_from(begun.elapsed().as_millis()).unwrap();
        job.shim.wait();
        job.end();
        AT_LEAST_MS.max(taken * TIMES)
    })
}

/// A lab, its agent that grants a script, and a connected shim.
pub(crate) struct Job {
    pub(crate) lab: Lab,
    pub(crate) agent: Agent,
    pub(crate) shim: Shim,
}

impl Job {
    pub(crate) fn new(script: &str) -> Self {
        Self::with(script, |_plan| ())
    }

    pub(crate) fn with(script: &str, change: impl FnOnce(&mut Plan)) -> Self {
        build_runtime();
        let lab = Lab::new();
        let mut plan = plan(&lab.key, script);
        change(&mut plan);
        let layer = busybox_root(lab.dir.path());
        let agent = lab.agent(grant(&plan, layer));
        let shim = lab.shim();
        Self { lab, agent, shim }
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.lab.dir.path().join(name)
    }

    pub(crate) fn uri(&self, name: &str) -> String {
        format!("file://{}", self.file(name).display())
    }

    pub(crate) fn text(&self, name: &str) -> String {
        fs::read_to_string(self.file(name)).unwrap_or_default()
    }

    pub(crate) fn start(&self) -> u32 {
        let pid = self.shim.create(&self.uri("out"), &self.uri("err")).unwrap();
        assert_eq!(self.shim.start(), Ok(pid));
        pid
    }

    pub(crate) fn id(&self) -> String {
        self.lab.key.id.to_string()
    }

    pub(crate) fn kill(&self, signal: u32, all: bool) -> Result<(), (i32, String)> {
        let request = KillRequest { id: self.id(), signal, all, ..Default::default() };
        status(self.shim.task.kill(call(), &request)).map(|_empty| ())
    }

    pub(crate) fn state(&self) -> Status {
        let request = StateRequest { id: self.id(), ..Default::default() };
        self.shim.task.state(call(), &request).unwrap().status()
    }

    pub(crate) fn released(&self) -> Released {
        self.agent.released()
    }

    /// Memory limit and number of processes, as Stats tells them.
    pub(crate) fn figures(&self) -> (u64, u64) {
        let request = StatsRequest { id: self.id(), ..Default::default() };
        figures(&self.shim.task.stats(call(), &request).unwrap().stats.unwrap())
    }

    /// It ends by SIGKILL, the agent is told why, and nothing is left.
    pub(crate) fn ends_killed_for(self, reason: &str) {
        assert_eq!(self.shim.wait().exit_status, KILLED);
        self.shim.delete().unwrap();
        assert_eq!(self.released().reason, reason);
        self.shim.shut_down();
        self.lab.assert_nothing_left();
    }

    /// Delete, Shutdown, and nothing is left.
    pub(crate) fn end(self) {
        self.shim.delete().unwrap();
        self.shim.shut_down();
        self.lab.assert_nothing_left();
    }
}

/// Memory limit and number of processes.
pub(crate) fn figures(stats: &Any) -> (u64, u64) {
    if stats.type_url == "io.containerd.cgroups.v1.Metrics" {
        let metrics = V1Metrics::parse_from_bytes(&stats.value).unwrap();
        (metrics.memory.usage.limit, metrics.pids.current)
    } else {
        let metrics = V2Metrics::parse_from_bytes(&stats.value).unwrap();
        (metrics.memory.usage_limit, metrics.pids.current)
    }
}

#[test]
fn a_granted_job_runs_and_everybody_is_told_in_order() {
    let job = Job::new("echo hello; echo trouble >&2; exit 7");
    let pid = job.shim.create(&job.uri("out"), &job.uri("err")).unwrap();
    assert_eq!(job.state(), Status::CREATED);
    assert!(alive(pid));
    assert_eq!(job.text("out"), "");
    assert_eq!(job.shim.start(), Ok(pid));
    let exit = job.shim.wait();
    assert_eq!(exit.exit_status, 7);
    assert!(exit.exited_at.seconds > 0);
    assert_eq!(job.state(), Status::STOPPED);
    assert_eq!(job.shim.start().unwrap_err().0, 9);
    let deleted = job.shim.delete().unwrap();
    assert_eq!((deleted.pid, deleted.exit_status), (pid, 7));
    assert_eq!((job.text("out"), job.text("err")), ("hello\n".to_owned(), "trouble\n".to_owned()));
    assert_eq!(mode(&job.file("out")), 0o600);
    assert_eq!(job.lab.events.until("/tasks/delete"), LIFE);
    let released = job.released();
    assert_eq!(
        (released.exit_status, released.oom_killed, released.reason.as_str()),
        (7, false, "")
    );
    assert_eq!(job.agent.heard(), ["admit", "started", "released"]);
    // Once more is not an error that a caller need fear, and a new wait does not hang.
    assert_eq!(job.shim.delete().unwrap_err().0, 5);
    job.shim.shut_down();
    job.lab.assert_nothing_left();
}

#[test]
fn at_its_deadline_a_job_is_killed_by_the_shim_alone() {
    let deadline = after_start_ms();
    let job = Job::with("sleep 600 & sleep 600", |plan| plan.deadline = soon(deadline));
    job.start();
    job.agent.hang_up();
    job.ends_killed_for("lease.ended");
}

#[test]
fn a_job_that_ended_by_itself_did_whatever_the_deadline_says_before_delete() {
    let deadline = after_start_ms();
    let job = Job::with("exit 5", |plan| plan.deadline = soon(deadline));
    job.start();
    assert_eq!(job.shim.wait().exit_status, 5);
    std::thread::sleep(std::time::Duration::from_millis(deadline));
    job.shim.delete().unwrap();
    let released = job.released();
    assert_eq!((released.exit_status, released.reason.as_str()), (5, ""));
    job.shim.shut_down();
}

#[test]
fn a_deadline_that_has_passed_lets_nothing_start() {
    let job = Job::with("echo ran", |plan| plan.deadline = soon(0));
    match job.shim.create(&job.uri("out"), "") {
        Err((_, text)) => assert_eq!(Refusal::code_in(&text), Some(RefusalCode::LeaseEnded)),
        Ok(_pid) => {
            let (_, text) = job.shim.start().unwrap_err();
            assert_eq!(Refusal::code_in(&text), Some(RefusalCode::LeaseEnded));
            job.shim.delete().unwrap();
        }
    }
    assert_eq!(job.text("out"), "");
    job.shim.shut_down();
    job.lab.assert_nothing_left();
}

#[test]
fn an_extension_keeps_a_job_alive_and_never_shortens() {
    let deadline = after_start_ms();
    let script = format!("sleep {}; exit 3", deadline / 1000 + 1);
    let job = Job::with(&script, |plan| plan.deadline = soon(deadline));
    job.start();
    for boottime_ns in [soon(60_000).0, 1] {
        job.agent.say(agent_message::Kind::Deadline(Deadline { boottime_ns }));
    }
    assert_eq!(job.shim.wait().exit_status, 3);
    job.end();
}

#[test]
fn a_revoked_job_is_killed_at_once() {
    let job = Job::new("sleep 600");
    job.start();
    let revoked = Revoked { code: "job.cancelled".to_owned(), sentence: "by its owner".to_owned() };
    job.agent.say(agent_message::Kind::Revoked(revoked));
    job.ends_killed_for("job.cancelled");
}

#[test]
fn an_agent_that_comes_back_is_told_where_things_stand() {
    let job = Job::new("sleep 600");
    job.start();
    job.agent.hear(|kind| matches!(kind, shim_message::Kind::Started(_)).then_some(()));
    job.agent.hang_up();
    let resume = job.agent.resume();
    assert_eq!((resume.version, resume.id), (1, job.id()));
    assert!(resume.plan_sha256.starts_with("sha256:"));
    wait_until("Started is told again", || {
        job.agent.heard() == ["admit", "started", "resume", "started"]
    });
    assert_eq!(job.state(), Status::RUNNING);
    // A new connection carries a revocation as the first did.
    let revoked = Revoked { code: "lease.revoked".to_owned(), sentence: String::new() };
    job.agent.say(agent_message::Kind::Revoked(revoked));
    assert_eq!(job.shim.wait().exit_status, KILLED);
    job.end();
}

#[test]
fn an_agent_that_does_not_know_a_job_ends_it_unless_that_may_pass() {
    let job = Job::new("sleep 600");
    job.start();
    let refused = |code: RefusalCode| {
        agent_message::Kind::Refused(Refused { code: code.to_string(), ..Refused::default() })
    };
    job.agent.say(refused(RefusalCode::NodeBusy));
    job.agent.resume();
    assert_eq!(job.state(), Status::RUNNING);
    job.agent.say(refused(RefusalCode::LeaseMissing));
    job.ends_killed_for("lease.missing");
}

#[test]
fn signals_reach_the_init_or_everybody_and_an_ended_one_is_not_found() {
    let job = Job::new("trap 'exit 9' TERM; sleep 600 & while :; do wait; done");
    let pid = job.start();
    let request = PidsRequest { id: job.id(), ..Default::default() };
    wait_until("both run", || job.shim.task.pids(call(), &request).unwrap().processes.len() == 2);
    assert_eq!(job.shim.delete().unwrap_err().0, 9);
    assert_eq!(job.kill(1000, false).unwrap_err().0, 3);
    job.kill(15, false).unwrap();
    assert_eq!(job.shim.wait().exit_status, 9);
    assert!(!alive(pid));
    assert_eq!(job.kill(9, false).unwrap_err().0, 5);
    job.kill(9, true).unwrap();
    job.end();
}

#[test]
fn a_job_killed_for_memory_says_so_before_its_exit() {
    let job = Job::new("tail /dev/zero");
    job.start();
    assert_eq!(job.shim.wait().exit_status, KILLED);
    job.shim.delete().unwrap();
    let events = job.lab.events.until("/tasks/delete");
    assert_eq!(
        events,
        ["/tasks/create", "/tasks/start", "/tasks/oom", "/tasks/exit", "/tasks/delete"]
    );
    assert!(job.released().oom_killed);
    job.shim.shut_down();
}

#[test]
fn input_and_output_go_through_fifos_and_close_io_ends_the_input() {
    let job = Job::new("cat; echo done");
    fifo(&job.file("in"));
    fifo(&job.file("out"));
    let mut request = job.shim.create_request();
    request.stdin = job.file("in").display().to_string();
    request.stdout = job.file("out").display().to_string();
    job.shim.create_with(&request).unwrap();
    let output = fs::File::open(job.file("out")).unwrap();
    job.shim.start().unwrap();
    let mut input = fs::OpenOptions::new().write(true).open(job.file("in")).unwrap();
    input.write_all(b"one ").unwrap();
    drop(input);
    // The client comes back: its going did not end the input.
    let mut input = fs::OpenOptions::new().write(true).open(job.file("in")).unwrap();
    input.write_all(b"two\n").unwrap();
    drop(input);
    let close = CloseIORequest { id: job.id(), stdin: true, ..Default::default() };
    job.shim.task.close_io(call(), &close).unwrap();
    assert_eq!(job.shim.wait().exit_status, 0);
    job.shim.delete().unwrap();
    let text = std::io::read_to_string(output).unwrap();
    assert_eq!(text, "one two\ndone\n");
    job.shim.shut_down();
}

#[test]
fn output_beyond_the_lease_is_dropped_and_the_job_goes_on() {
    let job = Job::with("yes | head -c 300000; echo end >&2; exit 4", |plan| {
        plan.resources.log_bytes = 1000;
    });
    job.start();
    assert_eq!(job.shim.wait().exit_status, 4);
    job.shim.delete().unwrap();
    let out = job.text("out");
    assert!(out.ends_with("\n[nimbus] output limit reached\n"), "{}", out.len());
    assert_eq!(out.matches('y').count(), 500);
    assert_eq!(job.text("err"), "");
    job.shim.shut_down();
}

#[test]
fn figures_are_told_of_whichever_cgroup_there_is() {
    let job = Job::new("sleep 600");
    job.start();
    let (limit, pids) = job.figures();
    assert_eq!(limit, 64 << 20);
    assert!(pids >= 1);
    job.kill(9, false).unwrap();
    assert_eq!(job.shim.wait().exit_status, KILLED);
    job.end();
}

#[test]
fn a_container_that_was_never_started_is_deleted() {
    let job = Job::new("echo ran");
    let pid = job.shim.create(&job.uri("out"), "").unwrap();
    assert_eq!(job.shim.delete().unwrap().exit_status, KILLED);
    assert!(!alive(pid));
    assert_eq!(job.text("out"), "");
    assert_eq!(
        job.lab.events.until("/tasks/delete"),
        ["/tasks/create", "/tasks/exit", "/tasks/delete"]
    );
    job.shim.shut_down();
    job.lab.assert_nothing_left();
}

#[test]
fn when_the_shim_is_killed_delete_cleans_up_all_of_it() {
    let job = Job::new("sleep 600");
    let pid = job.start();
    job.shim.signal(Signal::KILL);
    wait_until("the shim is dead", || !alive(job.shim.pid));
    let response = job.lab.delete();
    assert_eq!((response.pid, response.exit_status), (pid, KILLED));
    wait_until("the job is dead", || !alive(pid));
    job.lab.assert_nothing_left();
    job.lab.delete();
}

#[test]
fn a_signal_does_not_end_a_server_that_has_a_container() {
    let job = Job::new("sleep 600");
    job.start();
    job.shim.signal(Signal::TERM);
    wait_until("it was heard", || job.lab.log().contains("so it stays"));
    assert_eq!(job.state(), Status::RUNNING);
    job.kill(9, false).unwrap();
    job.shim.wait();
    job.end();
}

#[test]
fn what_the_runtime_refuses_leaves_nothing_and_the_agent_is_told() {
    let job = Job::with("echo ran", |plan| {
        plan.spec["process"]["args"] = serde_json::json!(["/bin/missing"]);
    });
    let refused = job.shim.create(&job.uri("out"), "").and_then(|_pid| job.shim.start());
    let (_, text) = refused.unwrap_err();
    assert_eq!(Refusal::code_in(&text), Some(RefusalCode::RuntimeExec), "{text}");
    let deleted = job.shim.delete();
    assert!(deleted.as_ref().is_ok() || deleted.is_err_and(|(code, _)| code == 5));
    job.released();
    job.shim.shut_down();
    job.lab.assert_nothing_left();
}

#[test]
fn a_program_as_output_is_refused_and_not_run() {
    let job = Job::new("echo ran");
    let witness = job.file("witness");
    let uri = format!("binary:///bin/touch?{}", witness.display());
    let (code, text) = job.shim.create(&uri, "").unwrap_err();
    assert_eq!((code, Refusal::code_in(&text)), (7, Some(RefusalCode::SpecStdioForbidden)));
    assert_eq!(job.released().reason, "spec.stdio_forbidden");
    assert!(!witness.exists());
    job.shim.shut_down();
    job.lab.assert_nothing_left();
}

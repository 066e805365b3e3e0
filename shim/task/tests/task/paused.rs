//! Pausing: what stands still, what may happen to it meanwhile, who is told.

use containerd_shim_protos::api::{PauseRequest, ResumeRequest, Status};

use rustix::process::Signal;

use crate::granted::{Job, KILLED, after_start_ms};
use crate::lab::{alive, call, status, wait_until};
use crate::plan::soon;

/// Writes a line as often as it can, which only standing still stops.
const BUSY: &str = "while :; do echo line; sleep 0.01; done";
const NOT_NOW: i32 = 9;

impl Job {
    pub(crate) fn pause(&self) -> Result<(), (i32, String)> {
        let request = PauseRequest { id: self.id(), ..Default::default() };
        status(self.shim.task.pause(call(), &request)).map(drop)
    }

    pub(crate) fn resume(&self) -> Result<(), (i32, String)> {
        let request = ResumeRequest { id: self.id(), ..Default::default() };
        status(self.shim.task.resume(call(), &request)).map(drop)
    }

    fn lines(&self) -> usize {
        self.text("out").lines().count()
    }

    fn has_written_more_than(&self, lines: usize) {
        wait_until("the job to write", || self.lines() > lines);
    }
}

#[test]
fn a_paused_job_stands_still_and_goes_on_and_everybody_is_told() {
    let job = Job::new(BUSY);
    assert_eq!(job.shim.create(&job.uri("out"), "").map(drop), Ok(()));
    assert_eq!(job.pause().unwrap_err().0, NOT_NOW, "it has not been started");
    job.shim.start().unwrap();
    assert_eq!(job.resume().unwrap_err().0, NOT_NOW, "it is not paused");
    job.has_written_more_than(0);
    for _ in 0..2 {
        job.pause().unwrap();
        assert_eq!(job.state(), Status::PAUSED);
        assert_eq!(job.pause().unwrap_err().0, NOT_NOW, "it is paused");
        // What was in the pipe may arrive still; what is written then stays all there is.
        std::thread::sleep(std::time::Duration::from_millis(200));
        let before = job.lines();
        std::thread::sleep(std::time::Duration::from_millis(300));
        assert_eq!(job.lines(), before);
        job.resume().unwrap();
        assert_eq!(job.state(), Status::RUNNING);
        job.has_written_more_than(before);
    }
    job.kill(9, true).unwrap();
    assert_eq!(job.shim.wait().exit_status, KILLED);
    let told = ["create", "start", "paused", "resumed", "paused", "resumed", "exit"];
    let told = told.map(|what| format!("/tasks/{what}"));
    assert_eq!(job.lab.events.until("/tasks/exit"), told);
    job.end();
}

#[test]
fn a_paused_job_dies_when_it_is_killed() {
    for all in [false, true] {
        let job = Job::new("sleep 600 & sleep 600");
        job.start();
        job.pause().unwrap();
        job.kill(9, all).unwrap();
        assert_eq!(job.shim.wait().exit_status, KILLED, "all: {all}");
        job.end();
    }
}

/// A process in the kernel, or one that waits for its share of the processor, has its death before it.
#[test]
fn what_was_killed_is_not_frozen_before_it_dies() {
    for _ in 0..20 {
        let job = Job::new("for i in 1 2 3 4 5 6; do (while :; do :; done) & done; wait");
        job.start();
        job.kill(9, true).unwrap();
        assert_eq!(job.pause().unwrap_err().0, NOT_NOW);
        assert_eq!(job.shim.wait().exit_status, KILLED);
        job.end();
    }
}

#[test]
fn a_paused_job_hears_other_signals_when_it_goes_on() {
    let job = Job::new("trap 'exit 7' TERM; echo ready; while :; do sleep 0.01; done");
    job.start();
    job.has_written_more_than(0);
    job.pause().unwrap();
    job.kill(15, false).unwrap();
    assert_eq!(job.state(), Status::PAUSED);
    // It ends as soon as it goes on, which is not before that is told.
    job.resume().unwrap();
    assert_eq!(job.shim.wait().exit_status, 7);
    let told =
        ["create", "start", "paused", "resumed", "exit"].map(|what| format!("/tasks/{what}"));
    assert_eq!(job.lab.events.until("/tasks/exit"), told);
    job.end();
}

#[test]
fn a_paused_job_dies_at_its_deadline() {
    let deadline = after_start_ms();
    let job = Job::with("sleep 600 & sleep 600", |plan| plan.deadline = soon(deadline));
    job.start();
    job.pause().unwrap();
    job.ends_killed_for("lease.ended");
}

/// Whichever comes first, nothing stays frozen.
#[test]
fn a_job_that_is_killed_while_it_is_being_paused_dies() {
    for _ in 0..20 {
        let job = Job::new("sleep 600 & sleep 600");
        job.start();
        std::thread::scope(|scope| {
            let pausing = scope.spawn(|| job.pause());
            job.kill(9, true).unwrap();
            // It may have ended before.
            let _either = pausing.join().unwrap();
        });
        assert_eq!(job.shim.wait().exit_status, KILLED);
        job.end();
    }
}

/// The shim's server is gone, the job stands still: `delete` ends it all the same.
#[test]
fn what_a_killed_shim_left_frozen_is_cleaned_up() {
    let job = Job::new("sleep 600");
    job.start();
    job.pause().unwrap();
    job.shim.signal(Signal::KILL);
    wait_until("the server to end", || !alive(job.shim.pid));
    job.lab.delete();
    job.lab.assert_nothing_left();
}

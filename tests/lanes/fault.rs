//! Lane `fault`: SIGKILL to control, node agent, shim and containerd at each step of a job's way,
//! then recovery.
//!
//! What must hold after each: the acknowledged job ends; it is done, or dead with a reason; no
//! attempt of it has run twice; nothing of it is left. The witness is the job's own output: each
//! attempt writes its container's id (job and attempt) when it begins and when it ends.
#![forbid(unsafe_code)]

use std::process::ExitCode;
use std::thread::sleep;
use std::time::Duration;

use nimbus_tests::lab::{Ended, Submission};
use nimbus_tests::lane::{self, Case};
use nimbus_tests::wait::until;
use nimbus_tests::{Failure, Lab, Outcome, Setting, cases, ensure, proc};

fn main() -> ExitCode {
    let all: Vec<Case> = cases![
        shared[
            control_killed_when_the_job_is_acknowledged,
            control_killed_while_the_job_is_being_started,
            control_killed_while_the_job_runs,
            control_killed_when_the_job_has_ended,
            the_agent_killed_when_the_job_is_acknowledged,
            the_agent_killed_while_the_job_is_being_started,
            the_agent_killed_while_the_job_runs,
            the_agent_killed_when_the_job_has_ended,
            containerd_killed_when_the_job_is_acknowledged,
            containerd_killed_while_the_job_is_being_started,
            containerd_killed_while_the_job_runs,
            containerd_killed_when_the_job_has_ended,
            the_shim_killed_while_the_job_is_being_started,
            the_shim_killed_while_the_job_runs,
            a_job_submitted_while_the_agent_is_dead_runs_when_it_is_back,
            many_jobs_survive_the_death_of_control_and_agent,
        ]
        own(short_leases)[control_and_agent_dead_at_once_leave_no_job_running]
    ];
    lane::main("fault", &all)
}

fn short_leases() -> Setting {
    Setting { lease_ttl: 12, lease_extension: 3, ..Setting::default() }
}

/// When the blow falls.
#[derive(Debug, Clone, Copy)]
enum Step {
    /// Submit has been answered.
    Acknowledged,
    /// So many milliseconds later: somewhere between lease and start.
    Starting(u64),
    /// The job has been reported running.
    Running,
    /// Its program has ended.
    Ended,
}

const STARTING: [Step; 3] = [Step::Starting(60), Step::Starting(150), Step::Starting(300)];

fn witness(lab: &mut Lab) -> Result<Submission, Failure> {
    let script = "echo begin $(hostname); sleep 2; echo end $(hostname)";
    let mut submission = lab.good(&["/bin/sh", "-c", script])?;
    submission.max_attempts = Some(5);
    Ok(submission)
}

/// Submits, waits for the step, lets the blow fall, lets everything recover, and judges.
fn struck(
    lab: &mut Lab,
    step: Step,
    blow: fn(&mut Lab, &str) -> Outcome,
    recover: fn(&mut Lab) -> Outcome,
) -> Outcome {
    let submission = witness(lab)?;
    let job = lab.submit(&submission)?.job()?;
    match step {
        Step::Acknowledged => {}
        Step::Starting(milliseconds) => sleep(Duration::from_millis(milliseconds)),
        Step::Running => drop(lab.wait_running(&job)?),
        Step::Ended => {
            let id = lab.wait_running(&job)?;
            until("the program to end", || Ok(proc::inside(&id).is_empty().then_some(())))?;
        }
    }
    blow(lab, &job)?;
    recover(lab)?;
    let ended = lab.wait_ended(&job)?;
    judge(lab, &job, &ended).map_err(|failure| failure.during(&format!("{step:?}")))
}

/// No acknowledged job is lost, none has run twice under one attempt, nothing is left.
fn judge(lab: &mut Lab, job: &str, ended: &Ended) -> Outcome {
    ended.expect_exit(0)?;
    let attempts = ended.attempts().len();
    for number in 1..=attempts {
        let id = format!("{job}-{number}");
        lab.nothing_left_of(&id)?;
        let output = lab.output_of(job, number)?;
        for word in ["begin", "end"] {
            let line = format!("{word} {id}");
            let times = output.lines().filter(|found| **found == line).count();
            ensure!(times <= 1, "attempt {number} says {line:?} {times} times");
            let last = number == attempts;
            ensure!(
                !last || times == 1,
                "the last attempt, {number}, never says {line:?}: {output:?}"
            );
        }
        let foreign = output.lines().any(|line| !line.ends_with(&id));
        ensure!(!foreign, "attempt {number} holds another's output: {output:?}");
    }
    Ok(())
}

fn kill_control(lab: &mut Lab, _job: &str) -> Outcome {
    lab.kill_control()
}

fn kill_node(lab: &mut Lab, _job: &str) -> Outcome {
    lab.kill_node()
}

fn kill_containerd(lab: &mut Lab, _job: &str) -> Outcome {
    lab.kill_containerd()
}

/// The shim of whichever attempt there is; while a job is being started there may be none yet.
fn kill_shim(lab: &mut Lab, job: &str) -> Outcome {
    let shim = proc::shim(lab.dir(), job);
    if let Some(shim) = shim {
        proc::kill_if_alive(shim.pid);
    }
    lab.check_programs()
}

fn restart_control(lab: &mut Lab) -> Outcome {
    lab.start_control()?;
    lab.wait_connected()
}

fn restart_node(lab: &mut Lab) -> Outcome {
    lab.start_node()?;
    lab.wait_connected()
}

fn restart_containerd(lab: &mut Lab) -> Outcome {
    lab.start_containerd()
}

fn control_killed_when_the_job_is_acknowledged(lab: &mut Lab) -> Outcome {
    struck(lab, Step::Acknowledged, kill_control, restart_control)
}

fn control_killed_while_the_job_is_being_started(lab: &mut Lab) -> Outcome {
    STARTING.into_iter().try_for_each(|step| struck(lab, step, kill_control, restart_control))
}

fn control_killed_while_the_job_runs(lab: &mut Lab) -> Outcome {
    struck(lab, Step::Running, kill_control, restart_control)
}

fn control_killed_when_the_job_has_ended(lab: &mut Lab) -> Outcome {
    struck(lab, Step::Ended, kill_control, restart_control)
}

fn the_agent_killed_when_the_job_is_acknowledged(lab: &mut Lab) -> Outcome {
    struck(lab, Step::Acknowledged, kill_node, restart_node)
}

fn the_agent_killed_while_the_job_is_being_started(lab: &mut Lab) -> Outcome {
    STARTING.into_iter().try_for_each(|step| struck(lab, step, kill_node, restart_node))
}

fn the_agent_killed_while_the_job_runs(lab: &mut Lab) -> Outcome {
    struck(lab, Step::Running, kill_node, restart_node)
}

fn the_agent_killed_when_the_job_has_ended(lab: &mut Lab) -> Outcome {
    struck(lab, Step::Ended, kill_node, restart_node)
}

fn containerd_killed_when_the_job_is_acknowledged(lab: &mut Lab) -> Outcome {
    struck(lab, Step::Acknowledged, kill_containerd, restart_containerd)
}

fn containerd_killed_while_the_job_is_being_started(lab: &mut Lab) -> Outcome {
    STARTING.into_iter().try_for_each(|step| struck(lab, step, kill_containerd, restart_containerd))
}

fn containerd_killed_while_the_job_runs(lab: &mut Lab) -> Outcome {
    struck(lab, Step::Running, kill_containerd, restart_containerd)
}

fn containerd_killed_when_the_job_has_ended(lab: &mut Lab) -> Outcome {
    struck(lab, Step::Ended, kill_containerd, restart_containerd)
}

fn the_shim_killed_while_the_job_is_being_started(lab: &mut Lab) -> Outcome {
    STARTING.into_iter().try_for_each(|step| struck(lab, step, kill_shim, Lab::check_programs))
}

fn the_shim_killed_while_the_job_runs(lab: &mut Lab) -> Outcome {
    let submission = witness(lab)?;
    let job = lab.submit(&submission)?.job()?;
    let id = lab.wait_running(&job)?;
    lab.kill_shim(&id)?;
    let ended = lab.wait_ended(&job)?;
    // A job does not outlive its shim: nobody would be left to hold it to its lease.
    ensure!(ended.attempts().len() == 2, "expected a second attempt, found {}", ended.job);
    judge(lab, &job, &ended)
}

fn a_job_submitted_while_the_agent_is_dead_runs_when_it_is_back(lab: &mut Lab) -> Outcome {
    lab.kill_node()?;
    let submission = witness(lab)?;
    let job = lab.submit(&submission)?.job()?;
    restart_node(lab)?;
    let ended = lab.wait_ended(&job)?;
    judge(lab, &job, &ended)
}

fn many_jobs_survive_the_death_of_control_and_agent(lab: &mut Lab) -> Outcome {
    let submission = witness(lab)?;
    let mut jobs = Vec::new();
    for number in 0..8 {
        jobs.push(lab.submit(&submission)?.job()?);
        match number {
            2 => {
                lab.kill_node()?;
                restart_node(lab)?;
            }
            5 => {
                lab.kill_control()?;
                restart_control(lab)?;
            }
            _ => {}
        }
    }
    for job in jobs {
        let ended = lab.wait_ended(&job)?;
        judge(lab, &job, &ended)?;
    }
    Ok(())
}

fn control_and_agent_dead_at_once_leave_no_job_running(lab: &mut Lab) -> Outcome {
    let mut submission = lab.good(&["/bin/sleep", "600"])?;
    submission.max_attempts = Some(1);
    let job = lab.submit(&submission)?.job()?;
    let id = lab.wait_running(&job)?;
    lab.kill_control()?;
    lab.kill_node()?;
    until("the job's processes to be gone", || Ok(proc::inside(&id).is_empty().then_some(())))?;
    lab.start_control()?;
    restart_node(lab)?;
    let ended = lab.wait_ended(&job)?;
    ensure!(ended.state == "DEAD", "found {}", ended.job);
    lab.nothing_left_of(&id)
}

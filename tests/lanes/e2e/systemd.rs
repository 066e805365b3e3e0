//! Beside systemd: it writes cgroups too, and must not touch a job's.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use nimbus_tests::ctr::{NAMESPACE, Said};
use nimbus_tests::failure::During as _;
use nimbus_tests::wait::until;
use nimbus_tests::{Failure, Lab, Outcome, ensure, proc};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};

/// NVIDIA's major, which no machine of ours has a driver for: opening a node of it gives ENXIO where
/// the kernel allows it and EPERM where it denies.
const MAJOR: u64 = 195;
const MINOR: u64 = 254;
/// Tries to open a node that was not leased, over and over.
const SCRIPT: &str = "echo ready; while :; do cat /dev/probe 2>&1; echo; sleep 0.2; done";
const DENIED: &str = "Operation not permitted";
/// How often the job must have tried again.
const TRIES: usize = 5;
/// What must read the same before and after.
const LIMITS: [&str; 6] =
    ["memory.max", "memory.swap.max", "pids.max", "cpu.max", "cgroup.controllers", "cgroup.type"];

pub(crate) fn a_reload_of_systemd_changes_nothing_for_a_running_job(lab: &mut Lab) -> Outcome {
    if !Path::new("/run/systemd/system").is_dir() {
        return Err(Failure::skip("systemd is not process 1 here"));
    }
    let submission = lab.good(&["/bin/sh", "-c", SCRIPT])?;
    let job = lab.submit(&submission)?.job()?;
    let id = lab.wait_running(&job)?;
    let cgroup = PathBuf::from("/sys/fs/cgroup").join(NAMESPACE).join(&id);
    if !cgroup.join("cgroup.controllers").is_file() {
        lab.cancel(&job)?;
        return Err(Failure::skip("cgroup v2 does not limit here"));
    }
    until("the job to run its program", || Ok(lab.output(&job)?.contains("ready").then_some(())))?;
    let inside = proc::inside(&id);
    let first = inside.first().ok_or_else(|| Failure::new("nobody is in the job's cgroup"))?;
    let node = PathBuf::from(format!("/proc/{}/root/dev/probe", first.pid));
    let mode = Mode::from_bits_truncate(0o666);
    mknod(&node, SFlag::S_IFCHR, mode, makedev(MAJOR, MINOR)).during("make a node in the job")?;
    denied(lab, &job, 0)?;
    let before = limits(&cgroup);
    ensure!(before.iter().all(|text| !text.is_empty()), "not all limits are there: {before:?}");
    ensure!(before.get(1).is_some_and(|swap| swap == "0"), "it may swap: {before:?}");

    Said::by(Command::new("systemctl").arg("daemon-reload"))?.good().during("daemon-reload")?;

    let tried = denials(lab, &job)?;
    denied(lab, &job, tried)?;
    let after = limits(&cgroup);
    ensure!(before == after, "limits were {before:?} and are {after:?}");
    let output = lab.output(&job)?;
    let opened = output.contains("No such device");
    ensure!(!opened, "the node could be opened: {output:?}");
    lab.cancel(&job)?;
    lab.wait_ended(&job)?;
    lab.nothing_left_of(&id)
}

fn denials(lab: &Lab, job: &str) -> Result<usize, Failure> {
    Ok(lab.output(job)?.matches(DENIED).count())
}

fn denied(lab: &Lab, job: &str, already: usize) -> Outcome {
    until("the job to be denied the node", || {
        Ok((denials(lab, job)? >= already + TRIES).then_some(()))
    })
}

fn limits(cgroup: &Path) -> Vec<String> {
    let read = |name| fs::read_to_string(cgroup.join(name)).unwrap_or_default();
    LIMITS.iter().map(|name| read(name).trim().to_owned()).collect()
}

//! How cgroups end: signals for everything in them, waiting until they are empty, removal.
//!
//! Every wait has a limit. A process that has been killed but not yet waited for by its parent does
//! not keep a cgroup.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use nimbus_api::RefusalCode;
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::error::{Doing as _, RuntimeError};

/// Longest wait for processes that have been killed.
pub(crate) const EMPTY_WAIT: Duration = Duration::from_secs(8);
/// Between two looks, at first; doubled up to [`LOOK_MAX`].
const LOOK_FIRST: Duration = Duration::from_micros(200);
const LOOK_MAX: Duration = Duration::from_millis(20);
/// Processes that are held open at one time.
const BATCH: usize = 128;
/// Deepest cgroup below a container's own that is looked into.
const DEPTH_MAX: usize = 16;

/// Processes in a cgroup and in those below it; none when it is not there.
pub(crate) fn members(dir: &Path) -> io::Result<BTreeSet<i32>> {
    let mut found = BTreeSet::new();
    collect(dir, DEPTH_MAX, &mut found)?;
    Ok(found)
}

fn collect(dir: &Path, depth: usize, found: &mut BTreeSet<i32>) -> io::Result<()> {
    match fs::read_to_string(dir.join("cgroup.procs")) {
        Ok(text) => found.extend(text.lines().filter_map(|line| line.parse::<i32>().ok())),
        Err(error) if is_gone(&error) => return Ok(()),
        Err(error) => return Err(error),
    }
    each_child(dir, depth, |child, depth| collect(child, depth, found))
}

fn each_child(
    dir: &Path,
    depth: usize,
    mut visit: impl FnMut(&Path, usize) -> io::Result<()>,
) -> io::Result<()> {
    let Some(depth) = depth.checked_sub(1) else { return Ok(()) };
    let entries = match fs::read_dir(dir) {
        Err(error) if is_gone(&error) => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            visit(&entry.path(), depth)?;
        }
    }
    Ok(())
}

fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ENODEV)
}

/// Signals every process of these cgroups once; new ones may appear meanwhile.
pub(crate) fn signal_all(dirs: &[&Path], signal: Signal) -> Result<(), RuntimeError> {
    // Number 0 stands for processes of another pid namespace, which cannot be in a cgroup of ours.
    let own = rustix::process::getpid();
    let pids: Vec<Pid> = all_members(dirs)?
        .into_iter()
        .filter_map(Pid::from_raw)
        .filter(|pid| *pid != own)
        .collect();
    for batch in pids.chunks(BATCH) {
        signal_batch(dirs, batch, signal)?;
    }
    Ok(())
}

fn all_members(dirs: &[&Path]) -> Result<BTreeSet<i32>, RuntimeError> {
    let mut pids = BTreeSet::new();
    for dir in dirs {
        pids.extend(members(dir).doing("list the processes of a cgroup")?);
    }
    Ok(pids)
}

/// Signals those that are members still. A number may be somebody else's since it was read; a
/// descriptor is not, and whoever is listed once it is open is whom it means.
fn signal_batch(dirs: &[&Path], pids: &[Pid], signal: Signal) -> Result<(), RuntimeError> {
    let mut open = Vec::new();
    for pid in pids {
        match pidfd_open(*pid, PidfdFlags::empty()) {
            Ok(process) => open.push((pid, process)),
            Err(Errno::SRCH) => {}
            Err(error) => return Err(error).doing("open a process of the container"),
        }
    }
    let still = all_members(dirs)?;
    for (pid, process) in open {
        if still.contains(&pid.as_raw_nonzero().get()) {
            match pidfd_send_signal(process, signal) {
                Ok(()) | Err(Errno::SRCH) => {}
                Err(error) => return Err(error).doing("signal a process of the container"),
            }
        }
    }
    Ok(())
}

/// Kills everything in these cgroups and waits until nothing is left. They are looked at in order.
pub(crate) fn kill_all(dirs: &[&Path]) -> Result<(), RuntimeError> {
    let end = Instant::now() + EMPTY_WAIT;
    let mut pause = LOOK_FIRST;
    loop {
        for dir in dirs {
            thaw(dir);
            // All at once, also what is just being forked; only the unified hierarchy has it.
            let kill = dir.join("cgroup.kill");
            if kill.exists() {
                write_if_there(&kill, "1").doing("kill a cgroup")?;
            }
        }
        signal_all(dirs, Signal::KILL)?;
        let left = all_members(dirs)?.len();
        if left == 0 {
            return Ok(());
        }
        if Instant::now() >= end {
            let detail = format!("{left} killed processes have not ended");
            return Err(RuntimeError::refused(RefusalCode::RuntimeTimeout, detail));
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(LOOK_MAX);
    }
}

/// A frozen process does not die in a v1 hierarchy. Not being able to thaw shows in the wait.
fn thaw(dir: &Path) {
    let state = dir.join("freezer.state");
    if fs::read_to_string(&state).is_ok_and(|now| now.trim() != "THAWED") {
        write_if_there(&state, "THAWED").unwrap_or_default();
    }
}

fn write_if_there(path: &Path, text: &str) -> io::Result<()> {
    match fs::write(path, text) {
        Err(error) if is_gone(&error) => Ok(()),
        written => written,
    }
}

/// Removes empty cgroups and those below them.
pub(crate) fn remove(dirs: &[&Path]) -> Result<(), RuntimeError> {
    let end = Instant::now() + EMPTY_WAIT;
    for dir in dirs {
        let mut pause = LOOK_FIRST;
        loop {
            match remove_below(dir, DEPTH_MAX) {
                // The kernel lets go of the last process a moment after it has left the list.
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) && Instant::now() < end => {
                }
                removed => {
                    removed.doing(format_args!("remove the cgroup {}", dir.display()))?;
                    break;
                }
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(LOOK_MAX);
        }
    }
    Ok(())
}

fn remove_below(dir: &Path, depth: usize) -> io::Result<()> {
    each_child(dir, depth, remove_below)?;
    match fs::remove_dir(dir) {
        Err(error) if is_gone(&error) => Ok(()),
        removed => removed,
    }
}

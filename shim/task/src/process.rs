//! Children as pidfds: waiting for one, reaping it, signalling it.
//!
//! A pid can be reused, a pidfd cannot; and a status that is taken by `waitid(P_PIDFD)` cannot be
//! lost between processes as with `waitpid(-1)`. What is not ours (orphans that came to us as
//! subreaper) is reaped by [`reap_orphans`], never while a child of ours may still be unknown.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Read as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, WaitIdStatus, pidfd_open, pidfd_send_signal,
    waitid,
};
use tokio::net::unix::pipe;

/// `__WALL`: children without an exit signal too.
const WALL: WaitIdOptions = WaitIdOptions::from_bits_retain(0x4000_0000);
/// Between two looks at a process whose descriptor says that it ended and whose status says not.
const REAP_PAUSE: Duration = Duration::from_millis(5);
/// Most that is read of a list of network interfaces, which a container may make long.
const NET_DEV_BYTES_MAX: u64 = 256 << 10;
/// Added to the number of a signal that ended a process.
const SIGNAL_BASE: u32 = 128;
/// What is told when the kernel has no status to give.
pub(crate) const STATUS_UNKNOWN: u32 = 255;

/// A child of this process.
#[derive(Debug, Clone)]
pub(crate) struct ChildProcess {
    pid: Pid,
    pidfd: Arc<OwnedFd>,
}

/// The child cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ChildError {
    /// No such process, or not ours.
    #[error("process {pid} is not a child of the shim")]
    NotOurs {
        /// Its id.
        pid: i32,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl ChildProcess {
    /// The child with this id; refused when it is no child of ours that can be waited for.
    pub(crate) fn adopt(pid: i32) -> Result<Self, ChildError> {
        let fail = |source: rustix::io::Errno| ChildError::NotOurs { pid, source: source.into() };
        let known = Pid::from_raw(pid).ok_or(rustix::io::Errno::SRCH).map_err(fail)?;
        let pidfd = pidfd_open(known, PidfdFlags::empty()).map_err(fail)?;
        let look = WALL | WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        waitid(WaitId::PidFd(pidfd.as_fd()), look).map_err(fail)?;
        Ok(Self { pid: known, pidfd: Arc::new(pidfd) })
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    /// Sends a signal; an ended process is an error (`ESRCH`).
    pub(crate) fn signal(&self, signal: Signal) -> io::Result<()> {
        Ok(pidfd_send_signal(&*self.pidfd, signal)?)
    }

    /// The text of its `/proc/<pid>/net/dev`, empty once it has ended: its number is its own until this
    /// process has reaped it.
    pub(crate) fn net_dev(&self) -> String {
        if !self.still_runs() {
            return String::new();
        }
        let mut text = Vec::new();
        let read = fs::File::open(format!("/proc/{}/net/dev", self.pid()))
            .and_then(|file| file.take(NET_DEV_BYTES_MAX).read_to_end(&mut text));
        // A name that is no text is the container's own choice and spoils no other line.
        read.map(|_bytes| String::from_utf8_lossy(&text).into_owned()).unwrap_or_default()
    }

    /// Waits until it has ended and reaps it: its exit code, or 128 + signal.
    pub(crate) async fn wait(&self) -> u32 {
        // A pidfd becomes readable when the process ends; tokio's receiver is used for its
        // readiness alone, nothing is ever read.
        let watch = self.pidfd.try_clone().and_then(pipe::Receiver::from_owned_fd_unchecked);
        loop {
            match waitid(
                WaitId::PidFd(self.pidfd.as_fd()),
                WALL | WaitIdOptions::EXITED | WaitIdOptions::NOHANG,
            ) {
                Ok(Some(status)) => return status_of(&status),
                Ok(None) | Err(rustix::io::Errno::INTR) => {}
                Err(_gone) => return STATUS_UNKNOWN,
            }
            match &watch {
                Ok(watch) if watch.readable().await.is_ok() => {}
                Ok(_) | Err(_) => tokio::time::sleep(REAP_PAUSE).await,
            }
            // Readiness stays set; without a status to take, look again a little later.
            if self.still_runs() {
                tokio::time::sleep(REAP_PAUSE).await;
            }
        }
    }

    fn still_runs(&self) -> bool {
        let look = WALL | WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        matches!(waitid(WaitId::PidFd(self.pidfd.as_fd()), look), Ok(None))
    }
}

fn status_of(status: &WaitIdStatus) -> u32 {
    let code = match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => u32::try_from(code).ok(),
        (None, Some(signal)) => u32::try_from(signal).ok().map(|number| SIGNAL_BASE + number),
        (None, None) => None,
    };
    code.unwrap_or(STATUS_UNKNOWN)
}

/// Which children are ours, so that the others can be reaped.
#[derive(Debug, Clone, Default)]
pub(crate) struct Family(Arc<Mutex<Members>>);

#[derive(Debug, Default)]
struct Members {
    ours: BTreeSet<i32>,
    births: u32,
}

/// While it lives, children may exist that nobody has told about: nothing is reaped.
#[derive(Debug)]
pub(crate) struct Birth(Family);

impl Family {
    /// Children are about to come.
    pub(crate) fn birth(&self) -> Birth {
        self.with(|members| members.births = members.births.saturating_add(1));
        Birth(self.clone())
    }

    /// This child is ours and waited for by its pidfd.
    pub(crate) fn add(&self, child: &ChildProcess) {
        self.with(|members| members.ours.insert(child.pid()));
    }

    /// It has been reaped.
    pub(crate) fn remove(&self, child: &ChildProcess) {
        self.with(|members| members.ours.remove(&child.pid()));
    }

    fn with<T>(&self, act: impl FnOnce(&mut Members) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Reaps ended children that are not ours.
    pub(crate) fn reap_orphans(&self) {
        for pid in children() {
            let strange = self.with(|members| members.births == 0 && !members.ours.contains(&pid));
            if let (true, Some(pid)) = (strange, Pid::from_raw(pid)) {
                let _none_or_gone =
                    waitid(WaitId::Pid(pid), WALL | WaitIdOptions::EXITED | WaitIdOptions::NOHANG);
            }
        }
    }
}

impl Drop for Birth {
    fn drop(&mut self) {
        self.0.with(|members| members.births = members.births.saturating_sub(1));
        self.0.reap_orphans();
    }
}

/// Every child of this process; each thread has its own list.
fn children() -> Vec<i32> {
    let Ok(tasks) = fs::read_dir("/proc/self/task") else { return Vec::new() };
    tasks
        .filter_map(Result::ok)
        .filter_map(|task| fs::read_to_string(task.path().join("children")).ok())
        .flat_map(|text| {
            text.split_ascii_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
    }

    #[expect(clippy::zombie_processes, reason = "reaping it otherwise is what is tested")]
    fn spawn(script: &str) -> ChildProcess {
        let child = Command::new("/bin/sh").args(["-c", script]).spawn().unwrap();
        ChildProcess::adopt(i32::try_from(child.id()).unwrap()).unwrap()
    }

    #[test]
    fn an_exit_code_and_a_signal_are_told_apart() {
        block_on(async {
            assert_eq!(spawn("exit 7").wait().await, 7);
            let killed = spawn("exec sleep 60");
            killed.signal(Signal::KILL).unwrap();
            assert_eq!(killed.wait().await, 137);
            assert!(killed.signal(Signal::KILL).is_err());
        });
    }

    #[test]
    fn a_process_that_is_no_child_is_not_adopted() {
        assert!(ChildProcess::adopt(1).is_err());
        assert!(ChildProcess::adopt(0).is_err());
    }
}

//! Which process a number means: the number together with the time that the process started.
#![forbid(unsafe_code)]

use std::fs;
use std::os::fd::OwnedFd;

use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::{Deserialize, Serialize};

use crate::error::{Doing as _, RuntimeError};

/// Position of `starttime` in `/proc/<pid>/stat`, counted from the state after the name.
const START_FIELD: usize = 19;

/// A process, told apart from later ones with the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Identity {
    /// Its number in our pid namespace.
    pub(crate) pid: i32,
    /// When it started, in clock ticks since boot.
    start: u64,
}

impl Identity {
    /// The identity of a process that runs (or has not been waited for) now.
    pub(crate) fn of(pid: i32) -> Result<Self, RuntimeError> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))
            .doing("read when the init process started")?;
        let start = start_time(&stat)
            .ok_or_else(|| std::io::Error::other("unexpected form"))
            .doing("read when the init process started")?;
        Ok(Self { pid, start })
    }

    /// Whether it has not ended; one that only waits for its parent to look has.
    pub(crate) fn runs(self) -> bool {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid)).unwrap_or_default();
        let state = stat.rsplit_once(')').and_then(|(_, rest)| rest.trim_start().chars().next());
        start_time(&stat) == Some(self.start) && !matches!(state, Some('Z' | 'X'))
    }

    /// A descriptor of exactly this process; none when it is gone.
    pub(crate) fn open(self) -> Result<Option<OwnedFd>, RuntimeError> {
        let Some(pid) = Pid::from_raw(self.pid) else { return Ok(None) };
        let pidfd = match pidfd_open(pid, PidfdFlags::empty()) {
            Err(rustix::io::Errno::SRCH) => return Ok(None),
            opened => opened.doing("open the init process")?,
        };
        // Read after opening: if the time matches, the descriptor is of this process and not of a
        // later one with its number.
        Ok((Self::of(self.pid).ok() == Some(self)).then_some(pidfd))
    }
}

/// Field 22 of a stat line; the name before it may hold anything, also `)` and blanks.
pub(crate) fn start_time(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_ascii_whitespace().nth(START_FIELD)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_blanks_and_brackets_does_not_shift_the_fields() {
        let stat = "7 (a) b) 1 2) S 1 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 9876 1 2";
        assert_eq!(start_time(stat), Some(9876));
        assert_eq!(start_time("7 (a"), None);
    }

    #[test]
    fn a_process_is_itself_and_no_other_time_of_the_same_number() {
        let own = Identity::of(i32::try_from(std::process::id()).unwrap()).unwrap();
        assert!(own.open().unwrap().is_some());
        let earlier = Identity { start: own.start.wrapping_sub(1), ..own };
        assert!(earlier.open().unwrap().is_none());
    }
}

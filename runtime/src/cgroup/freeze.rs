//! Pausing a container: everything in it stands still until it is thawed.
//!
//! In the unified hierarchy `cgroup.freeze`, else the v1 freezer. Every wait has a limit; what could
//! not be frozen whole is thawed again before that is said.
#![forbid(unsafe_code)]

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nimbus_api::RefusalCode;
use nimbus_api::runtime::CgroupPaths;

use crate::error::{Doing as _, RuntimeError};

/// Longest wait until everything stands still.
const FREEZE_WAIT: Duration = Duration::from_secs(5);
/// Between two looks, at first; doubled up to [`LOOK_MAX`].
const LOOK_FIRST: Duration = Duration::from_micros(100);
const LOOK_MAX: Duration = Duration::from_millis(20);

/// What is written where, and what then can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Freezer<'a> {
    Unified(&'a Path),
    V1(&'a Path),
}

impl<'a> Freezer<'a> {
    fn of(paths: &'a CgroupPaths) -> Result<Self, RuntimeError> {
        let v1 = paths.v1.get("freezer").map(PathBuf::as_path).map(Self::V1);
        let found = paths.unified.as_deref().map(Self::Unified).or(v1);
        found.ok_or_else(|| {
            RuntimeError::refused(RefusalCode::RuntimeFailed, "this host has no freezer")
        })
    }

    fn set(self, frozen: bool) -> io::Result<()> {
        let (file, text) = match (self, frozen) {
            (Self::Unified(dir), true) => (dir.join("cgroup.freeze"), "1"),
            (Self::Unified(dir), false) => (dir.join("cgroup.freeze"), "0"),
            (Self::V1(dir), true) => (dir.join("freezer.state"), "FROZEN"),
            (Self::V1(dir), false) => (dir.join("freezer.state"), "THAWED"),
        };
        fs::write(file, text)
    }

    fn is(self, frozen: bool) -> io::Result<bool> {
        Ok(match self {
            Self::Unified(dir) => {
                is_frozen(&fs::read_to_string(dir.join("cgroup.events"))?) == frozen
            }
            Self::V1(dir) => {
                let state = fs::read_to_string(dir.join("freezer.state"))?;
                state.trim() == if frozen { "FROZEN" } else { "THAWED" }
            }
        })
    }
}

/// Whether this `cgroup.events` is of a cgroup in which everything stands still.
fn is_frozen(events: &str) -> bool {
    events.lines().any(|line| line == "frozen 1")
}

/// Freezes everything in these cgroups; frozen already is done.
pub(crate) fn freeze(paths: &CgroupPaths) -> Result<(), RuntimeError> {
    let freezer = Freezer::of(paths)?;
    let frozen = turn(freezer, true);
    if frozen.is_err() {
        freezer.set(false).unwrap_or_default();
    }
    frozen
}

/// Lets everything in them go on; running already is done.
pub(crate) fn thaw(paths: &CgroupPaths) -> Result<(), RuntimeError> {
    turn(Freezer::of(paths)?, false)
}

fn turn(freezer: Freezer<'_>, frozen: bool) -> Result<(), RuntimeError> {
    let end = Instant::now() + FREEZE_WAIT;
    let mut pause = LOOK_FIRST;
    loop {
        // Written each time: the v1 freezer looks for what was forked meanwhile only when it is told to.
        freezer.set(frozen).doing("write to the freezer")?;
        if freezer.is(frozen).doing("read the freezer")? {
            return Ok(());
        }
        if Instant::now() >= end {
            let detail = "not everything in the container stands still";
            return Err(RuntimeError::refused(RefusalCode::RuntimeTimeout, detail));
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(LOOK_MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unified_hierarchy_comes_first_and_without_any_freezer_nothing_is_paused() {
        let mut paths = CgroupPaths::default();
        assert_eq!(freeze(&paths).unwrap_err().refusal().code, RefusalCode::RuntimeFailed);
        paths.v1.insert("freezer".to_owned(), PathBuf::from("/v1"));
        assert_eq!(Freezer::of(&paths).unwrap(), Freezer::V1(Path::new("/v1")));
        paths.unified = Some(PathBuf::from("/v2"));
        assert_eq!(Freezer::of(&paths).unwrap(), Freezer::Unified(Path::new("/v2")));
    }

    #[test]
    fn frozen_is_what_the_kernel_says_and_nothing_like_it() {
        assert!(is_frozen("populated 1\nfrozen 1\n"));
        assert!(!is_frozen("populated 1\nfrozen 0\n"));
        assert!(!is_frozen("frozen 10\n"));
        assert!(!is_frozen(""));
    }
}

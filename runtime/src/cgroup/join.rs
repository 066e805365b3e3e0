//! How a process gets into a container's cgroups without anybody waiting for it.
//!
//! Whoever writes to `cgroup.procs` waits for a grace period of the kernel's (10 ms and more on an
//! idle machine), because a whole process is moved and none of its threads may come or go meanwhile.
//! A thread that moves *itself* does not wait: it writes 0 to `tasks` of a v1 hierarchy. A process
//! with one thread has then moved as a whole. In the unified hierarchy a process is born where it
//! belongs (`CLONE_INTO_CGROUP`, see [`crate::sys::fork`]) and never moves.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use nimbus_api::runtime::CgroupPaths;

use crate::error::{Doing as _, RuntimeError};

/// Moves the calling process, which has one thread, into a container's v1 cgroups.
pub(crate) fn enter_v1(paths: &CgroupPaths) -> Result<(), RuntimeError> {
    let dirs: BTreeSet<&Path> = paths.v1.values().map(std::path::PathBuf::as_path).collect();
    for dir in dirs {
        fs::write(dir.join("tasks"), "0")
            .doing(format_args!("enter the cgroup {}", dir.display()))?;
    }
    Ok(())
}

//! How a process gets into a container's cgroups without anybody waiting for it.
//!
//! Whoever writes to `cgroup.procs` waits for a grace period of the kernel's (10 ms and more on an
//! idle machine), because a whole process is moved and none of its threads may come or go meanwhile.
//! A thread that moves *itself* does not wait: it writes 0 to `tasks` of a v1 hierarchy. A process
//! with one thread has then moved as a whole. In the unified hierarchy a process is born where it
//! belongs (`CLONE_INTO_CGROUP`, see [`crate::sys::fork`]) and never moves.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;

use nimbus_api::runtime::CgroupPaths;

use crate::error::{Doing as _, RuntimeError};

/// The ways into a container's v1 cgroups, opened where their paths mean something.
#[derive(Debug)]
pub(crate) struct Doors(Vec<File>);

impl Doors {
    /// Opens them.
    pub(crate) fn open(paths: &CgroupPaths) -> Result<Self, RuntimeError> {
        let dirs: BTreeSet<&Path> = paths.v1.values().map(std::path::PathBuf::as_path).collect();
        let open = |dir: &Path| {
            let tasks = fs::OpenOptions::new().write(true).open(dir.join("tasks"));
            tasks.doing(format_args!("open the cgroup {}", dir.display()))
        };
        dirs.into_iter().map(open).collect::<Result<_, _>>().map(Self)
    }

    /// Moves the calling process, which has one thread, through all of them.
    pub(crate) fn enter(&self) -> Result<(), RuntimeError> {
        for mut door in &self.0 {
            door.write_all(b"0").doing("enter a cgroup of the container")?;
        }
        Ok(())
    }
}

/// Moves the calling process, which has one thread, into a container's v1 cgroups.
pub(crate) fn enter_v1(paths: &CgroupPaths) -> Result<(), RuntimeError> {
    Doors::open(paths)?.enter()
}

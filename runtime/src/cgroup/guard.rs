//! The guard: the cgroup that the creating process enters before it starts anything.
//!
//! In a hybrid host's unified hierarchy the container's processes stay in it for life (libcontainer
//! only moves them in the v1 ones), so that `cgroup.kill` on it ends everything at once. Elsewhere
//! it empties when the creating process has gone.
#![forbid(unsafe_code)]

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::error::{Doing as _, RuntimeError};

/// Membership of this process in a guard.
#[derive(Debug)]
pub(crate) struct Guard {
    before: PathBuf,
}

impl Guard {
    /// Makes the guard and enters it.
    pub(crate) fn enter(dir: &Path, hierarchy: &Path) -> Result<Self, RuntimeError> {
        let before = hierarchy.join(own_path(hierarchy).doing("read our own cgroup")?);
        match fs::create_dir(dir) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            made => made.doing("make the guard cgroup")?,
        }
        join(dir).doing("enter the guard cgroup")?;
        Ok(Self { before })
    }

    /// Goes back to where this process was, so that it outlives the guard.
    pub(crate) fn leave(&self) -> Result<(), RuntimeError> {
        join(&self.before).doing("leave the guard cgroup")
    }
}

/// Moves this process into a cgroup.
pub(crate) fn join(dir: &Path) -> io::Result<()> {
    fs::write(dir.join("cgroup.procs"), "0")
}

/// Path of this process in the hierarchy that is mounted there, relative to its root.
pub(crate) fn own_path(hierarchy: &Path) -> io::Result<PathBuf> {
    let text = fs::read_to_string("/proc/self/cgroup")?;
    let name = hierarchy.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    find(&text, name).ok_or_else(|| io::Error::other("no such hierarchy in /proc/self/cgroup"))
}

/// The path in `/proc/<pid>/cgroup` of the hierarchy with this v1 controller, or of the unified one
/// when no v1 line names it.
pub(crate) fn find(text: &str, controllers: &str) -> Option<PathBuf> {
    let lines = || {
        text.lines().filter_map(|line| {
            let mut parts = line.splitn(3, ':').skip(1);
            Some((parts.next()?, parts.next()?))
        })
    };
    let wanted = controllers.split(',').next()?;
    let v1 = lines().find(|(names, _)| names.split(',').any(|name| name == wanted));
    let (_, path) = v1.or_else(|| lines().find(|(names, _)| names.is_empty()))?;
    Some(PathBuf::from(path.trim_start_matches('/')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_hierarchy_has_its_own_line() {
        let text = "9:name=systemd:/\n4:memory:/x/y\n2:cpu,cpuacct:/c:d\n0::/u\n";
        assert_eq!(find(text, "memory"), Some("x/y".into()));
        assert_eq!(find(text, "cpu,cpuacct"), Some("c:d".into()));
        assert_eq!(find(text, "unified"), Some("u".into()));
        assert_eq!(find("4:memory:/x", "unified"), None);
    }
}

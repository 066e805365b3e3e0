//! The guard: the cgroup of a hybrid host's unified hierarchy in which a container's processes are born.
//!
//! They stay in it for life (their limits are in the v1 hierarchies, which they enter by themselves), so
//! that there is no instruction at which Delete could miss one, and `cgroup.kill` on it ends everything
//! at once. On a host with the unified hierarchy alone they are born in the container's own cgroup.
#![forbid(unsafe_code)]

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::error::{Doing as _, RuntimeError};

/// Makes a guard.
pub(crate) fn make(dir: &Path) -> Result<(), RuntimeError> {
    match fs::create_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made.doing("make the guard cgroup"),
    }
}

/// Moves this process into a cgroup.
#[cfg(test)]
pub(crate) fn join(dir: &Path) -> io::Result<()> {
    fs::write(dir.join("cgroup.procs"), "0")
}

/// Path of this process in the hierarchy that is mounted there, relative to its root.
#[cfg(test)]
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

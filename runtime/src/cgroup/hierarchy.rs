//! Which cgroup hierarchies this host has, and where a container's directories in them are.
//!
//! Input: the text of `/proc/self/mountinfo`. Only hierarchies below [`ROOT`] count; a v1 controller is
//! mounted on a directory of its name.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Component, Path, PathBuf};

use nimbus_api::RefusalCode;
use nimbus_api::runtime::CgroupPaths;

use crate::error::{Doing as _, RuntimeError};

/// Where hierarchies are mounted.
const ROOT: &str = "/sys/fs/cgroup";
/// Where the unified hierarchy is mounted beside v1 ones.
const HYBRID: &str = "/sys/fs/cgroup/unified";
/// Longest `/proc/self/mountinfo` that is read.
const MOUNTINFO_BYTES_MAX: usize = 16 << 20;
/// Controllers that a container has, by the name of their mount.
const V1_NAMES: &[(&str, &[&str])] = &[
    ("blkio", &["blkio"]),
    ("cpu", &["cpu,cpuacct", "cpu"]),
    ("cpuacct", &["cpu,cpuacct", "cpuacct"]),
    ("cpuset", &["cpuset"]),
    ("devices", &["devices"]),
    ("freezer", &["freezer"]),
    ("hugetlb", &["hugetlb"]),
    ("memory", &["memory"]),
    ("net_cls", &["net_cls,net_prio", "net_prio,net_cls", "net_cls"]),
    ("net_prio", &["net_cls,net_prio", "net_prio,net_cls", "net_prio"]),
    ("perf_event", &["perf_event"]),
    ("pids", &["pids"]),
];

/// The hierarchies of this host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Hierarchies {
    /// Mount point of the unified hierarchy.
    pub(crate) unified: Option<PathBuf>,
    /// Mount points by v1 controller.
    pub(crate) v1: BTreeMap<String, PathBuf>,
}

impl Hierarchies {
    /// Looks.
    pub(crate) fn of_this_host() -> Result<Self, RuntimeError> {
        let text = fs::read_to_string("/proc/self/mountinfo").doing("read the mount table")?;
        if text.len() > MOUNTINFO_BYTES_MAX {
            return Err(std::io::Error::other("too long")).doing("read the mount table");
        }
        Ok(Self::parse(&text))
    }

    pub(crate) fn parse(mountinfo: &str) -> Self {
        let mut found = Self::default();
        for line in mountinfo.lines() {
            let Some((left, right)) = line.split_once(" - ") else { continue };
            let (Some(point), Some(kind)) = (left.split(' ').nth(4), right.split(' ').next())
            else {
                continue;
            };
            let point = Path::new(point);
            if !point.starts_with(ROOT) {
                continue;
            }
            if kind == "cgroup2" && (point == Path::new(ROOT) || point == Path::new(HYBRID)) {
                found.unified.get_or_insert_with(|| point.to_owned());
            }
            if kind == "cgroup" {
                for (controller, names) in V1_NAMES {
                    if names.iter().any(|name| point.ends_with(name)) {
                        found
                            .v1
                            .entry((*controller).to_owned())
                            .or_insert_with(|| point.to_owned());
                    }
                }
            }
        }
        found
    }

    /// Where the guards are: in the unified hierarchy, else in the freezer's.
    pub(crate) fn guards(&self) -> Option<&Path> {
        self.unified.as_deref().or_else(|| self.v1.get("freezer").map(PathBuf::as_path))
    }

    /// Whether limits are in v1 hierarchies and there is a unified one beside them.
    pub(crate) fn is_hybrid(&self) -> bool {
        self.unified.is_some() && !self.v1.is_empty()
    }

    /// The directories that a container with this `cgroupsPath` has.
    pub(crate) fn paths(&self, cgroups_path: &CgroupsPath) -> CgroupPaths {
        if self.v1.is_empty() {
            let unified = self.unified.as_ref().map(|root| root.join(&cgroups_path.0));
            return CgroupPaths { unified, v1: BTreeMap::new() };
        }
        let v1 = self.v1.iter();
        let v1 = v1.map(|(name, root)| (name.clone(), root.join(&cgroups_path.0))).collect();
        CgroupPaths { unified: None, v1 }
    }
}

/// A checked `cgroupsPath`, relative to a hierarchy's root: at least one ordinary name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CgroupsPath(PathBuf);

impl CgroupsPath {
    /// Checks the field of a specification.
    pub(crate) fn new(text: &str) -> Result<Self, RuntimeError> {
        let refused = || {
            let detail = format!("expected an absolute cgroupsPath without dots, found {text:?}");
            RuntimeError::refused(RefusalCode::RuntimeFailed, detail)
        };
        let rest = text.strip_prefix('/').ok_or_else(refused)?;
        let path = Path::new(rest);
        let ordinary = path.components().all(|part| matches!(part, Component::Normal(_)));
        // A path with "." in the middle or "//" reads as ordinary but is spelled otherwise.
        let clean = path.components().collect::<PathBuf>().as_os_str() == path.as_os_str();
        if rest.is_empty() || !ordinary || !clean || rest.contains(char::is_control) {
            return Err(refused());
        }
        Ok(Self(path.to_owned()))
    }
}

/// Every directory, each once.
pub(crate) fn dirs(paths: &CgroupPaths) -> Vec<&Path> {
    let mut all: Vec<&Path> =
        paths.v1.values().chain(paths.unified.iter()).map(PathBuf::as_path).collect();
    all.sort_unstable();
    all.dedup();
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HYBRID_HOST: &str = "\
30 24 0:26 / /sys/fs/cgroup/unified rw shared:5 - cgroup2 cgroup2 rw\n\
31 24 0:27 / /sys/fs/cgroup/cpu,cpuacct rw shared:6 - cgroup cgroup rw,cpu,cpuacct\n\
32 24 0:28 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
33 24 0:29 / /somewhere/else/pids rw - cgroup cgroup rw,pids\n";

    #[test]
    fn a_hybrid_host_limits_by_v1_and_guards_in_the_unified_tree() {
        let host = Hierarchies::parse(HYBRID_HOST);
        assert_eq!(host.guards(), Some(Path::new("/sys/fs/cgroup/unified")));
        let paths = host.paths(&CgroupsPath::new("/nimbus/a").unwrap());
        assert_eq!(paths.unified, None);
        let cpu = Path::new("/sys/fs/cgroup/cpu,cpuacct/nimbus/a");
        assert_eq!(paths.v1["cpu"], cpu);
        assert_eq!(paths.v1["cpuacct"], cpu);
        assert!(!paths.v1.contains_key("pids"));
        assert_eq!(dirs(&paths).len(), 2);
    }

    #[test]
    fn a_unified_host_limits_and_guards_in_one_tree() {
        let host = Hierarchies::parse("30 24 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n");
        let paths = host.paths(&CgroupsPath::new("/nimbus/a").unwrap());
        assert_eq!(paths.unified.as_deref(), Some(Path::new("/sys/fs/cgroup/nimbus/a")));
        assert!(paths.v1.is_empty());
    }

    proptest! {
        #[test]
        fn no_accepted_path_leaves_its_hierarchy(text in "[/.a:\n]{0,12}") {
            if let Ok(path) = CgroupsPath::new(&text) {
                prop_assert!(path.0.components().all(|part| matches!(part, Component::Normal(_))));
                prop_assert!(path.0.components().next().is_some());
            }
        }
    }

    #[test]
    fn odd_paths_are_refused() {
        for bad in ["", "/", "a", "a:b:c", "/../a", "/a/../b", "/a/./b", "//a", "/a//b", "/a/"] {
            assert!(CgroupsPath::new(bad).is_err(), "{bad}");
        }
        assert!(CgroupsPath::new("/nimbus/j1-1").is_ok());
    }
}

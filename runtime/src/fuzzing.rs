//! Doors for the fuzz targets: parsers of procfs and cgroup text that nobody else outside has a use
//! for. Each answers what the caller of the parser would go on with, and changes nothing.
#![forbid(unsafe_code)]

use std::path::PathBuf;

use nimbus_api::runtime::CgroupPaths;
use serde_json::Value;

use crate::cgroup::guard;
use crate::cgroup::hierarchy::{CgroupsPath, Hierarchies};
use crate::{identity, proof};

/// When a process started, by its `/proc/<pid>/stat`.
pub fn start_time(stat: &str) -> Option<u64> {
    identity::start_time(stat)
}

/// Whether a `/proc/<pid>/status` proves what this specification wants of an init process.
pub fn proves(init: &str, own: &str, spec: &Value) -> bool {
    proof::proves(init, own, spec)
}

/// The path in a `/proc/<pid>/cgroup`.
pub fn cgroup_of(text: &str, controllers: &str) -> Option<PathBuf> {
    guard::find(text, controllers)
}

/// Where a container with this `cgroupsPath` is on a host with this mount table, and where its guard
/// would be.
pub fn cgroup_paths(mountinfo: &str, cgroups_path: &str) -> Option<(CgroupPaths, Option<PathBuf>)> {
    let hosts = Hierarchies::parse(mountinfo);
    let path = CgroupsPath::new(cgroups_path).ok()?;
    Some((hosts.paths(&path), hosts.guards().map(ToOwned::to_owned)))
}

//! Doors for the fuzz targets: parsers of what containerd, the kernel or a tenant wrote, which nobody
//! else outside has a use for. Each walks the road that the shim walks, and changes nothing.

use std::path::{Path, PathBuf};

use containerd_shim_protos::api::CreateTaskRequest;
use containerd_shim_protos::protobuf::Message as _;
use nimbus_api::id::ContainerKey;
use nimbus_api::proto::admit::v1::Admit;
use nimbus_api::runtime::CgroupPaths;

use crate::bootstrap;
use crate::cgroup::{Cgroup, field};
use crate::serve::admission;
use crate::stats;
use crate::stdio::Target;

/// The bytes of a `CreateTaskRequest` as the question that goes to the node agent, without reading
/// the bundle.
pub fn create(key: &ContainerKey, data: &[u8]) -> Option<Admit> {
    let request = CreateTaskRequest::parse_from_bytes(data).ok()?;
    Some(admission::message(key, &request, Vec::new()))
}

/// The cgroup for shims in what containerd writes to `start`'s standard input.
pub fn shim_cgroup(input: &[u8]) -> Option<PathBuf> {
    bootstrap::in_input(input).ok().flatten()
}

/// Whether the shim would open this for output; for input when `input`.
pub fn opens(uri: &str, input: bool) -> bool {
    let target = if input { Target::input(uri) } else { Target::output(uri) };
    target.is_ok()
}

/// The metrics of a container whose files, of either layout, are all in this directory: the encoded
/// message's length.
pub fn metrics(dir: &Path, unified: bool, net_dev: &str) -> Option<usize> {
    let mut paths = CgroupPaths::default();
    if unified {
        paths.unified = Some(dir.to_owned());
    } else {
        for name in ["memory", "cpu", "cpuacct", "pids", "blkio", "hugetlb", "rdma"] {
            paths.v1.insert(name.to_owned(), dir.to_owned());
        }
    }
    let cgroup = Cgroup::new(paths);
    let _pids = cgroup.pids();
    let _kills = cgroup.oom_kills();
    stats::collect(&cgroup, net_dev).ok().map(|any| any.value.len())
}

/// The number behind a name.
pub fn flat(text: &str, name: &str) -> Option<u64> {
    field(text, name)
}

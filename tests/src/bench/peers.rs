//! Containers of containerd's own runtime in a lab, for what is measured beside it.

use std::fs;
use std::path::Path;

use super::contestant::UNIFIED;
use crate::ctr::{NAMESPACE, version_line};
use crate::{Failure, Lab, Outcome, mint};

/// The programs under containerd's runtime.
pub(super) const PEERS: [&str; 2] = ["runc", "crun"];

/// What each took, ours first.
pub(super) type Samples = [Vec<f64>; PEERS.len() + 1];

/// What a peer is called.
pub(super) fn version(binary: &str) -> Result<String, Failure> {
    Ok(format!("io.containerd.runc.v2 with {}", version_line(Path::new(binary))?))
}

/// A name that no other container has.
pub(super) fn name(lab: &mut Lab) -> Result<String, Failure> {
    let id = format!("peer-{}", mint::unique()?);
    lab.remember(&id);
    Ok(id)
}

/// A container that sleeps; its name.
pub(super) fn start(lab: &mut Lab, root: &Path, binary: &str) -> Result<String, Failure> {
    let id = name(lab)?;
    let root = root.display().to_string();
    let args = ["run", "--detach", "--null-io", "--seccomp", "--runc-binary", binary, "--rootfs"];
    let args = args.into_iter().chain([&*root, &*id, "/bin/sleep", "600"]);
    lab.ctr().ask(&args.collect::<Vec<_>>())?.good()?;
    Ok(id)
}

/// Its end.
pub(super) fn remove(lab: &Lab, id: &str) -> Outcome {
    lab.ctr().ask(&["tasks", "rm", "--force", id])?.good()?;
    lab.ctr().ask(&["containers", "rm", id])?.good()?;
    remove_plain(id)?;
    lab.nothing_left_of(id)
}

/// Removes what crun took for a cgroup and leaves behind: a plain directory, where the unified hierarchy
/// was unmounted (see [`super::contestant::apart`]).
pub(super) fn remove_plain(id: &str) -> Outcome {
    let unified = Path::new(UNIFIED);
    let left = unified.join(NAMESPACE).join(id);
    if unified.join("cgroup.procs").exists() || !left.is_dir() {
        return Ok(());
    }
    Ok(fs::remove_dir_all(left)?)
}

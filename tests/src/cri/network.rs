//! A network namespace that a lane lives in: bridges, addresses and rules of the CNI plugins end with it,
//! and the host's are never touched.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sched::CloneFlags;

use crate::ctr::Said;
use crate::{Failure, Outcome};

/// Where CNI's network namespaces are mounted.
const NETNS: &str = "/run/netns";

/// Puts the calling process into a new network namespace with a loopback device. It must have one thread.
pub fn enter_own() -> Outcome {
    nix::sched::unshare(CloneFlags::CLONE_NEWNET)?;
    Said::by(Command::new("ip").args(["link", "set", "lo", "up"]))?.good().map(drop)
}

/// The network namespaces that have a name now.
pub fn names() -> BTreeSet<PathBuf> {
    let entries = fs::read_dir(NETNS).into_iter().flatten().filter_map(Result::ok);
    entries.map(|entry| entry.path()).collect()
}

/// Removes what a dead pod left: its name and the mount on it.
pub fn remove(name: &Path) -> Outcome {
    nix::mount::umount2(name, nix::mount::MntFlags::MNT_DETACH).unwrap_or_default();
    fs::remove_file(name).map_err(Failure::from)
}

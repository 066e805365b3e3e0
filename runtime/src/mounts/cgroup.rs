//! `/sys/fs/cgroup` of a container: its own cgroups and none above them.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use nimbus_api::runtime::CgroupPaths;
use rustix::fs::{Mode, mkdirat, symlinkat};

use super::place::{self, Kind};
use super::{attach, bind, filesystem};
use crate::cgroup::hierarchy::Hierarchies;
use crate::error::{Doing as _, RuntimeError};
use crate::spec::options::Options;

const DIRECTORY_MODE: Mode = Mode::from_raw_mode(0o755);

/// Attaches them to a directory.
pub(crate) fn mount(
    at: &OwnedFd,
    options: &Options,
    hosts: &Hierarchies,
    paths: &CgroupPaths,
) -> Result<(), RuntimeError> {
    let options = Options { parameters: Vec::new(), propagation: Vec::new(), ..options.clone() };
    if let Some(own) = &paths.unified {
        let (mount, _directory) = bind::clone(own, &options)?;
        return attach(mount, at).doing("attach the container's cgroup");
    }
    let mode = vec![("mode".to_owned(), Some("755".to_owned()))];
    let writable = Options { parameters: mode, ..Options::default() };
    let tmpfs = filesystem::make("tmpfs", "tmpfs", &writable)?;
    attach(&tmpfs, at).doing("attach a directory of cgroups")?;
    let mut names: BTreeMap<&Path, PathBuf> = BTreeMap::new();
    for (controller, own) in &paths.v1 {
        let root = hosts.v1.get(controller).and_then(|root| root.file_name());
        let name = root.map_or_else(|| PathBuf::from(controller), PathBuf::from);
        if names.insert(own, name.clone()).is_none() {
            mkdirat(&tmpfs, &name, DIRECTORY_MODE).doing("make a cgroup's mount point")?;
            let (mount, _directory) = bind::clone(own, &options)?;
            let inner = place::open(&tmpfs, &name, rustix::fs::OFlags::DIRECTORY);
            attach(mount, inner.doing("open a cgroup's mount point")?)
                .doing("attach the container's cgroup")?;
        }
        if name != Path::new(controller) {
            symlinkat(&name, &tmpfs, controller.as_str()).doing("name a controller")?;
        }
    }
    bind::set(&tmpfs, &options)
}

/// What a cgroup mount is attached to.
pub(crate) const KIND: Kind = Kind::Directory;

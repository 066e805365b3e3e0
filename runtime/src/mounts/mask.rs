//! Hiding paths of a container, and making them read-only. What is not there needs neither.
#![forbid(unsafe_code)]

use std::os::fd::OwnedFd;

use rustix::fs::{FileType, OFlags, fstat};
use rustix::io::Errno;
use rustix::mount::{MountAttrFlags, OpenTreeFlags, open_tree};

use super::attach;
use super::kit::Kit;
use super::place::{self, Kind};
use crate::error::{Doing as _, RuntimeError};
use crate::sys::mount::{Change, change};

const READ_ONLY: u32 = MountAttrFlags::MOUNT_ATTR_RDONLY.bits();

/// Mounts these over themselves, read-only with all that is mounted below.
pub(crate) fn make_read_only(root: &OwnedFd, paths: &[String]) -> Result<(), RuntimeError> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH
        | OpenTreeFlags::AT_RECURSIVE;
    for path in paths {
        let Some(place) = find(root, path)? else { continue };
        let read_only = || {
            let mount = open_tree(&place, "", flags)?;
            change(&mount, &Change { set: READ_ONLY, below: true, ..Change::default() })?;
            attach(mount, &place).map_err(std::io::Error::from)
        };
        read_only().doing(format_args!("make {path} read-only"))?;
    }
    Ok(())
}

/// Hides these.
pub(crate) fn hide(root: &OwnedFd, kit: &Kit, paths: &[String]) -> Result<(), RuntimeError> {
    for path in paths {
        let Some(place) = find(root, path)? else { continue };
        let found = fstat(&place).doing("look at a path that is hidden")?;
        let directory = FileType::from_raw_mode(found.st_mode) == FileType::Directory;
        let cover = kit.cover(if directory { Kind::Directory } else { Kind::File })?;
        attach(cover, place).doing(format_args!("hide {path}"))?;
    }
    Ok(())
}

fn find(root: &OwnedFd, path: &str) -> Result<Option<OwnedFd>, RuntimeError> {
    match place::open(root, path, OFlags::empty()) {
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        opened => opened.map(Some).doing(format_args!("open {path} of the root")),
    }
}

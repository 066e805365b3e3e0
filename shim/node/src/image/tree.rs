//! Walks over a directory tree by descriptors, never through a link and never deeper than told.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{self, AtFlags, Dir, FileType, Stat};
use rustix::io::Errno;

use super::files::{file_type, lstat, open_dir};

/// Removes a directory and all in it.
pub(super) fn remove(parent: impl AsFd, name: &[u8], depth: usize) -> Result<(), Errno> {
    let left = depth.checked_sub(1).ok_or(Errno::LOOP)?;
    let dir = open_dir(&parent, name)?;
    for (child, kind) in children(&dir)? {
        if kind == FileType::Directory {
            remove(&dir, &child, left)?;
        } else {
            fs::unlinkat(&dir, child.as_slice(), AtFlags::empty())?;
        }
    }
    fs::unlinkat(parent, name, AtFlags::REMOVEDIR)
}

/// Calls `each` for a directory and all directories in it, the innermost first.
pub(super) fn for_each_directory(
    dir: &OwnedFd,
    depth: usize,
    each: &mut dyn FnMut(BorrowedFd<'_>, &Stat) -> Result<(), Errno>,
) -> Result<(), Errno> {
    for (child, kind) in children(dir)? {
        if kind == FileType::Directory {
            let left = depth.checked_sub(1).ok_or(Errno::LOOP)?;
            for_each_directory(&open_dir(dir, &child)?, left, each)?;
        }
    }
    each(dir.as_fd(), &fs::fstat(dir)?)
}

/// Names and types of what is in a directory.
fn children(dir: &OwnedFd) -> Result<Vec<(Vec<u8>, FileType)>, Errno> {
    let mut found = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if matches!(name, b"." | b"..") {
            continue;
        }
        let mut kind = entry.file_type();
        if kind == FileType::Unknown {
            let Some(stat) = lstat(dir, name)? else { continue };
            kind = file_type(&stat);
        }
        found.push((name.to_vec(), kind));
    }
    Ok(found)
}

//! Removing a directory tree of ours without ever leaving its file system or following a link.
//!
//! A mount below it stops the removal with an error: what is mounted there is not ours to delete.
#![forbid(unsafe_code)]

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Dir, Mode, OFlags, ResolveFlags, openat2, unlinkat};
use rustix::io::Errno;

/// Deepest tree that is removed.
const DEPTH_MAX: usize = 8;

/// Removes `name` and all below it; gone already is done.
pub(crate) fn tree(parent: impl AsFd, name: &str) -> rustix::io::Result<()> {
    let name = std::ffi::CString::new(name).map_err(|_nul| Errno::INVAL)?;
    remove(parent.as_fd(), &name, DEPTH_MAX)
}

fn remove(parent: BorrowedFd<'_>, name: &std::ffi::CStr, depth: usize) -> rustix::io::Result<()> {
    match unlinkat(parent, name, AtFlags::empty()) {
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(Errno::NOENT) => return Ok(()),
        removed => return removed,
    }
    if let Some(below) = depth.checked_sub(1) {
        match open_dir(parent, name) {
            Err(Errno::NOENT) => return Ok(()),
            opened => empty(&opened?, below)?,
        }
    }
    match unlinkat(parent, name, AtFlags::REMOVEDIR) {
        Err(Errno::NOENT) => Ok(()),
        removed => removed,
    }
}

fn empty(dir: &OwnedFd, depth: usize) -> rustix::io::Result<()> {
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        if name != c"." && name != c".." {
            remove(dir.as_fd(), name, depth)?;
        }
    }
    Ok(())
}

fn open_dir(parent: BorrowedFd<'_>, name: &std::ffi::CStr) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let inside = ResolveFlags::BENEATH | ResolveFlags::NO_XDEV | ResolveFlags::NO_SYMLINKS;
    openat2(parent, name, flags, Mode::empty(), inside)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_tree_is_removed_and_what_its_links_name_stays() {
        let dir = tempfile::tempdir().unwrap();
        let outside = dir.path().join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("kept"), "x").unwrap();
        let ours = dir.path().join("ours");
        fs::create_dir_all(ours.join("a/b")).unwrap();
        fs::write(ours.join("a/b/c"), "x").unwrap();
        std::os::unix::fs::symlink(&outside, ours.join("a/link")).unwrap();
        let parent = fs::File::open(dir.path()).unwrap();
        tree(&parent, "ours").unwrap();
        assert!(!ours.exists() && outside.join("kept").exists());
        tree(&parent, "ours").unwrap();
    }
}

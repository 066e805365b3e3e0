//! Places below a container's root, opened or made, whatever the root holds.
//!
//! The kernel resolves every path with the container's root as `/` and refuses magic links, so that
//! nothing here can be outside, whoever exchanges directories for links meanwhile. What is missing is
//! made in the directory that was reached, by one name at a time.
#![forbid(unsafe_code)]

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use nimbus_api::RefusalCode;
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, mkdirat, mknodat, openat2};
use rustix::io::Errno;

use crate::error::{Doing as _, RuntimeError};

const DIRECTORY_MODE: Mode = Mode::from_raw_mode(0o755);
const FILE_MODE: Mode = Mode::from_raw_mode(0o644);
/// What the rest of a container stands on: a link there is an attack (CVE-2026-41579), not a layout.
const MUST_BE_DIRECTORIES: [&str; 3] = ["/dev", "/proc", "/sys"];

/// What is to be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Directory,
    /// Anything but a directory.
    File,
}

/// Opens what a path means below a root, for naming it only.
pub(crate) fn open(
    root: impl AsFd,
    path: impl AsRef<Path>,
    flags: OFlags,
) -> rustix::io::Result<OwnedFd> {
    let inside = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    openat2(root, path.as_ref(), flags | OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), inside)
}

/// Opens a place, made when it is absent.
pub(crate) fn open_or_make(
    root: impl AsFd,
    path: &str,
    kind: Kind,
) -> Result<OwnedFd, RuntimeError> {
    let root = root.as_fd();
    let names = names(path)?;
    if MUST_BE_DIRECTORIES.contains(&path) {
        refuse_link(root, path)?;
    }
    let flags = match kind {
        Kind::Directory => OFlags::DIRECTORY,
        Kind::File => OFlags::empty(),
    };
    match open(root, path, flags) {
        Ok(found) => return Ok(found),
        Err(Errno::NOENT) => {}
        Err(error) => return Err(not_usable(path, error)),
    }
    let mut reached = PathBuf::from("/");
    let mut dir = open(root, "/", OFlags::DIRECTORY).doing("open the root")?;
    let last = names.len().saturating_sub(1);
    for (at, name) in names.into_iter().enumerate() {
        reached.push(name);
        let kind = if at == last { kind } else { Kind::Directory };
        let flags = if kind == Kind::Directory { OFlags::DIRECTORY } else { OFlags::empty() };
        dir = match open(root, &reached, flags) {
            Ok(next) => next,
            Err(Errno::NOENT) => {
                make(&dir, name, kind).map_err(|error| not_usable(path, error))?;
                open(root, &reached, flags).map_err(|error| not_usable(path, error))?
            }
            Err(error) => return Err(not_usable(path, error)),
        };
    }
    Ok(dir)
}

fn names(path: &str) -> Result<Vec<&OsStr>, RuntimeError> {
    let mut names = Vec::new();
    for part in Path::new(path).components() {
        match part {
            Component::Normal(name) => names.push(name),
            Component::RootDir | Component::CurDir => {}
            Component::ParentDir | Component::Prefix(_) => {
                let detail = format!("{path:?} is no plain path");
                return Err(RuntimeError::refused(RefusalCode::SpecMountForbidden, detail));
            }
        }
    }
    if path.starts_with('/') {
        return Ok(names);
    }
    let detail = format!("{path:?} is not absolute");
    Err(RuntimeError::refused(RefusalCode::SpecMountForbidden, detail))
}

fn refuse_link(root: impl AsFd, path: &str) -> Result<(), RuntimeError> {
    let direct = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    match openat2(root, path, flags, Mode::empty(), direct) {
        Ok(_) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(not_usable(path, error)),
    }
}

fn not_usable(path: &str, error: Errno) -> RuntimeError {
    // A link to nowhere is "not there" and "there already" at once.
    if matches!(error, Errno::LOOP | Errno::NOTDIR | Errno::EXIST | Errno::NOENT | Errno::XDEV) {
        let detail = format!("{path} is not what is mounted on: {error}");
        return RuntimeError::refused(RefusalCode::RootfsHostile, detail);
    }
    RuntimeError::Io { doing: format!("open {path} of the root"), source: error.into() }
}

/// The umask is that of whoever makes containers. There is no chmod: it would follow a link that has
/// taken the new directory's place meanwhile, with this process's root.
fn make(dir: &OwnedFd, name: &OsStr, kind: Kind) -> rustix::io::Result<()> {
    match kind {
        Kind::Directory => mkdirat(dir, name, DIRECTORY_MODE),
        Kind::File => mknodat(dir, name, FileType::RegularFile, FILE_MODE, 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    fn code(result: Result<OwnedFd, RuntimeError>) -> RefusalCode {
        result.unwrap_err().refusal().code
    }

    #[test]
    fn links_lead_nowhere_but_below_the_root_and_what_is_missing_is_made_there() {
        let outside = tempfile::tempdir().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let root = fs::File::open(dir.path()).unwrap();
        symlink(outside.path(), dir.path().join("out")).unwrap();
        symlink("../../../..", dir.path().join("up")).unwrap();
        symlink("/real", dir.path().join("inside")).unwrap();
        fs::create_dir(dir.path().join("real")).unwrap();
        // As if the root were `/`, which the outside's path is not below.
        assert_eq!(code(open_or_make(&root, "/out", Kind::Directory)), RefusalCode::RootfsHostile);
        assert_eq!(
            code(open_or_make(&root, "/out/x", Kind::Directory)),
            RefusalCode::RootfsHostile
        );
        open_or_make(&root, "/up/a/b", Kind::Directory).unwrap();
        assert!(dir.path().join("a/b").is_dir());
        open_or_make(&root, "/inside/c/file", Kind::File).unwrap();
        assert!(dir.path().join("real/c/file").is_file());
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_must_be_a_directory_is_neither_a_link_nor_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let root = fs::File::open(dir.path()).unwrap();
        fs::create_dir(dir.path().join("real")).unwrap();
        symlink("real", dir.path().join("dev")).unwrap();
        fs::write(dir.path().join("proc"), "").unwrap();
        for path in ["/dev", "/proc"] {
            assert_eq!(
                code(open_or_make(&root, path, Kind::Directory)),
                RefusalCode::RootfsHostile
            );
        }
        open_or_make(&root, "/sys", Kind::Directory).unwrap();
        for path in ["/a/../b", "relative", ""] {
            let refused = code(open_or_make(&root, path, Kind::Directory));
            assert_eq!(refused, RefusalCode::SpecMountForbidden, "{path}");
        }
    }
}

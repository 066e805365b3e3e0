//! The store's own files: opened by descriptor, below a directory, without symbolic links (rule 6).

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};

use nimbus_api::Refusal;
use rustix::fs::{self, AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

use super::refuse::{internal, tampered};

/// Resolution of every path that is not one component: nothing leads out, through a link or onto
/// another file system.
pub(super) const BELOW: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);
pub(super) const OPEN_DIR: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
pub(super) const PRIVATE_DIR: Mode = Mode::RWXU;
pub(super) const PRIVATE_FILE: Mode = Mode::RUSR.union(Mode::WUSR);

/// Opens a directory below another.
pub(super) fn open_dir(parent: impl AsFd, path: &[u8]) -> Result<OwnedFd, Errno> {
    fs::openat2(parent, path, OPEN_DIR, Mode::empty(), BELOW)
}

/// Makes a directory of the store, or takes the one that is there; 0700 either way.
pub(super) fn private_dir(parent: impl AsFd, name: &str) -> Result<OwnedFd, Errno> {
    match fs::mkdirat(&parent, name, PRIVATE_DIR) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(error) => return Err(error),
    }
    let dir = open_dir(parent, name.as_bytes())?;
    fs::fchmod(&dir, PRIVATE_DIR)?;
    Ok(dir)
}

pub(super) fn lstat(parent: impl AsFd, name: &[u8]) -> Result<Option<Stat>, Errno> {
    match fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

pub(super) fn file_type(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

/// A directory that only root can enter, and owns.
pub(super) fn expect_private(stat: &Stat, what: &str) -> Result<(), Refusal> {
    let private = file_type(stat) == FileType::Directory
        && stat.st_uid == rustix::process::geteuid().as_raw()
        && Mode::from_raw_mode(stat.st_mode) == PRIVATE_DIR;
    if private { Ok(()) } else { Err(tampered(format!("{what} is not root's own directory"))) }
}

/// Reads a file of the store, at most `limit` bytes; none when it is not there.
pub(super) fn read(parent: impl AsFd, name: &str, limit: u64) -> Result<Option<Vec<u8>>, Refusal> {
    let failed = |error: std::io::Error| internal(&format!("reading {name}"), error);
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = match fs::openat2(parent, name, flags, Mode::empty(), BELOW) {
        Ok(fd) => File::from(fd),
        Err(Errno::NOENT) => return Ok(None),
        Err(error) => return Err(failed(error.into())),
    };
    let mut bytes = Vec::new();
    file.take(limit.saturating_add(1)).read_to_end(&mut bytes).map_err(failed)?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > limit {
        return Err(tampered(format!("{name} in the store is longer than {limit} bytes")));
    }
    Ok(Some(bytes))
}

/// Writes a file so that after any crash either the old or the new one is there, whole.
pub(super) fn write_atomically(
    scratch: impl AsFd,
    parent: impl AsFd,
    name: &str,
    bytes: &[u8],
) -> Result<(), Refusal> {
    let failed = |error: std::io::Error| internal(&format!("writing {name}"), error);
    let (temporary, mut file) = temporary_file(&scratch)?;
    let written = file.write_all(bytes).and_then(|()| file.sync_all()).and_then(|()| {
        fs::renameat(&scratch, &temporary, &parent, name)?;
        Ok(fs::fsync(&parent)?)
    });
    written.map_err(|error| {
        // The next open() removes what this cannot.
        let _gone = fs::unlinkat(&scratch, &temporary, AtFlags::empty());
        failed(error)
    })
}

/// A new, empty file for this process alone, open for reading and writing.
pub(super) fn temporary_file(scratch: impl AsFd) -> Result<(String, File), Refusal> {
    let name = temporary_name();
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = fs::openat(scratch, &name, flags, PRIVATE_FILE)
        .map_err(|error| internal("making a temporary file", error))?;
    Ok((name, File::from(file)))
}

/// Unique in this process; the scratch directory is empty when the store is opened.
pub(super) fn temporary_name() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    format!("t{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

//! Files of the agent: written whole and durable, read with a bound, kept root-only.
//!
//! A durable write is: temporary file beside the target, write, fsync, rename, fsync of the
//! directory. After a crash the target has the old bytes or the new ones, never a mixture.
//! Deliberately absent: any format. Who calls knows what the bytes mean.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

/// Mode of every file that the agent writes.
pub const FILE_MODE: u32 = 0o600;
/// Mode of every directory that the agent makes.
pub const DIR_MODE: u32 = 0o700;
const TEMPORARY: &str = ".tmp";

/// A file that could not be used.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what} {path:?}")]
pub struct FileError {
    what: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

impl FileError {
    /// `what` as in "cannot open".
    pub fn new(what: &'static str, path: &Path, source: io::Error) -> Self {
        Self { what, path: path.to_owned(), source }
    }
}

/// Makes a directory and its parents, root-only.
pub fn ensure_dir(path: &Path) -> Result<(), FileError> {
    DirBuilder::new()
        .recursive(true)
        .mode(DIR_MODE)
        .create(path)
        .map_err(|error| FileError::new("make directory", path, error))
}

/// Makes what a directory lists durable.
pub fn sync_dir(path: &Path) -> Result<(), FileError> {
    File::open(path)
        .and_then(|dir| dir.sync_all())
        .map_err(|error| FileError::new("sync directory", path, error))
}

/// Replaces a file so that a crash leaves the old or the new content.
pub fn write_durable(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(TEMPORARY);
    let temporary = PathBuf::from(temporary);
    let written = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(FILE_MODE)
        .custom_flags(libc::O_NOFOLLOW)
        .open(&temporary)
        .and_then(|mut file| {
            file.write_all(bytes)?;
            file.sync_all()
        });
    written.map_err(|error| FileError::new("write", &temporary, error))?;
    std::fs::rename(&temporary, path)
        .map_err(|error| FileError::new("put in place", path, error))?;
    sync_dir(path.parent().unwrap_or(Path::new("/")))
}

/// Whether a name is what a crash within [`write_durable`] leaves.
pub fn is_temporary(name: &str) -> bool {
    name.ends_with(TEMPORARY)
}

/// Reads a file of at most `limit` bytes; none when there is no such file.
pub fn read_bounded(path: &Path, limit: usize) -> Result<Option<Vec<u8>>, FileError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(FileError::new("open", path, error)),
    };
    let mut bytes = Vec::new();
    let most = u64::try_from(limit).unwrap_or(u64::MAX).saturating_add(1);
    file.take(most).read_to_end(&mut bytes).map_err(|error| FileError::new("read", path, error))?;
    if bytes.len() > limit {
        let source = io::Error::other(format!("more than {limit} bytes"));
        return Err(FileError::new("read", path, source));
    }
    Ok(Some(bytes))
}

/// Removes a file; one that is gone is removed already.
pub fn remove(path: &Path) -> Result<(), FileError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(FileError::new("remove", path, error))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Appends one JSON object as a line, durable when this returns.
pub fn append_audit(path: &Path, record: &serde_json::Value) -> Result<(), FileError> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(FILE_MODE)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)
        .and_then(|mut file| {
            file.write_all(format!("{record}\n").as_bytes())?;
            file.sync_all()
        })
        .map_err(|error| FileError::new("append to", path, error))
}

/// An exclusive lock on a file, for as long as this lives.
#[derive(Debug)]
pub struct FileLock {
    _held: File,
}

impl FileLock {
    /// Takes the lock; none when another process has it.
    pub fn take(path: &Path) -> Result<Option<Self>, FileError> {
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(FILE_MODE)
            .custom_flags(libc::O_NOFOLLOW)
            .open(path)
            .map_err(|error| FileError::new("open", path, error))?;
        match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Self { _held: file })),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(FileError::new("lock", path, error.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn a_written_file_is_root_only_and_leaves_no_temporary() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        write_durable(&path, b"one").unwrap();
        write_durable(&path, b"two").unwrap();
        assert_eq!(read_bounded(&path, 3).unwrap().unwrap(), b"two");
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, FILE_MODE);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_file_longer_than_the_bound_is_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        write_durable(&path, b"four").unwrap();
        assert!(read_bounded(&path, 3).is_err());
        assert!(read_bounded(&dir.path().join("b"), 3).unwrap().is_none());
    }

    #[test]
    fn a_lock_is_held_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let held = FileLock::take(&path).unwrap();
        assert!(held.is_some());
        assert!(FileLock::take(&path).unwrap().is_none());
        drop(held);
        assert!(FileLock::take(&path).unwrap().is_some());
    }
}

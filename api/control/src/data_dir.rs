//! The data directory: private, locked, every file in it replaced whole.
//!
//! A secret is read only from a regular file that belongs to us and that nobody else may read;
//! anything else stops the start, because a key that others could have read is not a key any more.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{
    DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _,
};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};

/// Longest secret file.
const SECRET_BYTES_MAX: u64 = 64 << 10;
const LOCK: &str = "lock";

/// The open data directory; its lock is held as long as this lives.
#[derive(Debug)]
pub(crate) struct DataDir {
    path: PathBuf,
    _lock: Flock<File>,
}

/// Why the data directory or a file in it cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    /// A system call failed.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which path.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Others may enter the directory.
    #[error("{} has mode {mode:04o} and owner {owner}, expected 0700 and owner {expected}", path.display())]
    NotPrivate {
        /// The directory.
        path: PathBuf,
        /// Mode found.
        mode: u32,
        /// Owner found.
        owner: u32,
        /// Owner expected.
        expected: u32,
    },
    /// A key file that others may read, that is not ours, or that is no regular file.
    #[error("key file {} has mode {mode:04o} and owner {owner}, expected a regular file with mode 0600 and owner {expected}", path.display())]
    SecretExposed {
        /// The file.
        path: PathBuf,
        /// Mode found.
        mode: u32,
        /// Owner found.
        owner: u32,
        /// Owner expected.
        expected: u32,
    },
    /// A key file that cannot be one.
    #[error("key file {} is longer than {SECRET_BYTES_MAX} bytes or not text", path.display())]
    NotASecret {
        /// The file.
        path: PathBuf,
    },
    /// Somebody else holds the lock.
    #[error("another control service uses {}", path.display())]
    Locked {
        /// The directory.
        path: PathBuf,
    },
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DataDirError {
    let path = path.to_owned();
    move |source| DataDirError::Io { action, path, source }
}

impl DataDir {
    /// Makes the directory when it is absent, checks that it is private, and locks it.
    pub(crate) fn open(path: &Path) -> Result<Self, DataDirError> {
        make_private(path)?;
        let name = path.join(LOCK);
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&name)
            .map_err(io_error("open", &name))?;
        let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock)
            .map_err(|(_file, _errno)| DataDirError::Locked { path: path.to_owned() })?;
        Ok(Self { path: path.to_owned(), _lock: lock })
    }

    /// A path below the directory.
    pub(crate) fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.path.join(name)
    }

    /// Makes a private folder below the directory.
    pub(crate) fn folder(&self, name: &str) -> Result<PathBuf, DataDirError> {
        let path = self.join(name);
        make_private(&path)?;
        Ok(path)
    }

    /// Reads a secret; none when there is no such file.
    pub(crate) fn read_secret(&self, name: &str) -> Result<Option<String>, DataDirError> {
        read_secret(&self.join(name))
    }

    /// Writes a secret: whole, durable, mode 0600.
    pub(crate) fn write_secret(&self, name: &str, text: &[u8]) -> Result<(), DataDirError> {
        write_whole(&self.join(name), text, 0o600)
    }

    /// Removes a file, if it is there.
    pub(crate) fn remove(&self, name: &str) -> Result<(), DataDirError> {
        let path = self.join(name);
        match fs::remove_file(&path) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(io_error("remove", &path)(error)),
        }
    }

    /// Writes a file that is no secret: whole, durable.
    pub(crate) fn write_public(&self, name: &str, text: &[u8]) -> Result<(), DataDirError> {
        write_whole(&self.join(name), text, 0o644)
    }
}

/// Whether a mode gives nothing to group and others.
const fn is_private(mode: u32) -> bool {
    matches!(mode & 0o077, 0)
}

fn make_private(path: &Path) -> Result<(), DataDirError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(io_error("make", path))?;
    let found = fs::metadata(path).map_err(io_error("look at", path))?;
    let expected = nix::unistd::geteuid().as_raw();
    let mode = found.mode() & 0o7777;
    if found.uid() == expected && is_private(mode) {
        return Ok(());
    }
    let empty = fs::read_dir(path).map_err(io_error("list", path))?.next().is_none();
    if found.uid() == expected && empty {
        return fs::set_permissions(path, fs::Permissions::from_mode(0o700))
            .map_err(io_error("change the mode of", path));
    }
    Err(DataDirError::NotPrivate { path: path.to_owned(), mode, owner: found.uid(), expected })
}

/// Reads a secret file after checking, on the open file, that it is one.
pub(crate) fn read_secret(path: &Path) -> Result<Option<String>, DataDirError> {
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK)
        .open(path);
    let file = match opened {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io_error("open", path)(error)),
    };
    let found = file.metadata().map_err(io_error("look at", path))?;
    let expected = nix::unistd::geteuid().as_raw();
    let mode = found.mode() & 0o7777;
    if !found.is_file() || !is_private(mode) || found.uid() != expected {
        let path = path.to_owned();
        return Err(DataDirError::SecretExposed { path, mode, owner: found.uid(), expected });
    }
    let mut text = String::new();
    let read = file.take(SECRET_BYTES_MAX + 1).read_to_string(&mut text);
    match read {
        Ok(_) if text.len() as u64 <= SECRET_BYTES_MAX => Ok(Some(text)),
        Ok(_) => Err(DataDirError::NotASecret { path: path.to_owned() }),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            Err(DataDirError::NotASecret { path: path.to_owned() })
        }
        Err(error) => Err(io_error("read", path)(error)),
    }
}

/// Replaces a file: a reader sees the old text or the new one, and after this returns the new one
/// survives a power cut.
pub(crate) fn write_whole(path: &Path, text: &[u8], mode: u32) -> Result<(), DataDirError> {
    let parent = path.parent().unwrap_or(Path::new("."));
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let temporary = parent.join(name);
    match fs::remove_file(&temporary) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(io_error("remove", &temporary)(error)),
    }
    let mut file = OpenOptions::new()
        .create_new(true)
        .write(true)
        .mode(mode)
        .open(&temporary)
        .map_err(io_error("create", &temporary))?;
    file.write_all(text).map_err(io_error("write", &temporary))?;
    file.sync_all().map_err(io_error("sync", &temporary))?;
    fs::rename(&temporary, path).map_err(io_error("rename to", path))?;
    let folder = File::open(parent).map_err(io_error("open", parent))?;
    folder.sync_all().map_err(io_error("sync", parent))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_control_is_kept_out_and_the_directory_is_private() {
        let temporary = tempfile::tempdir().unwrap();
        let path = temporary.path().join("a/b");
        let open = DataDir::open(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o700);
        assert!(matches!(DataDir::open(&path), Err(DataDirError::Locked { .. })));
        drop(open);
        assert!(DataDir::open(&path).is_ok());
    }

    #[test]
    fn a_directory_with_content_that_others_may_enter_is_refused() {
        let temporary = tempfile::tempdir().unwrap();
        fs::write(temporary.path().join("x"), "y").unwrap();
        fs::set_permissions(temporary.path(), fs::Permissions::from_mode(0o755)).unwrap();
        assert!(matches!(DataDir::open(temporary.path()), Err(DataDirError::NotPrivate { .. })));
    }

    #[test]
    fn a_secret_that_others_may_read_or_that_is_a_link_is_refused() {
        let temporary = tempfile::tempdir().unwrap();
        let open = DataDir::open(temporary.path()).unwrap();
        assert_eq!(open.read_secret("k").unwrap(), None);
        open.write_secret("k", b"secret").unwrap();
        assert_eq!(open.read_secret("k").unwrap().as_deref(), Some("secret"));
        std::os::unix::fs::symlink(open.join("k"), open.join("l")).unwrap();
        assert!(open.read_secret("l").is_err());
        fs::set_permissions(open.join("k"), fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(open.read_secret("k"), Err(DataDirError::SecretExposed { .. })));
    }
}

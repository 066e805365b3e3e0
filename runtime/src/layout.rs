//! Where one container's files are: `<state_root>/<namespace>/<id>/`, root-only.
//!
//! | name | what |
//! |---|---|
//! | `record.json` | our record, see [`crate::record`] |
//! | `rootfs/` | where the root is mounted, in our own mount namespace only: empty for everybody else |
//! | `stage/` | where layers and the upper are mounted, likewise |
//! | `exec.fifo` | on which the init process says that it could not execute the program |
//! | `start.fifo` | by which Start lets the program run; gone once it has |
//! | `kit/` | where what hides things is mounted for a moment, in our own mount namespace only |
#![forbid(unsafe_code)]

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use nimbus_api::Digest;
use nimbus_api::id::ContainerKey;
use rustix::fs::{CWD, FlockOperation, Mode, OFlags, ResolveFlags, flock, fstat, mkdirat, openat2};

use crate::error::{Doing as _, RuntimeError};

/// Hexadecimal digits of the digest in the name of a guard cgroup.
const GUARD_DIGITS: usize = 24;
const GUARD_PREFIX: &str = "nimbus-guard-";
const PRIVATE: Mode = Mode::RWXU;

/// The paths of one container.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    parent: PathBuf,
    dir: PathBuf,
    guard: String,
}

impl Layout {
    /// The paths of a container below a state root.
    pub(crate) fn new(state_root: &Path, container: &ContainerKey) -> Result<Self, RuntimeError> {
        if !state_root.is_absolute() {
            let detail = format!("state root {} is not absolute", state_root.display());
            return Err(RuntimeError::refused(nimbus_api::RefusalCode::RuntimeFailed, detail));
        }
        let parent = state_root.join(container.namespace.as_str());
        let dir = parent.join(container.id.as_str());
        let digest = Digest::of(dir.as_os_str().as_encoded_bytes()).hex();
        let guard = format!("{GUARD_PREFIX}{}", digest.get(..GUARD_DIGITS).unwrap_or(&digest));
        Ok(Self { parent, dir, guard })
    }

    /// Makes the container's directory and locks it; that it was not there before is what makes it
    /// ours. The lock goes with the descriptor.
    pub(crate) fn create(&self) -> Result<OwnedFd, RuntimeError> {
        create_dirs(&self.parent).doing("make the directory of the namespace")?;
        let exists = "the container exists already";
        let not = |detail| RuntimeError::refused(nimbus_api::RefusalCode::RuntimeFailed, detail);
        match mkdirat(CWD, &self.dir, PRIVATE) {
            Err(rustix::io::Errno::EXIST) => return Err(not(exists)),
            made => made.doing("make the container's directory")?,
        }
        let gone = "the container is being deleted";
        let dir = self.open()?.ok_or_else(|| not(gone))?;
        if self.lock(&dir)? { Ok(dir) } else { Err(not(gone)) }
    }

    /// Locks an opened directory of the container, unless somebody has it locked or it is no longer
    /// the container's.
    pub(crate) fn lock(&self, dir: &OwnedFd) -> Result<bool, RuntimeError> {
        match flock(dir, FlockOperation::NonBlockingLockExclusive) {
            Err(rustix::io::Errno::WOULDBLOCK) => return Ok(false),
            locked => locked.doing("lock the container's directory")?,
        }
        let same = |one: rustix::fs::Stat, other: rustix::fs::Stat| {
            (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino)
        };
        let locked = fstat(dir).doing("look at the container's directory")?;
        Ok(rustix::fs::stat(&self.dir).is_ok_and(|now| same(locked, now)))
    }

    /// Opens the container's directory, if there is one.
    pub(crate) fn open(&self) -> Result<Option<OwnedFd>, RuntimeError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        match openat2(CWD, &self.dir, flags, Mode::empty(), ResolveFlags::NO_MAGICLINKS) {
            Err(rustix::io::Errno::NOENT) => Ok(None),
            opened => opened.map(Some).doing("open the container's directory"),
        }
    }

    pub(crate) fn parent(&self) -> &Path {
        &self.parent
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn record(&self) -> PathBuf {
        self.dir.join("record.json")
    }

    /// A copy of the bundle's, for the development command line alone.
    pub(crate) fn config(&self) -> PathBuf {
        self.dir.join("config.json")
    }

    pub(crate) fn rootfs(&self) -> PathBuf {
        self.dir.join("rootfs")
    }

    pub(crate) fn stage(&self) -> PathBuf {
        self.dir.join("stage")
    }

    pub(crate) fn fifo(&self) -> PathBuf {
        self.dir.join("exec.fifo")
    }

    pub(crate) fn kit(&self) -> PathBuf {
        self.dir.join("kit")
    }

    /// The FIFO that Start writes to, relative to the container's directory. It is there as long as the
    /// container waits.
    pub(crate) fn notify() -> PathBuf {
        PathBuf::from("start.fifo")
    }

    /// Name of the cgroup that holds whatever takes part in making the container.
    pub(crate) fn guard(&self) -> &str {
        &self.guard
    }
}

fn create_dirs(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new().recursive(true).mode(PRIVATE.bits()).create(path)
}

//! Where one container's files are: `<state_root>/<namespace>/<id>/`, root-only.
//!
//! | name | what |
//! |---|---|
//! | `record.json` | our record, see [`crate::record`] |
//! | `config.json` | the specification that libcontainer reads |
//! | `rootfs/` | where the root is mounted, in our own mount namespace only: empty for everybody else |
//! | `stage/` | where layers and the upper are mounted, likewise |
//! | `exec.fifo` | on which the init process says that it could not execute the program |
//! | `engine/c/` | libcontainer's own state, and the socket that Start uses |
#![forbid(unsafe_code)]

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use nimbus_api::Digest;
use nimbus_api::id::ContainerKey;
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, mkdirat, openat2};

use crate::error::{Doing as _, RuntimeError};

/// Name under which libcontainer knows the one container of its state directory.
pub(crate) const ENGINE_ID: &str = "c";
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

    /// Makes the container's directory; that it was not there before is what makes it ours.
    pub(crate) fn create(&self) -> Result<(), RuntimeError> {
        create_dirs(&self.parent).doing("make the directory of the namespace")?;
        match mkdirat(CWD, &self.dir, PRIVATE) {
            Err(rustix::io::Errno::EXIST) => Err(RuntimeError::refused(
                nimbus_api::RefusalCode::RuntimeFailed,
                "the container exists already",
            )),
            made => made.doing("make the container's directory"),
        }
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

    pub(crate) fn engine(&self) -> PathBuf {
        self.dir.join("engine")
    }

    /// The socket that Start connects to, relative to the container's directory.
    pub(crate) fn notify() -> PathBuf {
        Path::new("engine").join(ENGINE_ID).join("notify.sock")
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

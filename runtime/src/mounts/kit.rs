//! A file system of ours with what hides things: an empty directory and a null device that nobody else
//! can have touched, both read-only, and a device that is leased to nobody.
//!
//! Masking with the container's own `/dev/null` has been an attack (CVE-2025-31133): whoever can put
//! something else there decides what is mounted over `/proc/kcore`.
#![forbid(unsafe_code)]

use std::os::fd::OwnedFd;

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, fstat, major, makedev, minor, mkdirat, mknodat, openat, statat,
};
use rustix::io::Errno;
use rustix::mount::{MountAttrFlags, OpenTreeFlags, open_tree};

use super::place::Kind;
use super::{attach, filesystem};
use crate::error::{Doing as _, RuntimeError};
use crate::spec::options::Options;
use crate::sys::mount::{Change, change};

const NULL: &str = "null";
const EMPTY: &str = "empty";
const DENIED: &str = "denied";
/// Major and minor number of the null device.
pub(crate) const NULL_DEVICE: (u32, u32) = (1, 3);
const READ_ONLY: u32 = MountAttrFlags::MOUNT_ATTR_RDONLY.bits();

/// The file system, detached at first.
#[derive(Debug)]
pub(crate) struct Kit(OwnedFd);

impl Kit {
    /// Makes it, with a node of this major and minor number that must be denied, if any.
    pub(crate) fn make(denied: Option<(u32, u32)>) -> Result<Self, RuntimeError> {
        let parameters = [("size", "16k"), ("mode", "0755")];
        let parameters =
            parameters.map(|(name, value)| (name.to_owned(), Some(value.to_owned()))).to_vec();
        let closed = MountAttrFlags::MOUNT_ATTR_NOEXEC | MountAttrFlags::MOUNT_ATTR_NOSUID;
        let options = Options { parameters, set: closed.bits(), ..Options::default() };
        let kit = filesystem::make("tmpfs", "tmpfs", &options)?;
        mkdirat(&kit, EMPTY, Mode::from_raw_mode(0o555)).doing("make an empty directory")?;
        node(&kit, NULL, NULL_DEVICE, Mode::from_raw_mode(0o666))?;
        if let Some(denied) = denied {
            node(&kit, DENIED, denied, Mode::from_raw_mode(0o600))?;
        }
        // Clones of it are read-only too.
        change(&kit, &Change { set: READ_ONLY, ..Change::default() })
            .doing("make what hides things read-only")?;
        Ok(Self(kit))
    }

    /// Attaches it, after which parts of it can be cloned.
    pub(crate) fn attach(&self, place: &OwnedFd) -> Result<(), RuntimeError> {
        attach(&self.0, place).doing("attach what hides things")
    }

    /// A mount that hides a thing of this kind.
    pub(crate) fn cover(&self, kind: Kind) -> Result<OwnedFd, RuntimeError> {
        let name = match kind {
            Kind::Directory => EMPTY,
            Kind::File => NULL,
        };
        let flags = OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_SYMLINK_NOFOLLOW;
        let cover = open_tree(&self.0, name, flags).doing("clone what hides things")?;
        let found = fstat(&cover).doing("look at what hides things")?;
        let right = match (kind, FileType::from_raw_mode(found.st_mode)) {
            (Kind::Directory, FileType::Directory) => true,
            (Kind::File, FileType::CharacterDevice) => {
                (major(found.st_rdev), minor(found.st_rdev)) == NULL_DEVICE
            }
            _ => false,
        };
        if right { Ok(cover) } else { Err(RuntimeError::unproven("what hides things is not ours")) }
    }

    /// Tries to open the node that must be denied, and the null device.
    pub(crate) fn try_devices(&self) -> (rustix::io::Result<()>, rustix::io::Result<()>) {
        let open = |name: &str| {
            statat(&self.0, name, AtFlags::SYMLINK_NOFOLLOW).map_err(|_absent| Errno::NOENT)?;
            openat(&self.0, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).map(drop)
        };
        (open(DENIED), open(NULL))
    }
}

fn node(kit: &OwnedFd, name: &str, number: (u32, u32), mode: Mode) -> Result<(), RuntimeError> {
    let device = makedev(number.0, number.1);
    mknodat(kit, name, FileType::CharacterDevice, mode, device)
        .doing(format_args!("make the device node {name}"))
}

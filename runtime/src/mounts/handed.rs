//! Mounts that came with a plan: what the agent opened of the host's for this container.
//!
//! They are closed first (nosuid, nodev, read-only where the plan says so, private, with all below them),
//! detached still, then attached. A descriptor that is no detached mount is refused by the kernel: one of
//! the host's own mounts is not in this mount namespace. The place is below the container's root, which is
//! an image's to fill: one that is not a plain file or directory there, the kernel's, or where something
//! is mounted already, is refused.
#![forbid(unsafe_code)]

use std::os::fd::OwnedFd;

use nimbus_api::RefusalCode;
use nimbus_api::plan::PlanBind;
use rustix::fs::{AtFlags, FileType, StatxAttributes, StatxFlags, fstat, fstatfs, statx};
use rustix::mount::{MountAttrFlags, MountPropagationFlags};

use super::attach;
use super::place::{Kind, open_or_make};
use crate::error::{Doing as _, RuntimeError};
use crate::sys::mount::{Change, change};

const CLOSED: u32 =
    MountAttrFlags::MOUNT_ATTR_NOSUID.bits() | MountAttrFlags::MOUNT_ATTR_NODEV.bits();
const READ_ONLY: u32 = MountAttrFlags::MOUNT_ATTR_RDONLY.bits();
/// File systems of the kernel's own, by their magic numbers: an image's link may lead into one.
const KERNELS: [(&str, u64); 6] = [
    ("proc", 0x9fa0),
    ("sysfs", 0x6265_6572),
    ("cgroup", 0x0027_e0eb),
    ("cgroup2", 0x6367_7270),
    ("devpts", 0x1cd1),
    ("mqueue", 0x1980_0202),
];

/// One of them.
#[derive(Debug)]
pub(crate) struct Handed {
    pub(crate) wanted: PlanBind,
    mount: OwnedFd,
    /// The kernel's number for the mount, by which it is found again once it is attached.
    pub(crate) id: u64,
}

impl Handed {
    /// Looks at a descriptor.
    pub(crate) fn new(wanted: PlanBind, mount: OwnedFd) -> Result<Self, RuntimeError> {
        let found = statx(&mount, "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID)
            .doing("look at a mount that came")?;
        if found.stx_mask & StatxFlags::MNT_ID.bits() == 0 {
            return Err(RuntimeError::unproven("the kernel does not number mounts"));
        }
        Ok(Self { wanted, mount, id: found.stx_mnt_id })
    }

    /// Closes it and attaches it. Runs in the container's own mount namespace.
    pub(crate) fn attach(&self, root: &OwnedFd) -> Result<(), RuntimeError> {
        let PlanBind { source, destination, read_only, .. } = &self.wanted;
        let found = fstat(&self.mount).doing("look at a mount that came")?;
        let found = FileType::from_raw_mode(found.st_mode);
        let kind = if found == FileType::Directory { Kind::Directory } else { Kind::File };
        if kind == Kind::File && found != FileType::RegularFile {
            let detail = format!("{source} is neither a file nor a directory but {found:?}");
            return Err(RuntimeError::refused(RefusalCode::SpecBindForbidden, detail));
        }
        let closed = Change {
            set: if *read_only { CLOSED | READ_ONLY } else { CLOSED },
            propagation: MountPropagationFlags::PRIVATE.bits(),
            below: true,
            ..Change::default()
        };
        change(&self.mount, &closed).doing(format_args!("close the mount of {source}"))?;
        let place = open_or_make(root, destination, kind)?;
        check_place(&place, kind, destination)?;
        attach(&self.mount, &place).doing(format_args!("mount {destination}"))
    }
}

fn check_place(place: &OwnedFd, kind: Kind, destination: &str) -> Result<(), RuntimeError> {
    let hostile = |what: &str| {
        let detail = format!("{destination} is {what}, nothing is mounted over it");
        Err(RuntimeError::refused(RefusalCode::RootfsHostile, detail))
    };
    let found = statx(place, "", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS)
        .doing("look at a place to mount at")?;
    let right = match kind {
        Kind::Directory => FileType::Directory,
        Kind::File => FileType::RegularFile,
    };
    if FileType::from_raw_mode(found.stx_mode.into()) != right {
        return hostile("neither a plain file nor a directory");
    }
    if !found.stx_attributes_mask.contains(StatxAttributes::MOUNT_ROOT) {
        return Err(RuntimeError::unproven("the kernel does not tell where something is mounted"));
    }
    if found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT) {
        return hostile("where something is mounted already");
    }
    let magic = fstatfs(place).doing("look at a place to mount at")?.f_type;
    match KERNELS.iter().find(|(_, kernels)| u64::try_from(magic) == Ok(*kernels)) {
        Some((name, _)) => hostile(&format!("in a file system of the kernel's ({name})")),
        None => Ok(()),
    }
}

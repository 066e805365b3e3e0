//! Attributes and propagation of one mount, by its descriptor.

use std::io;
use std::os::fd::{AsFd, AsRawFd as _};

/// What is to change.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Change {
    /// Attributes (`MOUNT_ATTR_*`) that are set.
    pub(crate) set: u32,
    /// Attributes that are cleared, first.
    pub(crate) clear: u32,
    /// One kind of propagation (`MS_SHARED`, ...), or 0 for what it is.
    pub(crate) propagation: u32,
    /// The same for everything mounted below.
    pub(crate) below: bool,
}

/// Changes the mount that a descriptor is of; the descriptor must be of its root.
pub(crate) fn change(mount: impl AsFd, change: &Change) -> io::Result<()> {
    let wanted = libc::mount_attr {
        attr_set: u64::from(change.set),
        attr_clr: u64::from(change.clear),
        propagation: u64::from(change.propagation),
        userns_fd: 0,
    };
    let below = if change.below { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is a literal with its NUL, `wanted` is a mount_attr that lives beyond the call
    // and whose exact size is given; the kernel only reads both. The descriptor is borrowed.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_fd().as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | below,
            &raw const wanted,
            size_of::<libc::mount_attr>(),
        )
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

//! Fresh file systems, detached: nobody sees one before it is attached.
#![forbid(unsafe_code)]

use std::os::fd::{AsFd as _, OwnedFd};

use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen,
};

use crate::error::{Doing as _, RuntimeError};
use crate::spec::options::Options;

/// Makes a file system of a kind.
pub(crate) fn make(kind: &str, source: &str, options: &Options) -> Result<OwnedFd, RuntimeError> {
    let made = || {
        let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
        let context = context.as_fd();
        // What the mount table shows.
        fsconfig_set_string(context, "source", if source.is_empty() { kind } else { source })?;
        for (name, value) in &options.parameters {
            match value {
                Some(value) => fsconfig_set_string(context, name.as_str(), value.as_str())?,
                None => fsconfig_set_flag(context, name.as_str())?,
            }
        }
        fsconfig_create(context)?;
        let attributes = MountAttrFlags::from_bits_retain(options.set | options.set_below);
        fsmount(context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
    };
    made().doing(format_args!("make a file system of type {kind}"))
}

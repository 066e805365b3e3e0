//! What is somewhere on this host, cloned for a container. Only the development command line asks for
//! that: the specification of a plan that does is refused, and what a plan binds comes as a descriptor.
#![forbid(unsafe_code)]

use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{CWD, FileType, fstat};
use rustix::mount::{OpenTreeFlags, open_tree};

use super::place::Kind;
use crate::error::{Doing as _, RuntimeError};
use crate::spec::options::Options;
use crate::sys::mount::{Change, change};

/// Clones a path of this host's, with attributes; also tells what it must be attached to.
pub(crate) fn clone(source: &Path, options: &Options) -> Result<(OwnedFd, Kind), RuntimeError> {
    let below =
        if options.recursive { OpenTreeFlags::AT_RECURSIVE } else { OpenTreeFlags::empty() };
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | below;
    let mount = open_tree(CWD, source, flags)
        .doing(format_args!("clone the mount at {}", source.display()))?;
    set(&mount, options)?;
    let found = fstat(&mount).doing("look at a cloned mount")?;
    let directory = FileType::from_raw_mode(found.st_mode) == FileType::Directory;
    Ok((mount, if directory { Kind::Directory } else { Kind::File }))
}

/// Sets attributes and propagation of a mount, and of those below where the options say so.
pub(crate) fn set(mount: &OwnedFd, options: &Options) -> Result<(), RuntimeError> {
    let changes = [
        Change { set: options.set, clear: options.clear, ..Change::default() },
        Change {
            set: options.set_below,
            clear: options.clear_below,
            below: true,
            ..Change::default()
        },
    ];
    let travel = options.propagation.iter().map(|flags| {
        let below = flags.contains(rustix::mount::MountPropagationFlags::REC);
        let kind = *flags - rustix::mount::MountPropagationFlags::REC;
        Change { propagation: kind.bits(), below, ..Change::default() }
    });
    for one in changes.into_iter().chain(travel) {
        if one != (Change { below: one.below, ..Change::default() }) {
            change(mount, &one).doing("change the attributes of a mount")?;
        }
    }
    Ok(())
}

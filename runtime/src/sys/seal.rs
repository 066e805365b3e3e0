//! This program's own file, put out of a container's reach.
//!
//! A process of a container can be made to execute what `/proc/self/exe` means while that is still
//! this program, and then open it for writing as the root that owns it (CVE-2019-5736). A file on a
//! read-only mount that is in no namespace cannot be opened for writing by anybody who finds it there.

use std::ffi::{CString, OsStr};
use std::io;
use std::os::unix::ffi::OsStrExt as _;

use nix::fcntl::AtFlags;
use rustix::fs::{CWD, Mode, OFlags, StatVfsMountFlags, fstatvfs, openat};
use rustix::mount::{MountAttrFlags, OpenTreeFlags, open_tree};

use super::mount::{self, Change};

const READ_ONLY: u32 = MountAttrFlags::MOUNT_ATTR_RDONLY.bits();

const OWN: &str = "/proc/self/exe";
/// The name that this program has when it was executed again.
const AGAIN: &str = "nimbus-runtime-sealed";

/// Executes this program again, from a read-only mount that is in no namespace, unless it runs from
/// one already. Arguments and environment are kept but for the program's own name.
pub(crate) fn ensure() -> io::Result<()> {
    if is_sealed()? {
        return Ok(());
    }
    if std::env::args_os().next().is_some_and(|name| name == AGAIN) {
        // Once more would end the same way.
        return Err(io::Error::other("the mount made read-only does not read back as that"));
    }
    match execute_again()? {}
}

/// Whether this program's file cannot be written to through its mount.
pub(crate) fn is_sealed() -> io::Result<bool> {
    let own = openat(CWD, OWN, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    Ok(fstatvfs(own)?.f_flag.contains(StatVfsMountFlags::RDONLY))
}

fn execute_again() -> io::Result<std::convert::Infallible> {
    let own = openat(CWD, OWN, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    let sealed = open_tree(&own, "", flags)?;
    mount::change(&sealed, &Change { set: READ_ONLY, ..Change::default() })?;
    let text = |text: &OsStr| CString::new(text.as_bytes()).map_err(io::Error::from);
    let args = std::env::args_os().skip(1);
    let args = std::iter::once(AGAIN.into()).chain(args).map(|arg| text(&arg));
    let args = args.collect::<io::Result<Vec<_>>>()?;
    let env = std::env::vars_os().map(|(name, value)| {
        let mut one = name;
        one.push("=");
        one.push(value);
        text(&one)
    });
    let env = env.collect::<io::Result<Vec<_>>>()?;
    Ok(nix::unistd::execveat(&sealed, c"", &args, &env, AtFlags::AT_EMPTY_PATH)?)
}

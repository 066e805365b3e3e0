//! The root of a container: an overlay of measured layers under a fresh upper, in the container's own
//! mount namespace. Nothing is mounted in the host's.
//!
//! Layers come as detached mounts, lowest first, and are attached read-only. The upper is a tmpfs of
//! the leased size whose pages count in the job's memory, or a file system of that size that comes as a
//! detached mount. What is mounted on the merged tree is
//! [`crate::mounts`]'s.
#![forbid(unsafe_code)]

use std::ffi::CString;
use std::fs::File;
use std::io::Read as _;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{
    CWD, Mode, OFlags, ResolveFlags, StatVfsMountFlags, fchmod, fstatvfs, mkdirat, openat2,
};
use rustix::mount::{
    MountFlags, MountPropagationFlags, MoveMountFlags, mount, mount_change, mount_remount,
    move_mount,
};
use rustix::process::{chdir, fchdir};

use crate::error::{Doing as _, RuntimeError};
use crate::layout::Layout;
use crate::mounts::place::{Kind, open_or_make};
use crate::mounts::{attach, bind};
use crate::spec::options::Options;

/// Bytes of scratch space for each inode of it.
const SCRATCH_BYTES_PER_INODE: u64 = 4096;
/// The fewest inodes of a scratch space.
const SCRATCH_INODES_MIN: u64 = 1024;
/// Longest `/etc/passwd` that is read for a home directory.
const PASSWD_BYTES_MAX: u64 = 1 << 20;
/// What the overlay must not follow or make, whatever the kernel's default.
const OVERLAY_FIXED: &str = "index=off,metacopy=off,redirect_dir=nofollow";
const TREE_MODE: Mode = Mode::from_raw_mode(0o755);

/// Where the root comes from.
#[derive(Debug)]
pub(crate) enum Root {
    /// An overlay of these, lowest first, under this upper.
    Layers { layers: Vec<OwnedFd>, scratch: Scratch },
    /// A directory as it is. Only the development command line does this.
    Directory(String),
}

/// What the upper is made of.
#[derive(Debug)]
pub(crate) enum Scratch {
    /// A tmpfs of this size.
    Memory { bytes: u64 },
    /// A detached mount of a fresh file system, no larger than this.
    Disk { mount: OwnedFd, bytes: u64 },
}

/// Makes the directories that are mounted on; the host sees them, and sees them empty.
pub(crate) fn make_mount_points(layout: &Layout) -> Result<(), RuntimeError> {
    for dir in [layout.rootfs(), layout.stage(), layout.kit()] {
        mkdirat(CWD, &dir, Mode::RWXU).doing("make a mount point")?;
    }
    Ok(())
}

/// Lets this process's mount namespace, a fresh one, tell the host's nothing.
pub(crate) fn keep_from_host() -> Result<(), RuntimeError> {
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", private).doing("make all mounts private")
}

/// Puts the root together and gives it back opened. A working directory that a plan names and its image
/// has not is made.
pub(crate) fn assemble(layout: &Layout, root: &Root, cwd: &str) -> Result<OwnedFd, RuntimeError> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let open = || rustix::fs::open(layout.rootfs(), flags, Mode::empty()).doing("open the root");
    match root {
        Root::Directory(path) => {
            let options = Options { recursive: true, ..Options::default() };
            let (clone, _directory) = bind::clone(Path::new(path), &options)?;
            attach(clone, open()?).doing("mount the root")?;
            open()
        }
        Root::Layers { layers, scratch } => {
            stack(layout, layers, scratch)?;
            let root = open()?;
            // What is there already stays; whether it is a directory shows when it is entered.
            drop(open_or_make(&root, cwd, Kind::Directory));
            Ok(root)
        }
    }
}

fn stack(layout: &Layout, layers: &[OwnedFd], scratch: &Scratch) -> Result<(), RuntimeError> {
    match scratch {
        Scratch::Memory { bytes } => {
            let inodes = (bytes / SCRATCH_BYTES_PER_INODE).max(SCRATCH_INODES_MIN);
            let options = data(format!("mode=0700,size={bytes},nr_inodes={inodes}"))?;
            let closed = MountFlags::NOSUID | MountFlags::NODEV;
            mount("tmpfs", layout.stage(), "tmpfs", closed, options.as_c_str())
                .doing("mount the scratch space")?;
        }
        Scratch::Disk { mount, bytes } => attach_disk(layout, mount, *bytes)?,
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let stage =
        rustix::fs::open(layout.stage(), flags, Mode::empty()).doing("open the scratch space")?;
    // Relative paths keep the options of many layers within the one page that the kernel takes.
    fchdir(&stage).doing("enter the scratch space")?;
    let mounted = overlay(layers, &layout.rootfs());
    chdir("/").doing("leave the scratch space")?;
    mounted
}

/// The file system that came is the container's alone, and no larger than its lease says.
fn attach_disk(layout: &Layout, mount: &OwnedFd, bytes: u64) -> Result<(), RuntimeError> {
    let found = fstatvfs(mount).doing("look at the scratch space")?;
    let size = found.f_blocks.saturating_mul(found.f_frsize);
    let closed = StatVfsMountFlags::NOSUID | StatVfsMountFlags::NODEV;
    if size > bytes
        || !found.f_flag.contains(closed)
        || found.f_flag.contains(StatVfsMountFlags::RDONLY)
    {
        let detail = format!("a scratch space of {size} bytes came, {:?}", found.f_flag);
        return Err(RuntimeError::unproven(&detail));
    }
    move_mount(mount, "", CWD, layout.stage(), MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .doing("attach the scratch space")
}

/// Runs in the scratch space.
fn overlay(layers: &[OwnedFd], root: &Path) -> Result<(), RuntimeError> {
    let mut lower = String::new();
    for (at, layer) in layers.iter().enumerate() {
        let name = at.to_string();
        mkdirat(CWD, &name, Mode::RWXU).doing("make a layer's mount point")?;
        let from_descriptor = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        move_mount(layer.as_fd(), "", CWD, &name, from_descriptor).doing("attach a layer")?;
        let closed = MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV;
        mount_remount(&name, closed, "").doing("make a layer read-only")?;
        // The first in the list is the topmost.
        lower = if lower.is_empty() { name } else { format!("{name}:{lower}") };
    }
    for dir in ["upper", "work"] {
        mkdirat(CWD, dir, TREE_MODE).doing("make the upper")?;
    }
    let upper = rustix::fs::open(
        "upper",
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .doing("open the upper")?;
    // Its mode becomes that of the container's `/`, whatever our umask.
    fchmod(&upper, TREE_MODE).doing("set the mode of the root")?;
    let options = data(format!("lowerdir={lower},upperdir=upper,workdir=work,{OVERLAY_FIXED}"))?;
    let closed = MountFlags::NOSUID | MountFlags::NODEV;
    mount("overlay", root, "overlay", closed, options.as_c_str()).doing("mount the root")
}

fn data(text: String) -> Result<CString, RuntimeError> {
    CString::new(text).map_err(std::io::Error::from).doing("write mount options")
}

/// Home directory of a user by the root's own `/etc/passwd`, `/` when it says nothing.
///
/// The C library would load the image's own NSS modules for an answer.
pub(crate) fn home(root: &OwnedFd, uid: u32) -> String {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let inside = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let mut text = String::new();
    if let Ok(file) = openat2(root, "etc/passwd", flags, Mode::empty(), inside) {
        let file = File::from(file);
        if file.metadata().is_ok_and(|found| found.is_file()) {
            file.take(PASSWD_BYTES_MAX).read_to_string(&mut text).unwrap_or_default();
        }
    }
    home_in(&text, uid).unwrap_or_else(|| "/".to_owned())
}

fn home_in(passwd: &str, uid: u32) -> Option<String> {
    let uid = uid.to_string();
    let fields = |line: &str| {
        let mut fields = line.split(':').skip(2);
        (fields.next()? == uid).then_some(())?;
        let home = fields.nth(2)?;
        (home.starts_with('/') && !home.contains(char::is_control)).then(|| home.to_owned())
    };
    passwd.lines().find_map(fields)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_home_is_found_by_number_and_only_if_it_is_a_path() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nbad:x:7:7::relative:/\nu:x:1000:1000::/srv/u:/\nshort:x:8\n";
        assert_eq!(home_in(passwd, 0).as_deref(), Some("/root"));
        assert_eq!(home_in(passwd, 1000).as_deref(), Some("/srv/u"));
        assert_eq!(home_in(passwd, 7), None);
        assert_eq!(home_in(passwd, 8), None);
        assert_eq!(home_in(passwd, 9), None);
    }
}

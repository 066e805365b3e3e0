//! What a container's fresh `/dev` holds: nodes of its own and the usual links.
//!
//! Filled while nobody else can see it, so that every name in it is ours.
#![forbid(unsafe_code)]

use std::os::fd::OwnedFd;
use std::path::{Component, Path};

use nimbus_api::RefusalCode;
use nimbus_api::plan::{DeviceKind, DeviceRule};
use rustix::fs::{
    AtFlags, FileType, Gid, Mode, Uid, chmodat, chownat, makedev, mkdirat, mknodat, symlinkat,
    unlinkat,
};
use rustix::io::Errno;

use crate::error::{Doing as _, RuntimeError};
use crate::spec::model::Device;

const DIRECTORY_MODE: Mode = Mode::from_raw_mode(0o755);
/// Links that programs expect, by their name.
const LINKS: [(&str, &str); 5] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
];
/// Where a kernel shows its memory, and the name for it that runc gives.
const CORE: (&str, &str) = ("core", "/proc/kcore");

/// One node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Node {
    /// Absolute, below `/dev`.
    pub(crate) path: String,
    pub(crate) kind: DeviceKind,
    pub(crate) major: u32,
    pub(crate) minor: u32,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

/// Nodes that every container has on the development command line.
const USUAL: [(&str, u32, u32); 6] = [
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
];
const USUAL_MODE: u32 = 0o666;
/// A file over which the terminal of the first process is mounted.
const CONSOLE: &str = "console";

impl Node {
    /// The node of a lease's rule; none when there is only the rule.
    pub(crate) fn leased(rule: &DeviceRule) -> Option<Self> {
        let (path, mode) = (rule.path.clone(), rule.mode?);
        let DeviceRule { kind, major, minor, .. } = *rule;
        Some(Self { path, kind, major, minor, mode, uid: 0, gid: 0 })
    }

    /// Those of every container.
    pub(crate) fn usual() -> impl Iterator<Item = Self> {
        USUAL.into_iter().map(|(path, major, minor)| Self {
            path: path.to_owned(),
            kind: DeviceKind::Character,
            major,
            minor,
            mode: USUAL_MODE,
            uid: 0,
            gid: 0,
        })
    }

    /// The node that a specification asks for.
    pub(crate) fn wished(device: &Device) -> Self {
        Self {
            path: device.path.clone(),
            kind: if device.kind == "b" { DeviceKind::Block } else { DeviceKind::Character },
            major: device.major,
            minor: device.minor,
            mode: device.file_mode.unwrap_or(USUAL_MODE),
            uid: device.uid.unwrap_or(0),
            gid: device.gid.unwrap_or(0),
        }
    }
}

/// Makes nodes and links, and a place for a console when there is to be one.
pub(crate) fn fill(dev: &OwnedFd, nodes: &[Node], console: bool) -> Result<(), RuntimeError> {
    if console {
        mknodat(dev, CONSOLE, FileType::RegularFile, Mode::RUSR | Mode::WUSR, 0)
            .doing("make a place for the console")?;
    }
    for node in nodes {
        make(dev, node)?;
    }
    let core = Path::new(CORE.1).exists().then_some(CORE);
    for (name, target) in LINKS.into_iter().chain(core) {
        match symlinkat(target, dev, name) {
            // A node of that name was asked for.
            Err(Errno::EXIST) => {}
            made => made.doing(format_args!("make the link /dev/{name}"))?,
        }
    }
    Ok(())
}

fn make(dev: &OwnedFd, node: &Node) -> Result<(), RuntimeError> {
    let path = node.path.as_str();
    let refused = || {
        let detail = format!("{path:?} is no place for a device node");
        RuntimeError::refused(RefusalCode::DeviceNotLeased, detail)
    };
    let name = Path::new(path).strip_prefix("/dev").map_err(|_elsewhere| refused())?;
    let plain = name.components().all(|part| matches!(part, Component::Normal(_)));
    if !plain || name.file_name().is_none() {
        return Err(refused());
    }
    let above: Vec<&Path> = name.ancestors().skip(1).filter(|dir| *dir != Path::new("")).collect();
    for dir in above.into_iter().rev() {
        match mkdirat(dev, dir, DIRECTORY_MODE) {
            Err(Errno::EXIST) => {}
            made => made.doing("make a directory of /dev")?,
        }
    }
    let kind = match node.kind {
        DeviceKind::Character => FileType::CharacterDevice,
        DeviceKind::Block => FileType::BlockDevice,
    };
    let mode = Mode::from_raw_mode(node.mode & 0o777);
    // Asked for by a specification though it is usual: the later one holds.
    match unlinkat(dev, name, AtFlags::empty()) {
        Err(Errno::NOENT) => {}
        removed => removed.doing(format_args!("replace the device node {path}"))?,
    }
    let made = mknodat(dev, name, kind, mode, makedev(node.major, node.minor))
        // Whatever our umask.
        .and_then(|()| chmodat(dev, name, mode, AtFlags::empty()))
        .and_then(|()| {
            let (uid, gid) = (Uid::from_raw(node.uid), Gid::from_raw(node.gid));
            chownat(dev, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
        });
    made.doing(format_args!("make the device node {path}"))
}

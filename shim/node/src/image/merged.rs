//! What a path is in the merged view of a stack of layers, as overlayfs will show it.
//!
//! Needed while a layer is unpacked (a directory that the layer only implies has the attributes of
//! the one below) and afterwards, to see what the image has at `/dev`, `/proc` and `/sys`. Nothing
//! is mounted for it.

use std::os::fd::{AsFd, OwnedFd};

use nimbus_api::Refusal;
use rustix::fs::{self, FileType, Stat};
use rustix::io::Errno;

use super::files::{file_type, lstat, open_dir};
use super::path::components;
use super::refuse::{internal, shown};

/// Where a job's own mounts go; the image may have nothing but a directory there (or nothing).
const MOUNT_POINTS: [&str; 3] = ["dev", "proc", "sys"];
const OPAQUE_XATTR: &str = "trusted.overlay.opaque";

/// Unpacked layers, lowest first.
#[derive(Debug, Default)]
pub(super) struct Stack {
    layers: Vec<OwnedFd>,
}

/// What is at a path.
#[derive(Debug)]
pub(super) enum Found {
    Nothing,
    /// A directory that the path leads through is a symbolic link or a file: here it ends.
    Through,
    /// The directory that it is in, and what it is.
    There(OwnedFd, Box<Stat>),
}

impl Stack {
    pub(super) fn push(&mut self, layer: OwnedFd) {
        self.layers.push(layer);
    }

    /// The root of the topmost layer, whose attributes the merged root has.
    pub(super) fn top(&self) -> Option<&OwnedFd> {
        self.layers.last()
    }

    /// Looks a plain path up, topmost layer first.
    pub(super) fn look_up(&self, path: &[u8]) -> Result<Found, Refusal> {
        for layer in self.layers.iter().rev() {
            let probe = probe(layer, path)
                .map_err(|error| internal(&format!("looking up {}", shown(path)), error))?;
            match probe {
                Probe::Absent => {}
                Probe::Hidden => return Ok(Found::Nothing),
                Probe::Through => return Ok(Found::Through),
                Probe::There(dir, stat) => return Ok(Found::There(dir, stat)),
            }
        }
        Ok(Found::Nothing)
    }

    /// What is wrong with the places where a job's own `/dev`, `/proc` and `/sys` go.
    pub(super) fn hostile_mount_point(&self) -> Result<Option<String>, Refusal> {
        for name in MOUNT_POINTS {
            let Found::There(dir, stat) = self.look_up(name.as_bytes())? else { continue };
            match file_type(&stat) {
                FileType::Directory => {}
                FileType::Symlink => {
                    let target = fs::readlinkat(&dir, name, Vec::new())
                        .map_err(|error| internal("reading a link", error))?;
                    let target = shown(target.as_bytes());
                    return Ok(Some(format!("/{name} is a symbolic link to {target}")));
                }
                FileType::RegularFile
                | FileType::Fifo
                | FileType::Socket
                | FileType::CharacterDevice
                | FileType::BlockDevice
                | FileType::Unknown => return Ok(Some(format!("/{name} is no directory"))),
            }
        }
        Ok(None)
    }
}

enum Probe {
    /// This layer says nothing about the path.
    Absent,
    /// This layer says that there is nothing.
    Hidden,
    Through,
    There(OwnedFd, Box<Stat>),
}

fn probe(layer: &OwnedFd, path: &[u8]) -> Result<Probe, Errno> {
    let mut dir = open_dir(layer, b".")?;
    let mut opaque = false;
    let mut parts = components(path).peekable();
    while let Some(part) = parts.next() {
        let Some(stat) = lstat(&dir, part)? else {
            return Ok(if opaque { Probe::Hidden } else { Probe::Absent });
        };
        if is_whiteout(&stat) {
            return Ok(Probe::Hidden);
        }
        if parts.peek().is_none() {
            return Ok(Probe::There(dir, Box::new(stat)));
        }
        if file_type(&stat) != FileType::Directory {
            return Ok(Probe::Through);
        }
        dir = open_dir(&dir, part)?;
        opaque |= is_opaque(&dir)?;
    }
    Ok(Probe::Absent)
}

/// Overlayfs's "nothing here": a character device 0:0. Layers cannot bring one themselves.
pub(super) fn is_whiteout(stat: &Stat) -> bool {
    file_type(stat) == FileType::CharacterDevice && stat.st_rdev == 0
}

fn is_opaque(dir: impl AsFd) -> Result<bool, Errno> {
    let mut value = [0; 1];
    match fs::fgetxattr(dir, OPAQUE_XATTR, &mut value[..]) {
        Ok(length) => Ok(length == 1 && value == *b"y"),
        Err(Errno::NODATA) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Hides what lower layers have in this directory.
pub(super) fn set_opaque(dir: impl AsFd) -> Result<(), Errno> {
    fs::fsetxattr(dir, OPAQUE_XATTR, b"y", fs::XattrFlags::empty())
}

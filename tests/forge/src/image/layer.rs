//! One layer: a list of tar entries, written as they are asked for.
//!
//! Names and link targets are written raw, so that `../x`, `/x`, empty and doubled names are
//! possible; longer ones than the 100 bytes of a header get a GNU long-name entry. Times are zero,
//! owners are root unless changed.

use std::io::{self, Write as _};

use flate2::{Compression, GzBuilder};
use tar::{EntryType, Header};

use crate::ForgeError;

/// Length of name and link name in a header.
const NAME_BYTES: usize = 100;
/// Length of a tar block.
const BLOCK_BYTES: usize = 512;

/// A kind of device node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Device {
    /// Character device.
    Char,
    /// Block device.
    Block,
}

#[derive(Debug, Clone)]
enum Data {
    Bytes(Vec<u8>),
    /// So many zero bytes: small when packed.
    Zeros(u64),
    /// The header says so many bytes, none follow.
    Missing(u64),
    /// A GNU sparse file: so long, all of it a hole.
    Hole(u64),
}

#[derive(Debug, Clone)]
struct Entry {
    kind: EntryType,
    path: Vec<u8>,
    link: Vec<u8>,
    mode: u32,
    owner: (u64, u64),
    device: Option<(u32, u32)>,
    data: Data,
}

/// A layer.
#[derive(Debug, Clone, Default)]
pub struct Layer {
    entries: Vec<Entry>,
    truncated: bool,
}

impl Layer {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// A directory.
    #[must_use]
    pub fn dir(self, path: &str, mode: u32) -> Self {
        self.push(EntryType::Directory, path, "", mode, Data::Bytes(Vec::new()))
    }

    /// A file.
    #[must_use]
    pub fn file(self, path: &str, mode: u32, content: impl AsRef<[u8]>) -> Self {
        self.push(EntryType::Regular, path, "", mode, Data::Bytes(content.as_ref().to_vec()))
    }

    /// A file of so many zero bytes, which packs to a thousandth.
    #[must_use]
    pub fn zeros(self, path: &str, bytes: u64) -> Self {
        self.push(EntryType::Regular, path, "", 0o644, Data::Zeros(bytes))
    }

    /// A file whose header claims a size that the archive does not hold; put it last.
    #[must_use]
    pub fn claims(self, path: &str, bytes: u64) -> Self {
        self.push(EntryType::Regular, path, "", 0o644, Data::Missing(bytes))
    }

    /// A GNU sparse file of this length that is one hole.
    #[must_use]
    pub fn sparse(self, path: &str, bytes: u64) -> Self {
        self.push(EntryType::GNUSparse, path, "", 0o644, Data::Hole(bytes))
    }

    /// A symlink.
    #[must_use]
    pub fn symlink(self, path: &str, target: &str) -> Self {
        self.push(EntryType::Symlink, path, target, 0o777, Data::Bytes(Vec::new()))
    }

    /// A hard link; the target is a path in the image, or not.
    #[must_use]
    pub fn hardlink(self, path: &str, target: &str) -> Self {
        self.push(EntryType::Link, path, target, 0o644, Data::Bytes(Vec::new()))
    }

    /// A named pipe.
    #[must_use]
    pub fn fifo(self, path: &str) -> Self {
        self.push(EntryType::Fifo, path, "", 0o644, Data::Bytes(Vec::new()))
    }

    /// A device node.
    #[must_use]
    pub fn device(self, path: &str, kind: Device, major: u32, minor: u32) -> Self {
        let kind = match kind {
            Device::Char => EntryType::Char,
            Device::Block => EntryType::Block,
        };
        let mut layer = self.push(kind, path, "", 0o666, Data::Bytes(Vec::new()));
        if let Some(entry) = layer.entries.last_mut() {
            entry.device = Some((major, minor));
        }
        layer
    }

    /// An entry of any type byte, known or not.
    #[must_use]
    pub fn other(self, path: &str, kind: u8) -> Self {
        self.push(EntryType::new(kind), path, "", 0o644, Data::Bytes(Vec::new()))
    }

    /// Removes a path of the layers below.
    #[must_use]
    pub fn whiteout(self, path: &str) -> Self {
        let path = match path.rsplit_once('/') {
            Some((parent, name)) => format!("{parent}/.wh.{name}"),
            None => format!(".wh.{path}"),
        };
        self.file(&path, 0o644, "")
    }

    /// Hides what the layers below have in a directory.
    #[must_use]
    pub fn opaque(self, dir: &str) -> Self {
        self.file(&format!("{dir}/.wh..wh..opq"), 0o644, "")
    }

    /// Owner of the last entry.
    #[must_use]
    pub fn owned(mut self, uid: u64, gid: u64) -> Self {
        if let Some(entry) = self.entries.last_mut() {
            entry.owner = (uid, gid);
        }
        self
    }

    /// Ends the archive in the middle of its last block.
    #[must_use]
    pub const fn truncated(mut self) -> Self {
        self.truncated = true;
        self
    }

    /// The uncompressed archive.
    pub fn tar(&self) -> Result<Vec<u8>, ForgeError> {
        let mut archive = Vec::new();
        for entry in &self.entries {
            write_entry(&mut archive, entry).map_err(ForgeError::io("write", "a layer"))?;
        }
        if self.truncated {
            archive.truncate(archive.len().saturating_sub(BLOCK_BYTES / 2));
        } else {
            archive.resize(archive.len() + 2 * BLOCK_BYTES, 0);
        }
        Ok(archive)
    }

    fn push(mut self, kind: EntryType, path: &str, link: &str, mode: u32, data: Data) -> Self {
        self.entries.push(Entry {
            kind,
            path: path.as_bytes().to_vec(),
            link: link.as_bytes().to_vec(),
            mode,
            owner: (0, 0),
            device: None,
            data,
        });
        self
    }
}

fn write_entry(archive: &mut Vec<u8>, entry: &Entry) -> io::Result<()> {
    write_long(archive, EntryType::GNULongName, &entry.path)?;
    write_long(archive, EntryType::GNULongLink, &entry.link)?;
    let mut header = Header::new_gnu();
    header.set_entry_type(entry.kind);
    header.set_mode(entry.mode);
    header.set_uid(entry.owner.0);
    header.set_gid(entry.owner.1);
    header.set_mtime(0);
    if let Some((major, minor)) = entry.device {
        header.set_device_major(major)?;
        header.set_device_minor(minor)?;
    }
    let (claimed, filler) = match &entry.data {
        Data::Bytes(bytes) => (u64::try_from(bytes.len()).unwrap_or(u64::MAX), 0),
        Data::Zeros(bytes) => (*bytes, *bytes),
        Data::Missing(bytes) => (*bytes, 0),
        Data::Hole(_) => (0, 0),
    };
    header.set_size(claimed);
    {
        let raw = header.as_old_mut();
        copy_name(&mut raw.name, &entry.path);
        copy_name(&mut raw.linkname, &entry.link);
    }
    if let (Data::Hole(bytes), Some(gnu)) = (&entry.data, header.as_gnu_mut()) {
        gnu.set_real_size(*bytes);
        if let Some(chunk) = gnu.sparse.first_mut() {
            chunk.set_offset(*bytes);
            chunk.set_length(0);
        }
    }
    header.set_cksum();
    archive.write_all(header.as_bytes())?;
    if let Data::Bytes(bytes) = &entry.data {
        archive.write_all(bytes)?;
    }
    let filler = usize::try_from(filler).map_err(io::Error::other)?;
    archive.resize(archive.len() + filler, 0);
    archive.resize(archive.len().next_multiple_of(BLOCK_BYTES), 0);
    Ok(())
}

fn write_long(archive: &mut Vec<u8>, kind: EntryType, name: &[u8]) -> io::Result<()> {
    if name.len() <= NAME_BYTES {
        return Ok(());
    }
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(0o644);
    header.set_size(u64::try_from(name.len() + 1).map_err(io::Error::other)?);
    copy_name(&mut header.as_old_mut().name, b"././@LongLink");
    header.set_cksum();
    archive.write_all(header.as_bytes())?;
    archive.write_all(name)?;
    archive.push(0);
    archive.resize(archive.len().next_multiple_of(BLOCK_BYTES), 0);
    Ok(())
}

fn copy_name(field: &mut [u8; NAME_BYTES], name: &[u8]) {
    for (place, byte) in field.iter_mut().zip(name) {
        *place = *byte;
    }
}

/// Packs without a name or a time.
pub(super) fn gzip(tar: &[u8]) -> Result<Vec<u8>, ForgeError> {
    let mut packer = GzBuilder::new().mtime(0).write(Vec::new(), Compression::default());
    packer.write_all(tar).and_then(|()| packer.finish()).map_err(ForgeError::io("pack", "a layer"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_names_are_written_as_they_are() {
        let long = "d/".repeat(80) + "x";
        let tar = Layer::new()
            .file("../../etc/passwd", 0o644, "root")
            .symlink("/abs", "../../..")
            .file(&long, 0o644, "deep")
            .device("dev/sda", Device::Block, 8, 0)
            .tar()
            .unwrap();
        let mut archive = tar::Archive::new(tar.as_slice());
        let names: Vec<_> = archive
            .entries()
            .unwrap()
            .map(|entry| String::from_utf8(entry.unwrap().path_bytes().to_vec()).unwrap())
            .collect();
        assert_eq!(names, ["../../etc/passwd", "/abs", long.as_str(), "dev/sda"]);
    }

    #[test]
    fn a_claimed_size_is_not_there() {
        let tar = Layer::new().claims("big", 1 << 40).tar().unwrap();
        let mut archive = tar::Archive::new(tar.as_slice());
        let entry = archive.entries().unwrap().next().unwrap().unwrap();
        assert_eq!(entry.size(), 1 << 40);
        assert!(tar.len() < 4096);
    }

    #[test]
    fn a_hole_is_long_without_data() {
        let tar = Layer::new().sparse("hole", 1 << 40).tar().unwrap();
        let mut archive = tar::Archive::new(tar.as_slice());
        let entry = archive.entries().unwrap().next().unwrap().unwrap();
        assert_eq!(entry.size(), 1 << 40);
    }
}

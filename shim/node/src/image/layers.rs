//! Unpacked layers on disk: made whole or not at all, and looked at again before every use.
//!
//! `layers/<unpacker version>/<chain id>/` holds `fs/`, the layer's tree, and `layer.json`, which
//! says what it is. A layer is kept by OCI chain id (the diff ids up to and including it) and not
//! by its diff id alone, because what a layer means depends on those below it: directories that it
//! only implies, and whiteouts.
//!
//! Work is done in `tmp/` and renamed into place after everything is on disk; what a crash leaves
//! there is removed when the store is opened.
//!
//! Looked at again: that the directories are root's own and 0700, nothing is mounted there, and the
//! tree's root has the inode and the change time that it had when it was finished. So a layer that
//! was replaced, restored from elsewhere, or changed at its top is noticed. A file changed deeper
//! inside is not: whoever can do that is root on this host, against whom a plain directory store
//! has no defence.

use std::os::fd::{AsFd, OwnedFd};

use nimbus_api::strict_json::{self, Limits};
use nimbus_api::{Digest, Refusal};
use rustix::fs::{self, AtFlags, Stat};
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};
use serde::{Deserialize, Serialize};

use super::files::{self, expect_private, lstat, open_dir, private_dir};
use super::refuse::{internal, tampered};

/// Raised when unpacking comes to mean something else; part of every rootfs digest.
pub const UNPACKER_VERSION: &str = "v2";
const LAYERS_DIR: &str = "layers";
const TREE_DIR: &str = "fs";
const MARKER: &str = "layer.json";
const MARKER_BYTES_MAX: u64 = 4096;

/// What `layer.json` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Marker {
    pub(super) chain_id: Digest,
    pub(super) diff_id: Digest,
    /// Uncompressed.
    pub(super) bytes: u64,
    pub(super) entries: u64,
    inode: u64,
    ctime_seconds: i64,
    ctime_nanos: u64,
}

/// Where unpacked layers are.
#[derive(Debug)]
pub(super) struct Layers {
    dir: OwnedFd,
}

/// A layer being made, in `tmp/`; gone when dropped before it is kept.
#[derive(Debug)]
pub(super) struct HalfMade<'a> {
    scratch: &'a OwnedFd,
    name: String,
    depth: usize,
    dir: OwnedFd,
    kept: bool,
}

impl Layers {
    pub(super) fn open(store: impl AsFd) -> Result<Self, Errno> {
        let all = private_dir(store, LAYERS_DIR)?;
        Ok(Self { dir: private_dir(&all, UNPACKER_VERSION)? })
    }

    /// Reads a layer's marker and checks the layer against it; none when there is no such layer.
    pub(super) fn find(&self, chain_id: &Digest) -> Result<Option<Marker>, Refusal> {
        let dir = match open_dir(&self.dir, chain_id.hex().as_bytes()) {
            Ok(dir) => dir,
            Err(Errno::NOENT) => return Ok(None),
            Err(error) => return Err(tampered(format!("layer {chain_id}: {error}"))),
        };
        let text = files::read(&dir, MARKER, MARKER_BYTES_MAX)?
            .ok_or_else(|| tampered(format!("layer {chain_id} has lost its marker")))?;
        let limits = Limits::bytes(usize::try_from(MARKER_BYTES_MAX).unwrap_or(usize::MAX));
        let marker: Marker = strict_json::parse(&text, limits)
            .map_err(|_damaged| tampered(format!("layer {chain_id} has a damaged marker")))?;
        if marker.chain_id != *chain_id {
            return Err(tampered(format!("layer {chain_id} says it is {}", marker.chain_id)));
        }
        check(&dir, &marker)?;
        Ok(Some(marker))
    }

    /// Opens a layer's tree after checking it.
    pub(super) fn tree(&self, marker: &Marker) -> Result<OwnedFd, Refusal> {
        let dir = open_dir(&self.dir, marker.chain_id.hex().as_bytes())
            .map_err(|error| tampered(format!("layer {}: {error}", marker.chain_id)))?;
        check(&dir, marker)
    }

    /// A mount of its own of a layer's tree, attached nowhere.
    pub(super) fn mount(&self, marker: &Marker) -> Result<OwnedFd, Refusal> {
        let tree = self.tree(marker)?;
        let flags = OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_EMPTY_PATH;
        open_tree(&tree, "", flags).map_err(|error| internal("cloning a layer's mount", error))
    }

    /// Puts a finished layer on disk and in its place.
    pub(super) fn keep(
        &self,
        mut made: HalfMade<'_>,
        ids: (Digest, Digest),
        size: (u64, u64),
    ) -> Result<Marker, Refusal> {
        let failed = |error: Errno| internal("keeping a layer", error);
        let ((chain_id, diff_id), (bytes, entries)) = (ids, size);
        let stat = lstat(&made.dir, TREE_DIR.as_bytes())
            .map_err(failed)?
            .ok_or_else(|| internal("keeping a layer", Errno::NOENT))?;
        let (ctime_seconds, ctime_nanos) = changed(&stat);
        let marker = Marker {
            chain_id,
            diff_id,
            bytes,
            entries,
            inode: stat.st_ino,
            ctime_seconds,
            ctime_nanos,
        };
        let text = serde_json::to_vec(&marker).unwrap_or_default();
        files::write_atomically(made.scratch, &made.dir, MARKER, &text)?;
        // One sync of the file system instead of one of each file.
        fs::syncfs(&made.dir).map_err(failed)?;
        match fs::renameat(made.scratch, &made.name, &self.dir, chain_id.hex()) {
            // Somebody made it from another blob of the same content meanwhile.
            Err(Errno::EXIST | Errno::NOTEMPTY) => {
                made.discard()?;
                let lost = || tampered(format!("layer {chain_id} has gone"));
                return self.find(&chain_id)?.ok_or_else(lost);
            }
            renamed => renamed.map_err(failed)?,
        }
        made.kept = true;
        fs::fsync(&self.dir).map_err(failed)?;
        Ok(marker)
    }
}

impl<'a> HalfMade<'a> {
    /// Starts a layer in `scratch`, which is on the same file system as the layers.
    pub(super) fn begin(scratch: &'a OwnedFd, depth: usize) -> Result<Self, Refusal> {
        let name = files::temporary_name();
        let made = private_dir(scratch, &name).and_then(|dir| {
            drop(private_dir(&dir, TREE_DIR)?);
            Ok(dir)
        });
        let dir = made.map_err(|error| internal("starting a layer", error))?;
        Ok(Self { scratch, name, depth, dir, kept: false })
    }

    /// The empty tree.
    pub(super) fn tree(&self) -> Result<OwnedFd, Refusal> {
        open_dir(&self.dir, TREE_DIR.as_bytes()).map_err(|error| internal("opening a layer", error))
    }

    /// Throws it away, and says when that fails.
    pub(super) fn discard(mut self) -> Result<(), Refusal> {
        self.kept = true;
        self.remove().map_err(|error| internal("removing a layer", error))
    }

    fn remove(&self) -> Result<(), Errno> {
        // Its own directory, the tree's root, and what is inside.
        super::tree::remove(self.scratch, self.name.as_bytes(), self.depth + 2)
    }
}

impl Drop for HalfMade<'_> {
    fn drop(&mut self) {
        if !self.kept
            && let Err(error) = self.remove()
        {
            tracing::warn!(%error, name = self.name, "cannot remove a half-made layer");
        }
    }
}

/// Compares a layer with its marker; its tree, opened.
fn check(dir: &OwnedFd, marker: &Marker) -> Result<OwnedFd, Refusal> {
    let chain_id = &marker.chain_id;
    let failed = |error: Errno| tampered(format!("layer {chain_id}: {error}"));
    expect_private(&fs::fstat(dir).map_err(failed)?, &format!("layer {chain_id}"))?;
    let tree = open_dir(dir, TREE_DIR.as_bytes()).map_err(failed)?;
    let stat = fs::fstat(&tree).map_err(failed)?;
    let found = (stat.st_ino, changed(&stat));
    if found != (marker.inode, (marker.ctime_seconds, marker.ctime_nanos)) {
        return Err(tampered(format!("layer {chain_id} was changed since it was unpacked")));
    }
    Ok(tree)
}

fn changed(stat: &Stat) -> (i64, u64) {
    (stat.st_ctime, stat.st_ctime_nsec)
}

/// OCI chain ids of a stack of diff ids, lowest first.
pub(super) fn chain_ids(diff_ids: &[Digest]) -> Vec<Digest> {
    let mut chain: Vec<Digest> = Vec::new();
    for diff_id in diff_ids {
        let next = match chain.last() {
            None => *diff_id,
            Some(below) => Digest::of(format!("{below} {diff_id}").as_bytes()),
        };
        chain.push(next);
    }
    chain
}

/// What "the rootfs" means in a receipt: SHA-256 of
/// `nimbus-rootfs-v1\n<unpacker version>\n<diff ids, lowest first, one a line>\n`.
pub(super) fn rootfs_digest(diff_ids: &[Digest]) -> Digest {
    let mut text = format!("nimbus-rootfs-v1\n{UNPACKER_VERSION}\n");
    for diff_id in diff_ids {
        text.push_str(&diff_id.to_string());
        text.push('\n');
    }
    Digest::of(text.as_bytes())
}

/// Removes everything in a directory of the store.
pub(super) fn empty(dir: &OwnedFd, depth: usize) -> Result<(), Errno> {
    for entry in fs::Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if matches!(name, b"." | b"..") {
            continue;
        }
        match fs::unlinkat(dir, name, AtFlags::empty()) {
            Ok(()) => {}
            Err(Errno::ISDIR) => super::tree::remove(dir, name, depth + 2)?,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chain_ids_and_rootfs_digest_are_those_of_the_documents() {
        let (a, b) = (Digest::of(b"a"), Digest::of(b"b"));
        assert_eq!(chain_ids(&[a, b]), [a, Digest::of(format!("{a} {b}").as_bytes())]);
        let text = format!("nimbus-rootfs-v1\nv2\n{a}\n{b}\n");
        assert_eq!(rootfs_digest(&[a, b]), Digest::of(text.as_bytes()));
        assert_ne!(rootfs_digest(&[a, b]), rootfs_digest(&[b, a]));
    }
}

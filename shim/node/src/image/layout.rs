//! OCI image layouts on this machine, below the directories that the node's configuration names, and
//! containerd's content store, which has its blobs in the same places.
//!
//! The part of a path below the configured root is resolved without symbolic links, and blobs are
//! read from `blobs/sha256/` only; `index.json` is not looked at, because the digest comes with the
//! request.

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use nimbus_api::error::Chain;
use nimbus_api::strict_json::{self, Limits};
use nimbus_api::{Digest, Refusal};
use rustix::fs::{self, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use serde::Deserialize;

use super::fetch::{Sink, Transport, TransportError, Wanted};
use super::files::{OPEN_DIR, file_type};
use super::limits::Deadline;
use super::refuse::{internal, malformed, unfetched};

const LAYOUT_FILE: &str = "oci-layout";
const LAYOUT_FILE_BYTES_MAX: u64 = 4096;
const LAYOUT_VERSION: &str = "1.0.0";
const COPY_BYTES: usize = 256 << 10;
/// A layout may be a mount below its root, so other file systems are let in here.
const INSIDE: ResolveFlags =
    ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS);

/// An open layout.
#[derive(Debug)]
pub(super) struct Layout {
    dir: OwnedFd,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct LayoutFile {
    image_layout_version: String,
}

impl Layout {
    pub(super) fn open(path: &Path, roots: &[PathBuf]) -> Result<Self, Refusal> {
        let (root, rest) =
            roots.iter().find_map(|root| Some((root, path.strip_prefix(root).ok()?))).ok_or_else(
                || unfetched(format!("{} is not below a layout root of this node", path.display())),
            )?;
        let unopened = |error: Errno| unfetched(format!("opening {}: {error}", path.display()));
        let root_flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = fs::open(root, root_flags, Mode::empty()).map_err(unopened)?;
        let dir = if rest.as_os_str().is_empty() {
            root
        } else {
            fs::openat2(&root, rest, OPEN_DIR, Mode::empty(), INSIDE).map_err(unopened)?
        };
        let layout = Self { dir };
        layout.check_version()?;
        Ok(layout)
    }

    /// containerd's content store, which has its blobs where a layout has them and no version. Its path
    /// is the administrator's.
    pub(super) fn of_content(path: &Path) -> Result<Self, Refusal> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let unopened = |error: Errno| unfetched(format!("opening {}: {error}", path.display()));
        Ok(Self { dir: fs::open(path, flags, Mode::empty()).map_err(unopened)? })
    }

    fn check_version(&self) -> Result<(), Refusal> {
        let mut text = Vec::new();
        self.open_file(LAYOUT_FILE)?
            .take(LAYOUT_FILE_BYTES_MAX + 1)
            .read_to_end(&mut text)
            .map_err(|error| unfetched(format!("reading {LAYOUT_FILE}: {error}")))?;
        let limits = Limits::bytes(usize::try_from(LAYOUT_FILE_BYTES_MAX).unwrap_or(usize::MAX));
        let file: LayoutFile = strict_json::parse(&text, limits)
            .map_err(|error| malformed(format!("{LAYOUT_FILE}: {}", Chain(&error))))?;
        if file.image_layout_version != LAYOUT_VERSION {
            return Err(malformed(format!("layout version {:?}", file.image_layout_version)));
        }
        Ok(())
    }

    fn open_file(&self, path: &str) -> Result<File, Refusal> {
        // A fifo in place of the file would otherwise hold this thread for ever.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let fd = fs::openat2(&self.dir, path, flags, Mode::empty(), INSIDE)
            .map_err(|error| unfetched(format!("opening {path} of the layout: {error}")))?;
        let stat = fs::fstat(&fd).map_err(|error| internal("reading a layout", error))?;
        if file_type(&stat) != FileType::RegularFile {
            return Err(unfetched(format!("{path} of the layout is no file")));
        }
        Ok(File::from(fd))
    }
}

impl Transport for Layout {
    fn get(
        &mut self,
        _wanted: Wanted,
        digest: &Digest,
        sink: &mut dyn Sink,
        deadline: &Deadline,
    ) -> Result<(), TransportError> {
        let mut file = self.open_file(&format!("blobs/sha256/{}", digest.hex()))?;
        let mut buffer = vec![0; COPY_BYTES];
        loop {
            deadline.check()?;
            let read = file
                .read(&mut buffer)
                .map_err(|error| unfetched(format!("reading {digest}: {error}")))?;
            match buffer.get(..read) {
                None | Some([]) => return Ok(()),
                Some(bytes) => sink.push(bytes)?,
            }
        }
    }
}

//! A layer's tar as a sequence of checked entries.
//!
//! The `tar` crate only cuts the stream into headers and data (raw iteration: it resolves nothing
//! and never touches a file system). What a header means is decided here, and wherever readers of
//! tar are known to differ (sizes on links, two names, sparse files, a global header, data behind
//! the end) the layer is refused instead of one reading being picked.
//!
//! Absent: sparse files, device nodes, files over [`super::limits::FILE_BYTES_MAX`].

use std::cell::Cell;
use std::io::{self, Read};

use nimbus_api::Refusal;
use tar::{EntryType, Header};

use super::limits::ImageLimits;
use super::path::{EntryName, LayerPath};
use super::pax::{Mtime, Pax, Xattr};
use super::refuse::{hostile, malformed, read_failed, shown, too_large};

/// Longest target of a symbolic link.
const LINK_BYTES_MAX: usize = 4095;
/// Owners from here on are refused: some runtimes read them as negative, some as root.
const OWNER_LIMIT: u64 = 1 << 31;
/// Permission bits with set-user-id, set-group-id and sticky.
pub(super) const MODE_BITS: u32 = 0o7777;

/// One checked entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) path: LayerPath,
    pub(super) kind: EntryKind,
    pub(super) attributes: Attributes,
}

/// What an entry makes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum EntryKind {
    Directory,
    File {
        size: u64,
    },
    Symlink {
        target: Vec<u8>,
    },
    HardLink {
        target: LayerPath,
    },
    Fifo,
    /// `path` of lower layers is gone.
    Whiteout,
    /// What lower layers have in `path` is gone.
    Opaque,
}

/// Owner, mode, time and extended attributes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Attributes {
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mode: u32,
    pub(super) mtime: Mtime,
    /// Only `user.*`.
    pub(super) xattrs: Vec<Xattr>,
}

/// What came before an entry and belongs to it.
#[derive(Debug, Default)]
struct Extensions {
    pax: Option<Pax>,
    long_path: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
}

impl Extensions {
    fn is_empty(&self) -> bool {
        self.pax.is_none() && self.long_path.is_none() && self.long_link.is_none()
    }
}

/// Calls `each` for every entry with a reader of exactly its data; then reads the stream to its end.
pub(super) fn read_entries<R: Read>(
    stream: R,
    limits: &ImageLimits,
    mut each: impl FnMut(Entry, &mut dyn Read) -> Result<(), Refusal>,
) -> Result<(), Refusal> {
    let failed = |error| read_failed("reading a layer", error);
    let past_end = Cell::new(false);
    let mut archive = tar::Archive::new(Padded { stream, bytes: 0, past_end: &past_end });
    let mut extensions = Extensions::default();
    let mut names_left = limits.names_bytes;
    for raw in archive.entries().map_err(failed)?.raw(true) {
        let mut raw = raw.map_err(failed)?;
        let header = raw.header().clone();
        if take_extension(&header, &mut raw, &mut extensions, limits)? {
            continue;
        }
        let entry = checked(&header, std::mem::take(&mut extensions), limits)?;
        names_left = names_left
            .checked_sub(names_bytes(&entry))
            .ok_or_else(|| too_large("the names in a layer are too long altogether"))?;
        let shown = entry.path.shown();
        each(entry, &mut raw)?;
        if past_end.get() {
            return Err(malformed(format!("a layer ends inside {shown}")));
        }
    }
    if !extensions.is_empty() {
        return Err(malformed("a layer ends after an extended header"));
    }
    expect_zeros(archive.into_inner()).map_err(failed)
}

/// Fills the last block up with zeros: umoci and others leave out what follows the last byte of
/// the last file, and every unpacker takes it.
struct Padded<'a, R> {
    stream: R,
    bytes: u64,
    /// Zeros were handed out that the stream does not have.
    past_end: &'a Cell<bool>,
}

impl<R: Read> Read for Padded<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        const BLOCK_BYTES: u64 = 512;
        let mut read = self.stream.read(buffer)?;
        if read == 0 && !buffer.is_empty() {
            let missing = self.bytes.next_multiple_of(BLOCK_BYTES) - self.bytes;
            read = buffer.len().min(usize::try_from(missing).unwrap_or(0));
            buffer.iter_mut().take(read).for_each(|byte| *byte = 0);
            self.past_end.set(self.past_end.get() || read > 0);
        }
        self.bytes = self.bytes.saturating_add(u64::try_from(read).unwrap_or(0));
        Ok(read)
    }
}

fn names_bytes(entry: &Entry) -> u64 {
    let link = match &entry.kind {
        EntryKind::Symlink { target } => target.len(),
        EntryKind::HardLink { target } => target.as_bytes().len(),
        EntryKind::Directory
        | EntryKind::File { .. }
        | EntryKind::Fifo
        | EntryKind::Whiteout
        | EntryKind::Opaque => 0,
    };
    u64::try_from(entry.path.as_bytes().len() + link).unwrap_or(u64::MAX)
}

/// Reads a header that is about the next entry; false when this is an entry itself.
fn take_extension(
    header: &Header,
    data: &mut impl Read,
    extensions: &mut Extensions,
    limits: &ImageLimits,
) -> Result<bool, Refusal> {
    let kind = header.entry_type();
    let is_extension = kind.is_pax_local_extensions()
        || kind.is_pax_global_extensions()
        || kind.is_gnu_longname()
        || kind.is_gnu_longlink();
    if !is_extension {
        return Ok(false);
    }
    let body = extension_body(header, data, limits)?;
    if kind.is_pax_global_extensions() {
        if !extensions.is_empty() {
            return Err(hostile("a global header between an entry and its own"));
        }
        Pax::check_global(&body)?;
        return Ok(true);
    }
    let twice = if kind.is_pax_local_extensions() {
        extensions.pax.replace(Pax::parse(&body, limits)?).is_some()
    } else if kind.is_gnu_longname() {
        extensions.long_path.replace(until_nul(body)).is_some()
    } else {
        extensions.long_link.replace(until_nul(body)).is_some()
    };
    if twice {
        return Err(hostile("an entry with two extended headers of one kind"));
    }
    Ok(true)
}

fn extension_body(
    header: &Header,
    data: &mut impl Read,
    limits: &ImageLimits,
) -> Result<Vec<u8>, Refusal> {
    let size = header.entry_size().map_err(|e| read_failed("reading a size", e))?;
    if size > limits.extension_bytes {
        return Err(too_large(format!(
            "an extended header of {size} bytes, at most {} are allowed",
            limits.extension_bytes
        )));
    }
    let mut body = Vec::new();
    let read = data.read_to_end(&mut body).map_err(|e| read_failed("reading a header", e))?;
    if u64::try_from(read).ok() != Some(size) {
        return Err(malformed("a layer ends inside an extended header"));
    }
    Ok(body)
}

/// A GNU long name ends at its first NUL; what follows is padding.
fn until_nul(mut name: Vec<u8>) -> Vec<u8> {
    if let Some(end) = name.iter().position(|b| *b == 0) {
        name.truncate(end);
    }
    name
}

fn checked(header: &Header, ext: Extensions, limits: &ImageLimits) -> Result<Entry, Refusal> {
    let pax = ext.pax.unwrap_or_default();
    let raw_path = one_of(pax.path, ext.long_path)?.unwrap_or_else(|| header.path_bytes().to_vec());
    let raw_link = one_of(pax.link, ext.long_link)?
        .or_else(|| header.link_name_bytes().map(|link| link.to_vec()))
        .unwrap_or_default();
    let attributes = Attributes {
        uid: owner(pax.uid, header.uid(), &raw_path)?,
        gid: owner(pax.gid, header.gid(), &raw_path)?,
        mode: header.mode().map_err(|e| read_failed("reading a mode", e))? & MODE_BITS,
        mtime: match pax.mtime {
            Some(mtime) => mtime,
            None => header_mtime(header)?,
        },
        xattrs: kept_xattrs(pax.xattrs, &raw_path)?,
    };
    let size = size(header, pax.size, limits)?;
    let path = LayerPath::parse(&raw_path, limits)?;
    let (path, kind) = match path.classify()? {
        EntryName::Plain(path) => {
            let kind = kind(header.entry_type(), size, &raw_path, &raw_link, limits)?;
            (path, kind)
        }
        EntryName::Whiteout(path) => (path, EntryKind::Whiteout),
        EntryName::Opaque(path) => (path, EntryKind::Opaque),
    };
    let marker = matches!(kind, EntryKind::Whiteout | EntryKind::Opaque);
    if marker && (!header.entry_type().is_file() || size != 0) {
        return Err(hostile(format!("a whiteout that is no empty file: {}", path.shown())));
    }
    if path.is_root() && !matches!(kind, EntryKind::Directory | EntryKind::Opaque) {
        return Err(hostile("the layer's root is no directory"));
    }
    Ok(Entry { path, kind, attributes })
}

fn kind(
    kind: EntryType,
    size: u64,
    raw_path: &[u8],
    raw_link: &[u8],
    limits: &ImageLimits,
) -> Result<EntryKind, Refusal> {
    let refuse = |what: &str| Err(hostile(format!("{what}: {}", shown(raw_path))));
    if size != 0 && !matches!(kind, EntryType::Regular | EntryType::Continuous) {
        return refuse("an entry with data that is no file");
    }
    match kind {
        EntryType::Regular | EntryType::Continuous => {
            if raw_path.ends_with(b"/") {
                return refuse("a file whose name ends in a slash");
            }
            Ok(EntryKind::File { size })
        }
        EntryType::Directory => Ok(EntryKind::Directory),
        EntryType::Symlink => {
            if raw_link.is_empty() || raw_link.contains(&0) || raw_link.len() > LINK_BYTES_MAX {
                return refuse("a symbolic link whose target is empty, too long or has a NUL");
            }
            Ok(EntryKind::Symlink { target: raw_link.to_vec() })
        }
        EntryType::Link => Ok(EntryKind::HardLink { target: LayerPath::parse(raw_link, limits)? }),
        EntryType::Fifo => Ok(EntryKind::Fifo),
        EntryType::Char | EntryType::Block => refuse("a device node"),
        EntryType::GNUSparse => refuse("a sparse file; sparse archives are not read"),
        EntryType::XHeader
        | EntryType::XGlobalHeader
        | EntryType::GNULongName
        | EntryType::GNULongLink => refuse("an extended header out of place"),
        other => refuse(&format!("an entry of unknown type {:#04x}", other.as_byte())),
    }
}

/// Two encodings of one name must agree.
fn one_of(pax: Option<Vec<u8>>, gnu: Option<Vec<u8>>) -> Result<Option<Vec<u8>>, Refusal> {
    match (pax, gnu) {
        (Some(_), Some(_)) => Err(hostile("an entry with a PAX and a GNU name")),
        (pax, gnu) => Ok(pax.or(gnu)),
    }
}

fn owner(pax: Option<u64>, header: io::Result<u64>, raw_path: &[u8]) -> Result<u32, Refusal> {
    let id = match pax {
        Some(id) => id,
        None => header.map_err(|e| read_failed("reading an owner", e))?,
    };
    if id >= OWNER_LIMIT {
        return Err(hostile(format!("owner {id} of {}", shown(raw_path))));
    }
    u32::try_from(id).map_err(|_too_big| hostile("an owner out of range"))
}

fn size(header: &Header, pax: Option<u64>, limits: &ImageLimits) -> Result<u64, Refusal> {
    let plain = header.entry_size().map_err(|e| read_failed("reading a size", e))?;
    let size = pax.unwrap_or(plain);
    if size > limits.file_bytes {
        return Err(too_large(format!("a file of {size} bytes")));
    }
    if size != plain {
        // The stream was cut by the plain field; here a reader that looks at the other one would
        // find other entries.
        return Err(hostile("an entry with two sizes"));
    }
    Ok(size)
}

fn header_mtime(header: &Header) -> Result<Mtime, Refusal> {
    let seconds = header.mtime().map_err(|e| read_failed("reading a time", e))?;
    // Before 1970 in the binary encoding; nobody needs it, and 1970 is closer than the far future.
    Ok(Mtime { seconds: i64::try_from(seconds).unwrap_or(0), nanos: 0 })
}

/// Keeps `user.*`. What would steer the overlay is refused; file capabilities, ACLs and labels are
/// dropped: a job runs with no_new_privs, where file capabilities give nothing, and labels and ids
/// of the builder's machine mean nothing here.
fn kept_xattrs(xattrs: Vec<Xattr>, raw_path: &[u8]) -> Result<Vec<Xattr>, Refusal> {
    const NAME_BYTES_MAX: usize = 255;
    let mut kept = Vec::new();
    for (name, value) in xattrs {
        let steers = name.starts_with(b"trusted.") || name.starts_with(b"user.overlay.");
        if steers || name.contains(&0) || name.len() > NAME_BYTES_MAX {
            return Err(hostile(format!(
                "extended attribute {} on {}",
                shown(&name),
                shown(raw_path)
            )));
        }
        if name.starts_with(b"user.") {
            kept.push((name, value));
        }
    }
    Ok(kept)
}

/// Reads to the end, so that the hash covers every byte, and refuses anything but padding.
fn expect_zeros(mut stream: impl Read) -> io::Result<()> {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let read = match stream.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        if buffer.iter().take(read).any(|b| *b != 0) {
            return Err(io::Error::other(hostile("data behind the end of the archive")));
        }
    }
}

//! The spool: events for control, durable before what they report counts, delivered in order until
//! acknowledged.
//!
//! Sequence numbers go from 1 without gaps for as long as the data directory lives. On disk: segments
//! `<first sequence number>.spool` of records (length, first 8 bytes of SHA-256, protobuf), and
//! `acked`. One record is written at a time and synced before the call returns, so a crash tears at
//! most the last record of the last segment; that is cut off when the spool is opened. Damage anywhere
//! else is an error: an acknowledged-to-nobody event would be lost.
//!
//! Limits: past [`SPOOL_BYTES_SOFT`] of unacknowledged events new grants are refused while running
//! work still reports; a record is at most [`RECORD_BYTES_MAX`].

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use nimbus_api::Digest;
use nimbus_api::proto::node::v1::Event;
use nimbus_api::proto::node::v1::event::Kind;
use prost::Message as _;
use tokio::sync::Notify;

use crate::files::{self, FileError};

/// Unacknowledged bytes from which on no new grant is taken.
pub const SPOOL_BYTES_SOFT: usize = 32 << 20;
/// Longest record.
pub const RECORD_BYTES_MAX: usize = 1 << 20;
/// A segment that has grown beyond this is closed.
pub const SEGMENT_BYTES_MAX: u64 = 1 << 20;
const SEGMENT_READ_MAX: usize = 4 << 20;
const HEADER_BYTES: usize = 12;
const SUFFIX: &str = ".spool";

/// Why the spool cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    /// A file.
    #[error("cannot use the spool's files")]
    File(#[from] FileError),
    /// A record is damaged in a way that no crash explains.
    #[error("spool segment {segment:?} is damaged at byte {at}")]
    Damaged {
        /// Which file.
        segment: PathBuf,
        /// Where.
        at: usize,
    },
    /// An event that is too long.
    #[error("event of {found} bytes, at most {RECORD_BYTES_MAX} are kept")]
    TooLarge {
        /// Its bytes.
        found: usize,
    },
    /// There is no segment to write to.
    #[error("the spool has no segment")]
    NoSegment,
}

/// The spool.
#[derive(Debug)]
pub struct Spool {
    dir: PathBuf,
    inner: Mutex<Inner>,
    changed: Notify,
}

#[derive(Debug)]
struct Inner {
    /// The segment that is written.
    open: Segment,
    /// A write failed: what follows the segment's whole records must go before the next.
    torn: bool,
    /// First sequence numbers of all segments, lowest first.
    segments: VecDeque<u64>,
    next: u64,
    acked: u64,
    pending: VecDeque<(Event, usize)>,
    bytes: usize,
}

#[derive(Debug)]
struct Segment {
    file: File,
    path: PathBuf,
    bytes: u64,
}

impl Segment {
    /// Adds a record, durable when this returns.
    fn write(&mut self, record: &[u8]) -> Result<(), SpoolError> {
        let written = self.file.write_all(record).and_then(|()| self.file.sync_data());
        written.map_err(|error| FileError::new("append to", &self.path, error))?;
        self.bytes = self.bytes.saturating_add(u64::try_from(record.len()).unwrap_or(0));
        Ok(())
    }

    /// Removes what a failed write left.
    fn cut(&self) -> Result<(), SpoolError> {
        let cut = self.file.set_len(self.bytes).and_then(|()| self.file.sync_all());
        Ok(cut.map_err(|error| FileError::new("cut", &self.path, error))?)
    }
}

impl Spool {
    /// Opens it and cuts off what a crash tore.
    pub fn open(dir: &Path) -> Result<Self, SpoolError> {
        files::ensure_dir(dir)?;
        let acked = read_acked(dir)?;
        let mut segments = list(dir)?;
        if segments.is_empty() {
            let first = acked.saturating_add(1);
            create_segment(dir, first)?;
            segments.push_back(first);
        }
        let mut next = segments.front().copied().unwrap_or(1);
        let mut pending = VecDeque::new();
        let mut open = None;
        for (index, first) in segments.iter().enumerate() {
            let path = segment_path(dir, *first);
            let last = index + 1 == segments.len();
            let bytes = files::read_bounded(&path, SEGMENT_READ_MAX)?.unwrap_or_default();
            let read = read_records(&bytes, next);
            if *first != next || !(read.whole || (last && read.torn)) {
                return Err(SpoolError::Damaged { segment: path, at: read.good });
            }
            next = read.next;
            pending.extend(read.events.into_iter().filter(|(event, _)| event.seq > acked));
            if last {
                open = Some(open_segment(path, read.good)?);
            }
        }
        let bytes = pending.iter().map(|(_, bytes)| bytes).sum();
        let open = open.ok_or(SpoolError::NoSegment)?;
        let inner = Inner { open, torn: false, segments, next, acked, pending, bytes };
        Ok(Self { dir: dir.to_owned(), inner: Mutex::new(inner), changed: Notify::new() })
    }

    /// Takes an event; its sequence number is set here. Durable when this returns.
    pub fn append(&self, mut event: Event) -> Result<u64, SpoolError> {
        let mut inner = self.lock();
        event.seq = inner.next;
        let record = encode(&event)?;
        if inner.torn {
            inner.open.cut()?;
            inner.torn = false;
        }
        let seq = inner.next;
        if inner.open.bytes > SEGMENT_BYTES_MAX {
            create_segment(&self.dir, seq)?;
            inner.open = open_segment(segment_path(&self.dir, seq), 0)?;
            inner.segments.push_back(seq);
        }
        if let Err(error) = inner.open.write(&record) {
            inner.torn = true;
            return Err(error);
        }
        inner.next = seq.saturating_add(1);
        inner.bytes = inner.bytes.saturating_add(record.len());
        inner.pending.push_back((event, record.len()));
        drop(inner);
        self.changed.notify_waiters();
        Ok(seq)
    }

    /// Control has everything up to and including `seq`.
    pub fn acknowledge(&self, seq: u64) -> Result<(), SpoolError> {
        let mut inner = self.lock();
        let seq = seq.min(inner.next.saturating_sub(1));
        if seq <= inner.acked {
            return Ok(());
        }
        files::write_durable(&self.dir.join("acked"), seq.to_string().as_bytes())?;
        inner.acked = seq;
        while inner.pending.front().is_some_and(|(event, _)| event.seq <= seq) {
            let gone = inner.pending.pop_front().map_or(0, |(_, bytes)| bytes);
            inner.bytes = inner.bytes.saturating_sub(gone);
        }
        while inner.segments.get(1).is_some_and(|next| *next <= seq.saturating_add(1)) {
            let Some(first) = inner.segments.pop_front() else { break };
            files::remove(&segment_path(&self.dir, first))?;
        }
        Ok(())
    }

    /// The first unacknowledged event after `seq`.
    pub fn after(&self, seq: u64) -> Option<Event> {
        let inner = self.lock();
        let index = inner.pending.partition_point(|(event, _)| event.seq <= seq);
        inner.pending.get(index).map(|(event, _)| event.clone())
    }

    /// Whether so much waits that no new work may be taken.
    pub fn is_full(&self) -> bool {
        let inner = self.lock();
        inner.bytes > SPOOL_BYTES_SOFT || inner.torn
    }

    /// How many events wait.
    pub fn waiting(&self) -> usize {
        self.lock().pending.len()
    }

    /// The highest acknowledged sequence number.
    pub fn acked(&self) -> u64 {
        self.lock().acked
    }

    /// Whether an event of a lease waits, of the end or of the start.
    pub fn holds(&self, lease_id: &str, end: bool) -> bool {
        self.lock().pending.iter().any(|(event, _)| {
            event.lease_id == lease_id && matches!(event.kind, Some(Kind::Finished(_))) == end
        })
    }

    /// Completes after the next append; ask before looking, so that nothing is missed.
    pub fn changed(&self) -> tokio::sync::futures::Notified<'_> {
        self.changed.notified()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Records {
    events: Vec<(Event, usize)>,
    next: u64,
    /// Bytes of whole records.
    good: usize,
    /// Nothing else follows.
    whole: bool,
    /// What follows is what a crash leaves.
    torn: bool,
}

/// Reads records until the end or the first one that is not whole.
fn read_records(bytes: &[u8], first: u64) -> Records {
    let mut records = Records { events: vec![], next: first, good: 0, whole: true, torn: false };
    loop {
        let rest = bytes.get(records.good..).unwrap_or_default();
        if rest.is_empty() {
            return records;
        }
        let Some((event, length)) = read_record(rest).filter(|(e, _)| e.seq == records.next) else {
            records.whole = false;
            records.torn = is_torn(rest);
            return records;
        };
        records.events.push((event, length));
        records.good += length;
        records.next = records.next.saturating_add(1);
    }
}

fn read_record(rest: &[u8]) -> Option<(Event, usize)> {
    let length = announced(rest)?;
    let check = rest.get(4..HEADER_BYTES)?;
    let body = rest.get(HEADER_BYTES..HEADER_BYTES.checked_add(length)?)?;
    if Digest::of(body).as_bytes().get(..8)? != check {
        return None;
    }
    Some((Event::decode(body).ok()?, HEADER_BYTES + length))
}

fn announced(rest: &[u8]) -> Option<usize> {
    let length = usize::try_from(u32::from_be_bytes(*rest.first_chunk::<4>()?)).ok()?;
    (length > 0 && length <= RECORD_BYTES_MAX).then_some(length)
}

/// A torn record reaches (or would reach) the end of the file, or never got its bytes at all: file
/// systems may grow a file with zeros before the data arrives.
fn is_torn(rest: &[u8]) -> bool {
    let beyond = match announced(rest) {
        Some(length) => HEADER_BYTES + length >= rest.len(),
        None => rest.len() < 4,
    };
    beyond || rest.iter().all(|byte| *byte == 0)
}

fn encode(event: &Event) -> Result<Vec<u8>, SpoolError> {
    let body = event.encode_to_vec();
    let too_large = || SpoolError::TooLarge { found: body.len() };
    let length = u32::try_from(body.len()).map_err(|_over| too_large())?;
    if body.is_empty() || body.len() > RECORD_BYTES_MAX {
        return Err(too_large());
    }
    let mut record = Vec::with_capacity(HEADER_BYTES + body.len());
    record.extend_from_slice(&length.to_be_bytes());
    record.extend(Digest::of(&body).as_bytes().iter().take(8));
    record.extend_from_slice(&body);
    Ok(record)
}

fn segment_path(dir: &Path, first: u64) -> PathBuf {
    dir.join(format!("{first:020}{SUFFIX}"))
}

fn list(dir: &Path) -> Result<VecDeque<u64>, SpoolError> {
    let entries = std::fs::read_dir(dir).map_err(|error| FileError::new("list", dir, error))?;
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|error| FileError::new("list", dir, error))?;
        let name = entry.file_name();
        let number = name.to_str().and_then(|name| name.strip_suffix(SUFFIX));
        if let Some(first) = number.and_then(|number| number.parse().ok()) {
            found.push(first);
        }
    }
    found.sort_unstable();
    Ok(found.into())
}

fn create_segment(dir: &Path, first: u64) -> Result<(), SpoolError> {
    Ok(files::write_durable(&segment_path(dir, first), b"")?)
}

fn open_segment(path: PathBuf, good: usize) -> Result<Segment, SpoolError> {
    let bytes = u64::try_from(good).unwrap_or(0);
    let open = || -> io::Result<File> {
        let file = OpenOptions::new().append(true).custom_flags(libc::O_NOFOLLOW).open(&path)?;
        if file.metadata()?.len() != bytes {
            tracing::warn!(?path, kept = bytes, "cut a torn record off the spool");
            file.set_len(bytes)?;
            file.sync_all()?;
        }
        Ok(file)
    };
    match open() {
        Ok(file) => Ok(Segment { file, path, bytes }),
        Err(error) => Err(FileError::new("open", &path, error).into()),
    }
}

fn read_acked(dir: &Path) -> Result<u64, SpoolError> {
    let path = dir.join("acked");
    let Some(bytes) = files::read_bounded(&path, 64)? else { return Ok(0) };
    let number = std::str::from_utf8(&bytes).ok().and_then(|text| text.parse().ok());
    number.ok_or(SpoolError::Damaged { segment: path, at: 0 })
}

#[cfg(test)]
mod tests;

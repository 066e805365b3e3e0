//! Jobs' output on its way to control: files that the shim writes, read from the acknowledged offset
//! on, deleted when control has everything.
//!
//! One directory an attempt, `<job>-<attempt>/stdout` and `stderr`. What control has is what it
//! acknowledged; after a reconnect reading goes on from there, after a restart of the agent from the
//! start until the first acknowledgement says where. Nothing waits for this: when control is away,
//! files simply stay.
//!
//! Limits: [`CHUNK_BYTES`] a message, [`WINDOW_BYTES`] unacknowledged a stream, [`BATCH_MAX`] messages
//! at a time. How long a stream may become is enforced by the shim.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use nimbus_api::error::Chain;
use nimbus_api::id::{ContainerId, JobId};
use nimbus_api::proto::control::v1::LogStream;
use nimbus_api::proto::node::v1::{LogAck, LogData};
use nimbus_api::{Refusal, RefusalCode};

use crate::agent::lock;
use crate::files::{self, FILE_MODE, FileError};

/// Longest message.
pub const CHUNK_BYTES: usize = 64 << 10;
/// Most bytes of one stream that control has not acknowledged.
pub const WINDOW_BYTES: u64 = 256 << 10;
/// Most messages made at a time.
pub const BATCH_MAX: usize = 16;

const STREAMS: [(&str, LogStream); 2] =
    [("stdout", LogStream::Stdout), ("stderr", LogStream::Stderr)];

type Key = (JobId, u32);

#[derive(Debug, Default, Clone, Copy)]
struct Progress {
    acked: u64,
    sent: u64,
    eof_sent: bool,
    done: bool,
}

#[derive(Debug, Default)]
struct Output {
    finished: bool,
    streams: [Progress; 2],
}

/// All output that control does not have yet.
#[derive(Debug)]
pub struct LogTable {
    root: PathBuf,
    outputs: Mutex<BTreeMap<Key, Output>>,
    /// Where the last batch ended: the next begins after it, so that none starves.
    turn: Mutex<Option<Key>>,
}

impl LogTable {
    /// Finds what an earlier run left; `is_over` says whether nothing writes there any more.
    pub fn load(root: &Path, is_over: impl Fn(&JobId, u32) -> bool) -> Result<Self, FileError> {
        files::ensure_dir(root)?;
        let mut outputs = BTreeMap::new();
        let list = |error| FileError::new("list", root, error);
        for item in std::fs::read_dir(root).map_err(list)? {
            let name = item.map_err(list)?.file_name();
            let Some((job, attempt)) = name.to_str().and_then(read_name) else {
                tracing::warn!(?name, "a directory of output belongs to no job");
                continue;
            };
            let finished = is_over(&job, attempt);
            outputs.insert((job, attempt), Output { finished, ..Output::default() });
        }
        Ok(Self { root: root.to_owned(), outputs: Mutex::new(outputs), turn: Mutex::default() })
    }

    /// Makes the files of an attempt.
    pub fn open(&self, job: &JobId, attempt: u32) -> Result<(), Refusal> {
        let made = || -> Result<(), FileError> {
            let dir = self.dir(job, attempt);
            files::ensure_dir(&dir)?;
            for (name, _) in STREAMS {
                let path = dir.join(name);
                OpenOptions::new()
                    .append(true)
                    .create(true)
                    .mode(FILE_MODE)
                    .custom_flags(libc::O_NOFOLLOW)
                    .open(&path)
                    .map_err(|error| FileError::new("make", &path, error))?;
            }
            Ok(())
        };
        made().map_err(|error| Refusal::with(RefusalCode::NodeLedgerFailed, Chain(&error)))?;
        lock(&self.outputs).entry((job.clone(), attempt)).or_default();
        Ok(())
    }

    /// Where containerd is told to put the streams.
    pub fn uris(&self, job: &JobId, attempt: u32) -> (String, String) {
        let dir = self.dir(job, attempt);
        let uri = |name: &str| format!("file://{}", dir.join(name).display());
        (uri("stdout"), uri("stderr"))
    }

    /// Nothing writes there any more.
    pub fn finish(&self, job: &JobId, attempt: u32) {
        if let Some(output) = lock(&self.outputs).get_mut(&(job.clone(), attempt)) {
            output.finished = true;
        }
    }

    /// The connection is new: what was not acknowledged is sent again.
    pub fn rewind(&self) {
        for output in lock(&self.outputs).values_mut() {
            for stream in &mut output.streams {
                stream.sent = stream.acked;
                stream.eof_sent = false;
            }
        }
    }

    /// What can be sent now. Reads files.
    pub fn batch(&self) -> Vec<LogData> {
        let keys: Vec<Key> = {
            let outputs = lock(&self.outputs);
            let turn = lock(&self.turn).clone();
            let split = |key: &&Key| turn.as_ref().is_some_and(|turn| *key <= turn);
            let (before, after): (Vec<_>, Vec<_>) = outputs.keys().partition(split);
            after.into_iter().chain(before).cloned().collect()
        };
        let mut batch = Vec::new();
        for key in keys {
            for index in 0..STREAMS.len() {
                match self.chunk(&key, index) {
                    Ok(data) => batch.extend(data),
                    Err(error) => {
                        tracing::warn!(job = %key.0, error = %Chain(&error), "output cannot be read");
                    }
                }
            }
            if batch.len() >= BATCH_MAX {
                *lock(&self.turn) = Some(key);
                break;
            }
        }
        batch
    }

    /// Control has acknowledged.
    pub fn acknowledge(&self, ack: &LogAck) {
        let Ok(job) = ack.job.parse::<JobId>() else { return };
        let key = (job, ack.attempt);
        let mut outputs = lock(&self.outputs);
        let Some(output) = outputs.get_mut(&key) else { return };
        let index = STREAMS.iter().position(|(_, stream)| *stream == ack.stream());
        let Some(stream) = index.and_then(|index| output.streams.get_mut(index)) else { return };
        if ack.next_offset < stream.acked || ack.next_offset > stream.sent {
            // Control has less than it said, or more than this run has sent: it knows.
            stream.sent = ack.next_offset;
            stream.eof_sent = false;
        }
        stream.acked = ack.next_offset;
        stream.done = ack.eof;
        if output.finished && output.streams.iter().all(|stream| stream.done) {
            outputs.remove(&key);
            drop(outputs);
            self.delete(&key);
        }
    }

    /// How many attempts have output that control lacks.
    pub fn waiting(&self) -> usize {
        lock(&self.outputs).len()
    }

    fn chunk(&self, key: &Key, index: usize) -> Result<Option<LogData>, FileError> {
        let (Some((name, kind)), Some((progress, finished))) =
            (STREAMS.get(index), self.progress(key, index))
        else {
            return Ok(None);
        };
        let unacked = progress.sent.saturating_sub(progress.acked);
        if progress.done || progress.eof_sent || unacked >= WINDOW_BYTES {
            return Ok(None);
        }
        let path = self.dir(&key.0, key.1).join(name);
        let data =
            read_at(&path, progress.sent).map_err(|error| FileError::new("read", &path, error))?;
        // "finished" was read before the file: nothing can have been written after.
        let eof = finished && data.len() < CHUNK_BYTES;
        if data.is_empty() && !eof {
            return Ok(None);
        }
        let next = progress.sent.saturating_add(u64::try_from(data.len()).unwrap_or(0));
        self.set_sent(key, index, next, eof);
        Ok(Some(LogData {
            job: key.0.to_string(),
            attempt: key.1,
            stream: (*kind).into(),
            offset: progress.sent,
            data,
            eof,
        }))
    }

    fn progress(&self, key: &Key, index: usize) -> Option<(Progress, bool)> {
        let outputs = lock(&self.outputs);
        let output = outputs.get(key)?;
        Some((*output.streams.get(index)?, output.finished))
    }

    fn set_sent(&self, key: &Key, index: usize, sent: u64, eof: bool) {
        let mut outputs = lock(&self.outputs);
        let stream = outputs.get_mut(key).and_then(|output| output.streams.get_mut(index));
        if let Some(stream) = stream {
            stream.sent = sent;
            stream.eof_sent = eof;
        }
    }

    fn delete(&self, key: &Key) {
        let dir = self.dir(&key.0, key.1);
        let removed = STREAMS
            .iter()
            .try_for_each(|(name, _)| files::remove(&dir.join(name)))
            .and_then(|()| {
                std::fs::remove_dir(&dir).map_err(|error| FileError::new("remove", &dir, error))
            });
        if let Err(error) = removed {
            tracing::warn!(error = %Chain(&error), "output stays behind");
        }
    }

    fn dir(&self, job: &JobId, attempt: u32) -> PathBuf {
        self.root.join(format!("{job}-{attempt}"))
    }
}

fn read_name(name: &str) -> Option<Key> {
    name.parse::<ContainerId>().ok()?;
    let (job, attempt) = name.rsplit_once('-')?;
    Some((job.parse().ok()?, attempt.parse().ok()?))
}

fn read_at(path: &Path, offset: u64) -> io::Result<Vec<u8>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut data = vec![0; CHUNK_BYTES];
    let mut filled = 0;
    while let Some(room) = data.get_mut(filled..).filter(|room| !room.is_empty()) {
        let at = offset.saturating_add(u64::try_from(filled).unwrap_or(u64::MAX));
        match file.read_at(room, at)? {
            0 => break,
            count => filled += count,
        }
    }
    data.truncate(filled);
    Ok(data)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Place {
        dir: tempfile::TempDir,
        table: LogTable,
        job: JobId,
    }

    impl Place {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let table = LogTable::load(dir.path(), |_, _| false).unwrap();
            let job: JobId = "j1".parse().unwrap();
            table.open(&job, 1).unwrap();
            Self { dir, table, job }
        }

        fn write(&self, bytes: &[u8]) {
            std::fs::write(self.dir.path().join("j1-1/stdout"), bytes).unwrap();
        }

        fn ack(&self, stream: LogStream, next_offset: u64, eof: bool) {
            let (job, stream) = ("j1".to_owned(), stream.into());
            self.table.acknowledge(&LogAck { job, attempt: 1, stream, next_offset, eof });
        }
    }

    #[test]
    fn output_is_sent_once_again_after_a_reconnect_and_gone_when_acknowledged() {
        let place = Place::new();
        place.write(b"hello");
        let batch = place.table.batch();
        assert_eq!(batch.len(), 1);
        assert_eq!((batch[0].offset, batch[0].data.as_slice()), (0, b"hello".as_slice()));
        assert!(place.table.batch().is_empty());
        place.ack(LogStream::Stdout, 2, false);
        place.table.rewind();
        assert_eq!(place.table.batch()[0].data, b"llo");
        place.table.finish(&place.job, 1);
        let batch = place.table.batch();
        assert!(batch.iter().all(|data| data.eof && data.data.is_empty()));
        assert_eq!(batch.len(), 2);
        place.ack(LogStream::Stdout, 5, true);
        place.ack(LogStream::Stderr, 0, true);
        assert_eq!(place.table.waiting(), 0);
        assert!(!place.dir.path().join("j1-1").exists());
    }

    #[test]
    fn a_restarted_agent_goes_on_where_control_says() {
        let place = Place::new();
        place.write(b"0123456789");
        let table = LogTable::load(place.dir.path(), |_, _| true).unwrap();
        assert_eq!(table.batch()[0].offset, 0);
        let ack = LogAck {
            job: "j1".to_owned(),
            attempt: 1,
            stream: LogStream::Stdout.into(),
            next_offset: 7,
            eof: false,
        };
        table.acknowledge(&ack);
        table.rewind();
        let again = table.batch();
        assert_eq!((again[0].offset, again[0].data.as_slice()), (7, b"789".as_slice()));
    }

    #[test]
    fn what_is_unacknowledged_is_bounded() {
        let place = Place::new();
        place.write(&vec![1; CHUNK_BYTES * 10]);
        let mut sent = 0;
        for _ in 0..20 {
            sent += place.table.batch().iter().map(|data| data.data.len()).sum::<usize>();
        }
        assert_eq!(u64::try_from(sent).unwrap(), WINDOW_BYTES);
    }
}

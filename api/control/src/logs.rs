//! Output of jobs: `<data>/logs/<job>/<attempt>.<stream>`, appended by one thread.
//!
//! Messages that wait share one sync; each is answered after it, with the number of bytes that are
//! on disk. Offsets make it idempotent: bytes that are there already are skipped, bytes beyond the
//! end are refused by answering with the end. When both streams of an attempt together have reached
//! the job's limit, the rest is thrown away and acknowledged. A marker file says that a stream ended.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use nimbus_api::proto::control::v1::LogStream;
use tokio::sync::{mpsc, oneshot};

use crate::limits::{LOG_BATCH, LOG_QUEUE};

/// Files that stay open between two batches.
const OPEN_MAX: usize = 256;

/// One stream of one attempt.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct StreamKey {
    pub(crate) job: String,
    pub(crate) attempt: u32,
    pub(crate) stream: LogStream,
}

/// What a node sent.
#[derive(Debug)]
pub(crate) struct Append {
    pub(crate) key: StreamKey,
    pub(crate) offset: u64,
    pub(crate) data: Vec<u8>,
    pub(crate) eof: bool,
    /// Most bytes of both streams together.
    pub(crate) limit: u64,
}

/// How far a stream is durable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Kept {
    pub(crate) key: StreamKey,
    pub(crate) next_offset: u64,
    pub(crate) eof: bool,
}

struct Request {
    append: Append,
    reply: oneshot::Sender<Kept>,
}

/// The log store.
#[derive(Clone)]
pub(crate) struct Logs {
    folder: Arc<Path>,
    queue: Arc<Mutex<Option<mpsc::Sender<Request>>>>,
    thread: Arc<Mutex<Option<std::thread::JoinHandle<()>>>>,
}

impl std::fmt::Debug for Logs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Logs").field("folder", &self.folder).finish_non_exhaustive()
    }
}

impl StreamKey {
    fn path(&self, folder: &Path) -> PathBuf {
        folder.join(&self.job).join(format!("{}.{}", self.attempt, name(self.stream)))
    }

    fn end_marker(&self, folder: &Path) -> PathBuf {
        folder.join(&self.job).join(format!("{}.{}.end", self.attempt, name(self.stream)))
    }

    fn other(&self) -> Self {
        let stream = match self.stream {
            LogStream::Stdout | LogStream::Unspecified => LogStream::Stderr,
            LogStream::Stderr => LogStream::Stdout,
        };
        Self { stream, ..self.clone() }
    }
}

const fn name(stream: LogStream) -> &'static str {
    match stream {
        LogStream::Stdout | LogStream::Unspecified => "stdout",
        LogStream::Stderr => "stderr",
    }
}

impl Logs {
    /// Starts the thread. The folder must exist and be private.
    pub(crate) fn start(folder: PathBuf) -> Result<Self, io::Error> {
        let folder: Arc<Path> = folder.into();
        let (sender, receiver) = mpsc::channel(LOG_QUEUE);
        let own = Arc::clone(&folder);
        let thread = std::thread::Builder::new()
            .name("log-writer".to_owned())
            .spawn(move || Appender { folder: own, open: HashMap::new() }.run(receiver))?;
        Ok(Self {
            folder,
            queue: Arc::new(Mutex::new(Some(sender))),
            thread: Arc::new(Mutex::new(Some(thread))),
        })
    }

    /// Hands output over; the answer comes when it is on disk, or never when the disk failed.
    pub(crate) async fn append(&self, append: Append) -> Option<oneshot::Receiver<Kept>> {
        let queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner).clone()?;
        let (reply, answer) = oneshot::channel();
        queue.send(Request { append, reply }).await.ok()?;
        Some(answer)
    }

    /// How much of a stream is kept, and whether it has ended.
    pub(crate) async fn kept(&self, key: StreamKey) -> Kept {
        let folder = Arc::clone(&self.folder);
        let empty = Kept { key: key.clone(), next_offset: 0, eof: false };
        let looked = tokio::task::spawn_blocking(move || {
            let next_offset = fs::metadata(key.path(&folder)).map_or(0, |found| found.len());
            let eof = key.end_marker(&folder).exists();
            Kept { key, next_offset, eof }
        });
        looked.await.unwrap_or(empty)
    }

    /// Up to `size` bytes of a stream; empty at its present end.
    pub(crate) async fn read(
        &self,
        key: StreamKey,
        offset: u64,
        size: usize,
    ) -> io::Result<Vec<u8>> {
        let folder = Arc::clone(&self.folder);
        let read = tokio::task::spawn_blocking(move || {
            let mut file = match File::open(key.path(&folder)) {
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
                Err(error) => return Err(error),
            };
            file.seek(SeekFrom::Start(offset))?;
            let mut data = Vec::new();
            file.take(u64::try_from(size).unwrap_or(u64::MAX)).read_to_end(&mut data)?;
            Ok(data)
        });
        read.await.unwrap_or_else(|_gone| Err(io::Error::other("the reader is gone")))
    }

    /// Writes what waits and ends the thread.
    pub(crate) async fn close(&self) {
        drop(self.queue.lock().unwrap_or_else(PoisonError::into_inner).take());
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            drop(tokio::task::spawn_blocking(move || thread.join()).await);
        }
    }
}

struct Open {
    file: File,
    len: u64,
}

struct Appender {
    folder: Arc<Path>,
    open: HashMap<StreamKey, Open>,
}

impl Appender {
    fn run(mut self, mut queue: mpsc::Receiver<Request>) {
        let mut batch = Vec::new();
        while let Some(first) = queue.blocking_recv() {
            batch.push(first);
            while batch.len() < LOG_BATCH {
                let Ok(next) = queue.try_recv() else { break };
                batch.push(next);
            }
            self.write_batch(batch.drain(..));
            if self.open.len() > OPEN_MAX {
                self.open.clear();
            }
        }
    }

    fn write_batch(&mut self, batch: impl Iterator<Item = Request>) {
        let mut written = Vec::new();
        let mut dirty = HashSet::new();
        for Request { append, reply } in batch {
            match self.append(&append) {
                Ok(kept) => {
                    dirty.insert(append.key.clone());
                    written.push((kept, reply));
                }
                // Not answered, so not acknowledged: the node sends it again.
                Err(error) => tracing::error!(job = append.key.job, %error, "cannot keep output"),
            }
        }
        let mut failed = HashSet::new();
        for key in dirty {
            let synced = self.open.get(&key).map_or(Ok(()), |open| open.file.sync_data());
            if let Err(error) = synced {
                tracing::error!(job = key.job, %error, "cannot sync output");
                self.open.remove(&key);
                failed.insert(key);
            }
        }
        for (kept, reply) in written {
            if failed.contains(&kept.key) {
                continue;
            }
            if kept.eof
                && let Err(error) = self.mark_end(&kept.key)
            {
                tracing::error!(job = kept.key.job, %error, "cannot mark the end of output");
                continue;
            }
            drop(reply.send(kept));
        }
    }

    fn opened(&mut self, key: &StreamKey) -> io::Result<&mut Open> {
        if !self.open.contains_key(key) {
            let path = key.path(&self.folder);
            if let Some(parent) = path.parent()
                && !parent.exists()
            {
                fs::DirBuilder::new().mode(0o700).create(parent)?;
                File::open(&self.folder)?.sync_all()?;
            }
            let new = !path.exists();
            let file = OpenOptions::new()
                .create(true)
                .truncate(false)
                .write(true)
                .mode(0o600)
                .open(&path)?;
            if new && let Some(parent) = path.parent() {
                File::open(parent)?.sync_all()?;
            }
            let len = file.metadata()?.len();
            self.open.insert(key.clone(), Open { file, len });
        }
        self.open.get_mut(key).ok_or_else(|| io::Error::other("a file just opened is gone"))
    }

    fn append(&mut self, append: &Append) -> io::Result<Kept> {
        let other = append.key.other();
        let other_len = match self.open.get(&other) {
            Some(open) => open.len,
            None => fs::metadata(other.path(&self.folder)).map_or(0, |found| found.len()),
        };
        let open = self.opened(&append.key)?;
        let size = u64::try_from(append.data.len()).unwrap_or(u64::MAX);
        let end = append.offset.saturating_add(size);
        let room = append.limit.saturating_sub(open.len.saturating_add(other_len));
        let kept = |next_offset| Kept { key: append.key.clone(), next_offset, eof: append.eof };
        if append.offset > open.len {
            // Thrown away before, or a gap: only a full log lets bytes pass unread.
            let next_offset = if room == 0 { end } else { open.len };
            return Ok(Kept { eof: append.eof && room == 0, ..kept(next_offset) });
        }
        let known = usize::try_from(open.len - append.offset).unwrap_or(usize::MAX);
        let fresh = append.data.get(known..).unwrap_or_default();
        let fits = usize::try_from(room).unwrap_or(usize::MAX).min(fresh.len());
        let fresh = fresh.get(..fits).unwrap_or_default();
        if !fresh.is_empty() {
            open.file.write_all_at(fresh, open.len)?;
            open.len = open.len.saturating_add(u64::try_from(fits).unwrap_or(u64::MAX));
        }
        Ok(kept(end.max(open.len)))
    }

    fn mark_end(&self, key: &StreamKey) -> io::Result<()> {
        let path = key.end_marker(&self.folder);
        if !path.exists() {
            let mut marker = OpenOptions::new();
            marker.create(true).truncate(false).write(true).mode(0o600);
            drop(marker.open(&path)?);
            if let Some(parent) = path.parent() {
                File::open(parent)?.sync_all()?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn append(offset: u64, data: &[u8], stream: LogStream, eof: bool) -> Append {
        let key = StreamKey { job: "j1".to_owned(), attempt: 1, stream };
        Append { key, offset, data: data.to_vec(), eof, limit: 10 }
    }

    async fn send(logs: &Logs, append: Append) -> (u64, bool) {
        let kept = logs.append(append).await.unwrap().await.unwrap();
        (kept.next_offset, kept.eof)
    }

    #[tokio::test]
    async fn output_is_kept_once_in_order_and_up_to_the_limit() {
        let folder = tempfile::tempdir().unwrap();
        let logs = Logs::start(folder.path().to_owned()).unwrap();
        let out = LogStream::Stdout;
        assert_eq!(send(&logs, append(0, b"hello", out, false)).await, (5, false));
        assert_eq!(send(&logs, append(3, b"lo w", out, false)).await, (7, false), "overlap");
        assert_eq!(send(&logs, append(0, b"hel", out, false)).await, (7, false), "again");
        assert_eq!(send(&logs, append(9, b"xx", out, true)).await, (7, false), "gap");
        let err = LogStream::Stderr;
        assert_eq!(send(&logs, append(0, b"12345", err, false)).await, (5, false), "cut, acked");
        assert_eq!(send(&logs, append(7, b"zzz", out, false)).await, (10, false), "full");
        assert_eq!(send(&logs, append(10, b"", out, true)).await, (10, true));
        let key = append(0, b"", out, false).key;
        assert_eq!(logs.read(key.clone(), 2, 100).await.unwrap(), b"llo w");
        assert!(logs.kept(key.clone()).await.eof);
        assert_eq!(logs.read(key.other(), 0, 100).await.unwrap(), b"123");
        logs.close().await;
    }
}

//! The client's ends of a process's streams: fifos, as every client of containerd has them, and files.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::fs::{CWD, FileType, Mode, OFlags, mknodat, open};

use crate::Failure;
use crate::failure::During as _;
use crate::wait::until;

/// Longest wait for the end of what a process printed: beyond the 10 s that shims wait for it.
const PATIENCE: Duration = Duration::from_secs(20);
/// What is kept of it as text.
const SHOWN_BYTES: usize = 4096;

/// Where the streams of a process go, as containerd is told.
#[derive(Debug, Clone, Default)]
pub(super) struct Uris {
    pub(super) stdin: String,
    pub(super) stdout: String,
    pub(super) stderr: String,
    pub(super) terminal: bool,
}

/// A fifo that is read to its end by a thread.
#[derive(Debug)]
pub(super) struct Output {
    path: PathBuf,
    so_far: Arc<Mutex<Vec<u8>>>,
    whole: Receiver<usize>,
}

/// What came.
#[derive(Debug)]
pub(super) struct Printed {
    /// All of it.
    pub(super) count: usize,
    /// Its beginning.
    pub(super) text: String,
}

/// Makes a fifo.
pub(super) fn fifo(path: &Path) -> Result<(), Failure> {
    mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).during("mkfifo")
}

impl Uris {
    /// Both outputs to one path. runc's shim takes no stdout without a stderr.
    pub(super) fn to(place: &Path) -> Self {
        let place = place.display().to_string();
        Self { stdout: place.clone(), stderr: place, ..Self::default() }
    }
}

impl Output {
    /// Makes the fifo and reads it, as a client does: blocking in open until there is a writer.
    pub(super) fn read(path: &Path) -> Result<Self, Failure> {
        fifo(path)?;
        Ok(Self::read_again(path))
    }

    /// Reads a fifo that is there.
    pub(super) fn read_again(path: &Path) -> Self {
        let (sender, whole) = channel();
        let so_far = Arc::new(Mutex::new(Vec::new()));
        let (own, kept) = (path.to_owned(), Arc::clone(&so_far));
        std::thread::spawn(move || {
            let count = File::open(own).map_or(0, |mut file| drain(&mut file, &kept));
            // Nobody may be interested any more.
            sender.send(count).unwrap_or_default();
        });
        Self { path: path.to_owned(), so_far, whole }
    }

    /// Waits until this was printed.
    pub(super) fn wait_for(&self, wanted: &str) -> Result<(), Failure> {
        until(&format!("{wanted:?} to be printed"), || {
            Ok(self.text().contains(wanted).then_some(()))
        })
    }

    fn text(&self) -> String {
        let kept = self.so_far.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&kept).trim().to_owned()
    }

    /// Everything, once nobody writes any more.
    pub(super) fn end(self) -> Printed {
        match self.whole.recv_timeout(PATIENCE) {
            Ok(count) => Printed { count, text: self.text() },
            Err(_late) => Printed { count: 0, text: format!("{} (and no end)", self.text()) },
        }
    }
}

impl Drop for Output {
    /// A reader that nobody ever wrote for waits in open.
    fn drop(&mut self) {
        drop(open(&self.path, OFlags::WRONLY | OFlags::NONBLOCK, Mode::empty()));
    }
}

/// Reads to the end; how much there was.
fn drain(file: &mut File, kept: &Mutex<Vec<u8>>) -> usize {
    let mut total = 0;
    let mut chunk = vec![0; 64 << 10];
    while let Ok(count @ 1..) = file.read(&mut chunk) {
        total += count;
        let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
        let room = SHOWN_BYTES.saturating_sub(kept.len()).min(count);
        kept.extend_from_slice(chunk.get(..room).unwrap_or_default());
    }
    total
}

/// Opens a fifo for writing, once somebody reads it.
pub(super) fn writer(path: &Path) -> Result<File, Failure> {
    let fd = until("a reader of stdin", || {
        Ok(open(path, OFlags::WRONLY | OFlags::NONBLOCK, Mode::empty()).ok())
    })?;
    rustix::fs::fcntl_setfl(&fd, OFlags::empty())?;
    Ok(File::from(fd))
}

/// Writes to a fifo and closes it.
pub(super) fn write(path: &Path, text: &str) -> Result<(), Failure> {
    Ok(writer(path)?.write_all(text.as_bytes())?)
}

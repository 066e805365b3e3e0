//! The shim's log: the fifo `log` in the bundle, which containerd reads.
//!
//! One line a message, logfmt as containerd's own log. Writing never waits: when nobody reads and
//! the fifo is full, lines are lost rather than a container's life held up. stdout and stderr are
//! protocol and never used (rule 15). In the process of a pod each container logs to its own bundle, and
//! what concerns none of them goes where the process was started until that container is gone, then
//! to one that is there.

use std::fmt;
use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nimbus_api::clock::{Clock as _, SystemClock};
use rustix::fs::{FileType, Mode, OFlags};

/// Longest line; longer ones are cut, so that a line is one atomic write to a fifo.
const LINE_BYTES_MAX: usize = 4096;

/// Where messages go. Clones share one descriptor.
#[derive(Debug, Clone)]
pub(crate) struct Log(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    file: Mutex<Option<std::fs::File>>,
    debug: bool,
    id: String,
}

impl Log {
    /// The fifo `log` in this bundle; a log that goes nowhere when there is none.
    pub(crate) fn open(bundle: &Path, id: &str, debug: bool) -> Self {
        // Read and write: an open for writing alone fails while containerd is restarting.
        let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let fifo = rustix::fs::open(bundle.join("log"), flags, Mode::empty()).ok().filter(|fd| {
            rustix::fs::fstat(fd)
                .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Fifo)
        });
        let file = Mutex::new(fifo.map(std::fs::File::from));
        Self(Arc::new(Inner { file, debug, id: id.to_owned() }))
    }

    /// The log of one more container.
    pub(crate) fn of(&self, bundle: &Path, id: &str) -> Self {
        Self::open(bundle, id, self.0.debug)
    }

    /// Whether both are one.
    pub(crate) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Goes from now on where the other one goes.
    pub(crate) fn follow(&self, other: &Self) {
        let file = other.descriptor().map(std::fs::File::from);
        *self.file() = file;
    }

    /// Goes nowhere.
    #[cfg(test)]
    pub(crate) fn nowhere() -> Self {
        Self(Arc::new(Inner { file: Mutex::new(None), debug: false, id: String::new() }))
    }

    /// Something an operator may have to act on.
    pub(crate) fn warn(&self, message: impl fmt::Display) {
        self.line("warning", &message);
    }

    /// What happened to the container.
    pub(crate) fn info(&self, message: impl fmt::Display) {
        self.line("info", &message);
    }

    /// Only when containerd runs with debug.
    pub(crate) fn debug(&self, message: impl fmt::Display) {
        if self.0.debug {
            self.line("debug", &message);
        }
    }

    /// A descriptor of it for a child, if there is a log.
    pub(crate) fn descriptor(&self) -> Option<OwnedFd> {
        self.file().as_ref()?.try_clone().ok().map(OwnedFd::from)
    }

    /// Writes nothing from now on. containerd reads until the fifo's last writer is gone, and
    /// complains when that comes after the end of the connection.
    pub(crate) fn close(&self) {
        drop(self.file().take());
    }

    fn file(&self) -> MutexGuard<'_, Option<std::fs::File>> {
        self.0.file.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn line(&self, level: &str, message: &dyn fmt::Display) {
        let guard = self.file();
        let Some(mut file) = guard.as_ref() else { return };
        let line = format_line(&self.0.id, SystemClock.unix(), level, message);
        // Nothing can be done about a log that cannot be written.
        let _lost = file.write_all(line.as_bytes());
    }
}

fn format_line(
    id: &str,
    time: impl fmt::Display,
    level: &str,
    message: &dyn fmt::Display,
) -> String {
    // `{:?}` quotes and escapes: a tenant's text cannot forge a line.
    let mut line = format!("time=\"{time}\" level={level} msg={:?} id={id}", message.to_string());
    if line.len() >= LINE_BYTES_MAX {
        let cut = (0..LINE_BYTES_MAX).rev().find(|at| line.is_char_boundary(*at)).unwrap_or(0);
        line.truncate(cut);
    }
    line.push('\n');
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_one_short_line_whatever_it_says() {
        let line = format_line("c", "now", "info", &"a\n\"b\"\u{1b}");
        assert_eq!(line, "time=\"now\" level=info msg=\"a\\n\\\"b\\\"\\u{1b}\" id=c\n");
        let long = format_line("c", "now", "info", &"\u{e4}".repeat(LINE_BYTES_MAX));
        assert!(long.len() <= LINE_BYTES_MAX && long.ends_with('\n'));
    }

    #[test]
    fn a_bundle_without_a_fifo_has_a_silent_log() {
        let bundle = tempfile::tempdir().unwrap();
        std::fs::write(bundle.path().join("log"), "kept").unwrap();
        Log::open(bundle.path(), "c", true).warn("lost");
        assert_eq!(std::fs::read(bundle.path().join("log")).unwrap(), b"kept");
    }

    #[test]
    fn a_log_that_follows_another_writes_where_that_one_does_and_no_longer_where_it_did() {
        let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for bundle in [&first, &second] {
            let fifo = bundle.path().join("log");
            let mode = Mode::RUSR | Mode::WUSR;
            rustix::fs::mknodat(rustix::fs::CWD, fifo, FileType::Fifo, mode, 0).unwrap();
        }
        let log = Log::open(first.path(), "a", false);
        let other = log.of(second.path(), "b");
        assert!(!log.is(&other) && log.is(&log.clone()));
        log.follow(&other);
        log.info("moved");
        let read = |bundle: &tempfile::TempDir| {
            let flags = OFlags::RDWR | OFlags::NONBLOCK;
            let fifo = rustix::fs::open(bundle.path().join("log"), flags, Mode::empty()).unwrap();
            let mut bytes = [0; 256];
            let count = rustix::io::read(fifo, &mut bytes).unwrap_or(0);
            String::from_utf8_lossy(&bytes[..count]).into_owned()
        };
        assert_eq!(read(&first), "");
        assert!(read(&second).contains("msg=\"moved\" id=a"));
    }

    #[test]
    fn a_full_fifo_blocks_nobody() {
        let bundle = tempfile::tempdir().unwrap();
        let fifo = bundle.path().join("log");
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)
            .unwrap();
        let log = Log::open(bundle.path(), "c", false);
        assert!(log.descriptor().is_some());
        let text = "x".repeat(1000);
        for _ in 0..200 {
            log.info(&text);
        }
    }
}

//! The three streams of a container, copied between its pipes and what the client named.
//!
//! A fifo is held open at both ends by us, so that a client that restarts neither kills the job
//! (`SIGPIPE`) nor ends its input; no open waits for the other side. A file is appended to, made
//! 0600 if absent, never followed through a symlink, and the two together are limited by a
//! [`Budget`]: what comes after is read and dropped. Fifos are read live and not limited.
//!
//! Limits: [`CHUNK_BYTES`] a stream in memory, [`DRAIN_PATIENCE`] at the end.

mod budget;
mod uri;

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nimbus_api::Refusal;
use rustix::fs::{FileType, Mode, OFlags};
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe;
use tokio::task::JoinSet;

use budget::{Budget, NOTICE};
pub(crate) use uri::{Target, Uris};

use crate::log::Log;

/// Read at once from a container's pipe.
const CHUNK_BYTES: usize = 32 << 10;
/// How long a deleted container's output may still take: a process that got away with the pipe
/// would keep it open for ever.
pub(crate) const DRAIN_PATIENCE: Duration = Duration::from_secs(10);

/// Why the streams cannot be opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StdioError {
    /// Not where a job's may go.
    #[error("{0}")]
    Refused(Refusal),
    /// It cannot be opened.
    #[error("cannot open {path}")]
    Open {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is something else.
    #[error("{path} is not a {expected}")]
    Kind {
        /// Which.
        path: PathBuf,
        /// What it should be.
        expected: &'static str,
    },
    /// No pipe.
    #[error("cannot make a pipe")]
    Pipe(#[source] io::Error),
}

/// What the container gets.
#[derive(Debug)]
pub(crate) struct ContainerEnds {
    /// Descriptor 0.
    pub stdin: OwnedFd,
    /// Descriptor 1.
    pub stdout: OwnedFd,
    /// Descriptor 2.
    pub stderr: OwnedFd,
}

/// The copies that run for a container.
#[derive(Debug)]
pub(crate) struct Streams {
    outputs: Mutex<JoinSet<()>>,
    input: Mutex<JoinSet<()>>,
    /// Our own writer on the input fifo; letting go of it is what CloseIO does.
    stdin_hold: Mutex<Option<OwnedFd>>,
}

/// Opens all three and starts copying. Must be called within the event loop.
pub(crate) fn open(
    uris: &Uris,
    log_bytes: u64,
    log: &Log,
) -> Result<(Streams, ContainerEnds), StdioError> {
    let stdin = Target::input(&uris.stdin).map_err(StdioError::Refused)?;
    let stdout = Target::output(&uris.stdout).map_err(StdioError::Refused)?;
    let stderr = Target::output(&uris.stderr).map_err(StdioError::Refused)?;
    let budget = Arc::new(Mutex::new(Budget::new(log_bytes)));
    let mut outputs = JoinSet::new();
    let mut input = JoinSet::new();
    let stdout = open_output(stdout, &budget, log, &mut outputs)?;
    let stderr = open_output(stderr, &budget, log, &mut outputs)?;
    let (stdin, hold) = open_input(stdin, &mut input)?;
    let streams = Streams {
        outputs: Mutex::new(outputs),
        input: Mutex::new(input),
        stdin_hold: Mutex::new(hold),
    };
    Ok((streams, ContainerEnds { stdin, stdout, stderr }))
}

impl Streams {
    /// Lets the container's input end when the client's writer is gone and all is delivered.
    pub(crate) fn close_stdin(&self) {
        drop(lock(&self.stdin_hold).take());
    }

    /// Waits for the output that is under way, at most [`DRAIN_PATIENCE`]; true when all of it got
    /// through. Nothing is copied afterwards.
    pub(crate) async fn drain(&self) -> bool {
        self.close_stdin();
        let mut outputs = std::mem::take(&mut *lock(&self.outputs));
        let whole = async { while outputs.join_next().await.is_some() {} };
        let drained = tokio::time::timeout(DRAIN_PATIENCE, whole).await.is_ok();
        outputs.abort_all();
        lock(&self.input).abort_all();
        drained
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn open_output(
    target: Target,
    budget: &Arc<Mutex<Budget>>,
    log: &Log,
    copies: &mut JoinSet<()>,
) -> Result<OwnedFd, StdioError> {
    let path = match target {
        Target::Null => return null(OFlags::WRONLY),
        Target::Fifo(path) => {
            let hold = open_fifo(&path, OFlags::RDONLY)?;
            let fifo = reopen(&path, hold.as_fd(), OFlags::WRONLY)?;
            let fifo = pipe::Sender::from_owned_fd(fifo)
                .map_err(|source| StdioError::Open { path, source })?;
            let (from, theirs) = output_pipe()?;
            copies.spawn(copy_to_fifo(from, fifo, hold));
            return Ok(theirs);
        }
        Target::File(path) => path,
    };
    let file = open_log_file(&path)?;
    let (from, theirs) = output_pipe()?;
    copies.spawn(copy_to_file(from, file, Arc::clone(budget), log.clone()));
    Ok(theirs)
}

fn open_input(
    target: Target,
    copies: &mut JoinSet<()>,
) -> Result<(OwnedFd, Option<OwnedFd>), StdioError> {
    let path = match target {
        Target::Null => return Ok((null(OFlags::RDONLY)?, None)),
        Target::Fifo(path) | Target::File(path) => path,
    };
    // Read and write, so that no open waits and the reader never sees an end before our own
    // writer is in place.
    let bridge = open_fifo(&path, OFlags::RDWR)?;
    let hold = reopen(&path, bridge.as_fd(), OFlags::WRONLY)?;
    let fifo = reopen(&path, bridge.as_fd(), OFlags::RDONLY)?;
    drop(bridge);
    let from =
        pipe::Receiver::from_owned_fd(fifo).map_err(|source| StdioError::Open { path, source })?;
    let (theirs, ours) = io::pipe().map_err(StdioError::Pipe)?;
    let to = pipe::Sender::from_owned_fd(ours.into()).map_err(StdioError::Pipe)?;
    copies.spawn(async move {
        let (mut from, mut to) = (from, to);
        // Ends with the client's last writer, or when the job closes its input.
        let _ended = tokio::io::copy(&mut from, &mut to).await;
    });
    Ok((theirs.into(), Some(hold)))
}

fn output_pipe() -> Result<(pipe::Receiver, OwnedFd), StdioError> {
    let (ours, theirs) = io::pipe().map_err(StdioError::Pipe)?;
    let ours = pipe::Receiver::from_owned_fd(ours.into()).map_err(StdioError::Pipe)?;
    Ok((ours, theirs.into()))
}

fn null(access: OFlags) -> Result<OwnedFd, StdioError> {
    let path = Path::new("/dev/null");
    rustix::fs::open(path, access | OFlags::CLOEXEC, Mode::empty())
        .map_err(|source| StdioError::Open { path: path.to_owned(), source: source.into() })
}

fn open_fifo(path: &Path, access: OFlags) -> Result<OwnedFd, StdioError> {
    let flags = access | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fail = |source: rustix::io::Errno| StdioError::Open {
        path: path.to_owned(),
        source: source.into(),
    };
    let fd = rustix::fs::open(path, flags, Mode::empty()).map_err(fail)?;
    check_kind(path, &fd, FileType::Fifo, "fifo")?;
    Ok(fd)
}

/// The same fifo once more, by the descriptor and not by its path.
fn reopen(path: &Path, fd: BorrowedFd<'_>, access: OFlags) -> Result<OwnedFd, StdioError> {
    let same = format!("/proc/self/fd/{}", fd.as_raw_fd());
    rustix::fs::open(same, access | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())
        .map_err(|source| StdioError::Open { path: path.to_owned(), source: source.into() })
}

fn open_log_file(path: &Path) -> Result<File, StdioError> {
    // Non-blocking only for the open: a fifo in the file's place must not hang the shim.
    let flags = OFlags::WRONLY
        | OFlags::APPEND
        | OFlags::CREATE
        | OFlags::NOFOLLOW
        | OFlags::NONBLOCK
        | OFlags::CLOEXEC;
    let fd = rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR)
        .map_err(|source| StdioError::Open { path: path.to_owned(), source: source.into() })?;
    check_kind(path, &fd, FileType::RegularFile, "regular file")?;
    Ok(File::from(fd))
}

fn check_kind(
    path: &Path,
    fd: &OwnedFd,
    kind: FileType,
    expected: &'static str,
) -> Result<(), StdioError> {
    let stat = rustix::fs::fstat(fd)
        .map_err(|source| StdioError::Open { path: path.to_owned(), source: source.into() })?;
    if FileType::from_raw_mode(stat.st_mode) == kind {
        return Ok(());
    }
    Err(StdioError::Kind { path: path.to_owned(), expected })
}

async fn copy_to_fifo(mut from: pipe::Receiver, mut fifo: pipe::Sender, hold: OwnedFd) {
    // Ends when the job's last writer is gone; with our own reader in place it never breaks.
    let _ended = tokio::io::copy(&mut from, &mut fifo).await;
    drop(hold);
}

async fn copy_to_file(mut from: pipe::Receiver, file: File, budget: Arc<Mutex<Budget>>, log: Log) {
    let file = Arc::new(file);
    let mut buffer = Vec::new();
    let mut broken = false;
    loop {
        buffer.clear();
        buffer.reserve(CHUNK_BYTES);
        match from.read_buf(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        let share = lock(&budget).take(buffer.len());
        if broken || (share.keep == 0 && !share.notice) {
            continue;
        }
        buffer.truncate(share.keep);
        if share.notice {
            buffer.extend_from_slice(NOTICE);
        }
        // A disk may take its time; the event loop may not.
        let to = Arc::clone(&file);
        let written = tokio::task::spawn_blocking(move || {
            let done = (&*to).write_all(&buffer);
            (buffer, done)
        });
        match written.await {
            Ok((back, Ok(()))) => buffer = back,
            Ok((back, Err(error))) => {
                log.warn(format_args!("output is lost from here on: {error}"));
                buffer = back;
                broken = true;
            }
            Err(_stopping) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
    }

    fn mkfifo(path: &Path) {
        rustix::fs::mknodat(rustix::fs::CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)
            .unwrap();
    }

    fn write(fd: &OwnedFd, text: &str) {
        File::from(fd.try_clone().unwrap()).write_all(text.as_bytes()).unwrap();
    }

    #[test]
    fn both_streams_share_one_limit_and_the_rest_is_dropped_not_blocked() {
        let dir = tempfile::tempdir().unwrap();
        let uris = Uris {
            stdin: String::new(),
            stdout: format!("file://{}", dir.path().join("out").display()),
            stderr: format!("file://{}", dir.path().join("err").display()),
        };
        block_on(async {
            let (streams, ends) = open(&uris, 10, &Log::nowhere()).unwrap();
            write(&ends.stdout, "12345678");
            while std::fs::metadata(dir.path().join("out")).unwrap().len() < 8 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            let flood = std::thread::spawn(move || {
                write(&ends.stderr, &"x".repeat(500_000));
                drop(ends);
            });
            assert!(streams.drain().await);
            flood.join().unwrap();
        });
        let out = dir.path().join("out");
        assert_eq!(std::fs::read_to_string(&out).unwrap(), "12345678");
        assert_eq!(std::fs::metadata(&out).unwrap().permissions().mode() & 0o777, 0o600);
        let err = std::fs::read_to_string(dir.path().join("err")).unwrap();
        assert_eq!(err, "xx\n[nimbus] output limit reached\n");
    }

    #[test]
    fn a_file_behind_a_symlink_or_of_another_kind_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("victim"), "kept").unwrap();
        std::os::unix::fs::symlink(dir.path().join("victim"), dir.path().join("link")).unwrap();
        mkfifo(&dir.path().join("fifo"));
        assert!(open_log_file(&dir.path().join("link")).is_err());
        assert!(open_log_file(&dir.path().join("fifo")).is_err());
        assert!(matches!(
            open_fifo(&dir.path().join("victim"), OFlags::RDONLY),
            Err(StdioError::Kind { .. })
        ));
        assert_eq!(std::fs::read_to_string(dir.path().join("victim")).unwrap(), "kept");
    }

    #[test]
    fn a_fifo_outlives_its_reader_and_its_writer() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["in", "out"] {
            mkfifo(&dir.path().join(name));
        }
        let path = |name: &str| dir.path().join(name).display().to_string();
        let uris = Uris { stdin: path("in"), stdout: path("out"), stderr: String::new() };
        block_on(async {
            let (streams, ends) = open(&uris, 0, &Log::nowhere()).unwrap();
            // A client that comes and goes.
            let reader = File::open(dir.path().join("out"));
            drop(reader);
            write(&ends.stdout, "still alive");
            let client = open_fifo(&dir.path().join("out"), OFlags::RDONLY).unwrap();
            let mut client = pipe::Receiver::from_owned_fd(client).unwrap();
            let mut text = [0; 11];
            client.read_exact(&mut text).await.unwrap();
            assert_eq!(&text, b"still alive");

            write(&open_fifo(&dir.path().join("in"), OFlags::WRONLY).unwrap(), "first ");
            write(&open_fifo(&dir.path().join("in"), OFlags::WRONLY).unwrap(), "second");
            streams.close_stdin();
            let mut stdin = pipe::Receiver::from_owned_fd(ends.stdin).unwrap();
            let mut input = String::new();
            stdin.read_to_string(&mut input).await.unwrap();
            assert_eq!(input, "first second");
        });
    }
}

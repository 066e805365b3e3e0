//! The three streams of a container, copied between its pipes and what the client named.
//!
//! A fifo is held open at both ends by us, so that a client that restarts neither kills the job
//! (`SIGPIPE`) nor ends its input; no open waits for the other side. A file is appended to, made
//! 0600 if absent, never followed through a symlink, and the two together are limited by a
//! [`Budget`]: what comes after is read and dropped. Fifos are read live and not limited.
//!
//! A process with a terminal has one stream of output, which is read off the terminal's other end, and
//! its input is written there.
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

use nimbus_api::error::Chain;
use nimbus_api::{Refusal, RefusalCode};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::termios::{Winsize, tcsetwinsize};
use tokio::io::{AsyncRead, AsyncReadExt as _};
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
    /// The terminal cannot be used.
    #[error("cannot use the terminal")]
    Terminal(#[source] io::Error),
}

impl From<&StdioError> for Refusal {
    fn from(error: &StdioError) -> Self {
        match error {
            StdioError::Refused(refusal) => refusal.clone(),
            StdioError::Open { .. }
            | StdioError::Kind { .. }
            | StdioError::Pipe(_)
            | StdioError::Terminal(_) => Self::with(RefusalCode::SpecStdioForbidden, Chain(error)),
        }
    }
}

/// What the container gets.
#[derive(Debug)]
struct ContainerEnds {
    /// Descriptor 0.
    stdin: OwnedFd,
    /// Descriptor 1.
    stdout: OwnedFd,
    /// Descriptor 2.
    stderr: OwnedFd,
}

/// How much output of a container may still be kept, by whichever of its processes.
pub(crate) type SharedBudget = Arc<Mutex<Budget>>;

/// A budget of this many bytes.
pub(crate) fn budget(bytes: u64) -> SharedBudget {
    Arc::new(Mutex::new(Budget::new(bytes)))
}

/// The copies that run for a process.
#[derive(Debug)]
pub(crate) struct Streams {
    outputs: Mutex<JoinSet<()>>,
    input: Mutex<JoinSet<()>>,
    /// Our own writer on the input fifo; letting go of it is what CloseIO does.
    stdin_hold: Mutex<Option<OwnedFd>>,
    /// The other end of its terminal.
    terminal: Option<OwnedFd>,
}

/// A process that is being connected: its pipes are, a terminal is once it is there.
#[derive(Debug)]
pub(crate) enum Connecting {
    /// To pipes.
    Pipes(Streams),
    /// To a terminal.
    Terminal(Prepared),
}

/// The client's ends for a process that is to get a terminal.
#[derive(Debug)]
pub(crate) struct Prepared {
    input: Option<(pipe::Receiver, OwnedFd)>,
    output: Outlet,
}

/// Where output goes.
#[derive(Debug)]
enum Outlet {
    Nowhere,
    Fifo(pipe::Sender, OwnedFd),
    File(File, SharedBudget, Log),
}

/// Opens what a process is to be connected to, and gives what it is to be handed: three pipes, or nothing
/// when it gets a terminal. Must be called within the event loop.
pub(crate) fn connect(
    uris: &Uris,
    terminal: bool,
    budget: &SharedBudget,
    log: &Log,
) -> Result<(Connecting, Vec<OwnedFd>), StdioError> {
    if terminal {
        return Ok((Connecting::Terminal(prepare(uris, budget, log)?), Vec::new()));
    }
    let (streams, ContainerEnds { stdin, stdout, stderr }) = open(uris, budget, log)?;
    Ok((Connecting::Pipes(streams), vec![stdin, stdout, stderr]))
}

impl Connecting {
    /// Connects the terminal that the process got, if it was to get one.
    pub(crate) fn attach(self, terminal: Option<OwnedFd>) -> Result<Streams, StdioError> {
        match (self, terminal) {
            (Self::Pipes(streams), None) => Ok(streams),
            (Self::Terminal(prepared), Some(terminal)) => prepared.attach(terminal),
            (Self::Pipes(_), Some(_)) | (Self::Terminal(_), None) => {
                Err(StdioError::Terminal(io::ErrorKind::NotFound.into()))
            }
        }
    }
}

/// Opens all three and starts copying. Must be called within the event loop.
fn open(
    uris: &Uris,
    budget: &SharedBudget,
    log: &Log,
) -> Result<(Streams, ContainerEnds), StdioError> {
    let [stdin, stdout, stderr] = uris.targets().map_err(StdioError::Refused)?;
    let mut outputs = JoinSet::new();
    let mut input = JoinSet::new();
    let stdout = open_output(stdout, budget, log, &mut outputs)?;
    let stderr = open_output(stderr, budget, log, &mut outputs)?;
    let (stdin, hold) = open_input(stdin, &mut input)?;
    let streams = Streams {
        outputs: Mutex::new(outputs),
        input: Mutex::new(input),
        stdin_hold: Mutex::new(hold),
        terminal: None,
    };
    Ok((streams, ContainerEnds { stdin, stdout, stderr }))
}

/// Opens what a terminal is copied from and to. Must be called within the event loop.
fn prepare(uris: &Uris, budget: &SharedBudget, log: &Log) -> Result<Prepared, StdioError> {
    let [stdin, stdout, _same] = uris.targets().map_err(StdioError::Refused)?;
    Ok(Prepared { input: client_input(stdin)?, output: Outlet::open(stdout, budget, log)? })
}

impl Prepared {
    /// Starts copying. `terminal` is non-blocking.
    fn attach(self, terminal: OwnedFd) -> Result<Streams, StdioError> {
        let copy = || terminal.try_clone().map_err(StdioError::Terminal);
        // Used for read, write and readiness; that it is no pipe matters to none of these.
        let from =
            pipe::Receiver::from_owned_fd_unchecked(copy()?).map_err(StdioError::Terminal)?;
        let to = pipe::Sender::from_owned_fd_unchecked(copy()?).map_err(StdioError::Terminal)?;
        let (mut outputs, mut input) = (JoinSet::new(), JoinSet::new());
        outputs.spawn(self.output.copy(from));
        let hold = self.input.map(|(from, hold)| {
            input.spawn(copy_input(from, to));
            hold
        });
        Ok(Streams {
            outputs: Mutex::new(outputs),
            input: Mutex::new(input),
            stdin_hold: Mutex::new(hold),
            terminal: Some(terminal),
        })
    }
}

impl Streams {
    /// Lets the container's input end when the client's writer is gone and all is delivered.
    pub(crate) fn close_stdin(&self) {
        drop(lock(&self.stdin_hold).take());
    }

    /// Tells the terminal its size; without a terminal there is nobody to tell.
    pub(crate) fn resize(&self, rows: u16, columns: u16) -> io::Result<()> {
        let Some(terminal) = &self.terminal else { return Ok(()) };
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        Ok(tcsetwinsize(terminal, size)?)
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
    budget: &SharedBudget,
    log: &Log,
    copies: &mut JoinSet<()>,
) -> Result<OwnedFd, StdioError> {
    match Outlet::open(target, budget, log)? {
        Outlet::Nowhere => null(OFlags::WRONLY),
        outlet @ (Outlet::Fifo(..) | Outlet::File(..)) => {
            let (from, theirs) = output_pipe()?;
            copies.spawn(outlet.copy(from));
            Ok(theirs)
        }
    }
}

impl Outlet {
    fn open(target: Target, budget: &SharedBudget, log: &Log) -> Result<Self, StdioError> {
        match target {
            Target::Null => Ok(Self::Nowhere),
            Target::Fifo(path) => {
                let hold = open_fifo(&path, OFlags::RDONLY)?;
                let fifo = reopen(&path, hold.as_fd(), OFlags::WRONLY)?;
                let fifo = pipe::Sender::from_owned_fd(fifo)
                    .map_err(|source| StdioError::Open { path, source })?;
                Ok(Self::Fifo(fifo, hold))
            }
            Target::File(path) => {
                Ok(Self::File(open_log_file(&path)?, Arc::clone(budget), log.clone()))
            }
        }
    }

    /// Ends when the job's last writer is gone.
    async fn copy(self, mut from: impl AsyncRead + Unpin + Send) {
        match self {
            Self::Nowhere => {
                // A terminal whose output nobody takes would stop whoever writes to it.
                let _ended = tokio::io::copy(&mut from, &mut tokio::io::sink()).await;
            }
            Self::Fifo(mut fifo, hold) => {
                // With our own reader in place it never breaks.
                let _ended = tokio::io::copy(&mut from, &mut fifo).await;
                drop(hold);
            }
            Self::File(file, budget, log) => copy_to_file(from, file, budget, log).await,
        }
    }
}

fn open_input(
    target: Target,
    copies: &mut JoinSet<()>,
) -> Result<(OwnedFd, Option<OwnedFd>), StdioError> {
    let Some((from, hold)) = client_input(target)? else {
        return Ok((null(OFlags::RDONLY)?, None));
    };
    let (theirs, ours) = io::pipe().map_err(StdioError::Pipe)?;
    let to = pipe::Sender::from_owned_fd(ours.into()).map_err(StdioError::Pipe)?;
    copies.spawn(copy_input(from, to));
    Ok((theirs.into(), Some(hold)))
}

/// The client's end of the input and our own writer on it, when there is to be any.
fn client_input(target: Target) -> Result<Option<(pipe::Receiver, OwnedFd)>, StdioError> {
    let path = match target {
        Target::Null => return Ok(None),
        Target::Fifo(path) | Target::File(path) => path,
    };
    // Read and write, so that no open waits and the reader never sees an end before our own
    // writer is in place.
    let bridge = open_fifo(&path, OFlags::RDWR)?;
    let hold = reopen(&path, bridge.as_fd(), OFlags::WRONLY)?;
    let fifo = reopen(&path, bridge.as_fd(), OFlags::RDONLY)?;
    let from =
        pipe::Receiver::from_owned_fd(fifo).map_err(|source| StdioError::Open { path, source })?;
    Ok(Some((from, hold)))
}

/// Ends with the client's last writer, or when the job closes its input.
async fn copy_input(mut from: pipe::Receiver, mut to: pipe::Sender) {
    let _ended = tokio::io::copy(&mut from, &mut to).await;
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

async fn copy_to_file(
    mut from: impl AsyncRead + Unpin,
    file: File,
    budget: SharedBudget,
    log: Log,
) {
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
            let (streams, ends) = open(&uris, &budget(10), &Log::nowhere()).unwrap();
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
            let (streams, ends) = open(&uris, &budget(0), &Log::nowhere()).unwrap();
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

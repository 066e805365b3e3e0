//! Calls to `nimbus-runtime`: one short process a verb.
//!
//! It gets an empty environment, no arguments, one end of a socket pair as descriptor 3, the log or
//! nothing as its output, and a deadline; it dies with us. It is spawned from the main thread only
//! (rule 4): the death signal it asks for follows the thread that spawned it.
//!
//! Limits: [`REPLY_BYTES_MAX`] and the patience that the caller names.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use command_fds::{CommandFdExt as _, FdMapping, FdMappingCollision};
use nimbus_api::error::Chain;
use nimbus_api::frame::{FrameError, FrameReader, write_frame};
use nimbus_api::id::ContainerKey;
use nimbus_api::runtime::{
    OUTSIDE_NAME, REQUEST_FD, RUNTIME_VERSION, RuntimeReply, RuntimeRequest, RuntimeVerb,
};
use nimbus_api::strict_json::{self, Limits, StrictJsonError};
use nimbus_api::{Refusal, RefusalCode};
use rustix::process::Signal;
use tokio::io::Interest;
use tokio::net::UnixStream;

use crate::log::Log;
use crate::paths::Paths;
use crate::process::{ChildError, ChildProcess, Family};

/// Longest answer.
const REPLY_BYTES_MAX: usize = 1 << 20;
/// A request up to this fits an empty socket's buffer, so that sending it never waits.
const SEND_AT_ONCE_BYTES_MAX: usize = 64 << 10;
/// After its answer, or after it was killed, the process may take this long to end.
const END_PATIENCE: Duration = Duration::from_secs(2);

/// How this container's runtime is called.
#[derive(Debug, Clone)]
pub(crate) struct Launcher {
    program: PathBuf,
    state_root: PathBuf,
    key: ContainerKey,
    log: Log,
    family: Family,
}

/// What it answered.
#[derive(Debug)]
pub(crate) struct Answer {
    /// In words.
    pub reply: RuntimeReply,
    /// The other end of a terminal, when the verb made one.
    pub terminal: Option<OwnedFd>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// No socket pair.
    #[error("cannot make a socket pair for the runtime")]
    Socket(#[source] io::Error),
    /// The descriptor cannot be placed.
    #[error("cannot place the runtime's descriptor")]
    Mapping(#[source] FdMappingCollision),
    /// It cannot be started.
    #[error("cannot start {program}")]
    Spawn {
        /// Which program.
        program: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is not our child.
    #[error("cannot watch the runtime")]
    Child(#[source] ChildError),
    /// The request cannot be put as JSON.
    #[error("cannot encode the request to the runtime")]
    Encode(#[source] serde_json::Error),
    /// The request did not get through.
    #[error("cannot send the request to the runtime")]
    Send(#[source] FrameError),
    /// It ended without an answer.
    #[error("the runtime ended without an answer")]
    Receive(#[source] FrameError),
    /// The answer cannot be read.
    #[error("the runtime's answer cannot be read")]
    Reply(#[source] StrictJsonError),
    /// Not in time.
    #[error("the runtime did not answer within {0:?}")]
    Timeout(Duration),
}

impl From<&CallError> for Refusal {
    fn from(error: &CallError) -> Self {
        match error {
            CallError::Timeout(patience) => {
                Self::with(RefusalCode::RuntimeTimeout, format!("no answer within {patience:?}"))
            }
            CallError::Socket(_)
            | CallError::Mapping(_)
            | CallError::Spawn { .. }
            | CallError::Child(_)
            | CallError::Encode(_)
            | CallError::Send(_)
            | CallError::Receive(_)
            | CallError::Reply(_) => Self::with(RefusalCode::RuntimeFailed, Chain(error)),
        }
    }
}

/// Kills the process when it is given up, also when the call's future is dropped.
struct Running {
    child: ChildProcess,
    family: Family,
}

impl Drop for Running {
    fn drop(&mut self) {
        // Ended and reaped already: ESRCH.
        let _gone = self.child.signal(Signal::KILL);
        self.family.remove(&self.child);
    }
}

impl Launcher {
    /// For this container.
    pub(crate) fn new(paths: &Paths, key: ContainerKey, log: Log, family: Family) -> Self {
        let program = Paths::runtime_program();
        Self { program, state_root: paths.state_root(), key, log, family }
    }

    /// For another container.
    pub(crate) fn of(&self, key: ContainerKey, log: Log) -> Self {
        Self { key, log, ..self.clone() }
    }

    /// Asks for one verb and waits for the answer.
    pub(crate) async fn call(
        &self,
        verb: RuntimeVerb,
        fds: Vec<OwnedFd>,
        patience: Duration,
    ) -> Result<Answer, CallError> {
        let enters = verb.enters();
        let request = RuntimeRequest {
            version: RUNTIME_VERSION,
            state_root: self.state_root.clone(),
            container: self.key.clone(),
            verb,
        };
        let request = serde_json::to_vec(&request).map_err(CallError::Encode)?;
        // Nothing is reaped as an orphan while the runtime makes children.
        let _birth = self.family.birth();
        let (socket, running) = self.spawn(enters)?;
        let exchange = async {
            send(&socket, request, fds).await?;
            receive(&socket).await
        };
        let answer = tokio::time::timeout(patience, exchange).await;
        let reply = answer.unwrap_or(Err(CallError::Timeout(patience)));
        if reply.is_err() {
            let _gone = running.child.signal(Signal::KILL);
        }
        let _slow = tokio::time::timeout(END_PATIENCE, running.child.wait()).await;
        reply
    }

    /// Asks for a verb whose answer can only be that it is done.
    pub(crate) async fn done(&self, verb: RuntimeVerb, patience: Duration) -> Result<(), Refusal> {
        match self.call(verb, Vec::new(), patience).await.map(|answer| answer.reply) {
            Ok(RuntimeReply::Done) => Ok(()),
            Ok(RuntimeReply::Failed { refusal, cause }) => {
                self.log.warn(format_args!("{refusal}: {cause}"));
                Err(refusal)
            }
            Ok(RuntimeReply::Created { .. } | RuntimeReply::Executed { .. }) => {
                Err(Refusal::with(RefusalCode::RuntimeFailed, "answered with a process"))
            }
            Err(error) => {
                self.log.warn(Chain(&error));
                Err((&error).into())
            }
        }
    }

    /// What enters a container executes itself once more to be out of the container's reach, which the
    /// other verbs need not pay for.
    fn spawn(&self, enters: bool) -> Result<(UnixStream, Running), CallError> {
        let (ours, theirs) = StdUnixStream::pair().map_err(CallError::Socket)?;
        ours.set_nonblocking(true).map_err(CallError::Socket)?;
        let ours = UnixStream::from_std(ours).map_err(CallError::Socket)?;
        let output = || self.log.descriptor().map_or_else(Stdio::null, Stdio::from);
        let mut command = Command::new(&self.program);
        if !enters {
            command.arg0(OUTSIDE_NAME);
        }
        command.env_clear().current_dir("/").stdin(Stdio::null()).stdout(output()).stderr(output());
        command
            .fd_mappings(vec![FdMapping { parent_fd: theirs.into(), child_fd: REQUEST_FD }])
            .map_err(CallError::Mapping)?;
        let child = command
            .spawn()
            .map_err(|source| CallError::Spawn { program: self.program.clone(), source })?;
        // Their end must be theirs alone, or its closing is never seen.
        drop(command);
        let pid = i32::try_from(child.id()).unwrap_or(0);
        let child = ChildProcess::adopt(pid).map_err(CallError::Child)?;
        self.family.add(&child);
        Ok((ours, Running { child, family: self.family.clone() }))
    }
}

async fn send(socket: &UnixStream, request: Vec<u8>, fds: Vec<OwnedFd>) -> Result<(), CallError> {
    if request.len() <= SEND_AT_ONCE_BYTES_MAX {
        return send_now(socket, &request, &fds).map_err(CallError::Send);
    }
    let socket = socket
        .as_fd()
        .try_clone_to_owned()
        .map_err(|error| CallError::Send(FrameError::Io(error)))?;
    // Ends by itself: killing the runtime closes the other end.
    let sent = tokio::task::spawn_blocking(move || send_now(&socket, &request, &fds)).await;
    sent.unwrap_or_else(|join| Err(FrameError::Io(io::Error::other(join)))).map_err(CallError::Send)
}

fn send_now(
    socket: impl std::os::fd::AsFd,
    request: &[u8],
    fds: &[OwnedFd],
) -> Result<(), FrameError> {
    let fds: Vec<_> = fds.iter().map(|fd| fd.as_fd()).collect();
    write_frame(socket, request, &fds)
}

async fn receive(socket: &UnixStream) -> Result<Answer, CallError> {
    let mut reader = FrameReader::with_limit(REPLY_BYTES_MAX);
    loop {
        socket.readable().await.map_err(|error| CallError::Receive(FrameError::Io(error)))?;
        let read = socket.try_io(Interest::READABLE, || match reader.read(socket) {
            Err(error) if error.is_would_block() => Err(io::ErrorKind::WouldBlock.into()),
            other => Ok(other),
        });
        match read {
            Ok(frame) => {
                let frame = frame.map_err(CallError::Receive)?;
                let reply = strict_json::parse(&frame.bytes, Limits::bytes(REPLY_BYTES_MAX))
                    .map_err(CallError::Reply)?;
                return Ok(Answer { reply, terminal: frame.fds.into_iter().next() });
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(CallError::Receive(FrameError::Io(error))),
        }
    }
}

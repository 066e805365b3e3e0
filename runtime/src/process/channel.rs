//! What a process that is to become one of the container's and the one that made it say to each other.
//!
//! A socket pair. From outside comes [`GO`], twice: once the process is where it belongs, and once it
//! has been looked at. From inside come messages of [`REPORT_BYTES`]: its terminal, that it is ready,
//! or what went wrong. The end of the socket after the second [`GO`] means that the program has been
//! executed. Either side that dies ends the other's wait.
#![forbid(unsafe_code)]

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::{Duration, Instant};

use nimbus_api::Refusal;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};

use super::{At as _, Gate, Step};
use crate::error::{Doing as _, RuntimeError};
use crate::report::{REPORT_BYTES, Report, Stage};
use crate::sys::{fd, signal};

const GO: u8 = 1;
const READY: [u8; REPORT_BYTES] = [0x80, 0, 0, 0, 0];
/// Followed by the length of what comes next: a refusal as JSON.
const REFUSAL: u8 = 0x82;
const REFUSAL_BYTES_MAX: usize = 64 << 10;
const TERMINAL: [u8; REPORT_BYTES] = [0x81, 0, 0, 0, 0];
/// Longest wait for all that the process has to say: it may have been stopped.
const PATIENCE: Duration = Duration::from_secs(10);

/// The two ends.
pub(crate) fn pair() -> Result<(Outside, Inside), RuntimeError> {
    let (outside, inside) =
        socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
            .doing("make a channel")?;
    Ok((Outside { socket: outside, end: Instant::now() + PATIENCE }, Inside(inside)))
}

/// What comes from inside.
#[derive(Debug)]
pub(crate) enum Heard {
    /// The other end of the terminal that the process has.
    Terminal(OwnedFd),
    /// It can be looked at.
    Ready,
    /// It has failed and ends.
    Failed(Report),
    /// Likewise, with more to say.
    Refused(Refusal),
    /// Nothing more: it executes its program, or has ended.
    End,
}

/// The end of the one that made the process.
#[derive(Debug)]
pub(crate) struct Outside {
    socket: OwnedFd,
    /// Until then it listens.
    end: Instant,
}

impl Outside {
    /// Lets it go on.
    pub(crate) fn go(&self) -> Result<(), RuntimeError> {
        let sent = rustix::net::send(&self.socket, &[GO], SendFlags::NOSIGNAL);
        sent.map(|_bytes| ()).doing("let the process go on")
    }

    /// Waits for the next message.
    pub(crate) fn hear(&self) -> Result<Heard, RuntimeError> {
        self.wait()?;
        let mut bytes = [0; REPORT_BYTES];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::WAITALL;
        let received =
            recvmsg(&self.socket, &mut [IoSliceMut::new(&mut bytes)], &mut control, flags);
        let count = match received {
            // It has ended without reading what it was told.
            Err(Errno::CONNRESET) => 0,
            received => received.doing("hear from the process")?.bytes,
        };
        let mut fd = None;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(mut fds) = message {
                fd = fds.next();
            }
        }
        match (count, bytes, fd) {
            (0, _, None) => Ok(Heard::End),
            (REPORT_BYTES, READY, None) => Ok(Heard::Ready),
            (REPORT_BYTES, TERMINAL, Some(fd)) => Ok(Heard::Terminal(fd)),
            (REPORT_BYTES, [REFUSAL, a, b, c, d], None) => {
                self.hear_refusal(u32::from_ne_bytes([a, b, c, d])).map(Heard::Refused)
            }
            (REPORT_BYTES, bytes, None) => Report::from_bytes(bytes)
                .map(Heard::Failed)
                .ok_or_else(|| RuntimeError::unproven("the process says what it cannot mean")),
            _ => Err(RuntimeError::unproven("the process says half of what it means")),
        }
    }

    fn hear_refusal(&self, length: u32) -> Result<Refusal, RuntimeError> {
        let length = usize::try_from(length).unwrap_or(usize::MAX).min(REFUSAL_BYTES_MAX);
        let mut text = vec![0; length];
        let (count, _) = rustix::net::recv(&self.socket, &mut text, RecvFlags::WAITALL)
            .doing("hear why the process gives up")?;
        text.truncate(count);
        serde_json::from_slice(&text)
            .map_err(std::io::Error::from)
            .doing("understand why the process gives up")
    }

    fn wait(&self) -> Result<(), RuntimeError> {
        loop {
            let left = self.end.saturating_duration_since(Instant::now());
            let left = Timespec::try_from(left).map_err(std::io::Error::other);
            let left = left.doing("count the time that is left")?;
            let mut socket = [PollFd::new(&self.socket, PollFlags::IN)];
            match poll(&mut socket, Some(&left)) {
                Ok(0) => {
                    let detail = "the process does not answer";
                    return Err(RuntimeError::refused(
                        nimbus_api::RefusalCode::RuntimeTimeout,
                        detail,
                    ));
                }
                Ok(_) => return Ok(()),
                Err(Errno::INTR) if !signal::deadline_passed() => {}
                Err(error) => return Err(error).doing("wait for the process"),
            }
        }
    }
}

/// The end of the process itself.
#[derive(Debug)]
pub(crate) struct Inside(OwnedFd);

impl Inside {
    /// Waits until it may go on. Whoever made it and has died, lets it end.
    pub(crate) fn wait(&self) -> Step {
        let mut byte = [0];
        match rustix::io::read(&self.0, &mut byte).at(Stage::SetUp)? {
            1 if byte == [GO] => Ok(()),
            _ => Err(std::io::Error::from_raw_os_error(libc::ECANCELED)).at(Stage::SetUp),
        }
    }

    /// Says that it can be looked at, and waits until it has been. Writes and reads, which every filter
    /// that lets a program run allows.
    pub(crate) fn ready_and_wait(&self) -> Step {
        rustix::io::write(&self.0, &READY).at(Stage::SetUp)?;
        self.wait()
    }

    /// Says what went wrong.
    pub(crate) fn fail(&self, report: Report) {
        report.send(&self.0);
    }

    /// Hands over the other end of its terminal.
    pub(crate) fn send_terminal(&self, terminal: &OwnedFd) -> Step {
        let fds = [terminal.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !control.push(SendAncillaryMessage::ScmRights(&fds)) {
            return Err(Errno::NOBUFS).at(Stage::SetUp);
        }
        let sent = sendmsg(&self.0, &[IoSlice::new(&TERMINAL)], &mut control, SendFlags::NOSIGNAL);
        sent.map(|_bytes| ()).at(Stage::SetUp)
    }

    /// Says that it can be looked at, and that is all that there is to say.
    pub(crate) fn ready(&self) -> Step {
        rustix::io::write(&self.0, &READY).map(|_bytes| ()).at(Stage::SetUp)
    }

    /// Says why it gives up, in words.
    pub(crate) fn refuse(&self, refusal: &Refusal) {
        let text = serde_json::to_vec(refusal).unwrap_or_default();
        let length = u32::try_from(text.len()).unwrap_or(0).to_ne_bytes();
        let [a, b, c, d] = length;
        // Whoever reads finds out by this process's end if that fails.
        if rustix::io::write(&self.0, &[REFUSAL, a, b, c, d]).is_ok() {
            rustix::io::write(&self.0, &text).unwrap_or_default();
        }
    }

    /// Keeps standard descriptors, this channel, those of `gate` and nothing else.
    pub(crate) fn keep_only(&mut self, stdio: [OwnedFd; 3], gate: Option<&mut Gate>) -> Step {
        let mut others = vec![&mut self.0];
        if let Some(gate) = gate {
            others.extend([&mut gate.start, &mut gate.report]);
        }
        fd::keep_only(stdio, &mut others).at(Stage::SetUp)
    }
}

//! Frames: a length, a message and the descriptors that go with it, over a Unix stream socket.
//!
//! On the wire: four bytes big-endian length, then that many bytes. Descriptors ride on the first
//! byte of their frame as SCM_RIGHTS. Reading is incremental, so the same code serves a blocking
//! thread and an event loop; every received descriptor is close-on-exec and owned at once.
//!
//! Limits: [`FRAME_BYTES_MAX`] unless the reader is given less, [`FRAME_FDS_MAX`] descriptors.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

/// Longest message.
pub const FRAME_BYTES_MAX: usize = 8 << 20;
/// Most descriptors with one message: as many as the kernel takes (`SCM_MAX_FD`).
pub const FRAME_FDS_MAX: usize = 253;
const HEADER_BYTES: usize = 4;
const CHUNK_BYTES: usize = 8 << 10;

/// One message.
#[derive(Debug)]
pub struct Frame {
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Its descriptors, in the order they were sent.
    pub fds: Vec<OwnedFd>,
}

/// Why a frame could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The socket failed; `WouldBlock` included.
    #[error("cannot use the socket")]
    Io(#[source] io::Error),
    /// The peer closed between frames.
    #[error("peer closed the connection")]
    Closed,
    /// The peer closed within a frame.
    #[error("peer closed the connection within a message")]
    Cut,
    /// The message is longer than allowed.
    #[error("message of {found} bytes, at most {limit} are allowed")]
    TooLarge {
        /// Bytes announced or given.
        found: usize,
        /// Bytes allowed.
        limit: usize,
    },
    /// More descriptors than allowed.
    #[error("more than {FRAME_FDS_MAX} descriptors with one message")]
    TooManyFds,
}

impl FrameError {
    /// Whether the socket was only not ready.
    pub fn is_would_block(&self) -> bool {
        matches!(self, Self::Io(error) if error.kind() == io::ErrorKind::WouldBlock)
    }
}

/// The bytes of a frame that carries no descriptors, for whoever writes them by other means.
pub fn encode(bytes: &[u8]) -> Result<Vec<u8>, FrameError> {
    let too_large = || FrameError::TooLarge { found: bytes.len(), limit: FRAME_BYTES_MAX };
    if bytes.len() > FRAME_BYTES_MAX {
        return Err(too_large());
    }
    let length = u32::try_from(bytes.len()).map_err(|_over| too_large())?;
    let mut message = Vec::with_capacity(HEADER_BYTES + bytes.len());
    message.extend_from_slice(&length.to_be_bytes());
    message.extend_from_slice(bytes);
    Ok(message)
}

/// Sends one frame. On a blocking socket it returns when all is sent; on a non-blocking one it
/// waits for room up to the socket's own patience, so keep such frames short.
pub fn write_frame(
    socket: impl AsFd,
    bytes: &[u8],
    fds: &[BorrowedFd<'_>],
) -> Result<(), FrameError> {
    if fds.len() > FRAME_FDS_MAX {
        return Err(FrameError::TooManyFds);
    }
    let message = encode(bytes)?;
    let mut sent = 0;
    while let Some(rest) = message.get(sent..).filter(|rest| !rest.is_empty()) {
        let first = if sent == 0 { fds } else { &[] };
        match send_once(socket.as_fd(), rest, first) {
            Ok(count) => sent += count,
            Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::AGAIN) => wait_writable(socket.as_fd())?,
            Err(error) => return Err(FrameError::Io(error.into())),
        }
    }
    Ok(())
}

/// Longest wait for room in a non-blocking socket, milliseconds.
const WRITE_WAIT_MS: i64 = 5_000;

fn wait_writable(socket: BorrowedFd<'_>) -> Result<(), FrameError> {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut wanted = [PollFd::from_borrowed_fd(socket, PollFlags::OUT)];
    let patience = Timespec { tv_sec: WRITE_WAIT_MS / 1000, tv_nsec: 0 };
    match poll(&mut wanted, Some(&patience)) {
        Ok(0) => Err(FrameError::Io(io::ErrorKind::TimedOut.into())),
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(FrameError::Io(error.into())),
    }
}

fn send_once(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    fds: &[BorrowedFd<'_>],
) -> rustix::io::Result<usize> {
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FRAME_FDS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(rustix::io::Errno::NOBUFS);
    }
    sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)
}

/// Reads frames off one socket.
#[derive(Debug)]
pub struct FrameReader {
    limit: usize,
    bytes: Vec<u8>,
    fds: Vec<OwnedFd>,
}

impl Default for FrameReader {
    fn default() -> Self {
        Self::with_limit(FRAME_BYTES_MAX)
    }
}

impl FrameReader {
    /// A reader that refuses messages longer than `limit`.
    pub const fn with_limit(limit: usize) -> Self {
        Self { limit, bytes: Vec::new(), fds: Vec::new() }
    }

    /// Reads until a frame is complete. On a non-blocking socket `WouldBlock` means: call again when
    /// it is readable, nothing is lost.
    pub fn read(&mut self, socket: impl AsFd) -> Result<Frame, FrameError> {
        loop {
            let wanted = self.wanted()?;
            if wanted == 0 {
                let mut bytes = std::mem::take(&mut self.bytes);
                bytes.drain(..HEADER_BYTES);
                return Ok(Frame { bytes, fds: std::mem::take(&mut self.fds) });
            }
            match self.receive_once(socket.as_fd(), wanted) {
                Ok(0) if self.bytes.is_empty() => return Err(FrameError::Closed),
                Ok(0) => return Err(FrameError::Cut),
                Ok(_) | Err(FrameStep::Again) => {}
                Err(FrameStep::Failed(error)) => return Err(error),
            }
        }
    }

    /// Bytes that the present frame still lacks.
    fn wanted(&self) -> Result<usize, FrameError> {
        let Some(header) = self.bytes.first_chunk::<HEADER_BYTES>() else {
            return Ok(HEADER_BYTES - self.bytes.len());
        };
        let length = usize::try_from(u32::from_be_bytes(*header)).unwrap_or(usize::MAX);
        if length > self.limit {
            return Err(FrameError::TooLarge { found: length, limit: self.limit });
        }
        Ok(HEADER_BYTES + length - self.bytes.len())
    }

    /// Never reads past the present frame, so the next one's descriptors stay with it.
    fn receive_once(&mut self, socket: BorrowedFd<'_>, wanted: usize) -> Result<usize, FrameStep> {
        let mut chunk = [0; CHUNK_BYTES];
        let room = chunk.get_mut(..wanted.min(CHUNK_BYTES)).unwrap_or_default();
        let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FRAME_FDS_MAX))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received =
            recvmsg(socket, &mut [IoSliceMut::new(room)], &mut control, RecvFlags::CMSG_CLOEXEC);
        let received = match received {
            Ok(received) => received,
            Err(rustix::io::Errno::INTR) => return Err(FrameStep::Again),
            Err(error) => return Err(FrameStep::Failed(FrameError::Io(error.into()))),
        };
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                self.fds.extend(fds);
            }
        }
        if received.flags.contains(ReturnFlags::CTRUNC) || self.fds.len() > FRAME_FDS_MAX {
            return Err(FrameStep::Failed(FrameError::TooManyFds));
        }
        self.bytes.extend_from_slice(chunk.get(..received.bytes).unwrap_or_default());
        Ok(received.bytes)
    }
}

enum FrameStep {
    Again,
    Failed(FrameError),
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Seek as _, Write as _};
    use std::os::unix::net::UnixStream;

    #[test]
    fn frames_and_their_descriptors_arrive_together_and_in_order() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut file = tempfile_with(b"layer");
        let long = vec![7_u8; 300_000];
        let writer = std::thread::spawn(move || {
            write_frame(&ours, b"first", &[]).unwrap();
            write_frame(&ours, &long, &[file.as_fd()]).unwrap();
            write_frame(&ours, b"", &[file.as_fd(), file.as_fd()]).unwrap();
            file.rewind().unwrap();
        });
        let mut reader = FrameReader::default();
        let first = reader.read(&theirs).unwrap();
        assert_eq!((first.bytes.as_slice(), first.fds.len()), (b"first".as_slice(), 0));
        let mut second = reader.read(&theirs).unwrap();
        assert_eq!((second.bytes.len(), second.fds.len()), (300_000, 1));
        let third = reader.read(&theirs).unwrap();
        assert_eq!((third.bytes.len(), third.fds.len()), (0, 2));
        writer.join().unwrap();
        let mut file = std::fs::File::from(second.fds.remove(0));
        file.rewind().unwrap();
        assert_eq!(io::read_to_string(file).unwrap(), "layer");
        assert!(matches!(reader.read(&theirs), Err(FrameError::Closed)));
    }

    #[test]
    fn as_many_descriptors_as_the_kernel_takes_go_with_a_message_and_no_more() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let file = tempfile_with(b"");
        let many = vec![file.as_fd(); FRAME_FDS_MAX + 1];
        assert!(matches!(write_frame(&ours, b"x", &many), Err(FrameError::TooManyFds)));
        write_frame(&ours, b"x", &many[1..]).unwrap();
        write_frame(&ours, b"y", &many[..1]).unwrap();
        let mut reader = FrameReader::default();
        assert_eq!(reader.read(&theirs).unwrap().fds.len(), FRAME_FDS_MAX);
        assert_eq!(reader.read(&theirs).unwrap().fds.len(), 1);
    }

    fn tempfile_with(bytes: &[u8]) -> std::fs::File {
        let fd = rustix::fs::memfd_create("frame-test", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let mut file = std::fs::File::from(fd);
        file.write_all(bytes).unwrap();
        file
    }

    #[test]
    fn an_announced_length_beyond_the_limit_is_refused_before_it_is_read() {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        ours.write_all(&u32::MAX.to_be_bytes()).unwrap();
        let refused = FrameReader::with_limit(100).read(&theirs);
        assert!(matches!(refused, Err(FrameError::TooLarge { limit: 100, .. })));
    }

    #[test]
    fn a_peer_that_closes_within_a_message_is_noticed() {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        ours.write_all(&[0, 0, 0, 9, 1, 2]).unwrap();
        drop(ours);
        assert!(matches!(FrameReader::default().read(&theirs), Err(FrameError::Cut)));
    }
}

//! One connection to the node agent: frames of `nimbus.admit.v1`.
//!
//! The agent must be root. Reading can be given up at any await and taken up again; writing is
//! bounded by [`WRITE_PATIENCE`].

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use nimbus_api::frame::{FrameError, FrameReader, encode};
use nimbus_api::proto::admit::v1::{AgentMessage, ShimMessage, agent_message, shim_message};
use prost::Message as _;
use tokio::io::{AsyncWriteExt as _, Interest};
use tokio::net::UnixStream;

/// One message.
const WRITE_PATIENCE: Duration = Duration::from_secs(5);
const ROOT: u32 = 0;

/// Why the agent cannot be spoken to.
#[derive(Debug, thiserror::Error)]
pub(super) enum LinkError {
    /// Nobody listens.
    #[error("cannot connect to the node agent")]
    Connect(#[source] io::Error),
    /// Somebody else listens.
    #[error("who listens on the node agent's socket is user {0}, not root")]
    NotRoot(u32),
    /// It does not take what is sent.
    #[error("cannot send to the node agent")]
    Send(#[source] io::Error),
    /// A message is too long.
    #[error("cannot put the message to the node agent into a frame")]
    Frame(#[source] FrameError),
    /// The connection broke.
    #[error("the connection to the node agent broke")]
    Receive(#[source] FrameError),
    /// Not a message.
    #[error("the node agent's message cannot be read")]
    Decode(#[source] prost::DecodeError),
    /// A message of a kind that this version does not know.
    #[error("the node agent's message is of an unknown kind")]
    UnknownKind,
}

/// A connection.
#[derive(Debug)]
pub(super) struct Link {
    stream: UnixStream,
    reader: FrameReader,
}

impl Link {
    /// Connects.
    pub(super) async fn connect(socket: &Path) -> Result<Self, LinkError> {
        let stream = UnixStream::connect(socket).await.map_err(LinkError::Connect)?;
        let peer = stream.peer_cred().map_err(LinkError::Connect)?;
        if peer.uid() != ROOT {
            return Err(LinkError::NotRoot(peer.uid()));
        }
        Ok(Self { stream, reader: FrameReader::default() })
    }

    /// Sends one message.
    pub(super) async fn send(&mut self, kind: shim_message::Kind) -> Result<(), LinkError> {
        let bytes = ShimMessage { kind: Some(kind) }.encode_to_vec();
        let frame = encode(&bytes).map_err(LinkError::Frame)?;
        let sent = tokio::time::timeout(WRITE_PATIENCE, self.stream.write_all(&frame)).await;
        sent.unwrap_or_else(|_late| Err(io::ErrorKind::TimedOut.into())).map_err(LinkError::Send)
    }

    /// Waits for one message and its descriptors. Safe to give up at any time.
    pub(super) async fn receive(
        &mut self,
    ) -> Result<(agent_message::Kind, Vec<OwnedFd>), LinkError> {
        let frame = loop {
            let broken = |error| LinkError::Receive(FrameError::Io(error));
            self.stream.readable().await.map_err(broken)?;
            let read =
                self.stream.try_io(Interest::READABLE, || match self.reader.read(&self.stream) {
                    Err(error) if error.is_would_block() => Err(io::ErrorKind::WouldBlock.into()),
                    other => Ok(other),
                });
            match read {
                Ok(frame) => break frame.map_err(LinkError::Receive)?,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(broken(error)),
            }
        };
        let message = AgentMessage::decode(frame.bytes.as_slice()).map_err(LinkError::Decode)?;
        Ok((message.kind.ok_or(LinkError::UnknownKind)?, frame.fds))
    }
}

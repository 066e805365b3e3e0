//! The CRI's streams: exec, attach and port-forward over a WebSocket with one channel a message.
//!
//! containerd answers `Exec`, `Attach` and `PortForward` with an address on loopback. kubelet's own
//! protocol there is SPDY; the WebSocket form of the same server carries the same streams: the first byte
//! of every message is its channel. An end of stdin cannot be said in this form.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tungstenite::{ClientRequestBuilder, Error, Message, WebSocket};

use crate::failure::During as _;
use crate::wait::PATIENCE;
use crate::{Failure, Outcome};

/// The protocol that both sides name: channels, binary, status as JSON.
const PROTOCOL: &str = "v4.channel.k8s.io";
/// What the process reads; what a forwarded port is sent and says.
pub const STDIN: u8 = 0;
/// The data of a forwarded port.
pub const DATA: u8 = 0;
/// What the process writes.
pub const STDOUT: u8 = 1;
/// The same.
pub const STDERR: u8 = 2;
/// How it ended, as JSON.
const STATUS: u8 = 3;
/// Sizes of the terminal.
const RESIZE: u8 = 4;
/// Between two looks at the clock.
const TICK: Duration = Duration::from_millis(200);

/// An open stream.
#[derive(Debug)]
pub struct Stream {
    socket: WebSocket<TcpStream>,
    received: BTreeMap<u8, Vec<u8>>,
    over: bool,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// All of stdout.
    pub stdout: String,
    /// All of stderr.
    pub stderr: String,
    /// The exit code that the status tells; none when it tells none.
    pub code: Option<i64>,
}

impl Stream {
    /// Connects to an address that the CRI plugin gave.
    pub fn open(address: &str) -> Result<Self, Failure> {
        let rest = address.strip_prefix("http://");
        let rest = rest.ok_or_else(|| Failure::new(format!("not plain HTTP: {address}")))?;
        let host = rest.split('/').next().unwrap_or_default();
        let tcp = TcpStream::connect(host).during(host)?;
        tcp.set_read_timeout(Some(TICK))?;
        let uri = format!("ws://{rest}").parse().during(address)?;
        let request = ClientRequestBuilder::new(uri).with_sub_protocol(PROTOCOL);
        let mut handshake = tungstenite::client(request, tcp);
        let begun = Instant::now();
        let (socket, _answer) = loop {
            match handshake {
                Ok(done) => break done,
                Err(tungstenite::HandshakeError::Interrupted(middle))
                    if begun.elapsed() < PATIENCE =>
                {
                    handshake = middle.handshake();
                }
                Err(error) => return Err(Failure::new(format!("{address}: {error}"))),
            }
        };
        Ok(Self { socket, received: BTreeMap::new(), over: false })
    }

    /// Sends on a channel.
    pub fn send(&mut self, channel: u8, bytes: &[u8]) -> Outcome {
        let message = [&[channel], bytes].concat();
        self.socket.send(Message::binary(message)).during("send on a stream")
    }

    /// Tells the size of the terminal.
    pub fn resize(&mut self, width: u16, height: u16) -> Outcome {
        let size = json!({"Width": width, "Height": height});
        self.send(RESIZE, size.to_string().as_bytes())
    }

    /// What has come on a channel so far.
    pub fn so_far(&self, channel: u8) -> String {
        let bytes = self.received.get(&channel).map(Vec::as_slice).unwrap_or_default();
        String::from_utf8_lossy(bytes).into_owned()
    }

    /// Waits until a channel has said this.
    pub fn wait_for(&mut self, channel: u8, wanted: &str) -> Outcome {
        let begun = Instant::now();
        while !self.so_far(channel).contains(wanted) {
            if self.over || begun.elapsed() > PATIENCE {
                let found = self.so_far(channel);
                return Err(Failure::new(format!("waited for {wanted:?}, found {found:?}")));
            }
            self.receive()?;
        }
        Ok(())
    }

    /// Waits until the other side is done.
    pub fn finish(mut self) -> Result<Ended, Failure> {
        let begun = Instant::now();
        while !self.over {
            if begun.elapsed() > PATIENCE {
                return Err(Failure::new(format!("the stream does not end: {:?}", self.received)));
            }
            self.receive()?;
        }
        let status: Value = serde_json::from_str(&self.so_far(STATUS)).unwrap_or_default();
        let (stdout, stderr) = (self.so_far(STDOUT), self.so_far(STDERR));
        Ok(Ended { stdout, stderr, code: exit_code(&status) })
    }

    /// Takes one message, or nothing for a moment.
    fn receive(&mut self) -> Outcome {
        match self.socket.read() {
            Ok(Message::Binary(bytes)) => {
                if let Some((channel, text)) = bytes.split_first() {
                    self.received.entry(*channel).or_default().extend_from_slice(text);
                }
            }
            Ok(Message::Close(_)) => self.over = true,
            Ok(Message::Text(_) | Message::Ping(_) | Message::Pong(_) | Message::Frame(_)) => {}
            Err(Error::Io(error))
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            // The server closes the connection as often as it says goodbye.
            Err(Error::ConnectionClosed | Error::AlreadyClosed | Error::Protocol(_)) => {
                self.over = true;
            }
            Err(Error::Io(error)) if error.kind() == ErrorKind::ConnectionReset => self.over = true,
            Err(error) => return Err(Failure::from(error)),
        }
        Ok(())
    }
}

/// `{"status":"Success"}`, or a failure whose causes hold the exit code.
fn exit_code(status: &Value) -> Option<i64> {
    if status.get("status")? == "Success" {
        return Some(0);
    }
    let causes = status.pointer("/details/causes")?.as_array()?;
    let code = causes.iter().find(|cause| cause.get("reason").is_some_and(|r| r == "ExitCode"))?;
    code.get("message")?.as_str()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exit_code_is_read_from_the_status() {
        let failed = json!({"status": "Failure", "reason": "NonZeroExitCode", "details": {"causes": [
            {"reason": "ExitCode", "message": "7"}
        ]}});
        assert_eq!(exit_code(&json!({"status": "Success"})), Some(0));
        assert_eq!(exit_code(&failed), Some(7));
        assert_eq!(exit_code(&json!({"status": "Failure", "message": "gone"})), None);
        assert_eq!(exit_code(&Value::Null), None);
    }
}

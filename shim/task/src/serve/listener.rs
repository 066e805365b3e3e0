//! Who may speak to the server: root, by the credentials of the connection.
//!
//! The socket's mode says so already; this holds when somebody loosens it.

use std::io;
use std::task::Poll;

use containerd_shim_protos::ttrpc::asynchronous::transport::Listener;
use futures::stream::{Stream, poll_fn};
use tokio::net::{UnixListener, UnixStream};

const ROOT: u32 = 0;

/// Passes on the connections whose peer is root and closes the others.
pub(super) fn only_root(listener: UnixListener) -> Listener {
    Listener::new(accepted(listener, ROOT))
}

fn accepted(listener: UnixListener, uid: u32) -> impl Stream<Item = io::Result<UnixStream>> + Send {
    poll_fn(move |context| {
        loop {
            match listener.poll_accept(context) {
                Poll::Ready(Ok((stream, _address))) => {
                    if stream.peer_cred().is_ok_and(|peer| peer.uid() == uid) {
                        return Poll::Ready(Some(Ok(stream)));
                    }
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Some(Err(error))),
                Poll::Pending => return Poll::Pending,
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::StreamExt as _;
    use tokio::io::AsyncReadExt as _;

    async fn first_of(uid: u32) -> Option<u32> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        let mut client = UnixStream::connect(&path).await.unwrap();
        let mut stream = std::pin::pin!(accepted(listener, uid));
        tokio::select! {
            stream = stream.next() => Some(stream.unwrap().unwrap().peer_cred().unwrap().uid()),
            read = client.read_u8() => {
                read.unwrap_err();
                None
            }
        }
    }

    #[test]
    fn a_connection_of_another_user_is_closed() {
        let event_loop =
            tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let ours = rustix::process::geteuid().as_raw();
        assert_eq!(event_loop.block_on(first_of(ours)), Some(ours));
        assert_eq!(event_loop.block_on(first_of(ours + 1)), None);
    }
}

//! A socket in front of containerd's that the node agent is given instead, and that can be held:
//! what the agent says then waits, as with a containerd that has no time for it.
//!
//! Intent: who holds containerd's socket can be faster than the agent. Holding the gate makes that a
//! certainty, so that an attacker gets at a lease that was granted and that nobody has used yet.

use std::io;
use std::path::{Path, PathBuf};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::runtime::Runtime;
use tokio::sync::watch;

use crate::Failure;
use crate::failure::During as _;

/// Bytes passed on at a time.
const CHUNK_BYTES: usize = 64 << 10;

/// An open or held gate; it and its connections are gone when it is dropped.
#[derive(Debug)]
pub struct Gate {
    held: watch::Sender<bool>,
    _runtime: Runtime,
}

impl Gate {
    /// Listens at `path` and passes everything on to the socket `behind`.
    pub fn open(path: &Path, behind: &Path) -> Result<Self, Failure> {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let listener = {
            let _inside = runtime.enter();
            UnixListener::bind(path).during("the gate's socket")?
        };
        let (held, is_held) = watch::channel(false);
        runtime.spawn(serve(listener, behind.to_owned(), is_held));
        Ok(Self { held, _runtime: runtime })
    }

    /// Nothing goes to containerd from now on.
    pub fn hold(&self) {
        self.held.send_replace(true);
    }

    /// What waits goes on.
    pub fn release(&self) {
        self.held.send_replace(false);
    }
}

async fn serve(listener: UnixListener, behind: PathBuf, held: watch::Receiver<bool>) {
    while let Ok((client, _address)) = listener.accept().await {
        let (behind, held) = (behind.clone(), held.clone());
        tokio::spawn(async move {
            // An end, by whatever, is an end for both sides: the sockets are dropped.
            let passed = pass(client, &behind, held).await;
            drop(passed);
        });
    }
}

async fn pass(
    client: UnixStream,
    behind: &Path,
    mut held: watch::Receiver<bool>,
) -> io::Result<()> {
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = UnixStream::connect(behind).await?.into_split();
    let up = async {
        let mut chunk = vec![0; CHUNK_BYTES];
        loop {
            let count = from_client.read(&mut chunk).await?;
            let open = held.wait_for(|held| !*held).await.map(drop);
            if count == 0 || open.is_err() {
                return Ok(());
            }
            to_server.write_all(chunk.get(..count).unwrap_or_default()).await?;
        }
    };
    let down = async { tokio::io::copy(&mut from_server, &mut to_client).await.map(drop) };
    tokio::select! {
        ended = up => ended,
        ended = down => ended,
    }
}

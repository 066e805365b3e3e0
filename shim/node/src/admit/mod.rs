//! The admit server: shims ask here at `Task.Create` (rule 2), over a root-only socket.
//!
//! Its own bounded set of threads, one a connection and [`CONNECTIONS_MAX`] of them, apart from
//! everything else the agent does: a slow registry or a lost control never delays an answer, and no
//! answer calls containerd (rule 12). A connection lives as long as its container: deadlines and
//! revocations are pushed over it.
//!
//! Deliberately absent: decisions. Facts are gathered ([`gather`]), `nimbus_hooks::admit` decides.

pub mod connection;
pub mod gather;
pub mod peers;

use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use nimbus_api::{Refusal, RefusalCode};

use crate::agent::Agent;
use crate::files::{self, FILE_MODE, FileError};

/// Most connections at one time; one more is told `node.busy`.
pub const CONNECTIONS_MAX: usize = 256;
/// Stack of a connection's thread.
const STACK_BYTES: usize = 1 << 20;
/// Pause after a failed accept, so that a lack of descriptors does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Listens on the agent's socket. The caller holds the lock on the run directory, so a socket that is
/// there already is a dead agent's.
pub fn bind(path: &Path) -> Result<UnixListener, FileError> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let temporary = Path::new(&temporary);
    files::remove(temporary)?;
    let failed = |error| FileError::new("listen on", path, error);
    // Made under another name and renamed when only root may connect.
    let listener = UnixListener::bind(temporary).map_err(failed)?;
    std::fs::set_permissions(temporary, std::fs::Permissions::from_mode(FILE_MODE))
        .map_err(failed)?;
    std::fs::rename(temporary, path).map_err(failed)?;
    Ok(listener)
}

/// Serves connections until the process ends.
pub fn serve(agent: &Arc<Agent>, listener: UnixListener) -> io::Result<thread::JoinHandle<()>> {
    let agent = Arc::clone(agent);
    thread::Builder::new().name("admit-accept".to_owned()).spawn(move || {
        let open = Arc::new(AtomicUsize::new(0));
        for stream in listener.incoming() {
            match stream {
                Ok(stream) => start(&agent, stream, &open),
                Err(error) => {
                    tracing::error!(%error, "cannot accept a shim's connection");
                    thread::sleep(ACCEPT_PAUSE);
                }
            }
        }
    })
}

/// Counts a connection as long as it lives.
struct Slot(Arc<AtomicUsize>);

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

fn start(agent: &Arc<Agent>, stream: UnixStream, open: &Arc<AtomicUsize>) {
    let taken = open.fetch_add(1, Ordering::SeqCst);
    let slot = Slot(Arc::clone(open));
    if taken >= CONNECTIONS_MAX {
        connection::refuse(&stream, &Refusal::with(RefusalCode::NodeBusy, "too many connections"));
        return;
    }
    let agent = Arc::clone(agent);
    let spawned =
        thread::Builder::new().name("admit".to_owned()).stack_size(STACK_BYTES).spawn(move || {
            let _slot = slot;
            connection::serve(&agent, &stream);
        });
    if let Err(error) = spawned {
        tracing::error!(%error, "cannot start a thread for a shim's connection");
    }
}

#[cfg(test)]
mod tests;

//! `delete`: clean up after a server that is gone, whatever state it left.
//!
//! Idempotent, never waits for the node agent (rule 8): the agent's ledger reconciles on "cgroup
//! empty and bundle gone". A server that still listens is given [`SERVER_PATIENCE`] to end and is
//! then killed.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use containerd_shim_protos::api::DeleteResponse;
use containerd_shim_protos::protobuf::{self, Message as _};
use nimbus_api::Refusal;
use nimbus_api::clock::{Clock as _, SystemClock};
use nimbus_api::id::ContainerKey;
use nimbus_api::runtime::RuntimeVerb;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt::socket_peercred;
use rustix::process::{PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::args::Identity;
use crate::log::Log;
use crate::paths::Paths;
use crate::process::Family;
use crate::runtime::Launcher;
use crate::serve::timestamp;

/// Name of the file in the bundle that remembers the container's init for this program.
pub(crate) const INIT_PID_FILE: &str = "init.pid";
/// How long a server may take to end by itself.
const SERVER_PATIENCE: Duration = Duration::from_secs(1);
/// containerd kills this program after five seconds.
const RUNTIME_PATIENCE: Duration = Duration::from_secs(3);
/// 128 + SIGKILL: what became of a container whose server is gone.
const STATUS_KILLED: u32 = 137;

/// Why something may be left.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DeleteError {
    /// No event loop.
    #[error("cannot make an event loop")]
    Loop(#[source] io::Error),
    /// The runtime could not clean up.
    #[error("cannot clean up the container")]
    Runtime(#[source] Refusal),
    /// The answer could not be encoded.
    #[error("cannot encode the answer")]
    Encode(#[source] protobuf::Error),
    /// stdout is gone.
    #[error("cannot write to stdout")]
    Stdout(#[source] io::Error),
}

/// Cleans up and prints a protobuf `DeleteResponse`.
pub(crate) fn delete(identity: &Identity) -> Result<(), DeleteError> {
    let paths = Paths::from_environment();
    let bundle = identity.bundle.as_deref().unwrap_or(Path::new("."));
    let socket = paths.socket(&identity.address, &identity.key);
    end_server(&socket, &identity.key);
    // Also when nothing is seen of the container: a runtime that dies with its server may be making
    // the first of it at this moment.
    let log = Log::open(bundle, identity.key.id.as_str(), identity.debug);
    let launcher = Launcher::new(&paths, identity.key.clone(), log, Family::default());
    let event_loop = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(DeleteError::Loop)?;
    let deleted = event_loop.block_on(launcher.done(RuntimeVerb::Delete, RUNTIME_PATIENCE));
    // Without a runtime nothing can be making anything: a node that refused all must not keep bundles
    // for the want of a program that it no longer has.
    let needless =
        || !Paths::runtime_program().exists() && !paths.container_state(&identity.key).exists();
    match deleted {
        Err(_no_program) if needless() => {}
        deleted => deleted.map_err(DeleteError::Runtime)?,
    }
    // Absent on the second time.
    let _gone = fs::remove_file(&socket);
    let response = DeleteResponse {
        pid: remembered_pid(bundle).unwrap_or(0),
        exit_status: STATUS_KILLED,
        exited_at: timestamp(SystemClock.unix()),
        ..DeleteResponse::default()
    };
    let bytes = response.write_to_bytes().map_err(DeleteError::Encode)?;
    let mut stdout = io::stdout().lock();
    stdout.write_all(&bytes).and_then(|()| stdout.flush()).map_err(DeleteError::Stdout)
}

fn remembered_pid(bundle: &Path) -> Option<u32> {
    fs::read_to_string(bundle.join(INIT_PID_FILE)).ok()?.trim().parse().ok()
}

/// Ends the server that listens on this socket, if one does: it has called `listen` itself, so the
/// peer's credentials are its own.
fn end_server(socket: &Path, key: &ContainerKey) {
    let Ok(connection) = UnixStream::connect(socket) else { return };
    let Ok(peer) = socket_peercred(&connection) else { return };
    if peer.pid == rustix::process::getpid() {
        return;
    }
    let Ok(pidfd) = pidfd_open(peer.pid, PidfdFlags::empty()) else { return };
    // Read after the descriptor is held: a reused pid is not mistaken for the server.
    let command_line = fs::read(format!("/proc/{}/cmdline", peer.pid.as_raw_nonzero()));
    if !command_line.is_ok_and(|line| serves(&line, key)) {
        return;
    }
    drop(connection);
    let mut ended = [PollFd::new(&pidfd, PollFlags::IN)];
    let patience = Timespec::try_from(SERVER_PATIENCE).ok();
    if let Ok(0) = poll(&mut ended, patience.as_ref()) {
        let _gone = pidfd_send_signal(&pidfd, Signal::KILL);
        let _ended = poll(&mut ended, patience.as_ref());
    }
}

/// Whether this is the command line of the server of this container.
fn serves(command_line: &[u8], key: &ContainerKey) -> bool {
    let words: Vec<&[u8]> = command_line.split(|byte| *byte == 0).collect();
    let has = |flag: &str, value: &str| {
        words.windows(2).any(|pair| pair == [flag.as_bytes(), value.as_bytes()])
    };
    has("-namespace", key.namespace.as_str()) && has("-id", key.id.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_server_of_this_container_is_taken_for_it() {
        let key = ContainerKey { namespace: "n".parse().unwrap(), id: "c".parse().unwrap() };
        assert!(serves(b"shim\0-namespace\0n\0-id\0c\0-address\0/x\0", &key));
        assert!(!serves(b"shim\0-namespace\0n\0-id\0cc\0", &key));
        assert!(!serves(b"vi\0c\0n\0", &key));
    }
}

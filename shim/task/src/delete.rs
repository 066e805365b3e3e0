//! `delete`: clean up a container after a server that is gone, whatever state it left.
//!
//! Idempotent, never waits for the node agent (rule 8): the agent's ledger reconciles on "cgroup
//! empty and bundle gone". A server that still listens is given [`SERVER_PATIENCE`] to end and is
//! then killed. That of a pod is asked to end this container, and is killed only when no other bundle names
//! it: containerd runs `delete` for one container after another while the rest of the pod goes on.
//!
//! Limits: [`SERVER_PATIENCE`], [`RUNTIME_PATIENCE`], [`BUNDLES_MAX`].

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use containerd_shim_protos::api::DeleteResponse;
use containerd_shim_protos::protobuf::{self, Message as _};
use nimbus_api::Refusal;
use nimbus_api::clock::SystemClock;
use nimbus_api::id::ContainerKey;
use nimbus_api::runtime::RuntimeVerb;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt::socket_peercred;
use rustix::process::{PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::args::{GROUP_FLAG, Identity};
use crate::log::Log;
use crate::paths::Paths;
use crate::process::Family;
use crate::runtime::Launcher;
use crate::serve::timestamp;
use crate::start::ADDRESS_FILE;
use crate::{ask, group, socket};

/// Name of the file in the bundle that remembers the container's init for this program.
pub(crate) const INIT_PID_FILE: &str = "init.pid";
/// How long a server may take to end by itself.
const SERVER_PATIENCE: Duration = Duration::from_secs(1);
/// containerd kills this program after five seconds.
const RUNTIME_PATIENCE: Duration = Duration::from_secs(3);
/// Longest address that is read.
const ADDRESS_BYTES_MAX: u64 = 256;
/// Bundles that are looked at to find out whether a pod's server is alone: more than a node has.
const BUNDLES_MAX: usize = 4096;
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
    let event_loop = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(DeleteError::Loop)?;
    let socket = socket_of(&paths, identity, bundle);
    let answer = event_loop.block_on(end_server(&socket, &identity.key, bundle));
    // Also when nothing is seen of the container: a runtime that dies with its server may be making
    // the first of it at this moment.
    let log = Log::open(bundle, identity.key.id.as_str(), identity.debug);
    let launcher = Launcher::new(&paths, identity.key.clone(), log, Family::default());
    let deleted = event_loop.block_on(launcher.done(RuntimeVerb::Delete, RUNTIME_PATIENCE));
    // Without a runtime nothing can be making anything: a node that refused all must not keep bundles
    // for the want of a program that it no longer has.
    let needless =
        || !Paths::runtime_program().exists() && !paths.container_state(&identity.key).exists();
    match deleted {
        Err(_no_program) if needless() => {}
        deleted => deleted.map_err(DeleteError::Runtime)?,
    }
    socket::remove_dead(&socket);
    let response = answer.unwrap_or_else(|| DeleteResponse {
        pid: remembered_pid(bundle).unwrap_or(0),
        exit_status: STATUS_KILLED,
        exited_at: timestamp(SystemClock.unix_nanos()),
        ..DeleteResponse::default()
    });
    let bytes = response.write_to_bytes().map_err(DeleteError::Encode)?;
    let mut stdout = io::stdout().lock();
    stdout.write_all(&bytes).and_then(|()| stdout.flush()).map_err(DeleteError::Stdout)
}

/// Where the container's server listens or did: what this bundle was told, which a shim of another version
/// may have done, else what `start` would tell.
fn socket_of(paths: &Paths, identity: &Identity, bundle: &Path) -> PathBuf {
    told(bundle).and_then(|address| paths.socket_told(&address)).unwrap_or_else(|| {
        let group = group::of(&identity.key, bundle);
        paths.socket(&identity.address, &identity.key, group.as_ref())
    })
}

/// The address in a bundle.
fn told(bundle: &Path) -> Option<String> {
    let mut address = String::new();
    let file = fs::File::open(bundle.join(ADDRESS_FILE)).ok()?;
    file.take(ADDRESS_BYTES_MAX).read_to_string(&mut address).ok()?;
    Some(address)
}

fn remembered_pid(bundle: &Path) -> Option<u32> {
    fs::read_to_string(bundle.join(INIT_PID_FILE)).ok()?.trim().parse().ok()
}

/// Ends the server that listens on this socket, if one does: it has called `listen` itself, so the
/// peer's credentials are its own. That of a pod ends by itself when it has no other container; what it
/// answers about this one is returned.
async fn end_server(socket: &Path, key: &ContainerKey, bundle: &Path) -> Option<DeleteResponse> {
    let connection = UnixStream::connect(socket).ok()?;
    let peer = socket_peercred(&connection).ok()?;
    if peer.pid == rustix::process::getpid() {
        return None;
    }
    let pidfd = pidfd_open(peer.pid, PidfdFlags::empty()).ok()?;
    // Read after the descriptor is held: a reused pid is not mistaken for the server.
    let command_line = fs::read(format!("/proc/{}/cmdline", peer.pid.as_raw_nonzero())).ok()?;
    drop(connection);
    match serves(&command_line, key)? {
        Serves::This => {
            end(&pidfd);
            None
        }
        Serves::Pod => {
            let answer = ask::delete(socket, &key.id).await;
            if is_alone(bundle) {
                end(&pidfd);
            }
            answer
        }
    }
}

/// Kills a process that does not end in time by itself.
fn end(pidfd: &OwnedFd) {
    let mut ended = [PollFd::new(pidfd, PollFlags::IN)];
    let patience = Timespec::try_from(SERVER_PATIENCE).ok();
    if let Ok(0) = poll(&mut ended, patience.as_ref()) {
        let _gone = pidfd_send_signal(pidfd, Signal::KILL);
        let _ended = poll(&mut ended, patience.as_ref());
    }
}

/// Whether no other bundle beside this one names the same server. When that cannot be known, some may.
fn is_alone(bundle: &Path) -> bool {
    let (Some(address), Ok(this)) = (told(bundle), fs::canonicalize(bundle)) else { return false };
    let Some(bundles) = this.parent().and_then(|all| fs::read_dir(all).ok()) else { return false };
    for (n, other) in bundles.enumerate() {
        let Ok(other) = other else { return false };
        if n >= BUNDLES_MAX {
            return false;
        }
        let other = other.path();
        if other != this && told(&other).as_ref() == Some(&address) {
            return false;
        }
    }
    true
}

/// Whose server it is.
#[derive(Debug, PartialEq, Eq)]
enum Serves {
    /// This container's only.
    This,
    /// A pod's.
    Pod,
}

/// What the server of this command line is for; none when that is not this container.
fn serves(command_line: &[u8], key: &ContainerKey) -> Option<Serves> {
    let words: Vec<&[u8]> = command_line.split(|byte| *byte == 0).collect();
    let has = |flag: &str, value: &str| {
        words.windows(2).any(|pair| pair == [flag.as_bytes(), value.as_bytes()])
    };
    if !has("-namespace", key.namespace.as_str()) {
        return None;
    }
    let group = format!("-{GROUP_FLAG}");
    if words.contains(&group.as_bytes()) {
        return Some(Serves::Pod);
    }
    has("-id", key.id.as_str()).then_some(Serves::This)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_server_of_this_container_or_of_a_pod_is_taken_for_it() {
        let key = ContainerKey { namespace: "n".parse().unwrap(), id: "c".parse().unwrap() };
        let of = |line: &[u8]| serves(line, &key);
        assert_eq!(of(b"shim\0-namespace\0n\0-id\0c\0-address\0/x\0"), Some(Serves::This));
        assert_eq!(of(b"shim\0-namespace\0n\0-id\0cc\0"), None);
        assert_eq!(of(b"vi\0c\0n\0"), None);
        // The first container's name says nothing about whom a pod's server serves.
        for id in [&b"c"[..], b"other"] {
            let line = [b"shim\0-namespace\0n\0-id\0", id, b"\0-group\0s\0"].concat();
            assert_eq!(of(&line), Some(Serves::Pod));
        }
        assert_eq!(of(b"shim\0-namespace\0m\0-id\0c\0-group\0s\0"), None);
    }

    #[test]
    fn a_server_is_alone_when_no_other_bundle_names_it() {
        let all = tempfile::tempdir().unwrap();
        let bundle = |name: &str, address: Option<&str>| {
            let bundle = all.path().join(name);
            fs::create_dir(&bundle).unwrap();
            if let Some(address) = address {
                fs::write(bundle.join(ADDRESS_FILE), address).unwrap();
            }
            bundle
        };
        let (first, none) = (bundle("a", Some("unix:///x")), bundle("b", None));
        bundle("c", Some("unix:///y"));
        assert!(is_alone(&first));
        assert!(!is_alone(&none), "whose server it was cannot be known");
        bundle("d", Some("unix:///x"));
        assert!(!is_alone(&first));
    }
}

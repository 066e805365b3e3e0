//! The socket files of servers: who may make, take over and remove them.
//!
//! A socket that nobody listens on is left behind by a server that was killed. Whoever looks at one to
//! take it over or to remove it holds the directory locked, so that it does not take away what another
//! has made in between. A server removes its own without the lock, while it still listens.
//!
//! Limits: [`LOCK_PATIENCE`]; looking never waits.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, Mode, OFlags, flock};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

/// Who holds the lock makes one socket.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);
const LOCK_PAUSE: Duration = Duration::from_millis(1);

/// Makes the directory of sockets.
pub(crate) fn make_dir(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Listens on a socket that only root can open; none when somebody listens there already.
pub(crate) fn listen(socket: &Path) -> io::Result<Option<UnixListener>> {
    let _lock = lock(socket)?;
    let listener = match bind_private(socket) {
        Ok(listener) => listener,
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            if is_heard(socket) {
                return Ok(None);
            }
            match fs::remove_file(socket) {
                // A server that ended just now has removed its own.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                removed => removed?,
            }
            bind_private(socket)?
        }
        Err(error) => return Err(error),
    };
    fs::set_permissions(socket, Permissions::from_mode(0o600))?;
    Ok(Some(listener))
}

/// Removes a socket on which nobody listens.
pub(crate) fn remove_dead(socket: &Path) {
    let Ok(_lock) = lock(socket) else { return };
    if !is_heard(socket) {
        let _absent = fs::remove_file(socket);
    }
}

/// Whether somebody listens there. One that has more to accept than it can keep does.
fn is_heard(socket: &Path) -> bool {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let connected = SocketAddrUnix::new(socket).and_then(|address| {
        let ours = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        connect(&ours, &address)
    });
    !matches!(connected, Err(Errno::CONNREFUSED | Errno::NOENT))
}

fn lock(socket: &Path) -> io::Result<OwnedFd> {
    let dir = socket.parent().ok_or(io::ErrorKind::InvalidInput)?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = rustix::fs::open(dir, flags, Mode::empty())?;
    let give_up = Instant::now() + LOCK_PATIENCE;
    loop {
        match flock(&dir, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(dir),
            Err(Errno::AGAIN | Errno::INTR) if Instant::now() < give_up => {
                std::thread::sleep(LOCK_PAUSE);
            }
            Err(Errno::AGAIN) => return Err(io::ErrorKind::TimedOut.into()),
            Err(error) => return Err(error.into()),
        }
    }
}

fn bind_private(socket: &Path) -> io::Result<UnixListener> {
    // This process has one thread and ends soon; still, put it back.
    let before = rustix::process::umask(Mode::RWXG | Mode::RWXO | Mode::XUSR);
    let bound = UnixListener::bind(socket);
    rustix::process::umask(before);
    bound
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    #[test]
    fn a_socket_that_its_server_removes_at_the_same_time_is_made_anew() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s");
        for _ in 0..500 {
            let ending = listen(&socket).unwrap().unwrap();
            let next = thread::scope(|scope| {
                scope.spawn(|| {
                    fs::remove_file(&socket).unwrap();
                    drop(ending);
                });
                // None while the server that ends is heard still.
                std::iter::repeat_with(|| listen(&socket).unwrap()).find_map(|listener| listener)
            });
            assert!(socket.exists());
            drop(next);
            remove_dead(&socket);
        }
    }

    #[test]
    fn of_many_that_want_a_socket_that_a_killed_server_left_one_listens() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s");
        for _ in 0..50 {
            // Left behind: bound, and nobody listens any more.
            drop(UnixListener::bind(&socket).unwrap());
            let listening: Vec<_> = thread::scope(|scope| {
                let tries: Vec<_> =
                    (0..8).map(|_| scope.spawn(|| listen(&socket).unwrap())).collect();
                tries.into_iter().filter_map(|one| one.join().unwrap()).collect()
            });
            assert_eq!(listening.len(), 1);
            assert!(std::os::unix::net::UnixStream::connect(&socket).is_ok());
            remove_dead(&socket);
            assert!(socket.exists(), "somebody listens");
            drop(listening);
            remove_dead(&socket);
            assert!(!socket.exists());
        }
    }
}

//! A session keyring of the container's own, so that it does not inherit the caller's.

use std::io;

const KEYCTL_JOIN_SESSION_KEYRING: libc::c_long = 1;

/// Leaves the inherited session keyring for a new, empty, anonymous one; children inherit it.
pub(crate) fn join_new_session() -> io::Result<()> {
    let name: *const libc::c_char = std::ptr::null();
    // SAFETY: KEYCTL_JOIN_SESSION_KEYRING with a null name reads and writes no memory of ours.
    let joined = unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, name) };
    if joined < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

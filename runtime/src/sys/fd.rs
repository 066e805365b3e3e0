//! The inherited descriptors: taking ours, closing the rest.

use std::io;
use std::os::fd::{FromRawFd as _, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use nimbus_api::runtime::REQUEST_FD;

static TAKEN: AtomicBool = AtomicBool::new(false);

/// Closes every descriptor above the request's, then takes the request's, close-on-exec from here
/// on. Works once, as the first thing of a program: later calls are refused, because by then the
/// numbers may belong to somebody.
pub(crate) fn take_request() -> io::Result<OwnedFd> {
    if TAKEN.swap(true, Ordering::SeqCst) {
        return Err(io::ErrorKind::AlreadyExists.into());
    }
    let first = libc::c_uint::try_from(REQUEST_FD + 1).unwrap_or(libc::c_uint::MAX);
    // SAFETY: close_range touches no memory; descriptors above REQUEST_FD were inherited, and this
    // runs once, before this process has opened any that an owner would still use.
    let closed = unsafe { libc::close_range(first, libc::c_uint::MAX, 0) };
    if closed != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: F_SETFD takes an integer and touches no memory; a closed descriptor gives EBADF.
    let marked = unsafe { libc::fcntl(REQUEST_FD, libc::F_SETFD, libc::FD_CLOEXEC) };
    if marked != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is open (F_SETFD just succeeded) and nobody else owns it: it was
    // inherited by number and the swap above lets this line run once.
    Ok(unsafe { OwnedFd::from_raw_fd(REQUEST_FD) })
}

//! Descriptors as a whole: taking the one that is ours, placing those of a program, closing the rest.

use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, IntoRawFd as _, OwnedFd, RawFd};
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

/// Puts three descriptors in the place of the standard ones and others, close-on-exec, right after
/// them, in order; closes every other.
///
/// For a forked copy of this process alone, which never returns to the frames that own descriptors.
pub(crate) fn keep_only(stdio: [OwnedFd; 3], others: &mut [&mut OwnedFd]) -> io::Result<()> {
    let stdio = stdio.map(OwnedFd::into_raw_fd);
    let all: Vec<RawFd> =
        stdio.into_iter().chain(others.iter().map(|other| other.as_raw_fd())).collect();
    // Out of the way of the places first: one of them may stand in another's.
    let mut held = Vec::with_capacity(all.len());
    for fd in all {
        // SAFETY: F_DUPFD_CLOEXEC takes an integer and touches no memory; `fd` was owned until now and
        // is open.
        let copy = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, HELD_FIRST) };
        if copy < 0 {
            return Err(io::Error::last_os_error());
        }
        held.push(copy);
    }
    for (place, copy) in (0..HELD_FIRST).zip(held) {
        let flags = if place < OTHERS_FIRST { 0 } else { libc::O_CLOEXEC };
        // SAFETY: dup3 touches no memory. What it closes in `place` belongs to frames of the process
        // that this one is a copy of, to which it never returns, or is given up here.
        if unsafe { libc::dup3(copy, place, flags) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    let mut end = OTHERS_FIRST;
    for (place, other) in (OTHERS_FIRST..HELD_FIRST).zip(others) {
        // SAFETY: dup3 has made this descriptor just now and nobody else owns it.
        let kept = unsafe { OwnedFd::from_raw_fd(place) };
        // Given up, not closed: its number may be that of a place, and is closed below if it is not.
        let _given_up = std::mem::replace(*other, kept).into_raw_fd();
        end = place + 1;
    }
    let first = libc::c_uint::try_from(end).unwrap_or(libc::c_uint::MAX);
    // SAFETY: close_range touches no memory; whose descriptors it closes: as above.
    if unsafe { libc::close_range(first, libc::c_uint::MAX, 0) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// The place after the standard descriptors.
const OTHERS_FIRST: RawFd = 3;
/// Beyond every place: there is room for as many others as lie between.
const HELD_FIRST: RawFd = 16;

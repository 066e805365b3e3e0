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

/// Descriptors from this number on are closed without a look: this program never has so many.
const LOOKED_AT_MAX: libc::c_int = 4096;

/// Closes every descriptor above the standard ones that is neither a socket nor a FIFO.
///
/// For the init process alone, right before it looks for its program: what is left of libcontainer
/// there is channels and this program's FIFO. Anything else, a directory or a procfs of the host above
/// all, could be walked through by a program's path, or by a script's, before execve closes it.
pub(crate) fn close_all_but_channels() -> io::Result<()> {
    for number in REQUEST_FD..LOOKED_AT_MAX {
        let mut stat = std::mem::MaybeUninit::<libc::stat>::uninit();
        // SAFETY: fstat writes one stat into memory that is large enough for it, or nothing.
        if unsafe { libc::fstat(number, stat.as_mut_ptr()) } != 0 {
            continue;
        }
        // SAFETY: fstat succeeded, so it has been written.
        let mode = unsafe { stat.assume_init() }.st_mode;
        if !matches!(mode & libc::S_IFMT, libc::S_IFSOCK | libc::S_IFIFO) {
            // SAFETY: close touches no memory. Owners of these descriptors are dead frames of the
            // parent's, which this forked process never returns to, and statics that only ever lend
            // the number to calls that then fail.
            unsafe { libc::close(number) };
        }
    }
    let first = libc::c_uint::try_from(LOOKED_AT_MAX).unwrap_or(libc::c_uint::MAX);
    // SAFETY: close_range touches no memory; that there is nothing to close is the rule.
    if unsafe { libc::close_range(first, libc::c_uint::MAX, 0) } == 0 {
        return Ok(());
    }
    Err(io::Error::last_os_error())
}

/// Puts three descriptors in the place of the standard ones and one, close-on-exec, right after them,
/// and closes every other.
///
/// For a forked copy of this process alone, which never returns to the frames that own descriptors.
pub(crate) fn keep_only(stdio: [OwnedFd; 3], channel: &mut OwnedFd) -> io::Result<()> {
    let [stdin, stdout, stderr] = stdio.map(OwnedFd::into_raw_fd);
    // Out of the way of the places first: one of them may stand in another's.
    let mut held = Vec::new();
    for fd in [stdin, stdout, stderr, channel.as_raw_fd()] {
        // SAFETY: F_DUPFD_CLOEXEC takes an integer and touches no memory; `fd` was owned until now and
        // is open.
        let copy = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, HELD_FIRST) };
        if copy < 0 {
            return Err(io::Error::last_os_error());
        }
        held.push(copy);
    }
    for (place, copy) in (0..).zip(held) {
        let flags = if place == CHANNEL { libc::O_CLOEXEC } else { 0 };
        // SAFETY: dup3 touches no memory. What it closes in `place` belongs to frames of the process
        // that this one is a copy of, to which it never returns, or was given up above.
        if unsafe { libc::dup3(copy, place, flags) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    // SAFETY: dup3 has made this descriptor just now and nobody else owns it.
    let kept = unsafe { OwnedFd::from_raw_fd(CHANNEL) };
    // Given up, not closed: its number may be that of a place, and is closed below if it is not.
    let _given_up = std::mem::replace(channel, kept).into_raw_fd();
    let first = libc::c_uint::try_from(CHANNEL + 1).unwrap_or(libc::c_uint::MAX);
    // SAFETY: close_range touches no memory; whose descriptors it closes: as above.
    if unsafe { libc::close_range(first, libc::c_uint::MAX, 0) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Where [`keep_only`] puts the channel.
const CHANNEL: RawFd = 3;
/// Beyond every place.
const HELD_FIRST: libc::c_int = 16;

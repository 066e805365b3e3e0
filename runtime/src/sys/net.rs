//! Bringing up the loopback device of the network namespace that this thread is in.

use std::io;
use std::os::fd::{AsFd, AsRawFd as _};

use rustix::net::{AddressFamily, SocketType, socket};

/// Sets IFF_UP on `lo`.
pub(crate) fn loopback_up() -> io::Result<()> {
    let control = socket(AddressFamily::INET, SocketType::DGRAM, None)?;
    let mut name = [0; libc::IFNAMSIZ];
    for (slot, byte) in name.iter_mut().zip(*b"lo") {
        *slot = libc::c_char::try_from(byte).unwrap_or_default();
    }
    let flags = libc::c_short::try_from(libc::IFF_UP | libc::IFF_RUNNING).unwrap_or_default();
    let request = libc::ifreq {
        ifr_name: name,
        ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_flags: flags },
    };
    // SAFETY: SIOCSIFFLAGS reads one `ifreq`, which lives on this frame with its name terminated
    // (IFNAMSIZ zeroes, two bytes set) and the flags arm of its union initialised.
    let set =
        unsafe { libc::ioctl(control.as_fd().as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) };
    if set != 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

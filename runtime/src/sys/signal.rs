//! Signals: the deadline that interrupts blocked calls, and clean dispositions for the job.
//!
//! The deadline is SIGALRM with a handler and without SA_RESTART, so that a call which blocks
//! returns EINTR and the ordinary error path undoes what was made. It repeats every second, so that
//! an alarm between two calls is not lost; after [`TICKS_MAX`] of them the process ends, and what
//! it left is for Delete.

use std::io;
use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicU32, Ordering};

/// Seconds that undoing may take after the deadline.
pub(crate) const TICKS_MAX: u32 = 20;
const EXIT_OVER_DEADLINE: libc::c_int = 124;
const TICK_SECONDS: libc::c_uint = 1;

static TICKS: AtomicU32 = AtomicU32::new(0);

extern "C" fn on_alarm(_signal: libc::c_int) {
    if TICKS.fetch_add(1, Ordering::SeqCst) >= TICKS_MAX {
        // SAFETY: _exit is async-signal-safe and touches no memory of ours.
        unsafe { libc::_exit(EXIT_OVER_DEADLINE) };
    }
    // SAFETY: alarm is async-signal-safe and touches no memory of ours.
    unsafe { libc::alarm(TICK_SECONDS) };
}

/// Starts the deadline; children do not inherit it.
pub(crate) fn start_deadline(seconds: u32) -> io::Result<()> {
    let action = libc::sigaction {
        sa_sigaction: on_alarm as extern "C" fn(libc::c_int) as libc::sighandler_t,
        sa_mask: empty_set(),
        sa_flags: 0,
        sa_restorer: None,
    };
    // SAFETY: the kernel reads one fully initialised `sigaction`; its handler only uses an atomic
    // and async-signal-safe calls. No old action is asked for.
    let set = unsafe { libc::sigaction(libc::SIGALRM, &raw const action, std::ptr::null_mut()) };
    if set != 0 {
        return Err(io::Error::last_os_error());
    }
    nix::unistd::alarm::set(seconds);
    Ok(())
}

/// Whether the deadline has passed.
pub(crate) fn deadline_passed() -> bool {
    TICKS.load(Ordering::SeqCst) > 0
}

fn empty_set() -> libc::sigset_t {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigemptyset initialises the set behind the pointer, which is valid for writes.
    unsafe { libc::sigemptyset(set.as_mut_ptr()) };
    // SAFETY: sigemptyset cannot fail for a valid pointer and has initialised the whole set.
    unsafe { set.assume_init() }
}

/// Default dispositions and nothing blocked, as a program expects to find them: our own runtime
/// ignores SIGPIPE, and a caller may have ignored or blocked others. Also the two signals that the C
/// library keeps to itself and refuses to set.
pub(crate) fn reset_all() {
    /// No more than the kernel's `struct sigaction` on any architecture, all of it zero: SIG_DFL, no
    /// flags, nothing masked.
    static DEFAULT: [u64; 4] = [0; 4];
    const SET_BYTES: libc::size_t = 8;
    // Somebody in the container may have sent the signal of the deadline, whose handler sets it anew.
    nix::unistd::alarm::cancel();
    for number in 1..=libc::SIGRTMAX() {
        let old: *mut libc::c_void = std::ptr::null_mut();
        // SAFETY: the kernel reads its `struct sigaction` of at most 32 bytes from `DEFAULT` and,
        // with a null `old`, writes nothing. SIGKILL and SIGSTOP fail, which is as good.
        unsafe {
            libc::syscall(libc::SYS_rt_sigaction, number, &raw const DEFAULT, old, SET_BYTES)
        };
    }
    let nothing = nix::sys::signal::SigSet::empty();
    nothing.thread_set_mask().unwrap_or_default();
}

/// Ends this process at once, without destructors or exit handlers: for a child that must not run
/// its parent's cleaning up.
pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: _exit does not return and touches no memory of ours.
    unsafe { libc::_exit(code) }
}

/// A signal by its number, real-time ones included; 0 and numbers beyond the last are none.
pub(crate) fn signal(number: i32) -> Option<rustix::process::Signal> {
    if !(1..=libc::SIGRTMAX()).contains(&number) {
        return None;
    }
    // SAFETY: the number is a signal's (just checked), and it is only handed to kill-like calls,
    // never used to wait for or handle the C library's own signals.
    Some(unsafe { rustix::process::Signal::from_raw_unchecked(number) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_numbers_of_signals_are_signals() {
        for bad in [i32::MIN, -1, 0, libc::SIGRTMAX() + 1, i32::MAX] {
            assert!(signal(bad).is_none(), "{bad}");
        }
        assert_eq!(signal(9), Some(rustix::process::Signal::KILL));
        assert!(signal(libc::SIGRTMAX()).is_some());
    }
}

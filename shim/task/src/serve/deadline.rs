//! The shim's own timer, on CLOCK_BOOTTIME (rule 10): it runs while the machine sleeps, nobody can
//! set it, and it needs no agent. It only ever moves later.

use std::io;
use std::os::fd::OwnedFd;

use nimbus_api::clock::{BootNanos, Clock as _, NANOS_PER_SECOND, SystemClock};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use tokio::net::unix::pipe;

/// A deadline that can be waited for.
#[derive(Debug)]
pub(super) struct Deadline {
    at: BootNanos,
    timer: OwnedFd,
    watch: pipe::Receiver,
}

impl Deadline {
    /// At this time. Must be made within the event loop.
    pub(super) fn at(at: BootNanos) -> io::Result<Self> {
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let timer = timerfd_create(TimerfdClockId::Boottime, flags)?;
        set(&timer, at)?;
        // A timer becomes readable like a pipe; nothing is read from it.
        let watch = pipe::Receiver::from_owned_fd_unchecked(timer.try_clone()?)?;
        Ok(Self { at, timer, watch })
    }

    /// Moves it later; an earlier time is ignored.
    pub(super) fn extend(&mut self, at: BootNanos) -> io::Result<()> {
        if at > self.at {
            set(&self.timer, at)?;
            self.at = at;
        }
        Ok(())
    }

    /// Waits until it has passed.
    pub(super) async fn passed(&self) {
        while SystemClock.boottime() < self.at {
            if self.watch.readable().await.is_err() {
                return;
            }
            if SystemClock.boottime() < self.at {
                // Readiness of an expiry before the last extension; take it.
                let mut expirations = [0; 8];
                let _none = self.watch.try_read(&mut expirations);
            }
        }
    }
}

fn set(timer: &OwnedFd, at: BootNanos) -> io::Result<()> {
    // All zero would disarm it; a time that long past is one nanosecond after boot.
    let nanos = at.0.max(1);
    let value = Timespec {
        tv_sec: i64::try_from(nanos / NANOS_PER_SECOND).unwrap_or(i64::MAX),
        tv_nsec: i64::try_from(nanos % NANOS_PER_SECOND).unwrap_or(0),
    };
    let interval = Timespec { tv_sec: 0, tv_nsec: 0 };
    timerfd_settime(
        timer,
        TimerfdTimerFlags::ABSTIME,
        &Itimerspec { it_interval: interval, it_value: value },
    )?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
    }

    #[test]
    fn a_deadline_in_the_past_has_passed() {
        block_on(async {
            Deadline::at(BootNanos(0)).unwrap().passed().await;
            Deadline::at(SystemClock.boottime()).unwrap().passed().await;
        });
    }

    #[test]
    fn an_extension_is_waited_for_and_an_earlier_time_is_not_taken() {
        block_on(async {
            let mut deadline = Deadline::at(SystemClock.boottime()).unwrap();
            let late = BootNanos(SystemClock.boottime().0 + 100_000_000);
            deadline.extend(late).unwrap();
            deadline.extend(BootNanos(1)).unwrap();
            deadline.passed().await;
            assert!(SystemClock.boottime() >= late);
            let mut far = Deadline::at(SystemClock.boottime().plus_seconds(3600)).unwrap();
            far.extend(BootNanos(1)).unwrap();
            let passed = tokio::time::timeout(Duration::from_millis(50), far.passed()).await;
            assert!(passed.is_err());
        });
    }
}

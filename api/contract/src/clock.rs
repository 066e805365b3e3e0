//! Times as types, and the clock behind a trait so that decisions and tests can be given any time.
//!
//! `BootNanos` (CLOCK_BOOTTIME) is the only clock a deadline is kept on: it runs while the machine
//! sleeps and nobody can set it. `UnixSeconds` (CLOCK_REALTIME) is for certificates, policies and
//! the reader of a log, and is never trusted to go forward.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Nanoseconds since boot, suspended time included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BootNanos(pub u64);

impl BootNanos {
    /// This much later; the end of time instead of an overflow.
    #[must_use]
    pub fn plus_seconds(self, seconds: u64) -> Self {
        Self(self.0.saturating_add(seconds.saturating_mul(NANOS_PER_SECOND)))
    }

    /// From `self` to `later`, zero when it has passed.
    pub fn until(self, later: Self) -> std::time::Duration {
        std::time::Duration::from_nanos(later.0.saturating_sub(self.0))
    }
}

/// Seconds since 1970 in UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct UnixSeconds(pub i64);

impl fmt::Display for UnixSeconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let format = time::format_description::well_known::Rfc3339;
        match time::OffsetDateTime::from_unix_timestamp(self.0).map(|t| t.format(&format)) {
            Ok(Ok(text)) => f.write_str(&text),
            Ok(Err(_)) | Err(_) => write!(f, "{} s after 1970", self.0),
        }
    }
}

/// Nanoseconds since 1970 in UTC: for what a client compares with its own clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnixNanos(pub i64);

/// Nanoseconds in a second.
pub const NANOS_PER_SECOND: u64 = 1_000_000_000;

/// Where the time comes from.
pub trait Clock: Send + Sync {
    /// CLOCK_BOOTTIME.
    fn boottime(&self) -> BootNanos;
    /// CLOCK_REALTIME in milliseconds.
    fn unix_millis(&self) -> i64;
    /// CLOCK_REALTIME in whole seconds.
    fn unix(&self) -> UnixSeconds {
        UnixSeconds(self.unix_millis().div_euclid(1000))
    }
}

/// The kernel's clocks.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl SystemClock {
    /// CLOCK_REALTIME in nanoseconds.
    pub fn unix_nanos(self) -> UnixNanos {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
        UnixNanos(now.tv_sec.saturating_mul(1_000_000_000).saturating_add(now.tv_nsec))
    }
}

impl Clock for SystemClock {
    fn boottime(&self) -> BootNanos {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
        let nanos = u64::try_from(now.tv_nsec).unwrap_or(0);
        BootNanos(seconds.saturating_mul(NANOS_PER_SECOND).saturating_add(nanos))
    }

    fn unix_millis(&self) -> i64 {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
        now.tv_sec.saturating_mul(1000).saturating_add(now.tv_nsec / 1_000_000)
    }
}

/// A clock that stands where it is put: for tests of anything that asks the time.
#[derive(Debug, Default)]
pub struct ManualClock {
    boottime_ns: std::sync::atomic::AtomicU64,
    unix_millis: std::sync::atomic::AtomicI64,
}

impl ManualClock {
    /// A clock at these times.
    pub fn at(boottime: BootNanos, unix: UnixSeconds) -> Self {
        let clock = Self::default();
        clock.set(boottime, unix);
        clock
    }

    /// Moves it, backwards too.
    pub fn set(&self, boottime: BootNanos, unix: UnixSeconds) {
        use std::sync::atomic::Ordering::SeqCst;
        self.boottime_ns.store(boottime.0, SeqCst);
        self.unix_millis.store(unix.0.saturating_mul(1000), SeqCst);
    }
}

impl Clock for ManualClock {
    fn boottime(&self) -> BootNanos {
        BootNanos(self.boottime_ns.load(std::sync::atomic::Ordering::SeqCst))
    }

    fn unix_millis(&self) -> i64 {
        self.unix_millis.load(std::sync::atomic::Ordering::SeqCst)
    }
}

//! Notices that the wall clock was set forward.
//!
//! Control's leases end by the wall clock, but on the nodes by a clock that nobody can set (rule 10).
//! After a step forward none is taken for run out here until the longest of them has run out there,
//! or two attempts of a job would run at once. What was seen is recorded, so that a step while control
//! was down counts as well; after another boot of the machine nothing can be compared, and that counts
//! as a step. A clock set back only makes leases end late here, which is safe.

use nimbus_api::clock::BootNanos;

use crate::store::ClockRecord;

/// Nanoseconds in a millisecond.
const NANOS_PER_MILLISECOND: u64 = 1_000_000;
/// A wall clock that gains more than this between two looks was set.
const STEP_MS: i64 = 1000;
/// What it may have gained or lost before it is recorded again.
const DRIFT_MS: u64 = 250;

/// The clocks at one moment.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Now {
    pub(crate) boottime: BootNanos,
    pub(crate) unix_ms: i64,
}

impl Now {
    fn offset_ms(self) -> i64 {
        let boot_ms = self.boottime.0 / NANOS_PER_MILLISECOND;
        self.unix_ms.saturating_sub(i64::try_from(boot_ms).unwrap_or(i64::MAX))
    }
}

/// What has been seen of the clocks.
#[derive(Debug)]
pub(crate) struct Steps {
    boot_id: String,
    offset_ms: i64,
    not_before: BootNanos,
    /// The longest that a lease lives on, seconds.
    wait_seconds: u64,
    recorded: Option<ClockRecord>,
}

impl Steps {
    /// At a start of control, which `returned` is the end of: the nodes have come back by then.
    pub(crate) fn begin(
        recorded: Option<ClockRecord>,
        boot_id: String,
        now: Now,
        (returned, wait_seconds): (BootNanos, u64),
    ) -> Self {
        let offset_ms = now.offset_ms();
        let mut steps =
            Self { boot_id, offset_ms, not_before: returned, wait_seconds, recorded: None };
        match &recorded {
            // A new store has no leases.
            None => {}
            Some(before) if before.boot_id == steps.boot_id => {
                steps.not_before = steps.not_before.max(before.not_before);
                steps.offset_ms = before.offset_ms;
                let _stepped = steps.see(now);
            }
            Some(_) => steps.wait(now),
        }
        steps.recorded = recorded;
        steps
    }

    /// Whether the clock was set forward since the last look.
    pub(crate) fn see(&mut self, now: Now) -> bool {
        let offset_ms = now.offset_ms();
        let stepped = offset_ms.saturating_sub(self.offset_ms) > STEP_MS;
        self.offset_ms = offset_ms;
        if stepped {
            self.wait(now);
        }
        stepped
    }

    fn wait(&mut self, now: Now) {
        self.not_before = self.not_before.max(now.boottime.plus_seconds(self.wait_seconds));
    }

    /// Whether leases may be taken for run out.
    pub(crate) fn may_end(&self, boottime: BootNanos) -> bool {
        boottime >= self.not_before
    }

    /// What is to be recorded, if it differs enough from what is.
    pub(crate) fn unrecorded(&self) -> Option<ClockRecord> {
        let current = ClockRecord {
            boot_id: self.boot_id.clone(),
            offset_ms: self.offset_ms,
            not_before: self.not_before,
        };
        let same = self.recorded.as_ref().is_some_and(|recorded| {
            recorded.boot_id == current.boot_id
                && recorded.not_before == current.not_before
                && recorded.offset_ms.abs_diff(current.offset_ms) <= DRIFT_MS
        });
        (!same).then_some(current)
    }

    /// It has been recorded.
    pub(crate) fn note(&mut self, recorded: ClockRecord) {
        self.recorded = Some(recorded);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WAIT: u64 = 930;

    fn at(seconds: u64) -> BootNanos {
        BootNanos(0).plus_seconds(seconds)
    }

    /// This long after boot, the wall clock so much ahead of where it was at boot.
    fn now(seconds: u64, ahead_ms: i64) -> Now {
        let since_ms = i64::try_from(seconds).unwrap() * 1000;
        Now { boottime: at(seconds), unix_ms: 1_000_000 + since_ms + ahead_ms }
    }

    fn begin(recorded: Option<ClockRecord>, boot: &str, now: Now) -> Steps {
        let returned = now.boottime.plus_seconds(30);
        Steps::begin(recorded, boot.to_owned(), now, (returned, WAIT))
    }

    #[test]
    fn a_clock_set_forward_ends_no_lease_that_a_node_still_runs() {
        let mut steps = begin(None, "b", now(100, 0));
        assert!(!steps.see(now(101, 0)), "a second is a second");
        assert!(steps.may_end(at(130)));
        assert!(steps.see(now(102, 3_600_000)), "an hour is not");
        assert!(!steps.may_end(at(102 + WAIT - 1)) && steps.may_end(at(102 + WAIT)));
        assert!(!steps.see(now(103, 0)), "set back, leases end late, which is safe");
        assert!(!steps.may_end(at(102 + WAIT - 1)) && steps.may_end(at(102 + WAIT)));
    }

    #[test]
    fn a_step_while_control_was_down_counts_and_so_does_a_wait_that_it_interrupted() {
        let mut before = begin(None, "b", now(100, 0));
        let record = before.unrecorded().unwrap();
        before.note(record.clone());
        assert!(before.unrecorded().is_none());
        let same = begin(Some(record.clone()), "b", now(200, 200));
        assert!(same.may_end(at(230)) && !same.may_end(at(229)), "only a restart");
        let stepped = begin(Some(record), "b", now(200, 3_600_000));
        assert!(!stepped.may_end(at(200 + WAIT - 1)) && stepped.may_end(at(200 + WAIT)));
        let again = begin(stepped.unrecorded(), "b", now(300, 3_600_000));
        assert!(!again.may_end(at(200 + WAIT - 1)) && again.may_end(at(200 + WAIT)));
    }

    #[test]
    fn after_another_boot_nothing_is_known_and_the_longest_lease_is_waited_for() {
        let record = begin(None, "b", now(100, 0)).unrecorded();
        let other = begin(record, "c", now(10, 0));
        assert!(!other.may_end(at(10 + WAIT - 1)) && other.may_end(at(10 + WAIT)));
    }

    #[test]
    fn a_slow_drift_is_no_step_but_is_recorded() {
        let mut steps = begin(None, "b", now(100, 0));
        let first = steps.unrecorded().unwrap();
        steps.note(first);
        for look in 1..=10_u32 {
            assert!(!steps.see(now(100 + u64::from(look), i64::from(look) * 200)));
            if let Some(record) = steps.unrecorded() {
                steps.note(record);
            }
        }
        let last = steps.recorded.clone();
        assert!(begin(last, "b", now(200, 2000)).may_end(at(230)));
    }
}

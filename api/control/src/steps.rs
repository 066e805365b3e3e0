//! Notices that the wall clock was set forward.
//!
//! Control's leases end by the wall clock, but on the nodes by a clock that nobody can set (rule 10).
//! After a step forward none is taken for run out here until the longest of them has run out there,
//! or two attempts of a job would run at once. What was seen is recorded, so that a step while control
//! was down counts as well; where nothing can be compared, after another boot of the machine, that
//! counts as a step. A clock set back only makes leases end late here, which is safe.
//!
//! Limit: gains of less than [`STEP_MS`] in the time that a lease lasts are not noticed; the grace
//! after a lease's end is many times that. A clock that is set forward again and again ends no lease
//! for as long: each time is in the log.

use nimbus_api::clock::BootNanos;

use crate::store::ClockRecord;

/// Nanoseconds in a millisecond.
const NANOS_PER_MILLISECOND: u64 = 1_000_000;
/// A wall clock that gains more than this in the time that a lease lasts was set.
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
    /// What later looks are compared with, and since when.
    base: (i64, BootNanos),
    not_before: BootNanos,
    /// The longest that a lease lives on, seconds.
    wait_seconds: u64,
    recorded: Option<ClockRecord>,
}

impl Steps {
    /// At a start of control, which `returned` is the end of: the nodes have come back by then.
    /// `any_lease` is whether there is one that has not ended.
    pub(crate) fn begin(
        recorded: Option<ClockRecord>,
        boot_id: String,
        now: Now,
        (returned, wait_seconds, any_lease): (BootNanos, u64, bool),
    ) -> Self {
        let offset_ms = now.offset_ms();
        let base = (offset_ms, now.boottime);
        let mut steps =
            Self { boot_id, offset_ms, base, not_before: returned, wait_seconds, recorded: None };
        match &recorded {
            Some(before) if before.boot_id == steps.boot_id => {
                steps.not_before = steps.not_before.max(before.not_before);
                steps.base.0 = before.offset_ms;
                let _stepped = steps.see(now);
            }
            Some(_) => steps.wait(now),
            None if any_lease => steps.wait(now),
            None => {}
        }
        steps.recorded = recorded;
        steps
    }

    /// Whether the clock was set forward.
    pub(crate) fn see(&mut self, now: Now) -> bool {
        let offset_ms = now.offset_ms();
        let (base_ms, since) = self.base;
        let stepped = offset_ms.saturating_sub(base_ms) > STEP_MS;
        let old = since.until(now.boottime).as_secs() > self.wait_seconds;
        if stepped || old || offset_ms < base_ms {
            self.base = (offset_ms, now.boottime);
        }
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
        Steps::begin(recorded, boot.to_owned(), now, (returned, WAIT, false))
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
        // 500 parts in a million, which is the most that the kernel slews by.
        for look in 1..=5000_u32 {
            assert!(!steps.see(now(100 + u64::from(look), i64::from(look) / 2)));
            if let Some(record) = steps.unrecorded() {
                steps.note(record);
            }
        }
        let last = steps.recorded.clone();
        assert!(begin(last, "b", now(6000, 2950)).may_end(at(6030)));
    }

    #[test]
    fn small_steps_that_add_up_are_one() {
        let mut steps = begin(None, "b", now(100, 0));
        assert!(!steps.see(now(101, 600)));
        assert!(steps.see(now(102, 1200)));
        assert!(!steps.may_end(at(102 + WAIT - 1)));
    }

    #[test]
    fn a_store_from_before_clocks_were_recorded_may_hold_leases_of_any_clock() {
        let at_start = |any| {
            let now = now(100, 0);
            Steps::begin(None, "b".to_owned(), now, (at(130), WAIT, any))
        };
        assert!(at_start(false).may_end(at(130)));
        assert!(!at_start(true).may_end(at(100 + WAIT - 1)));
        assert!(at_start(true).may_end(at(100 + WAIT)));
    }
}

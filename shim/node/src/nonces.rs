//! The heartbeats that this boot of the agent has sent: from which moment a lease's time counts.
//!
//! Rule 10: a deadline is T0 + lifetime, and T0 is when *we* sent the nonce that the lease echoes,
//! read before it was sent. The table lives in memory only: after a restart unstarted leases are
//! void, and running ones keep the deadline in their ledger entry.
//!
//! Limits: [`NONCES_MAX`] entries and [`NONCE_AGE_SECONDS`]; what is older is unknown.

use std::collections::{HashMap, VecDeque};

use nimbus_api::clock::BootNanos;
use nimbus_api::lease::NONCE_BYTES;

/// Most nonces remembered; at one a second they last longer than [`NONCE_AGE_SECONDS`].
pub const NONCES_MAX: usize = 8192;
/// How long a nonce is remembered: no lease lives longer from its heartbeat.
pub const NONCE_AGE_SECONDS: u64 = 2 * 3600;

/// One nonce.
pub type Nonce = [u8; NONCE_BYTES];

/// When each nonce was sent.
#[derive(Debug, Default)]
pub struct NonceTable {
    sent: HashMap<Nonce, BootNanos>,
    order: VecDeque<Nonce>,
}

impl NonceTable {
    /// Remembers that this nonce is sent at `now`; the oldest makes room. A nonce that is known keeps
    /// its first time.
    pub fn record(&mut self, nonce: Nonce, now: BootNanos) {
        if self.sent.contains_key(&nonce) {
            return;
        }
        self.sent.insert(nonce, now);
        self.order.push_back(nonce);
        while self.order.len() > NONCES_MAX || self.oldest_is_too_old(now) {
            let Some(oldest) = self.order.pop_front() else { break };
            self.sent.remove(&oldest);
        }
    }

    /// When it was sent, unless that is unknown or too long ago.
    pub fn sent_at(&self, nonce: &Nonce, now: BootNanos) -> Option<BootNanos> {
        let at = *self.sent.get(nonce)?;
        (at.plus_seconds(NONCE_AGE_SECONDS) >= now).then_some(at)
    }

    fn oldest_is_too_old(&self, now: BootNanos) -> bool {
        let oldest = self.order.front().and_then(|nonce| self.sent.get(nonce));
        oldest.is_some_and(|at| at.plus_seconds(NONCE_AGE_SECONDS) < now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn nonce(number: u64) -> Nonce {
        let mut nonce = [0; NONCE_BYTES];
        nonce[..8].copy_from_slice(&number.to_be_bytes());
        nonce
    }

    proptest! {
        #[test]
        fn a_known_nonce_never_counts_from_later_than_it_was_first_sent(
            times in prop::collection::vec(0_u64..1_000, 1..60),
        ) {
            let mut table = NonceTable::default();
            let mut first = HashMap::new();
            let mut now = 0;
            for (index, step) in times.iter().enumerate() {
                now += step;
                let number = u64::try_from(index % 7).unwrap();
                first.entry(number).or_insert(BootNanos(now));
                table.record(nonce(number), BootNanos(now));
            }
            for (number, at) in first {
                prop_assert_eq!(table.sent_at(&nonce(number), BootNanos(now)), Some(at));
            }
        }
    }

    #[test]
    fn number_and_age_are_bounded() {
        let mut table = NonceTable::default();
        for number in 0..=u64::try_from(NONCES_MAX).unwrap() {
            table.record(nonce(number), BootNanos(number));
        }
        assert_eq!(table.sent.len(), NONCES_MAX);
        assert_eq!(table.order.len(), NONCES_MAX);
        assert_eq!(table.sent_at(&nonce(0), BootNanos(1)), None);
        let late = BootNanos(5).plus_seconds(NONCE_AGE_SECONDS + 1);
        assert_eq!(table.sent_at(&nonce(5), late), None);
        table.record(nonce(u64::MAX), late.plus_seconds(NONCE_AGE_SECONDS));
        assert_eq!(table.sent.len(), 1);
    }

    #[test]
    fn what_was_never_sent_is_unknown() {
        assert_eq!(NonceTable::default().sent_at(&nonce(1), BootNanos(0)), None);
    }
}

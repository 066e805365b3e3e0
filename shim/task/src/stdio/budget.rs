//! How much output may still be kept of both streams of a job together. Pure.

/// Written once, where the limit is reached.
pub(super) const NOTICE: &[u8] = b"\n[nimbus] output limit reached\n";

/// What is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Budget {
    left: u64,
    noticed: bool,
}

/// What to do with a piece of output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Share {
    /// How many of its bytes, from the first, to keep.
    pub keep: usize,
    /// Whether [`NOTICE`] is to follow them.
    pub notice: bool,
}

impl Budget {
    /// This many bytes.
    pub(super) const fn new(bytes: u64) -> Self {
        Self { left: bytes, noticed: false }
    }

    /// Takes the share of a piece of this many bytes.
    pub(super) fn take(&mut self, wanted: usize) -> Share {
        let keep = usize::try_from(self.left).unwrap_or(usize::MAX).min(wanted);
        self.left = self.left.saturating_sub(u64::try_from(keep).unwrap_or(u64::MAX));
        let notice = keep < wanted && !self.noticed;
        self.noticed |= notice;
        Share { keep, notice }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn no_more_than_the_limit_is_kept_and_it_is_said_once(
            limit in 0_u64..10_000,
            pieces in prop::collection::vec(1_usize..3_000, 0..20),
        ) {
            let mut budget = Budget::new(limit);
            let shares: Vec<Share> = pieces.iter().map(|piece| budget.take(*piece)).collect();
            let kept: usize = shares.iter().map(|share| share.keep).sum();
            let whole: usize = pieces.iter().sum();
            prop_assert_eq!(kept as u64, limit.min(whole as u64));
            let notices = shares.iter().filter(|share| share.notice).count();
            prop_assert_eq!(notices, usize::from(whole as u64 > limit));
        }
    }
}

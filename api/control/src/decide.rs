//! What becomes of a job when one of its attempts has ended. Pure.
//!
//! Outcomes (design, section 5): a process that ended by itself makes the job done, whatever its
//! exit code; a refusal by policy, image or specification makes it dead at once, because the same
//! attempt would be refused again; a lost node or lease, or an image that could not be fetched, gets a
//! new attempt while there are any.

use nimbus_api::refusal::{RefusalClass, RefusalCode};

use crate::limits::{RETRY_MS_FIRST, RETRY_MS_MAX};

/// How an attempt ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum End {
    /// The process ended by itself.
    Exited(i32),
    /// It did not run, or was killed by us; the code as the node wrote it.
    Refused(String),
    /// Nobody knows: the lease ran out or the node no longer has it.
    Lost,
}

/// What the job does next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Next {
    /// It has run.
    Done(i32),
    /// It will not run again, for this reason.
    Dead(String),
    /// It was cancelled.
    Cancelled,
    /// It waits for a new attempt, at the earliest after this many milliseconds.
    Retry(i64),
}

/// Decides. `revoked` is the code with which control had revoked the attempt's lease, if it had;
/// `attempts_max` is none for what is never tried again.
pub(crate) fn after_end(
    end: &End,
    revoked: Option<&str>,
    attempt: u32,
    attempts_max: Option<u32>,
) -> Next {
    let code = |code: RefusalCode| code.as_str();
    // A revocation that is not the job's own doing does not let the process's own end count.
    let distrusted = revoked.is_some_and(|revoked| !revoked.starts_with("job."));
    let reason = match (end, revoked) {
        (End::Exited(exit), _) if !distrusted => return Next::Done(*exit),
        (_, Some(revoked)) => revoked,
        (End::Refused(reason), None) => reason.as_str(),
        (End::Lost | End::Exited(_), None) => code(RefusalCode::NodeLost),
    };
    if reason == code(RefusalCode::JobCancelled) {
        return Next::Cancelled;
    }
    if is_final(reason) {
        return Next::Dead(reason.to_owned());
    }
    let Some(attempts_max) = attempts_max else { return Next::Dead(reason.to_owned()) };
    if attempt < attempts_max {
        return Next::Retry(retry_ms(attempt));
    }
    match end {
        End::Lost => Next::Dead(code(RefusalCode::JobAttempts).to_owned()),
        End::Exited(_) | End::Refused(_) => Next::Dead(reason.to_owned()),
    }
}

/// Whether another attempt would end the same way.
fn is_final(reason: &str) -> bool {
    let Ok(code) = reason.parse::<RefusalCode>() else { return false };
    if code.class() == RefusalClass::Unavailable {
        return false;
    }
    let by_itself =
        [RefusalCode::RuntimeExec, RefusalCode::RuntimeUnproven, RefusalCode::VerifyTooLarge];
    let kinds = ["image.", "policy.", "spec.", "device.", "rootfs.", "job.", "egress."];
    by_itself.contains(&code) || kinds.iter().any(|kind| reason.starts_with(kind))
}

fn retry_ms(attempt: u32) -> i64 {
    let factor = 4_i64.saturating_pow(attempt.saturating_sub(1));
    RETRY_MS_FIRST.saturating_mul(factor).min(RETRY_MS_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn refused(code: &str, attempt: u32) -> Next {
        after_end(&End::Refused(code.to_owned()), None, attempt, Some(3))
    }

    #[test]
    fn a_process_that_ended_by_itself_makes_the_job_done() {
        assert_eq!(after_end(&End::Exited(7), None, 1, Some(3)), Next::Done(7));
        assert_eq!(after_end(&End::Exited(0), Some("job.cancelled"), 1, Some(3)), Next::Done(0));
    }

    #[test]
    fn a_run_whose_receipt_was_not_believed_does_not_count() {
        assert_eq!(after_end(&End::Exited(0), Some("lease.revoked"), 1, Some(3)), Next::Retry(500));
        let last = after_end(&End::Exited(0), Some("lease.revoked"), 3, Some(3));
        assert_eq!(last, Next::Dead("lease.revoked".to_owned()));
    }

    #[test]
    fn policy_image_and_specification_refusals_are_final() {
        for code in [
            "image.unattested",
            "policy.missing",
            "spec.malformed",
            "device.not_leased",
            "rootfs.hostile",
            "runtime.exec_failed",
            "runtime.unproven",
            "job.max_runtime",
        ] {
            assert_eq!(refused(code, 1), Next::Dead(code.to_owned()), "{code}");
        }
        for code in [
            "image.preparing",
            "image.fetch_failed",
            "lease.ended",
            "node.internal",
            "keys.missing",
            "verify.failed",
            "runtime.failed",
            "made.up",
        ] {
            assert_eq!(refused(code, 1), Next::Retry(500), "{code}");
            assert_eq!(refused(code, 3), Next::Dead(code.to_owned()), "{code}");
        }
        assert_eq!(refused("job.cancelled", 1), Next::Cancelled);
    }

    #[test]
    fn a_lost_attempt_is_tried_again_until_there_are_none_left() {
        assert_eq!(after_end(&End::Lost, None, 1, Some(3)), Next::Retry(500));
        assert_eq!(after_end(&End::Lost, None, 3, Some(3)), Next::Dead("job.attempts".to_owned()));
        assert_eq!(after_end(&End::Lost, Some("job.cancelled"), 1, Some(3)), Next::Cancelled);
        let late = after_end(&End::Lost, Some("job.max_runtime"), 1, Some(3));
        assert_eq!(late, Next::Dead("job.max_runtime".to_owned()));
    }

    #[test]
    fn what_is_never_tried_again_is_dead_for_the_reason_of_its_end() {
        let end = |end: &End, revoked| after_end(end, revoked, 1, None);
        assert_eq!(end(&End::Lost, None), Next::Dead("node.lost".to_owned()));
        assert_eq!(end(&End::Lost, Some("job.cancelled")), Next::Cancelled);
        let ended = End::Refused("lease.ended".to_owned());
        assert_eq!(end(&ended, None), Next::Dead("lease.ended".to_owned()));
        assert_eq!(end(&End::Exited(3), None), Next::Done(3));
    }

    proptest! {
        #[test]
        fn no_end_gives_more_attempts_than_there_are(reason in "\\PC{0,20}", attempt in 1_u32..12, max in 1_u32..=10) {
            let next = after_end(&End::Refused(reason), None, attempt, Some(max));
            prop_assert!(attempt < max || !matches!(next, Next::Retry(_)));
        }
    }
}

//! Events for control, made from ledger entries.

use nimbus_api::clock::UnixSeconds;
use nimbus_api::error::Chain;
use nimbus_api::plan::Plan;
use nimbus_api::proto::node::v1::event::Kind;
use nimbus_api::proto::node::v1::{Event, Finished, Started};
use nimbus_api::receipt::Receipt;
use nimbus_api::{Refusal, RefusalCode};

use crate::identity::Identity;
use crate::ledger::{End, Entry};

/// The process of an entry was started: the signed receipt.
pub fn started(entry: &Entry, identity: &Identity, now_ms: i64) -> Result<Event, Refusal> {
    let no_plan = || Refusal::with(RefusalCode::NodeInternal, "no plan on record");
    let usage = entry.usage.as_ref().ok_or_else(no_plan)?;
    let plan = Plan::parse(usage.plan.as_bytes())
        .map_err(|error| Refusal::with(RefusalCode::NodeInternal, Chain(&error)))?;
    let at = UnixSeconds(now_ms.div_euclid(1000));
    let receipt = Receipt::of(&plan, identity.thumbprint, at).sign(&identity.key).to_json();
    let chain_pem = identity.record.chain_pem.clone();
    Ok(event(entry, now_ms, Kind::Started(Started { receipt, chain_pem })))
}

/// The lease of an ended entry is no longer used.
pub fn finished(entry: &Entry, now_ms: i64) -> Event {
    let end = entry.end.clone().unwrap_or_else(End::unknown);
    // What ended it is said by the one who did; what control took back ended by that.
    let revoked =
        entry.revoked.as_ref().filter(|_| end.exit_status.is_none() || end.reason.is_some());
    let (reason, message) = match (revoked, end.reason) {
        (Some(revoked), _) => (revoked.code.as_str(), revoked.message.clone()),
        (None, Some(code)) => (code.as_str(), end.message),
        (None, None) => ("", String::new()),
    };
    let by_itself = reason.is_empty();
    let exit_code = end.exit_status.filter(|_| by_itself).and_then(|code| i32::try_from(code).ok());
    let finished =
        Finished { exit_code, reason: reason.to_owned(), message, oom_killed: end.oom_killed };
    event(entry, now_ms, Kind::Finished(finished))
}

fn event(entry: &Entry, at_ms: i64, kind: Kind) -> Event {
    Event {
        seq: 0,
        lease_id: entry.claims.lease_id.to_string(),
        job: entry.claims.job.to_string(),
        attempt: entry.claims.attempt,
        at_ms,
        kind: Some(kind),
    }
}

impl End {
    /// Nobody knows what became of it.
    pub fn unknown() -> Self {
        Self::refused(&Refusal::new(RefusalCode::NodeLost))
    }

    /// It never ran, or was ended, for this reason.
    pub fn refused(refusal: &Refusal) -> Self {
        Self {
            exit_status: None,
            oom_killed: false,
            reason: Some(refusal.code),
            message: refusal.to_string(),
        }
    }

    /// Its process ended with this status.
    pub const fn exited(status: u32, oom_killed: bool) -> Self {
        Self { exit_status: Some(status), oom_killed, reason: None, message: String::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::{Revoked, Step};
    use crate::testing;

    fn report(revoked: Option<Revoked>, end: End) -> Finished {
        let mut entry = Entry::granted(testing::claims());
        if let Some(revoked) = revoked {
            entry = entry.after(Step::Revoke(revoked)).unwrap();
        }
        let Some(Kind::Finished(finished)) =
            finished(&entry.after(Step::End(end)).unwrap(), 0).kind
        else {
            panic!("expected Finished")
        };
        finished
    }

    fn cancelled() -> Revoked {
        Revoked { code: RefusalCode::JobCancelled, message: "by u".to_owned() }
    }

    #[test]
    fn an_exit_by_itself_has_a_code_and_no_reason() {
        let finished = report(None, End::exited(3, false));
        assert_eq!((finished.exit_code, finished.reason.as_str()), (Some(3), ""));
    }

    #[test]
    fn what_was_killed_has_a_reason_and_no_exit_code() {
        let mut end = End::exited(137, false);
        end.reason = Some(RefusalCode::LeaseRevoked);
        let finished = report(Some(cancelled()), end);
        assert_eq!((finished.exit_code, finished.reason.as_str()), (None, "job.cancelled"));
        let refused = report(None, End::refused(&Refusal::new(RefusalCode::ImageUnattested)));
        assert_eq!((refused.exit_code, refused.reason.as_str()), (None, "image.unattested"));
    }

    #[test]
    fn a_program_that_ended_before_the_revocation_reached_it_keeps_its_exit_code() {
        let finished = report(Some(cancelled()), End::exited(0, false));
        assert_eq!((finished.exit_code, finished.reason.as_str()), (Some(0), ""));
    }
}

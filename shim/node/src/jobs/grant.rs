//! Taking a grant: check the token, make it durable, start its task. Idempotent by lease id.

use std::sync::Arc;

use nimbus_api::id::LeaseId;
use nimbus_api::lease::LeaseToken;
use nimbus_api::proto::control::v1::JobSpec;
use nimbus_api::proto::node::v1::Grant;
use nimbus_api::{Refusal, RefusalCode};

use super::{Jobs, driver};
use crate::ledger::End;

/// What a grant came to.
#[derive(Debug)]
pub enum Taken {
    /// It is known already.
    Known,
    /// It is in the ledger, and over: its end is to be reported.
    Over(LeaseId, End),
    /// Its job is to be driven.
    New(Box<driver::Assignment>),
}

/// Takes a grant. Waits for the disk. A refusal says that control was told nothing: the token is not
/// one, or the spool failed; everything else is reported as the lease's end.
pub fn take(jobs: &Arc<Jobs>, grant: Grant) -> Result<Taken, Refusal> {
    let agent = &jobs.agent;
    let token = LeaseToken::unchecked(grant.lease);
    let lease = agent.verify_lease(&token)?;
    let id = lease.claims.lease_id.clone();
    let room = room(jobs);
    let granted = agent.plausible(&lease.claims);
    match granted.and_then(|()| agent.ledger.grant(lease.claims.clone())) {
        Ok(true) => {}
        Ok(false) => return Ok(Taken::Known),
        Err(refusal) => {
            tracing::warn!(lease = %id, %refusal, "a grant was declined");
            agent.decline(&lease.claims, &refusal)?;
            return Ok(Taken::Known);
        }
    }
    let kept = room.and_then(|()| prepare(jobs, &lease.claims, grant.spec));
    match kept {
        Ok(spec) => {
            Ok(Taken::New(Box::new(driver::Assignment { claims: lease.claims, token, spec })))
        }
        Err(refusal) => Ok(Taken::Over(id, End::refused(&refusal))),
    }
}

/// Whether one more may come (rule 13).
fn room(jobs: &Jobs) -> Result<(), Refusal> {
    let agent = &jobs.agent;
    let most = usize::try_from(agent.config.capacity.max_jobs).unwrap_or(usize::MAX);
    let held = agent.ledger.unreported();
    if held >= most {
        return Err(Refusal::with(RefusalCode::NodeBusy, format!("{held} of {most} jobs")));
    }
    if agent.spool.is_full() {
        return Err(Refusal::with(RefusalCode::NodeBusy, "too much waits for control"));
    }
    Ok(())
}

/// Puts bundles and the place for output on disk.
fn prepare(
    jobs: &Jobs,
    claims: &nimbus_api::lease::LeaseClaims,
    spec: Option<JobSpec>,
) -> Result<JobSpec, Refusal> {
    let mut spec = spec.ok_or_else(|| Refusal::with(RefusalCode::RequestInvalid, "no job"))?;
    jobs.agent.bundles.keep(&claims.lease_id, std::mem::take(&mut spec.bundles))?;
    jobs.logs.open(&claims.job, claims.attempt)?;
    Ok(spec)
}

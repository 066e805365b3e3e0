//! What control says. In order: a key set takes effect before the grant that came after it.
//!
//! Everything that waits for the disk is done off the event loop. A message that is refused changes
//! nothing; control learns of it by events, or by nothing happening before the lease's `start_by`.

use std::sync::Arc;

use nimbus_api::error::Chain;
use nimbus_api::id::LeaseId;
use nimbus_api::lease::LeaseToken;
use nimbus_api::proto::node::v1::control_message::Kind;
use nimbus_api::proto::node::v1::{ControlMessage, Grant, Revocation};
use nimbus_api::{Refusal, RefusalCode};

use crate::jobs::grant::{self, Taken};
use crate::jobs::{Jobs, driver};
use crate::ledger::Revoked;

/// Longest message of a revocation that is kept.
const MESSAGE_CHARS_MAX: usize = 400;

/// Takes one message.
pub(super) async fn take(jobs: &Arc<Jobs>, message: ControlMessage) {
    match message.kind {
        Some(Kind::Grant(grant)) => take_grant(jobs, grant).await,
        Some(Kind::Extension(extension)) => {
            let token = LeaseToken::unchecked(extension.lease);
            off_loop(jobs, move |jobs| match jobs.agent.extend(&token) {
                Ok(id) => tracing::debug!(lease = %id, "extended"),
                Err(refusal) => tracing::warn!(?token, %refusal, "an extension was not taken"),
            })
            .await;
        }
        Some(Kind::Revocation(revocation)) => {
            off_loop(jobs, move |jobs| revoke(jobs, &revocation)).await;
        }
        Some(Kind::EventAck(ack)) => {
            off_loop(jobs, move |jobs| {
                if let Err(error) = jobs.agent.spool.acknowledge(ack.seq) {
                    tracing::warn!(error = %Chain(&error), "an acknowledgement was not kept");
                }
            })
            .await;
        }
        Some(Kind::LogAck(ack)) => off_loop(jobs, move |jobs| jobs.logs.acknowledge(&ack)).await,
        Some(Kind::KeySet(envelope)) => {
            off_loop(jobs, move |jobs| {
                let taken = jobs.agent.trust().take_key_set(&envelope);
                log_taken("key set", taken);
            })
            .await;
        }
        Some(Kind::Policy(envelope)) => {
            off_loop(jobs, move |jobs| {
                let taken = jobs.agent.trust().take_policy(&envelope);
                log_taken("policy", taken);
            })
            .await;
        }
        Some(Kind::ClaimAnswer(answer)) => {
            if !jobs.agent.desk.answer(answer) {
                // Whoever asked has given up; the lease ends when nothing is started under it.
                tracing::warn!("control answered a claim that nobody waits for");
            }
        }
        Some(Kind::Welcome(_)) => tracing::warn!("control said welcome twice"),
        None => tracing::warn!("control said something that this version does not know"),
    }
}

fn log_taken(what: &str, taken: Result<u64, Refusal>) {
    match taken {
        Ok(serial) => tracing::info!(serial, "{what} taken"),
        Err(refusal) => tracing::error!(%refusal, "{what} refused"),
    }
}

async fn take_grant(jobs: &Arc<Jobs>, grant: Grant) {
    let copy = Arc::clone(jobs);
    let taken = tokio::task::spawn_blocking(move || grant::take(&copy, grant)).await;
    match taken {
        Ok(Ok(Taken::New(assignment))) => {
            tracing::info!(lease = %assignment.claims.lease_id, job = %assignment.claims.job, "granted");
            driver::spawn(jobs, *assignment);
        }
        Ok(Ok(Taken::Over(id, end))) => jobs.end_soon(&id, end),
        Ok(Ok(Taken::Known)) => {}
        Ok(Err(refusal)) => tracing::error!(%refusal, "a grant was not taken"),
        Err(error) => tracing::error!(%error, "taking a grant broke off"),
    }
}

fn revoke(jobs: &Jobs, revocation: &Revocation) {
    let Ok(id) = revocation.lease_id.parse::<LeaseId>() else { return };
    let code = revocation.reason.parse().unwrap_or(RefusalCode::LeaseRevoked);
    let message: String = revocation.message.chars().take(MESSAGE_CHARS_MAX).collect();
    tracing::info!(lease = %id, %code, "revoked");
    if jobs.agent.revoke(&id, &Revoked { code, message }).is_none() {
        tracing::warn!(lease = %id, "a lease was revoked that is not known here");
    }
}

async fn off_loop(jobs: &Arc<Jobs>, work: impl FnOnce(&Jobs) + Send + 'static) {
    let jobs = Arc::clone(jobs);
    if let Err(error) = tokio::task::spawn_blocking(move || work(&jobs)).await {
        tracing::error!(%error, "taking a message of control broke off");
    }
}

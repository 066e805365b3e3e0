//! Claims of one session: decided off its hot path, answered on it.
//!
//! A claim waits for the disk as a future of its own, of which a session has a bounded number; the
//! session goes on with heartbeats meanwhile. The answer is signed when it is sent, after all that the
//! node was told before.

use std::sync::Arc;

use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use nimbus_api::proto::node::v1::Claim;
use nimbus_api::{Refusal, RefusalCode};

use super::run::{Ended, Session};
use crate::app::App;
use crate::claim::{self, Asked, Given};
use crate::limits::{CLAIM_ID_BYTES_MAX, CLAIMS_IN_WORK};
use crate::spec;
use crate::store::{Answerable, ClaimTerms, Leased, NewClaim};

/// Claims that are not yet answered.
pub(super) type Claims = FuturesUnordered<BoxFuture<'static, Decided>>;

/// What became of a claim; durable if it was leased.
#[derive(Debug)]
pub(super) struct Decided {
    id: String,
    outcome: Result<Leased, Refusal>,
}

impl Session {
    /// Takes a claim, or refuses it at once.
    pub(super) async fn claim(&self, asked: Claim, working: &mut Claims) -> Result<(), Ended> {
        let id = asked.id.clone();
        if id.is_empty() || id.len() > CLAIM_ID_BYTES_MAX {
            let found = format!("a claim's id has 1 to {CLAIM_ID_BYTES_MAX} bytes");
            return Err(Ended::Protocol(found));
        }
        if working.len() >= CLAIMS_IN_WORK {
            let found = format!("{CLAIMS_IN_WORK} claims wait for an answer");
            let refusal = Refusal::with(RefusalCode::NodeBusy, found);
            return self.outbox.claim_refused(id, &refusal).await;
        }
        let asked = match claim::check(asked) {
            Ok(asked) => asked,
            Err(refusal) => return self.outbox.claim_refused(id, &refusal).await,
        };
        let (app, node) = (Arc::clone(&self.app), self.node.clone());
        working.push(Box::pin(async move {
            let outcome = lease(&app, node, asked).await;
            Decided { id, outcome }
        }));
        Ok(())
    }

    /// Answers a claim that has been decided.
    pub(super) async fn answer(&mut self, decided: Decided) -> Result<(), Ended> {
        let Decided { id, outcome } = decided;
        let Leased { claims, is_new } = match outcome {
            Ok(leased) => leased,
            Err(refusal) => {
                tracing::info!(node = self.node, %refusal, "a claim is refused");
                return self.outbox.claim_refused(id, &refusal).await;
            }
        };
        let (lease_id, job) = (claims.lease_id.to_string(), claims.job.to_string());
        let code = match self.app.store.answerable(lease_id.clone(), job.clone()).await? {
            Answerable::Live(spec) => {
                if let Some(token) = self.sign(&claims).await? {
                    // From here on the node has it, whatever its hello did not say.
                    self.found(&lease_id);
                    self.keys_first().await?;
                    self.app.watchers.ring(&job);
                    return self.outbox.claim_granted(id, &token, *spec).await;
                }
                RefusalCode::ClaimUnavailable
            }
            Answerable::Revoked(code) => code,
            Answerable::Ended => RefusalCode::LeaseEnded,
        };
        if is_new {
            // The node never had it, and so will not say that it has ended.
            let now_ms = self.app.clock.unix_millis();
            if let Some(job) = self.app.store.lose(lease_id, now_ms).await? {
                self.app.changed(&job);
            }
        }
        self.outbox.claim_refused(id, &code.into()).await
    }
}

/// Decides a claim and makes its lease durable.
async fn lease(app: &App, node: String, asked: Asked) -> Result<Leased, Refusal> {
    let (document, policy) = app.policy()?;
    let offer = app.registry.offer(&node, app.clock.boottime());
    let offer = offer.ok_or_else(|| {
        let found = "no heartbeat of the node is new enough, or it reads no such leases";
        Refusal::with(RefusalCode::ClaimUnavailable, found)
    })?;
    let Given { org, egress, capabilities, spec } =
        claim::decide(&document, &asked, &offer.capacity, app.clock.unix())?;
    let Asked { claim, spec: _, process, ticket } = asked;
    let job = spec::new_id('j');
    let new = NewClaim { job, org, claim, spec, process, egress, capabilities, ticket };
    let (ttl_seconds, now_ms) = (app.terms.ttl_seconds, app.clock.unix_millis());
    let terms = ClaimTerms { ttl_seconds, policy, now_ms };
    app.store.claim(new, offer, terms).await.map_err(crate::store::StoreError::into_refusal)
}

//! The network: what the lease allows, and whether the node has made it.
//!
//! The rules themselves are enforced by the node agent on the host's side, and are in place before the
//! namespace is a fact here. A pod's network is the cluster's, and the agent makes nothing. What this decides is that nothing is allowed that never may be, and that a
//! lease with an allow-list starts in the namespace that was made for it or not at all.

use nimbus_api::lease::{LeaseClaims, LeasedEgress};
use nimbus_api::{Refusal, RefusalCode};

use crate::facts::NetworkFact;

/// With it a job writes frames of its own, which pass by the rules on the host's side and speak for others
/// on a network that it shares.
const RAW: &str = "CAP_NET_RAW";

/// Nobody who has a network makes its frames.
fn check_frames(claims: &LeaseClaims) -> Result<(), Refusal> {
    if claims.capabilities.iter().any(|name| name == RAW) {
        let found = format!("a network together with {RAW}");
        return Err(Refusal::with(RefusalCode::EgressForbidden, found));
    }
    Ok(())
}

pub(crate) fn check(claims: &LeaseClaims, network: &NetworkFact) -> Result<(), Refusal> {
    let rules = match &claims.egress {
        LeasedEgress::None => return Ok(()),
        LeasedEgress::Allow(rules) => rules,
        LeasedEgress::Pod => {
            let of_pod = claims.claim.as_ref().is_some_and(|claim| claim.pod.is_some());
            return if of_pod {
                check_frames(claims)
            } else {
                Err(Refusal::with(RefusalCode::LeaseUnsupported, "a pod's network"))
            };
        }
    };
    check_frames(claims)?;
    for rule in rules.as_slice() {
        if let Some(reason) = rule.forbidden() {
            return Err(Refusal::with(RefusalCode::EgressForbidden, format!("{rule} is {reason}")));
        }
    }
    match network {
        NetworkFact::Ready => Ok(()),
        NetworkFact::Missing => {
            let found = "none was made for this lease";
            Err(Refusal::with(RefusalCode::NetworkUnavailable, found))
        }
        NetworkFact::Unavailable(refusal) => Err(refusal.clone()),
    }
}

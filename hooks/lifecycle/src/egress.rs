//! The network: what the lease allows, and whether the node has made it.
//!
//! The rules themselves are enforced by the node agent on the host's side, and are in place before the
//! namespace is a fact here. What this decides is that nothing is allowed that never may be, and that a
//! lease with an allow-list starts in the namespace that was made for it or not at all.

use nimbus_api::lease::{LeaseClaims, LeasedEgress};
use nimbus_api::{Refusal, RefusalCode};

use crate::facts::NetworkFact;

/// With it a job writes frames of its own, which pass by the rules on the host's side.
const RAW: &str = "CAP_NET_RAW";

pub(crate) fn check(claims: &LeaseClaims, network: &NetworkFact) -> Result<(), Refusal> {
    let rules = match &claims.egress {
        LeasedEgress::None => return Ok(()),
        LeasedEgress::Allow(rules) => rules,
        LeasedEgress::Pod => {
            return Err(Refusal::with(RefusalCode::LeaseUnsupported, "a pod's network"));
        }
    };
    if claims.capabilities.iter().any(|name| name == RAW) {
        let found = format!("a network together with {RAW}");
        return Err(Refusal::with(RefusalCode::EgressForbidden, found));
    }
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

//! The network: what the lease allows, and whether the node has made it.
//!
//! The rules themselves are enforced by the node agent on the host's side, and are in place before the
//! namespace is a fact here. What this decides is that nothing is allowed that never may be, and that a
//! lease with an allow-list starts in the namespace that was made for it or not at all.

use nimbus_api::lease::LeasedEgress;
use nimbus_api::{Refusal, RefusalCode};

use crate::facts::NetworkFact;

pub(crate) fn check(leased: &LeasedEgress, network: &NetworkFact) -> Result<(), Refusal> {
    let LeasedEgress::Allow(rules) = leased else { return Ok(()) };
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

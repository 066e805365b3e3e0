//! The claim: for which container of whose pod a lease was claimed, and whether the signed policy gives
//! that away.
//!
//! A lease that was claimed holds for one container and no other. That control signed it is not enough:
//! the policy must map the container's namespace to its org, to such a network and to as many resources
//! (rule 11; a stolen control leases nothing that the policy does not map). A container in a pod is in
//! the pod that this node has the sandbox of, as that sandbox's own lease names it.
//!
//! Input: facts and a lease that holds. Output: the container's [`Place`], by which its specification
//! is judged. Deliberately absent: what the container says of itself; that is compared in
//! [`crate::spec`].

use nimbus_api::lease::{LeaseClaims, LeasedClaim, LeasedEgress, LeasedPod, LeasedResources};
use nimbus_api::policy::{ClaimNetwork, ClaimResources, ClaimRule};
use nimbus_api::{Refusal, RefusalCode};

use crate::facts::{Facts, PodFact, SandboxRecord};
use crate::policy;

/// What a container is, by its lease and by what this node has recorded.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Place<'a> {
    /// Of no pod.
    Alone,
    /// The sandbox of a pod.
    Sandbox(&'a LeasedPod),
    /// In a pod whose sandbox runs on this node.
    InPod(&'a LeasedPod, &'a SandboxRecord),
}

impl<'a> Place<'a> {
    /// The pod that the container is of.
    pub(crate) const fn pod(self) -> Option<&'a LeasedPod> {
        match self {
            Self::Alone => None,
            Self::Sandbox(pod) | Self::InPod(pod, _) => Some(pod),
        }
    }
}

pub(crate) fn check<'a>(facts: &'a Facts, claims: &'a LeaseClaims) -> Result<Place<'a>, Refusal> {
    let Some(claim) = &claims.claim else {
        return match facts.pod {
            PodFact::None => Ok(Place::Alone),
            PodFact::SandboxMissing | PodFact::Sandbox(_) => {
                Err(mismatch("a lease that was claimed for no container is of no pod"))
            }
        };
    };
    check_mapped(facts, claims, claim)?;
    place(facts, claims, claim)
}

/// The second root: what the policy does not map is not leased, whoever signed the lease.
fn check_mapped(facts: &Facts, claims: &LeaseClaims, claim: &LeasedClaim) -> Result<(), Refusal> {
    let not_mapped = |found: String| Err(Refusal::with(RefusalCode::ClaimNotMapped, found));
    let policy = &policy::signed(&facts.policy)?.policy;
    let namespace = &claim.container.namespace;
    let kubernetes = claim.pod.as_ref().map(|pod| pod.namespace.as_str());
    let Some(rule) = policy.claim_for(namespace, kubernetes) else {
        let of = kubernetes.map_or_else(String::new, |name| format!(", Kubernetes' {name:?}"));
        return not_mapped(format!("containerd namespace {namespace}{of}"));
    };
    if rule.org.as_ref().is_some_and(|org| *org != claims.org) {
        return not_mapped(format!("not to org {}", claims.org));
    }
    if !network_is_given(rule, claims, claim) {
        return not_mapped("not with the network that the lease gives".to_owned());
    }
    if let Some(name) = claims.capabilities.iter().find(|name| !rule.capabilities.contains(name)) {
        return not_mapped(format!("not with {name}"));
    }
    check_most(&claims.resources, &rule.most)
}

fn network_is_given(rule: &ClaimRule, claims: &LeaseClaims, claim: &LeasedClaim) -> bool {
    match claims.egress {
        LeasedEgress::None => true,
        LeasedEgress::Pod => rule.network == ClaimNetwork::Pod && claim.pod.is_some(),
        LeasedEgress::Allow(_) => false,
    }
}

fn check_most(asked: &LeasedResources, most: &ClaimResources) -> Result<(), Refusal> {
    let bounds = [
        ("cpu_millis", u64::from(asked.cpu_millis), u64::from(most.cpu_millis)),
        ("memory_bytes", asked.memory_bytes, most.memory_bytes),
        ("pids", u64::from(asked.pids), u64::from(most.pids)),
        ("scratch_bytes", asked.scratch_bytes, most.scratch_bytes),
    ];
    match bounds.iter().find(|(_, asked, most)| asked > most) {
        None => Ok(()),
        Some((name, asked, most)) => {
            let found = format!("{name} is {asked}, the policy gives such a container {most}");
            Err(Refusal::with(RefusalCode::LeaseResources, found))
        }
    }
}

fn place<'a>(
    facts: &'a Facts,
    claims: &LeaseClaims,
    claim: &'a LeasedClaim,
) -> Result<Place<'a>, Refusal> {
    let Some(pod) = &claim.pod else {
        return match facts.pod {
            PodFact::None => Ok(Place::Alone),
            PodFact::SandboxMissing | PodFact::Sandbox(_) => {
                Err(mismatch("the lease names no pod"))
            }
        };
    };
    if pod.container.is_none() {
        let own = pod.sandbox == facts.container.id;
        return if own && facts.pod == PodFact::None {
            Ok(Place::Sandbox(pod))
        } else {
            Err(mismatch("the sandbox of another pod"))
        };
    }
    if pod.sandbox == facts.container.id {
        return Err(mismatch("the container is its own sandbox"));
    }
    match &facts.pod {
        PodFact::None | PodFact::SandboxMissing => {
            Err(Refusal::with(RefusalCode::PodSandboxMissing, format!("sandbox {}", pod.sandbox)))
        }
        PodFact::Sandbox(record) => {
            check_same(facts, claims, pod, record)?;
            Ok(Place::InPod(pod, record))
        }
    }
}

/// Every word about the pod must be the sandbox's own.
fn check_same(
    facts: &Facts,
    claims: &LeaseClaims,
    pod: &LeasedPod,
    record: &SandboxRecord,
) -> Result<(), Refusal> {
    let sandbox = &record.pod;
    let same = [
        ("sandbox", record.container.id == pod.sandbox && sandbox.sandbox == pod.sandbox),
        ("containerd namespace", record.container.namespace == facts.container.namespace),
        ("kind of the sandbox", sandbox.container.is_none()),
        ("org", record.org == claims.org),
        ("Kubernetes namespace", sandbox.namespace == pod.namespace),
        ("pod name", sandbox.name == pod.name),
        ("pod uid", sandbox.uid == pod.uid),
        ("network", record.network == claims.egress),
        // The pid of nobody, and of the host's first process.
        ("process of the sandbox", record.pid > 1),
    ];
    match same.iter().find(|(_, same)| !same) {
        None => Ok(()),
        Some((what, _)) => Err(mismatch(&format!("the {what} is not the sandbox's own"))),
    }
}

pub(crate) fn mismatch(found: &str) -> Refusal {
    Refusal::with(RefusalCode::PodMismatch, found)
}

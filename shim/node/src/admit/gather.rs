//! The facts of one `Task.Create`: read, verified, measured, never judged.

use std::sync::Arc;

use nimbus_api::id::ContainerKey;
use nimbus_api::lease::{LEASE_ANNOTATION, LeaseClaims, LeaseToken, VerifiedLease};
use nimbus_api::proto::admit::v1::Admit;
use nimbus_api::strict_json::{self, Limits, StrictJsonError};
use nimbus_api::{Refusal, RefusalCode, error::Chain};
use nimbus_hooks::CONFIG_BYTES_MAX;
use nimbus_hooks::facts::{
    AttestationFact, ClockFacts, Facts, HeartbeatFact, ImageFact, LeaseFact, LeaseUse,
    MeasuredImage, NetworkFact, NodeFacts, PodFact, PodRoots, PolicyFact, SeccompFact, TaskFacts,
};

use crate::agent::{Agent, Filter, PLATFORM, SKEW_SECONDS};
use crate::claims;
use crate::claims::sandbox::NETNS_ROOTS;

/// The facts, and what has to be handed over when they suffice.
#[derive(Debug)]
pub struct Gathered {
    /// For the decision.
    pub facts: Facts,
    /// The lease that verified.
    pub lease: Option<VerifiedLease>,
    /// The image in the store.
    pub image: Option<MeasuredImage>,
    /// The compiled filter.
    pub filter: Option<Arc<Filter>>,
}

/// Gathers the facts of one question; `claimed` is the lease that was claimed for the container, where
/// it brings none.
pub fn gather(
    agent: &Agent,
    container: ContainerKey,
    admit: &Admit,
    claimed: Option<&LeaseToken>,
) -> Gathered {
    let lease = lease_fact(agent, &admit.config_json, claimed);
    let verified = match &lease {
        LeaseFact::Verified(verified) => Some(verified.as_ref().clone()),
        LeaseFact::Missing | LeaseFact::NoKeys(_) | LeaseFact::Refused(_) => None,
    };
    let claims = verified.as_ref().map(|lease| &lease.claims);
    let policy = agent.trust().policy();
    let image = claims.map_or_else(no_lease, |claims| measured(agent, claims));
    let filter = claims.map_or_else(no_lease, |claims| {
        agent.filter(&claims.seccomp.profile, &claims.capabilities)
    });
    let attestations = claims.map_or_else(
        || AttestationFact::Unavailable(no_lease_refusal()),
        |claims| attestations(agent, claims, &policy, &image),
    );
    let facts = Facts {
        container,
        task: task_facts(admit),
        node: node_facts(agent),
        clock: ClockFacts {
            boottime: agent.clock.boottime(),
            unix: agent.clock.unix(),
            floor: agent.trust().floor(),
        },
        heartbeat: claims.map_or(HeartbeatFact::Unknown, |claims| agent.heartbeat(claims)),
        use_of_lease: claims.map_or(LeaseUse::Unused, |claims| agent.ledger.use_of(claims)),
        lease,
        policy,
        attestations,
        image: match &image {
            Ok(image) => ImageFact::Measured(image.clone()),
            Err(refusal) => ImageFact::Unavailable(refusal.clone()),
        },
        seccomp: seccomp_fact(claims, &filter),
        network: claims.map_or(NetworkFact::Missing, |c| agent.networks.fact(c)),
        pod: claims.map_or(PodFact::None, |claims| claims::pod_fact(agent, claims)),
    };
    Gathered { facts, lease: verified, image: image.ok(), filter: filter.ok() }
}

fn no_lease_refusal() -> Refusal {
    Refusal::new(RefusalCode::LeaseMissing)
}

fn no_lease<T>() -> Result<T, Refusal> {
    Err(no_lease_refusal())
}

fn lease_fact(agent: &Agent, config_json: &[u8], claimed: Option<&LeaseToken>) -> LeaseFact {
    let brought = || claimed.map_or_else(|| lease_annotation(config_json), |t| Ok(Some(t.clone())));
    let token = match brought() {
        Ok(Some(token)) => token,
        Ok(None) => return LeaseFact::Missing,
        Err(refusal) => return LeaseFact::Refused(refusal),
    };
    if let Err(refusal) = agent.trust().keys() {
        return LeaseFact::NoKeys(refusal);
    }
    match agent.verify_lease(&token) {
        Ok(lease) => LeaseFact::Verified(Box::new(lease)),
        Err(refusal) => LeaseFact::Refused(refusal),
    }
}

/// A specification as a document, which is not trusted.
pub fn read_config(config_json: &[u8], most: usize) -> Result<serde_json::Value, Refusal> {
    strict_json::value(config_json, Limits::bytes(most)).map_err(|error| {
        let code = match &error {
            StrictJsonError::TooLarge { .. } => RefusalCode::SpecTooLarge,
            error if error.is_duplicate_key() => RefusalCode::SpecDuplicateKey,
            StrictJsonError::Malformed(_) | StrictJsonError::Shape(_) => RefusalCode::SpecMalformed,
        };
        Refusal::with(code, Chain(&error))
    })
}

/// The token in a specification, if there is one; the specification is not trusted.
pub fn lease_annotation(config_json: &[u8]) -> Result<Option<LeaseToken>, Refusal> {
    let config = read_config(config_json, CONFIG_BYTES_MAX)?;
    let annotation = config.get("annotations").and_then(|all| all.get(LEASE_ANNOTATION));
    let token = annotation.and_then(serde_json::Value::as_str);
    Ok(token.map(|text| LeaseToken::unchecked(text.to_owned())))
}

fn measured(agent: &Agent, claims: &LeaseClaims) -> Result<MeasuredImage, Refusal> {
    match claims.images.as_slice() {
        [image] => agent.images.measured(image),
        images => {
            let found = format!("the lease names {} images", images.len());
            Err(Refusal::with(RefusalCode::ImageMissing, found))
        }
    }
}

/// What the verifier says about the bundles that came with the lease.
pub fn attestations(
    agent: &Agent,
    claims: &LeaseClaims,
    policy: &PolicyFact,
    image: &Result<MeasuredImage, Refusal>,
) -> AttestationFact {
    let policy = match policy {
        PolicyFact::Verified(policy) => policy,
        PolicyFact::Missing => {
            return AttestationFact::Unavailable(Refusal::new(RefusalCode::PolicyMissing));
        }
        PolicyFact::Refused(refusal) => return AttestationFact::Unavailable(refusal.clone()),
    };
    let image = match image {
        Ok(image) => image,
        Err(refusal) => return AttestationFact::Unavailable(refusal.clone()),
    };
    match agent.bundles.of(&claims.lease_id) {
        Ok(bundles) => agent.attestations.fact(policy, image, &bundles),
        Err(refusal) => AttestationFact::Unavailable(refusal),
    }
}

fn seccomp_fact(
    claims: Option<&LeaseClaims>,
    filter: &Result<Arc<Filter>, Refusal>,
) -> SeccompFact {
    match (claims, filter) {
        (Some(claims), Ok(filter)) => SeccompFact::Compiled {
            profile: claims.seccomp.profile.clone(),
            profile_sha256: filter.profile_sha256,
            program_sha256: filter.program_sha256,
            instructions: filter.instructions,
        },
        (_, Err(refusal)) => SeccompFact::Unavailable(refusal.clone()),
        (None, Ok(_)) => SeccompFact::Unavailable(no_lease_refusal()),
    }
}

fn task_facts(admit: &Admit) -> TaskFacts {
    TaskFacts {
        config_json: admit.config_json.clone(),
        rootfs_mounts: admit.rootfs.len(),
        checkpoint: admit.checkpoint,
        terminal: admit.terminal,
        options_type: admit.options_type.clone(),
        stdin: admit.stdin.clone(),
        stdout: admit.stdout.clone(),
        stderr: admit.stderr.clone(),
    }
}

fn node_facts(agent: &Agent) -> NodeFacts {
    let capacity = agent.config.capacity;
    let text = |path: &std::path::PathBuf| path.to_string_lossy().into_owned();
    NodeFacts {
        thumbprint: agent.identity().map(|identity| identity.thumbprint),
        platform: PLATFORM.to_owned(),
        log_root: text(&agent.config.log_root()),
        fifo_roots: agent.config.fifo_roots().iter().map(text).collect(),
        skew_seconds: SKEW_SECONDS,
        cpu_millis_max: capacity.cpu_millis,
        memory_bytes_max: capacity.memory_bytes,
        pids_max: capacity.pids,
        containers: agent.ledger.live(),
        containers_max: usize::try_from(capacity.max_jobs).unwrap_or(usize::MAX),
        pod_roots: PodRoots {
            cri_state: text(&agent.config.cri_state()),
            cri_root: text(&agent.config.cri_root()),
            kubelet: text(&agent.config.kubelet_root),
            netns: NETNS_ROOTS.map(str::to_owned).to_vec(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn no_specification_panics_the_reader(text in prop::collection::vec(any::<u8>(), 0..200)) {
            let _unused = lease_annotation(&text);
        }
    }

    #[test]
    fn only_a_string_annotation_is_a_token() {
        let token = |text: &str| lease_annotation(text.as_bytes()).unwrap();
        assert!(token("{}").is_none());
        assert!(token(r#"{"annotations":{"nimbus.io/lease":7}}"#).is_none());
        let found = token(r#"{"annotations":{"nimbus.io/lease":"t"}}"#).unwrap();
        assert_eq!(found.as_str(), "t");
    }

    #[test]
    fn a_specification_that_can_be_read_two_ways_is_refused() {
        let twice = r#"{"annotations":{"nimbus.io/lease":"a","nimbus.io/lease":"b"}}"#;
        let refusal = lease_annotation(twice.as_bytes()).unwrap_err();
        assert_eq!(refusal.code, RefusalCode::SpecDuplicateKey);
    }
}

//! What a node claims, checked, and what the policy gives it. Pure.
//!
//! [`check`] makes of a node's words the types that the rest works with; every problem is
//! `claim.malformed` and names its field. [`decide`] says by control's copy of the policy whose the
//! container is and what it gets. Both come before anything is written: what an org has left, and
//! tickets, are for the store.

use nimbus_api::clock::UnixSeconds;
use nimbus_api::id::{ContainerId, ContainerKey, OrgId};
use nimbus_api::lease::{LeasedClaim, LeasedEgress, LeasedPod, SECCOMP_DEFAULT};
use nimbus_api::policy::{ClaimNetwork, ClaimResources, Policy};
use nimbus_api::proto::control::v1::{JobSpec, Resources, ScratchMedium};
use nimbus_api::proto::node::v1::{Claim, PodContainer};
use nimbus_api::{Digest, Refusal, RefusalCode};

use crate::limits::{
    KUBERNETES_NAME_BYTES_MAX, LEASE_TEXT_BYTES_MAX, LOG_BYTES_MAX, POD_UID_BYTES_MAX,
    TICKET_BYTES_MAX,
};
use crate::spec::{self, FieldProblem, RESOURCES_DEFAULT, wrong};

/// What goes with no network but a loopback device.
const RAW: &str = "CAP_NET_RAW";
/// Attempts of a claimed job: kubelet makes a new container instead, which is a new claim.
const ATTEMPTS: u32 = 1;

/// A claim that has been checked.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Asked {
    /// Of which container.
    pub(crate) claim: LeasedClaim,
    /// What it wants to run; resources are as they were asked for, bundles are none.
    pub(crate) spec: JobSpec,
    /// Digest of what it wants to run.
    pub(crate) process: Digest,
    /// Hash of the ticket that the pod shows.
    pub(crate) ticket: Option<Digest>,
}

/// What the policy gives.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Given {
    /// Whose it is; none is whose ticket it shows.
    pub(crate) org: Option<OrgId>,
    /// Its network.
    pub(crate) egress: LeasedEgress,
    /// Its capabilities, sorted.
    pub(crate) capabilities: Vec<String>,
    /// What is to be leased, with all of it filled in. A run time of 0 is without an end.
    pub(crate) spec: JobSpec,
}

fn malformed(found: &FieldProblem) -> Refusal {
    let field = found.field.strip_prefix("spec.").unwrap_or(found.field);
    Refusal::with(RefusalCode::ClaimMalformed, format_args!("{field}: {}", found.problem))
}

/// Checks a claim.
pub(crate) fn check(claim: Claim) -> Result<Asked, Refusal> {
    read(claim).map_err(|problem| malformed(&problem))
}

fn read(claim: Claim) -> Result<Asked, FieldProblem> {
    let ticket = ticket(&claim)?;
    let container = ContainerKey {
        namespace: claim.namespace.parse().map_err(|error| wrong("namespace", error))?,
        id: claim.container.parse().map_err(|error| wrong("container", error))?,
    };
    let pod = claim.pod.map(|pod| check_pod(&container.id, pod)).transpose()?;
    let image = claim.image.ok_or_else(|| wrong("image", "must be set"))?;
    let image = spec::check_image(image)?;
    let spec = JobSpec {
        image: Some(image),
        args: claim.args,
        cwd: claim.cwd,
        uid: claim.uid,
        gid: claim.gid,
        resources: Some(claim.resources.unwrap_or_default()),
        max_attempts: ATTEMPTS,
        seccomp_profile: SECCOMP_DEFAULT.to_owned(),
        ..JobSpec::default()
    };
    spec::check_process(&spec)?;
    let asked = Asked {
        claim: LeasedClaim { container, pod },
        process: hex_digest(&claim.process_sha256)
            .ok_or_else(|| wrong("process_sha256", "expected 64 lower-case hex digits"))?,
        spec,
        ticket,
    };
    let bytes = lease_text_bytes(&asked);
    if bytes > LEASE_TEXT_BYTES_MAX {
        let problem =
            format!("{bytes} bytes with the image's name, at most {LEASE_TEXT_BYTES_MAX} fit");
        return Err(wrong("names of container and pod", problem));
    }
    Ok(asked)
}

fn ticket(claim: &Claim) -> Result<Option<Digest>, FieldProblem> {
    match (claim.ticket.as_str(), &claim.pod) {
        ("", _) => Ok(None),
        (_, None) => Err(wrong("ticket", "only pods show one")),
        (text, Some(_)) if text.len() > TICKET_BYTES_MAX => {
            Err(wrong("ticket", format_args!("at most {TICKET_BYTES_MAX} bytes are read")))
        }
        (text, Some(_)) => Ok(Some(Digest::of(text.as_bytes()))),
    }
}

fn hex_digest(text: &str) -> Option<Digest> {
    let lower = text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    let mut bytes = [0; 32];
    hex::decode_to_slice(text, &mut bytes).ok()?;
    lower.then(|| Digest::from_bytes(bytes))
}

fn check_pod(container: &ContainerId, pod: PodContainer) -> Result<LeasedPod, FieldProblem> {
    let sandbox: ContainerId = pod.sandbox.parse().map_err(|error| wrong("pod.sandbox", error))?;
    kubernetes_name("pod.namespace", &pod.namespace)?;
    kubernetes_name("pod.name", &pod.name)?;
    let of_uid = |b: u8| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-');
    let uid = &pod.uid;
    if uid.is_empty() || uid.len() > POD_UID_BYTES_MAX || !uid.bytes().all(of_uid) {
        let problem = format!("expected 1 to {POD_UID_BYTES_MAX} of [a-z0-9-]");
        return Err(wrong("pod.uid", problem));
    }
    let is_sandbox = sandbox == *container;
    if is_sandbox != pod.container.is_empty() {
        return Err(wrong("pod.container", "empty for the sandbox itself, and for it alone"));
    }
    if !is_sandbox {
        kubernetes_name("pod.container", &pod.container)?;
    }
    Ok(LeasedPod {
        sandbox,
        namespace: pod.namespace,
        name: pod.name,
        uid: pod.uid,
        container: (!is_sandbox).then_some(pod.container),
        restart: pod.restart,
    })
}

/// An RFC 1123 name: labels of letters, digits and inner hyphens, with dots between.
fn kubernetes_name(field: &'static str, name: &str) -> Result<(), FieldProblem> {
    let of_label = |b: u8| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-');
    let label = |label: &str| {
        !label.is_empty()
            && label.bytes().all(of_label)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if name.len() <= KUBERNETES_NAME_BYTES_MAX && name.split('.').all(label) {
        return Ok(());
    }
    Err(wrong(
        field,
        format_args!("expected an RFC 1123 name, at most {KUBERNETES_NAME_BYTES_MAX}"),
    ))
}

/// What a client chose of the text of a lease.
fn lease_text_bytes(asked: &Asked) -> usize {
    let LeasedClaim { container, pod } = &asked.claim;
    let of_pod = pod.as_ref().map_or(0, |pod| {
        let name = pod.container.as_ref().map_or(0, String::len);
        pod.sandbox.as_str().len() + pod.namespace.len() + pod.name.len() + pod.uid.len() + name
    });
    let image = asked.spec.image.as_ref().map_or(0, |image| image.name.len());
    container.namespace.as_str().len() + container.id.as_str().len() + of_pod + image
}

/// What the policy gives to a claim. `capacity` is all that the node has.
pub(crate) fn decide(
    policy: &Policy,
    asked: &Asked,
    capacity: &Resources,
    now: UnixSeconds,
) -> Result<Given, Refusal> {
    if policy.not_after <= now {
        let found = format!("it ended at {}, it is {now} here", policy.not_after);
        return Err(Refusal::with(RefusalCode::PolicyExpired, found));
    }
    let namespace = &asked.claim.container.namespace;
    let pod = asked.claim.pod.as_ref();
    let kubernetes = pod.map(|pod| pod.namespace.as_str());
    let rule = policy.claim_for(namespace, kubernetes).ok_or_else(|| {
        let found = kubernetes.map_or_else(
            || format!("containerd namespace {namespace:?}", namespace = namespace.as_str()),
            |name| format!("Kubernetes namespace {name:?} in {namespace}"),
        );
        Refusal::with(RefusalCode::ClaimNotMapped, found)
    })?;
    if rule.org.is_none() && asked.ticket.is_none() {
        let found = "the policy leaves it to the pod's ticket, and the pod shows none";
        return Err(Refusal::with(RefusalCode::ClaimTicketInvalid, found));
    }
    check_image(policy, &asked.spec)?;
    let mut spec = asked.spec.clone();
    let resources = spec.resources.unwrap_or_default();
    spec.resources = Some(resources_for(resources, &rule.most, capacity)?);
    spec.max_runtime_seconds = rule.max_runtime_seconds.unwrap_or(0);
    let egress = match rule.network {
        ClaimNetwork::None => LeasedEgress::None,
        ClaimNetwork::Pod => LeasedEgress::Pod,
    };
    let mut capabilities = rule.capabilities.clone();
    // With both a container could write frames in others' names; a node refuses such a lease.
    capabilities.retain(|name| egress == LeasedEgress::None || name != RAW);
    Ok(Given { org: rule.org.clone(), egress, capabilities, spec })
}

/// What no node would start need not be leased. The node knows the manifest's digest, too, which a
/// rule may list: only what no digest could help is refused here.
fn check_image(policy: &Policy, spec: &JobSpec) -> Result<(), Refusal> {
    let image = spec.image.clone().unwrap_or_default();
    let denied = |digest: &&Digest| digest.to_string() == image.digest;
    if let Some(digest) = policy.deny.digests.iter().find(denied) {
        return Err(Refusal::with(RefusalCode::ImageDenied, digest));
    }
    let listed: Vec<_> = policy.rule.iter().flat_map(|rule| &rule.digests).copied().collect();
    if policy.rule_for(&image.name, &listed).is_none() {
        return Err(Refusal::with(RefusalCode::PolicyNoMatch, &image.name));
    }
    Ok(())
}

/// What was asked for; where nothing was, the most, or all that the node has when that is less.
fn resources_for(
    asked: Resources,
    most: &ClaimResources,
    capacity: &Resources,
) -> Result<Resources, Refusal> {
    let whole = |most: u64, has: u64| if has == 0 { most } else { most.min(has) };
    let given = |name: &str, asked: u64, most: u64, has: u64| match asked {
        0 => Ok(whole(most, has)),
        _ if asked <= most => Ok(asked),
        _ => {
            let found = format!("{name} is {asked}, the policy's claim rule gives at most {most}");
            Err(Refusal::with(RefusalCode::LeaseResources, found))
        }
    };
    let small = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
    let cpu = given(
        "cpu_millis",
        asked.cpu_millis.into(),
        most.cpu_millis.into(),
        capacity.cpu_millis.into(),
    )?;
    let pids = given("pids", asked.pids.into(), most.pids.into(), capacity.pids.into())?;
    let log_bytes =
        if asked.log_bytes == 0 { RESOURCES_DEFAULT.log_bytes } else { asked.log_bytes };
    Ok(Resources {
        cpu_millis: small(cpu),
        memory_bytes: given(
            "memory_bytes",
            asked.memory_bytes,
            most.memory_bytes,
            capacity.memory_bytes,
        )?,
        pids: small(pids),
        scratch_bytes: given("scratch_bytes", asked.scratch_bytes, most.scratch_bytes, 0)?,
        log_bytes: given("log_bytes", log_bytes, LOG_BYTES_MAX, 0)?,
        scratch: ScratchMedium::Disk.into(),
    })
}

#[cfg(test)]
mod tests;

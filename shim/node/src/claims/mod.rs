//! Leases for containers that the agent did not make: kubelet's, through containerd's CRI plugin, or
//! those of another client in a containerd namespace that the policy gives to an org.
//!
//! Inputs: what a shim asks with ([`Admit`]) and what containerd has on record about the container
//! ([`record`]). Output: a lease that control signed for exactly this container, image and process, in
//! the ledger, with its image prepared from containerd's own content. Whether that is enough to start it
//! is `nimbus_hooks::admit`'s to say, by the same policy, which control does not hold the key of.
//!
//! A pod's containers enter namespaces of its sandbox ([`sandbox`]) and see files that kubelet and the
//! CRI plugin made for it ([`binds`]); both leave here as descriptors.
//!
//! Waits for control ([`desk`]), for containerd's records and for the image, on the thread of the shim's
//! connection. Never asks containerd's Tasks API (rule 12). Deliberately absent: a lease from memory when
//! control is away; such a container is refused, and kubelet tries again.

pub mod binds;
pub mod containerd;
pub mod desk;
pub mod record;
pub mod sandbox;

use std::time::Duration;

use nimbus_api::id::{ContainerKey, LeaseId};
use nimbus_api::lease::{LEASE_ANNOTATION, LeaseClaims, LeaseToken, LeasedEgress};
use nimbus_api::plan::JoinedNamespace;
use nimbus_api::policy::{CRI_NAMESPACE, Policy};
use nimbus_api::proto::admit::v1::Admit;
use nimbus_api::proto::control::v1::{Image, Resources};
use nimbus_api::proto::node::v1::{Claim, Grant};
use nimbus_api::{Refusal, RefusalCode};
use nimbus_hooks::facts::{PodFact, PolicyFact, SandboxRecord};

use crate::agent::{Agent, PLATFORM};
use crate::image::Stop;
use crate::ledger::{End, Entry, Stage};
use record::{Annotations, Record};
use sandbox::Running;

/// How long a container waits for the start of its sandbox to be on record: the receipt of it is signed
/// and written meanwhile.
const START_LOOKS: u32 = 250;
const START_PAUSE: Duration = Duration::from_millis(20);

/// Most words and bytes of a command that control is told; it is for people, the lease has a digest.
const ARGS_MAX: usize = 256;
const ARGS_BYTES_MAX: usize = 32 << 10;

/// A lease that was claimed for a container.
#[derive(Debug)]
pub struct Claimed {
    /// The token as it came.
    pub token: LeaseToken,
    /// Its lease.
    pub id: LeaseId,
}

/// Claims a lease where the policy gives the container to an org. None: it carries a lease of its own,
/// or nothing maps it, which admission refuses.
pub fn claim(
    agent: &Agent,
    container: &ContainerKey,
    admit: &Admit,
) -> Result<Option<Claimed>, Refusal> {
    let policy = match agent.trust().policy() {
        PolicyFact::Verified(policy) => policy.policy,
        PolicyFact::Missing | PolicyFact::Refused(_) => return Ok(None),
    };
    if !policy.claim.iter().any(|rule| rule.namespace == container.namespace) {
        return Ok(None);
    }
    let annotations = Annotations::read(&admit.config_json)?;
    if annotations.has(LEASE_ANNOTATION) {
        return Ok(None);
    }
    let record = agent.records.of(container, &annotations)?;
    check_mapped(&policy, container, &record)?;
    room(agent)?;
    let asked = nimbus_hooks::asked(&admit.config_json)?;
    let question = Claim {
        id: uuid::Uuid::new_v4().to_string(),
        namespace: container.namespace.to_string(),
        container: container.id.to_string(),
        image: Some(Image {
            name: named(&policy, &record)?.to_owned(),
            digest: record.digest.to_string(),
            platform: PLATFORM.to_owned(),
        }),
        process_sha256: asked.process.digest().hex(),
        args: in_short(asked.process.args),
        cwd: asked.process.cwd,
        uid: asked.process.uid,
        gid: asked.process.gid,
        resources: Some(Resources {
            cpu_millis: asked.cpu_millis,
            memory_bytes: asked.memory_bytes,
            pids: asked.pids,
            ..Resources::default()
        }),
        pod: record.pod.as_ref().map(record::in_words),
        ticket: annotations.ticket().to_owned(),
    };
    let grant = agent.desk.ask(&question)?;
    let claimed = take(agent, grant)?;
    if let Err(refusal) = prepare(agent, container, &claimed.id) {
        give_back(agent, &claimed.id, &refusal);
        return Err(refusal);
    }
    Ok(Some(claimed))
}

/// A command as people are shown it.
fn in_short(args: Vec<String>) -> Vec<String> {
    let mut left = ARGS_BYTES_MAX;
    let fits = |word: &String| {
        let rest = left.checked_sub(word.len());
        left = rest.unwrap_or(0);
        rest.is_some()
    };
    args.into_iter().take(ARGS_MAX).take_while(fits).collect()
}

/// The name that the image is claimed under: of several, one that the policy has a rule for.
fn named<'a>(policy: &Policy, record: &'a Record) -> Result<&'a str, Refusal> {
    let ruled = |name: &&String| policy.rule_for(name, &[record.digest]).is_some();
    let name = record.images.iter().find(ruled).or_else(|| record.images.first());
    let none = || record::malformed(&format_args!("the image {} has no name", record.digest));
    name.map(String::as_str).ok_or_else(none)
}

/// The same question as control's and admission's, asked here so that control is not for nothing.
fn check_mapped(policy: &Policy, container: &ContainerKey, record: &Record) -> Result<(), Refusal> {
    let kubernetes = record.pod.as_ref().map(|pod| pod.namespace.as_str());
    let pods = container.namespace.as_str() == CRI_NAMESPACE;
    if pods == kubernetes.is_some() && policy.claim_for(&container.namespace, kubernetes).is_some()
    {
        return Ok(());
    }
    let found = match kubernetes {
        Some(name) => format!("{} of Kubernetes namespace {name:?}", container.namespace),
        None => container.namespace.to_string(),
    };
    Err(Refusal::with(RefusalCode::ClaimNotMapped, found))
}

/// Whether one more may come (rule 13).
fn room(agent: &Agent) -> Result<(), Refusal> {
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

/// Checks the token and makes it durable. One that is known is the same question asked again.
fn take(agent: &Agent, grant: Grant) -> Result<Claimed, Refusal> {
    let token = LeaseToken::unchecked(grant.lease);
    let lease = agent.verify_lease(&token)?;
    let id = lease.claims.lease_id.clone();
    let taken =
        agent.plausible(&lease.claims).and_then(|()| agent.ledger.grant(lease.claims.clone()));
    match taken {
        Ok(true) => {
            let bundles = grant.spec.map(|spec| spec.bundles).unwrap_or_default();
            agent
                .bundles
                .keep(&id, bundles)
                .inspect_err(|refusal| give_back(agent, &id, refusal))?;
        }
        Ok(false) => {}
        Err(refusal) => {
            agent.decline(&lease.claims, &refusal)?;
            return Err(refusal);
        }
    }
    Ok(Claimed { token, id })
}

/// Puts the image into the store, out of containerd's content, every byte hashed again.
fn prepare(agent: &Agent, container: &ContainerKey, id: &LeaseId) -> Result<(), Refusal> {
    let entry = agent.ledger.get(id);
    let image = entry.as_ref().and_then(|entry| entry.claims.images.first());
    let Some(image) = image else {
        return Err(Refusal::with(RefusalCode::LeaseUnsupported, "it names no image"));
    };
    let bundles = agent.bundles.of(id)?.list.len();
    nimbus_hooks::may_fetch(&agent.trust().policy(), image, bundles)?;
    tracing::debug!(%container, image = image.name, "preparing from containerd's content");
    agent.images.prepare_content(image, &agent.config.content_dir(), &Stop::new()).map(drop)
}

/// Ends a claimed lease that nothing runs under.
pub fn give_back(agent: &Agent, id: &LeaseId, refusal: &Refusal) {
    if agent.ledger.get(id).is_none_or(|entry| entry.is_live()) {
        return;
    }
    if let Err(error) = agent.finish(id, End::refused(refusal)) {
        tracing::error!(lease = %id, %error, "a claimed lease could not be ended");
    }
}

/// The entry of the sandbox that a claimed container's pod has, while it is live on this boot.
pub fn sandbox_of(agent: &Agent, claims: &LeaseClaims) -> Option<Entry> {
    let claim = claims.claim.as_ref()?;
    let id = claim.pod.as_ref()?.sandbox.clone();
    let key = ContainerKey { namespace: claim.container.namespace.clone(), id };
    let entry = agent.ledger.by_container(&key)?;
    let this_boot = entry.usage.as_ref().is_some_and(|usage| usage.boot_id == agent.boot_id);
    (this_boot && is_sandbox(&entry.claims)).then_some(entry)
}

/// The sandbox that a claimed container is said to be in, as a fact. One that was admitted and whose
/// start is on its way here is waited for: kubelet knows of the start before this process does.
pub fn pod_fact(agent: &Agent, claims: &LeaseClaims) -> PodFact {
    let pod = claims.claim.as_ref().and_then(|claim| claim.pod.as_ref());
    if pod.is_none_or(|pod| pod.container.is_none()) {
        return PodFact::None;
    }
    for _ in 0..START_LOOKS {
        let Some(entry) = sandbox_of(agent, claims) else { return PodFact::SandboxMissing };
        if let Some(record) = in_record(entry) {
            return PodFact::Sandbox(record);
        }
        std::thread::sleep(START_PAUSE);
    }
    PodFact::SandboxMissing
}

fn in_record(entry: Entry) -> Option<SandboxRecord> {
    let (running, claim) = (entry.running?, entry.claims.claim?);
    Some(SandboxRecord {
        container: claim.container,
        org: entry.claims.org,
        pod: claim.pod?,
        network: entry.claims.egress,
        pid: running.pid,
    })
}

/// At the agent's start: the rules of pods that run are put in force again, whatever is left of them.
pub fn guard_pods(agent: &Agent) {
    for entry in agent.ledger.all() {
        if let Some(running) = entry.running.filter(|_| entry.is_live()) {
            guard_pod(agent, &entry.claims, &running);
        }
    }
}

/// Puts the rules of a sandbox that runs in force, unless this process has done so already.
pub fn guard_pod(agent: &Agent, claims: &LeaseClaims, running: &Running) {
    let id = &claims.lease_id;
    if claims.egress != LeasedEgress::Pod || agent.pod_networks.knows(id) {
        return;
    }
    let opened = running.open(JoinedNamespace::Network);
    if let Err(refusal) = opened.and_then(|open| agent.pod_networks.guard(id, &open)) {
        tracing::error!(lease = %id, %refusal, "the rules of a running pod are not in force");
    }
}

/// Whether a lease is for the sandbox of a pod.
pub fn is_sandbox(claims: &LeaseClaims) -> bool {
    let pod = claims.claim.as_ref().and_then(|claim| claim.pod.as_ref());
    pod.is_some_and(|pod| pod.container.is_none())
}

/// What has become of a claimed lease that the ledger has and nobody drives: its end, if it has one.
/// `missing` says that its container was not to be found at the look before.
pub fn judge(agent: &Agent, id: &LeaseId, missing: bool) -> Judged {
    let Some(entry) = agent.ledger.get(id) else { return Judged::Goes };
    match entry.stage {
        Stage::Ended => Judged::Over(entry.end.unwrap_or_else(End::unknown)),
        Stage::Granted if agent.clock.unix() > entry.claims.start_by => {
            let refusal =
                Refusal::with(RefusalCode::LeaseStartLate, "nothing was started under it");
            Judged::Over(End::refused(&refusal))
        }
        Stage::Granted => Judged::Goes,
        Stage::Used | Stage::Started => {
            let container = entry.usage.map(|usage| usage.container);
            let here = container.is_none_or(|key| agent.config.runtime_dir(&key).exists());
            match (here || agent.peers.is_connected(id), missing) {
                (true, _) => Judged::Goes,
                (false, false) => Judged::Missing,
                (false, true) => Judged::Over(End::unknown()),
            }
        }
    }
}

/// See [`judge`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Judged {
    /// It is as it should be.
    Goes,
    /// Neither its shim nor its container is there; the next look decides.
    Missing,
    /// It has ended.
    Over(End),
}

//! The lease: is there one, is it ours, is it now, is it for the first time.
//!
//! In this order: presence, key set and signature as the agent found them; version; the node and
//! its identity; the container that it was claimed for; the clock floor; times by the wall clock; the deadline of rule 10 by
//! CLOCK_BOOTTIME; what the lease has been used for; what it asks for. The image and the process
//! that it names are compared where they are known.

use nimbus_api::clock::{BootNanos, UnixSeconds};
use nimbus_api::id::ContainerKey;
use nimbus_api::lease::{
    LEASE_VERSION, LeaseClaims, LeasedImage, SCRATCH_DISK_BYTES_MIN, ScratchMedium, VerifiedLease,
};
use nimbus_api::{Digest, Refusal, RefusalCode};

use crate::facts::{ClockFacts, Facts, HeartbeatFact, LeaseFact, LeaseUse, NodeFacts};
use crate::{CPU_MILLIS_MIN, DEFAULT_CAPABILITIES, FLOOR_TOLERANCE_SECONDS, LIFETIME_SECONDS_MAX};

/// A lease that holds here and now.
#[derive(Debug)]
pub(crate) struct Authority<'a> {
    pub(crate) lease: &'a VerifiedLease,
    pub(crate) image: &'a LeasedImage,
    pub(crate) deadline: BootNanos,
}

pub(crate) fn check(facts: &Facts) -> Result<Authority<'_>, Refusal> {
    let lease = match &facts.lease {
        LeaseFact::Missing => return Err(RefusalCode::LeaseMissing.into()),
        LeaseFact::NoKeys(refusal) | LeaseFact::Refused(refusal) => return Err(refusal.clone()),
        LeaseFact::Verified(lease) => lease,
    };
    let claims = &lease.claims;
    check_version(claims)?;
    check_node(claims, facts.node.thumbprint)?;
    check_container(claims, &facts.container)?;
    check_wall_clock(claims, facts.clock)?;
    let deadline = deadline(claims, facts)?;
    let again = check_use(facts)?;
    check_room(&facts.node, again)?;
    let image = check_asks(claims, &facts.node)?;
    Ok(Authority { lease, image, deadline })
}

/// Whether a lease could be acted on by this node at some time: it is for it, its time has begun, and
/// it is not longer than leases last. What is not may leave no trace: no floor of the clock, no place
/// in the ledger, no later deadline (rule 1). `now` is the wall clock.
pub fn plausible(
    claims: &LeaseClaims,
    thumbprint: Option<Digest>,
    now: UnixSeconds,
) -> Result<(), Refusal> {
    check_node(claims, thumbprint)?;
    check_begun(claims, now)?;
    check_lifetime(claims)
}

fn check_version(claims: &LeaseClaims) -> Result<(), Refusal> {
    if claims.ver != LEASE_VERSION {
        let found = format!("found version {}, expected {LEASE_VERSION}", claims.ver);
        return Err(Refusal::with(RefusalCode::LeaseVersion, found));
    }
    if claims.attempt == 0 {
        return Err(Refusal::with(RefusalCode::LeaseMalformed, "attempts count from 1"));
    }
    Ok(())
}

fn check_node(claims: &LeaseClaims, thumbprint: Option<Digest>) -> Result<(), Refusal> {
    let own = thumbprint.ok_or(RefusalCode::NodeNotJoined)?;
    if claims.node != own {
        let found = format!("found {}, this node is {own}", claims.node);
        return Err(Refusal::with(RefusalCode::LeaseWrongNode, found));
    }
    Ok(())
}

/// A lease that was claimed for a container is not passed on to another.
fn check_container(claims: &LeaseClaims, container: &ContainerKey) -> Result<(), Refusal> {
    match &claims.claim {
        Some(claim) if claim.container != *container => {
            let found = format!("it was claimed for {}, this is {container}", claim.container);
            Err(Refusal::with(RefusalCode::LeaseWrongContainer, found))
        }
        Some(_) | None => Ok(()),
    }
}

fn check_begun(claims: &LeaseClaims, now: UnixSeconds) -> Result<(), Refusal> {
    let from = claims.nbf.max(claims.iat);
    if from.0 > now.0.saturating_add(FLOOR_TOLERANCE_SECONDS) {
        let found = format!("valid from {from}, it is {now} here");
        return Err(Refusal::with(RefusalCode::LeaseNotYetValid, found));
    }
    Ok(())
}

fn check_lifetime(claims: &LeaseClaims) -> Result<(), Refusal> {
    let lifetime = claims.lifetime_seconds();
    if lifetime > LIFETIME_SECONDS_MAX {
        let found = format!("it lasts {lifetime} s, at most {LIFETIME_SECONDS_MAX} s are allowed");
        return Err(Refusal::with(RefusalCode::LeaseUnsupported, found));
    }
    Ok(())
}

fn check_wall_clock(claims: &LeaseClaims, clock: ClockFacts) -> Result<(), Refusal> {
    let now = clock.unix;
    if now.0.saturating_add(FLOOR_TOLERANCE_SECONDS) < clock.floor.0 {
        let found = format!("it is {now} here, a lease was issued at {}", clock.floor);
        return Err(Refusal::with(RefusalCode::NodeClockBack, found));
    }
    check_begun(claims, now)?;
    if claims.exp <= now {
        let found = format!("it ended at {}, it is {now} here", claims.exp);
        return Err(Refusal::with(RefusalCode::LeaseExpired, found));
    }
    if claims.start_by < now {
        let found = format!("start by {}, it is {now} here", claims.start_by);
        return Err(Refusal::with(RefusalCode::LeaseStartLate, found));
    }
    Ok(())
}

/// Rule 10: T0 + (exp - iat) - skew, where T0 is when this boot sent the echoed heartbeat.
fn deadline(claims: &LeaseClaims, facts: &Facts) -> Result<BootNanos, Refusal> {
    let now = facts.clock.boottime;
    let sent = match facts.heartbeat {
        HeartbeatFact::Sent(sent) if sent <= now && claims.nonce_bytes().is_some() => sent,
        HeartbeatFact::Sent(_) | HeartbeatFact::Unknown => {
            return Err(RefusalCode::LeaseUnknownNonce.into());
        }
    };
    check_lifetime(claims)?;
    let lifetime = claims.lifetime_seconds();
    let deadline = sent.plus_seconds(lifetime.saturating_sub(facts.node.skew_seconds));
    if deadline <= now {
        let late = deadline.until(now).as_secs();
        let found = format!("counted from the heartbeat it echoes, it ended {late} s ago");
        return Err(Refusal::with(RefusalCode::LeaseExpired, found));
    }
    Ok(deadline)
}

/// Whether the lease has been used for this very container before: then the answer is the same
/// again, because containerd may ask twice (rule 12).
fn check_use(facts: &Facts) -> Result<bool, Refusal> {
    match &facts.use_of_lease {
        LeaseUse::Unreadable(refusal) => Err(refusal.clone()),
        LeaseUse::Unused => Ok(false),
        LeaseUse::Used { container, config_sha256 } => {
            if *container != facts.container {
                let found = format!("it started {container}, this is {}", facts.container);
                return Err(Refusal::with(RefusalCode::LeaseReplayed, found));
            }
            if *config_sha256 != Digest::of(&facts.task.config_json) {
                let found = "this container was admitted with another specification";
                return Err(Refusal::with(RefusalCode::LeaseReplayed, found));
            }
            Ok(true)
        }
        LeaseUse::Ended => Err(RefusalCode::LeaseEnded.into()),
        LeaseUse::Revoked => Err(RefusalCode::LeaseRevoked.into()),
        LeaseUse::Superseded { attempt } => {
            let found = format!("attempt {attempt} of the job is known here");
            Err(Refusal::with(RefusalCode::LeaseStale, found))
        }
    }
}

fn check_room(node: &NodeFacts, again: bool) -> Result<(), Refusal> {
    if !again && node.containers >= node.containers_max {
        let found = format!("{} of {} containers", node.containers, node.containers_max);
        return Err(Refusal::with(RefusalCode::NodeBusy, found));
    }
    Ok(())
}

/// What the lease asks this node to do; returns the one image that it names.
const fn scratch_least(medium: ScratchMedium) -> u64 {
    match medium {
        ScratchMedium::Memory => 1,
        ScratchMedium::Disk => SCRATCH_DISK_BYTES_MIN,
    }
}

fn check_asks<'a>(claims: &'a LeaseClaims, node: &NodeFacts) -> Result<&'a LeasedImage, Refusal> {
    let asked = &claims.resources;
    let bounds = [
        (
            "cpu_millis",
            u64::from(asked.cpu_millis),
            CPU_MILLIS_MIN.into(),
            node.cpu_millis_max.into(),
        ),
        ("memory_bytes", asked.memory_bytes, 1, node.memory_bytes_max),
        ("pids", u64::from(asked.pids), 1, node.pids_max.into()),
        // A tmpfs of size 0 is one without a limit, and a file system has its own needs. The upper bound
        // is the job's memory, which the cgroup keeps, or what the node's disk has free.
        ("scratch_bytes", asked.scratch_bytes, scratch_least(asked.scratch), u64::MAX),
    ];
    for (name, found, least, most) in bounds {
        if found < least || found > most {
            let found = format!("{name} is {found}, this node gives {least} to {most}");
            return Err(Refusal::with(RefusalCode::LeaseResources, found));
        }
    }
    let leasable = |name: &&String| !DEFAULT_CAPABILITIES.contains(&name.as_str());
    if let Some(beyond) = claims.capabilities.iter().find(leasable) {
        return Err(Refusal::with(RefusalCode::LeaseUnsupported, format!("capability {beyond}")));
    }
    match claims.images.as_slice() {
        [image] => Ok(image),
        images => {
            let found = format!("it names {} images, expected 1", images.len());
            Err(Refusal::with(RefusalCode::LeaseUnsupported, found))
        }
    }
}

//! Putting together what the ledger says and what containerd has (rule 9): after a restart of the
//! agent, and every minute.
//!
//! A lease that was never used ends: its nonce is forgotten. One that is used and whose task runs is
//! followed again. One whose task is gone is lost, once. A container in our namespace that no lease
//! accounts for is stopped: unknown means stop.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use containerd_client::types::v1::Status as TaskStatus;
use nimbus_api::error::Chain;
use nimbus_api::id::LeaseId;
use nimbus_api::{Refusal, RefusalCode};

use super::containerd::Listed;
use super::{Jobs, driver};
use crate::agent::{Agent, NAMESPACE};
use crate::claims::{self, Judged};
use crate::ledger::{End, Entry, Stage};
use crate::network;

/// Pause between two looks.
pub const LOOK_SECONDS: u64 = 60;
const RETRY: Duration = Duration::from_secs(1);

/// Ends what cannot go on, from the ledger alone. Before anything is served.
pub fn settle(agent: &Agent) -> Result<(), Refusal> {
    for entry in agent.ledger.all() {
        if entry.reported {
            continue;
        }
        let id = &entry.claims.lease_id;
        let this_boot = entry.usage.as_ref().is_some_and(|usage| usage.boot_id == agent.boot_id);
        match entry.stage {
            Stage::Used | Stage::Started if this_boot => {}
            Stage::Ended => agent.finish(id, entry.end.clone().unwrap_or_else(End::unknown))?,
            Stage::Granted | Stage::Used | Stage::Started => {
                let found = "the node agent or its machine was restarted";
                let refusal = Refusal::with(RefusalCode::NodeLost, found);
                tracing::warn!(lease = %id, stage = ?entry.stage, "lost by a restart");
                agent.finish(id, End::refused(&refusal))?;
            }
        }
    }
    agent.networks.settle(|id| is_over(agent, id));
    claims::guard_pods(agent);
    Ok(())
}

/// Looks for as long as the agent runs.
pub async fn run(jobs: Arc<Jobs>) {
    let (mut strangers, mut missing) = (HashSet::new(), HashSet::new());
    let mut first = true;
    loop {
        match jobs.containerd.list().await {
            Ok(listed) => {
                look_at_claimed(&jobs, &mut missing).await;
                look(&jobs, &listed, &mut strangers, first).await;
                first = false;
                tokio::time::sleep(Duration::from_secs(LOOK_SECONDS)).await;
            }
            Err(error) => {
                tracing::warn!(%error, "cannot see what runs");
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

/// Claimed leases: their containers are their clients' to remove, and tell of their end by their shims.
async fn look_at_claimed(jobs: &Arc<Jobs>, missing: &mut HashSet<LeaseId>) {
    let mut now_missing = HashSet::new();
    for entry in jobs.agent.ledger.all() {
        if entry.reported || entry.claims.claim.is_none() {
            continue;
        }
        let id = entry.claims.lease_id;
        match claims::judge(&jobs.agent, &id, missing.contains(&id)) {
            Judged::Goes => {}
            Judged::Missing => drop(now_missing.insert(id)),
            Judged::Over(end) => {
                tracing::warn!(lease = %id, reason = ?end.reason, "a claimed lease is over");
                jobs.finish(&id, end).await;
            }
        }
    }
    *missing = now_missing;
    let jobs = Arc::clone(jobs);
    let keep = move || jobs.agent.pod_networks.keep(|id| !is_over(&jobs.agent, id));
    if let Err(error) = tokio::task::spawn_blocking(keep).await {
        tracing::error!(%error, "looking for rules of pods that are over broke off");
    }
}

async fn look(jobs: &Arc<Jobs>, listed: &[Listed], strangers: &mut HashSet<String>, first: bool) {
    for entry in jobs.agent.ledger.all() {
        let claimed = entry.claims.claim.is_some();
        if !entry.reported && !claimed && !jobs.is_active(&entry.claims.lease_id) {
            pick_up(jobs, &entry, listed).await;
        }
    }
    let unknown: HashSet<String> = listed
        .iter()
        .map(|container| container.id.clone())
        .filter(|id| !is_known(&jobs.agent, id))
        .collect();
    // A client may be between making a container's record and its task: it has until the next look.
    for id in unknown.iter().filter(|id| first || strangers.contains(*id)) {
        tracing::warn!(container = id, "no lease accounts for it, stopping it");
        driver::remove(jobs, id).await;
    }
    *strangers = unknown;
    sweep(jobs).await;
    forget(jobs);
}

/// A lease that nobody follows.
async fn pick_up(jobs: &Arc<Jobs>, entry: &Entry, listed: &[Listed]) {
    let id = &entry.claims.lease_id;
    if entry.stage == Stage::Ended {
        jobs.finish(id, entry.end.clone().unwrap_or_else(End::unknown)).await;
        return;
    }
    let usage =
        entry.usage.as_ref().filter(|usage| usage.container.namespace.as_str() == NAMESPACE);
    let Some(usage) = usage else { return };
    let container = usage.container.id.to_string();
    let there = listed.iter().any(|listed| listed.id == container);
    let status = if there {
        match jobs.containerd.status(&container).await {
            Ok(status) => Some(status),
            Err(error) if error.is_not_found() => None,
            // Not known is not gone: the next look tells.
            Err(error) => {
                tracing::warn!(lease = %id, %error, "cannot see its task");
                return;
            }
        }
    } else {
        None
    };
    if let Some(TaskStatus::Running | TaskStatus::Stopped) = status {
        if entry.stage == Stage::Used {
            record_start(jobs, entry).await;
        }
        driver::adopt(jobs, id, container);
    } else {
        driver::remove(jobs, &container).await;
        jobs.finish(id, End::unknown()).await;
    }
}

/// The shim's word that it started got lost with the agent before.
async fn record_start(jobs: &Arc<Jobs>, entry: &Entry) {
    let (agent, copy) = (Arc::clone(&jobs.agent), entry.clone());
    let recorded = tokio::task::spawn_blocking(move || agent.started(&copy, None)).await;
    if let Ok(Err(refusal)) = recorded {
        tracing::warn!(lease = %entry.claims.lease_id, %refusal, "a start could not be recorded");
    }
}

fn is_known(agent: &Agent, container: &str) -> bool {
    agent.ledger.all().iter().filter(|entry| !entry.reported).any(|entry| {
        let own = Agent::container_of(&entry.claims).is_ok_and(|key| key.id.as_str() == container);
        let used = entry.usage.as_ref().is_some_and(|u| u.container.id.as_str() == container);
        own || used
    })
}

/// Whether nothing runs under a lease, nor is about to.
fn is_over(agent: &Agent, id: &LeaseId) -> bool {
    agent.ledger.get(id).is_none_or(|entry| entry.stage == Stage::Ended)
}

/// Networks that could not be removed when their job ended.
async fn sweep(jobs: &Arc<Jobs>) {
    let jobs = Arc::clone(jobs);
    let over = move || {
        let agent = &jobs.agent;
        agent.networks.sweep(|id| !jobs.is_active(id) && is_over(agent, id));
    };
    if let Err(error) = tokio::task::spawn_blocking(over).await {
        tracing::error!(%error, "looking for left networks broke off");
    }
}

/// Sees for as long as the agent runs that the rules of jobs with a network are in force.
pub async fn watch_networks(jobs: Arc<Jobs>) {
    loop {
        tokio::time::sleep(Duration::from_secs(network::WATCH_SECONDS)).await;
        let agent = Arc::clone(&jobs.agent);
        let watch = move || {
            agent.networks.watch();
            agent.pod_networks.watch();
        };
        if let Err(error) = tokio::task::spawn_blocking(watch).await {
            tracing::error!(%error, "looking at the rules broke off");
        }
    }
}

fn forget(jobs: &Jobs) {
    let agent = &jobs.agent;
    let waits = |id: &LeaseId| agent.spool.holds(id.as_str(), true);
    if let Err(error) = agent.ledger.forget_old(agent.clock.unix(), waits) {
        tracing::warn!(error = %Chain(&error), "old leases stay in the ledger");
    }
}

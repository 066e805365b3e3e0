//! One job's way through containerd: image, container, task, wait, delete, report.
//!
//! Nothing here decides: a start is admitted in `Task.Create` like anybody else's, a refusal comes
//! back as an error text. The shim kills at the deadline and at a revocation; the driver only helps
//! out through containerd when that did not happen in time.

use std::sync::Arc;
use std::time::Duration;

use containerd_client::types::v1::Status as TaskStatus;
use nimbus_api::id::LeaseId;
use nimbus_api::lease::{LeaseClaims, LeaseToken, LeasedEgress};
use nimbus_api::process::ProcessIdentity;
use nimbus_api::proto::control::v1::JobSpec;
use nimbus_api::{Refusal, RefusalCode};

use super::containerd::ContainerdError;
use super::{Active, Jobs, spec};
use crate::admit::gather;
use crate::agent::Agent;
use crate::image::Stop;
use crate::ledger::{End, Revoked, Stage};

/// How long the shim has to kill after a deadline or a revocation before containerd is asked to.
pub const KILL_GRACE_SECONDS: u64 = 15;
/// How long a release may come after the task was deleted.
pub const RELEASE_SECONDS: u64 = 3;
/// Pause between tries while containerd is away.
const RETRY: Duration = Duration::from_millis(500);
/// How often the driver looks whether the shim did what it must.
const LOOK: Duration = Duration::from_secs(1);

/// One job to drive.
#[derive(Debug)]
pub struct Assignment {
    /// The verified claims.
    pub claims: LeaseClaims,
    /// The token that goes into the specification.
    pub token: LeaseToken,
    /// The job.
    pub spec: JobSpec,
}

/// Starts the task of a new job.
pub fn spawn(jobs: &Arc<Jobs>, assignment: Assignment) {
    let Some(active) = jobs.claim(&assignment.claims.lease_id) else { return };
    let jobs = Arc::clone(jobs);
    tokio::spawn(async move {
        let end = run(&jobs, &assignment).await;
        jobs.finish(&assignment.claims.lease_id, end).await;
        drop(active);
    });
}

/// Starts the task of a container that ran already when the agent started.
pub(super) fn adopt(jobs: &Arc<Jobs>, id: &LeaseId, container: String) {
    let Some(active) = jobs.claim(id) else { return };
    let jobs = Arc::clone(jobs);
    tokio::spawn(async move {
        let Active { id, .. } = &active;
        let end = follow(&jobs, id, &container).await;
        jobs.finish(id, end).await;
        drop(active);
    });
}

async fn run(jobs: &Arc<Jobs>, assignment: &Assignment) -> End {
    let id = &assignment.claims.lease_id;
    let container = match Agent::container_of(&assignment.claims) {
        Ok(key) => key.id.to_string(),
        Err(refusal) => return End::refused(&refusal),
    };
    let refusal = match launch(jobs, assignment, &container).await {
        Ok(()) => return follow(jobs, id, &container).await,
        Err(refusal) => refusal,
    };
    tracing::info!(lease = %id, %refusal, "not started");
    // Somebody else's container may hold the lease: it is not to outlive it.
    let revoked = Revoked { code: refusal.code, message: refusal.to_string() };
    if jobs.agent.ledger.get(id).is_some_and(|entry| entry.is_live()) {
        jobs.agent.peers.push_revoked(id, &revoked);
    }
    remove(jobs, &container).await;
    End::refused(&refusal)
}

async fn launch(jobs: &Arc<Jobs>, assignment: &Assignment, container: &str) -> Result<(), Refusal> {
    let Assignment { claims, token, spec } = assignment;
    prepare(jobs, claims).await?;
    connect(jobs, claims).await?;
    not_revoked(jobs, &claims.lease_id)?;
    let config = spec::config(container, &ProcessIdentity::from(spec), claims, token);
    let refused = |error: ContainerdError| error.refusal();
    let lease = claims.lease_id.as_str();
    jobs.containerd.create_container(container, lease, config).await.map_err(refused)?;
    let (stdout, stderr) = jobs.logs.uris(&claims.job, claims.attempt);
    jobs.containerd.create_task(container, stdout, stderr).await.map_err(refused)?;
    not_revoked(jobs, &claims.lease_id)?;
    jobs.containerd.start(container).await.map_err(refused)
}

/// Fetches the image and has its attestations checked, so that `Admit` finds both done. Not before
/// there is a place for it. When control takes the lease back it ends, and everything that the fetch
/// held has been let go by then. When it only gets too late for this lease the fetch goes on to its own
/// deadline, with its place: the job's next attempt finds what it brought.
async fn prepare(jobs: &Arc<Jobs>, claims: &LeaseClaims) -> Result<(), Refusal> {
    let [image] = claims.images.as_slice() else { return Ok(()) };
    let internal = |error: &dyn std::fmt::Display| Refusal::with(RefusalCode::NodeInternal, error);
    let place = tokio::select! {
        place = Arc::clone(&jobs.preparing).acquire_owned() => place,
        refusal = revoked(jobs, &claims.lease_id) => return Err(refusal),
        refusal = late(jobs, claims) => return Err(refusal),
    };
    let place = place.map_err(|closed| internal(&closed))?;
    let (agent, image, of) = (Arc::clone(&jobs.agent), image.clone(), claims.clone());
    let stop = Stop::new();
    let until = stop.clone();
    let when_dropped = stop.clone().drop_guard();
    let mut work = tokio::task::spawn_blocking(move || {
        let _place = place;
        let policy = agent.trust().policy();
        let bundles = agent.bundles.of(&of.lease_id)?;
        nimbus_hooks::may_fetch(&policy, &image, bundles.list.len())?;
        let measured = agent.images.prepare(&image, &until)?;
        if until.is_cancelled() {
            return Ok(());
        }
        let policy = agent.trust().policy();
        // The answers stay in caches; what they mean is for admission.
        let _warm = gather::attestations(&agent, &of, &policy, &Ok(measured));
        let _warm = agent.filter(&of.seccomp.profile, &of.capabilities);
        Ok(())
    });
    tokio::select! {
        done = &mut work => done.map_err(|error| internal(&error))?,
        refusal = revoked(jobs, &claims.lease_id) => {
            stop.cancel();
            let _its_outcome_means_nothing_now = work.await;
            Err(refusal)
        }
        refusal = late(jobs, claims) => {
            let _goes_on = when_dropped.disarm();
            Err(refusal)
        }
    }
}

/// Makes the network of a job that has one, so that `Admit` finds it with its rules in force.
async fn connect(jobs: &Arc<Jobs>, claims: &LeaseClaims) -> Result<(), Refusal> {
    let LeasedEgress::Allow(rules) = claims.egress.clone() else { return Ok(()) };
    let (agent, id) = (Arc::clone(&jobs.agent), claims.lease_id.clone());
    let made = tokio::task::spawn_blocking(move || agent.networks.prepare(&id, &rules)).await;
    made.map_err(|error| Refusal::with(RefusalCode::NodeInternal, error))?
}

/// Completes when the lease cannot be started any more.
async fn late(jobs: &Jobs, claims: &LeaseClaims) -> Refusal {
    let left = claims.start_by.0.saturating_sub(jobs.agent.clock.unix().0);
    tokio::time::sleep(Duration::from_secs(u64::try_from(left).unwrap_or(0) + 1)).await;
    Refusal::with(RefusalCode::LeaseStartLate, "the image was not there in time")
}

/// Completes when control takes the lease back.
async fn revoked(jobs: &Jobs, id: &LeaseId) -> Refusal {
    loop {
        let woken = jobs.agent.jobs_woken();
        tokio::pin!(woken);
        woken.as_mut().enable();
        if let Err(refusal) = not_revoked(jobs, id) {
            return refusal;
        }
        woken.await;
    }
}

fn not_revoked(jobs: &Jobs, id: &LeaseId) -> Result<(), Refusal> {
    match jobs.agent.ledger.get(id).and_then(|entry| entry.revoked) {
        Some(revoked) => Err(Refusal::new(revoked.code)),
        None => Ok(()),
    }
}

/// Follows a started container to its end.
async fn follow(jobs: &Arc<Jobs>, id: &LeaseId, container: &str) -> End {
    let status = wait(jobs, id, container).await;
    // Asked for even when the wait failed: what is left must go.
    let deleted = remove(jobs, container).await;
    if let Some(end) = released(jobs, id).await {
        return end;
    }
    match status {
        Some(status) if deleted => ended_without_word(jobs, id, status),
        Some(_) | None => End::unknown(),
    }
}

/// The exit status; none when the task is gone.
async fn wait(jobs: &Arc<Jobs>, id: &LeaseId, container: &str) -> Option<u32> {
    let mut waiting = Box::pin(jobs.containerd.wait(container));
    let mut overdue = 0_u64;
    loop {
        tokio::select! {
            ended = &mut waiting => match ended {
                Ok(status) => return Some(status),
                Err(error) => {
                    tracing::warn!(lease = %id, %error, "wait broke off");
                    tokio::time::sleep(RETRY).await;
                    match jobs.containerd.status(container).await {
                        Err(error) if error.is_not_found() => return None,
                        Ok(TaskStatus::Unknown) => return None,
                        Ok(_) | Err(_) => {}
                    }
                    waiting = Box::pin(jobs.containerd.wait(container));
                }
            },
            () = tokio::time::sleep(LOOK) => {
                overdue = if is_due(jobs, id) { overdue.saturating_add(1) } else { 0 };
                if overdue > 0 && overdue.is_multiple_of(KILL_GRACE_SECONDS) {
                    tracing::warn!(lease = %id, "still running when it must not, killing");
                    if let Err(error) = jobs.containerd.kill(container).await {
                        tracing::warn!(lease = %id, %error, "kill failed");
                    }
                }
            }
        }
    }
}

/// Whether a container must not run any more.
fn is_due(jobs: &Jobs, id: &LeaseId) -> bool {
    let Some(entry) = jobs.agent.ledger.get(id) else { return true };
    entry.revoked.is_some() || is_past_deadline(jobs, id)
}

fn is_past_deadline(jobs: &Jobs, id: &LeaseId) -> bool {
    let now = jobs.agent.clock.boottime();
    jobs.agent.deadline_of(id).is_none_or(|deadline| deadline < now)
}

/// The end as the shim reported it; none when no report comes.
async fn released(jobs: &Jobs, id: &LeaseId) -> Option<End> {
    let look = || {
        let entry = jobs.agent.ledger.get(id)?;
        if entry.stage == Stage::Ended { entry.end } else { None }
    };
    let deadline = tokio::time::Instant::now() + Duration::from_secs(RELEASE_SECONDS);
    loop {
        let woken = jobs.agent.jobs_woken();
        tokio::pin!(woken);
        woken.as_mut().enable();
        if let Some(end) = look() {
            return Some(end);
        }
        if tokio::time::timeout_at(deadline, woken).await.is_err() {
            return look();
        }
    }
}

/// The shim did not say why it ended: by itself, unless it had to.
fn ended_without_word(jobs: &Jobs, id: &LeaseId, status: u32) -> End {
    let revoked = jobs.agent.ledger.get(id).and_then(|entry| entry.revoked);
    let reason = match revoked {
        Some(revoked) => Some(revoked.code),
        None if is_past_deadline(jobs, id) => Some(RefusalCode::LeaseEnded),
        None => None,
    };
    let mut end = End::exited(status, false);
    if let Some(code) = reason {
        end.reason = Some(code);
        end.message = Refusal::new(code).to_string();
    }
    end
}

/// Kills and deletes what there is of a container; whether its task could be deleted. Keeps trying
/// while containerd is away.
pub(super) async fn remove(jobs: &Jobs, container: &str) -> bool {
    let containerd = &jobs.containerd;
    let mut tries = 0_u32;
    let deleted = loop {
        match containerd.delete_task(container).await {
            Ok(()) => break true,
            Err(error) if error.is_not_found() => break false,
            Err(error) => {
                tracing::debug!(container, %error, "task not deleted yet");
                // Running still, or containerd is away: kill, then try again.
                let killed = containerd.kill(container).await;
                if let Err(error) = killed {
                    tracing::debug!(container, %error, "kill failed");
                }
            }
        }
        tries = tries.saturating_add(1);
        let pause = RETRY * tries.min(20);
        tokio::time::sleep(pause).await;
    };
    loop {
        match containerd.delete_container(container).await {
            Ok(()) => return deleted,
            Err(error) if error.is_not_found() => return deleted,
            Err(error) => {
                tracing::warn!(container, %error, "container not deleted yet");
                tokio::time::sleep(RETRY * 4).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::super::containerd::Containerd;
    use super::*;
    use crate::logs::LogTable;
    use crate::testing::{NoAnswer, World};

    /// Yields until something is so.
    async fn until(so: impl Fn() -> bool) {
        let looking = async {
            while !so() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(Duration::from_mins(1), looking).await.unwrap();
    }

    /// Jobs of an agent whose registries do not answer, with a lease.
    fn jobs(dir: &std::path::Path) -> (Arc<NoAnswer>, Arc<Jobs>, LeaseClaims) {
        let images = Arc::new(NoAnswer::default());
        let world = World { images: Arc::<NoAnswer>::clone(&images), ..World::new() };
        let agent = world.agent(dir);
        let claims = World::grant(&agent);
        let logs = Arc::new(LogTable::load(&dir.join("logs"), |_, _| true).unwrap());
        (images, Jobs::new(agent, Containerd::new(&dir.join("none")), logs), claims)
    }

    fn preparing(
        jobs: &Arc<Jobs>,
        claims: &LeaseClaims,
    ) -> tokio::task::JoinHandle<Result<(), Refusal>> {
        let (jobs, claims) = (Arc::clone(jobs), claims.clone());
        tokio::spawn(async move { prepare(&jobs, &claims).await })
    }

    fn cancel(jobs: &Jobs, claims: &LeaseClaims) {
        let revoked = Revoked { code: RefusalCode::JobCancelled, message: String::new() };
        jobs.agent.revoke(&claims.lease_id, &revoked).unwrap();
    }

    #[tokio::test]
    async fn a_fetch_that_nobody_wants_any_more_ends_and_frees_its_place() {
        let dir = tempfile::tempdir().unwrap();
        let (images, jobs, claims) = jobs(dir.path());
        let places = jobs.preparing.available_permits();
        let waiting = || images.waiting.load(Ordering::SeqCst);

        let dropped = preparing(&jobs, &claims);
        until(|| waiting() == 1).await;
        assert_eq!(jobs.preparing.available_permits(), places - 1);
        dropped.abort();
        until(|| waiting() == 0 && jobs.preparing.available_permits() == places).await;

        let cancelled = preparing(&jobs, &claims);
        until(|| waiting() == 1).await;
        cancel(&jobs, &claims);
        assert_eq!(cancelled.await.unwrap().unwrap_err().code, RefusalCode::JobCancelled);
        assert_eq!((waiting(), jobs.preparing.available_permits()), (0, places));
    }

    #[tokio::test]
    async fn a_fetch_that_is_too_late_for_its_lease_goes_on_for_the_next() {
        let dir = tempfile::tempdir().unwrap();
        let (images, jobs, claims) = jobs(dir.path());
        let places = jobs.preparing.available_permits();
        let late = LeaseClaims { start_by: jobs.agent.clock.unix(), ..claims };
        let refusal = preparing(&jobs, &late).await.unwrap().unwrap_err();
        assert_eq!(refusal.code, RefusalCode::LeaseStartLate);
        // Long enough for one that was stopped to have noticed.
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(images.waiting.load(Ordering::SeqCst), 1);
        assert_eq!(jobs.preparing.available_permits(), places - 1);
        images.answer.store(true, Ordering::SeqCst);
        until(|| jobs.preparing.available_permits() == places).await;
    }

    #[tokio::test]
    async fn who_waits_for_a_place_can_be_cancelled() {
        let dir = tempfile::tempdir().unwrap();
        let (images, jobs, claims) = jobs(dir.path());
        let places = u32::try_from(jobs.preparing.available_permits()).unwrap();
        let _all = jobs.preparing.acquire_many(places).await.unwrap();
        let cancelled = preparing(&jobs, &claims);
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(!cancelled.is_finished());
        cancel(&jobs, &claims);
        assert_eq!(cancelled.await.unwrap().unwrap_err().code, RefusalCode::JobCancelled);
        assert_eq!(images.waiting.load(Ordering::SeqCst), 0);
    }
}

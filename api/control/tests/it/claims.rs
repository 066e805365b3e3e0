//! What the service promises to nodes that claim leases for containers of other clients of containerd.

use std::sync::Arc;
use std::time::Duration;

use nimbus_api::clock::{BootNanos, Clock as _, ManualClock, SystemClock, UnixSeconds};
use nimbus_api::lease::LeasedEgress;
use nimbus_api::proto::control::v1::policies_client::PoliciesClient;
use nimbus_api::proto::control::v1::quotas_client::QuotasClient;
use nimbus_api::proto::control::v1::{
    ApplyPolicyRequest, CancelJobRequest, JobState, ListJobsRequest, Quota, Resources,
    UpdateQuotaRequest,
};
use nimbus_api::proto::node::v1::{Claim, Heartbeat, HeldLease, node_message};
use nimbus_api::{Digest, lease::LeaseClaims};
use nimbus_control::Server;
use tonic::transport::Channel;

use crate::client::{self, Kind, Node};

pub(crate) async fn apply_policy(admin: &Channel, serial: u64) {
    let envelope = client::claim_policy(serial);
    PoliciesClient::new(admin.clone()).apply_policy(ApplyPolicyRequest { envelope }).await.unwrap();
}

async fn set_quota(admin: &Channel, max_running_jobs: u32) {
    let name = "orgs/acme/quota".to_owned();
    let quota = Quota { name, max_running_jobs, max_queued_jobs: 10, ..Quota::default() };
    let request = UpdateQuotaRequest { quota: Some(quota) };
    QuotasClient::new(admin.clone()).update_quota(request).await.unwrap();
}

fn name(claims: &LeaseClaims) -> String {
    format!("orgs/{}/jobs/{}", claims.org, claims.job)
}

fn held(claims: &LeaseClaims, started: bool) -> HeldLease {
    HeldLease {
        lease_id: claims.lease_id.to_string(),
        job: claims.job.to_string(),
        attempt: claims.attempt,
        started,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claimed_container_is_leased_extended_shown_and_done() {
    let folder = tempfile::tempdir().unwrap();
    let server = client::start_with(folder.path(), |args| {
        args.lease_ttl_seconds = 60;
        args.lease_extension_seconds = 1;
    })
    .await;
    let admin = client::admin(folder.path()).await;
    apply_policy(&admin, 3).await;
    let mut node = Node::join(folder.path(), "n1").await;
    let mut session = node.session(vec![]).await;
    let asked = client::claim("c1");
    let (claims, grant) = session.claim(asked.clone()).await.unwrap();
    assert_eq!((claims.org.as_str(), claims.attempt), ("acme", 1));
    assert_eq!(claims.node, Digest::of(&node.spki));
    assert_eq!(
        (claims.nonce.clone(), claims.lifetime_seconds()),
        (hex::encode(&session.nonce), 60)
    );
    assert_eq!((claims.policy.unwrap().serial, &claims.egress), (3, &LeasedEgress::Pod));
    assert_eq!(claims.process_sha256, Digest::of(b"process"));
    let (image, wanted) = (&claims.images[0], asked.image.clone().unwrap());
    assert_eq!(
        (claims.images.len(), &image.name, &image.platform),
        (1, &wanted.name, &wanted.platform)
    );
    let got = claims.resources;
    assert_eq!((got.cpu_millis, got.memory_bytes, got.pids), (1000, 64 << 20, 64));
    assert_eq!((got.scratch_bytes, got.log_bytes), (8 << 20, 16 << 20));
    assert_eq!((claims.seccomp.profile.as_str(), claims.capabilities.len()), ("default", 13));
    let claim = claims.claim.clone().unwrap();
    assert_eq!(claim.container.to_string(), "k8s.io/c1");
    assert_eq!(claim.pod.unwrap().container.as_deref(), Some("app"));
    let spec = grant.spec.unwrap();
    assert_eq!((&spec.args, &spec.env, spec.uid, spec.gid), (&asked.args, &vec![], 1, 2));
    assert_eq!((spec.max_attempts, spec.max_runtime_seconds), (1, 0));

    let job = client::get(&admin, &name(&claims)).await;
    assert_eq!((job.state(), job.attempts.len()), (JobState::Leased, 1));
    let shown = job.claimed.unwrap();
    assert_eq!((shown.namespace.as_str(), shown.container.as_str()), ("k8s.io", "c1"));
    assert_eq!(
        (shown.pod_namespace.as_str(), shown.pod_name.as_str(), shown.pod_container.as_str()),
        ("ci", "build", "app")
    );
    let list = ListJobsRequest { parent: "orgs/acme".to_owned(), ..ListJobsRequest::default() };
    let listed = client::jobs(&admin).list_jobs(list).await.unwrap().into_inner().jobs;
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0].claimed.as_ref(), Some(&shown));

    let receipt = node.receipt(&claims);
    session.event(node.started(&claims, receipt)).await;
    session.acked(1).await;
    client::reach(&admin, &name(&claims), JobState::Running).await;
    let extension = loop {
        tokio::time::sleep(Duration::from_millis(600)).await;
        session.heartbeat().await;
        let wait = Duration::from_millis(300);
        if let Ok(Kind::Extension(extension)) = tokio::time::timeout(wait, session.next()).await {
            break extension;
        }
    };
    let token = nimbus_api::lease::LeaseToken::unchecked(extension.lease);
    let newer = token.verify(session.keys.as_ref().unwrap()).unwrap().claims;
    assert!(claims.is_extended_by(&newer) && newer.exp > claims.exp);
    session.event(node.finished(&claims, Some(0), "")).await;
    session.acked(2).await;
    let done = client::reach(&admin, &name(&claims), JobState::Done).await;
    assert_eq!((done.exit_code, done.attempts.len()), (Some(0), 1));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_mapped_malformed_or_beyond_its_bounds_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let server = client::start(folder.path()).await;
    let admin = client::admin(folder.path()).await;
    let mut node = Node::join(folder.path(), "n1").await;
    let mut session = node.session(vec![]).await;
    assert_eq!(session.claim(client::claim("c0")).await.unwrap_err(), "policy.missing");
    apply_policy(&admin, 1).await;
    let mut refused = async |change: fn(&mut Claim)| {
        let mut claim = client::claim("c0");
        change(&mut claim);
        session.claim(claim).await.unwrap_err()
    };
    let elsewhere = |c: &mut Claim| c.pod.as_mut().unwrap().namespace = "default".to_owned();
    assert_eq!(refused(elsewhere).await, "claim.not_mapped");
    assert_eq!(refused(|c| c.pod = None).await, "claim.not_mapped");
    assert_eq!(refused(|c| c.process_sha256 = "x".to_owned()).await, "claim.malformed");
    let too_much = |c: &mut Claim| {
        c.resources = Some(Resources { pids: 65, ..Resources::default() });
    };
    assert_eq!(refused(too_much).await, "lease.resources");
    let unknown = |c: &mut Claim| c.image.as_mut().unwrap().name = "other.test/a".to_owned();
    assert_eq!(refused(unknown).await, "policy.no_match");
    let no_ticket = |c: &mut Claim| c.pod.as_mut().unwrap().namespace = "tickets".to_owned();
    assert_eq!(refused(no_ticket).await, "claim.ticket_invalid");

    set_quota(&admin, 1).await;
    let (first, _grant) = session.claim(client::claim("c1")).await.unwrap();
    assert_eq!(session.claim(client::claim("c2")).await.unwrap_err(), "quota.running");
    session.event(node.finished(&first, None, "claim.unavailable")).await;
    session.acked(1).await;
    let dead = client::get(&admin, &name(&first)).await;
    assert_eq!((dead.state(), dead.reason.as_str()), (JobState::Dead, "claim.unavailable"));
    session.claim(client::claim("c2")).await.unwrap();
    let list = ListJobsRequest { parent: "orgs/-".to_owned(), ..ListJobsRequest::default() };
    let listed = client::jobs(&admin).list_jobs(list).await.unwrap().into_inner().jobs;
    assert_eq!(listed.len(), 2, "what is refused leaves no job");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_asked_again_is_the_same_lease_across_sessions_and_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let server = client::start(folder.path()).await;
    apply_policy(&client::admin(folder.path()).await, 1).await;
    let mut node = Node::join(folder.path(), "n1").await;
    let mut session = node.session(vec![]).await;
    let (first, _grant) = session.claim(client::claim("c1")).await.unwrap();
    let (again, _grant) = session.claim(client::claim("c1")).await.unwrap();
    assert!(first.is_extended_by(&again));
    let mut other = client::claim("c1");
    other.process_sha256 = Digest::of(b"other").hex();
    assert_eq!(session.claim(other).await.unwrap_err(), "lease.wrong_container");
    drop(session);

    // The answer was lost: nothing comes unasked, and the lease waits to be asked for.
    let mut session = node.session(vec![]).await;
    session.heartbeat().await;
    session.heartbeat().await;
    let (again, _grant) = session.claim(client::claim("c1")).await.unwrap();
    assert!(first.is_extended_by(&again));
    assert_eq!(again.nonce, hex::encode(&session.nonce));
    drop(session);
    server.stop().await;

    let server = client::start(folder.path()).await;
    node.moved_to(&server);
    let mut session = node.session(vec![held(&first, false)]).await;
    let (again, _grant) = session.claim(client::claim("c1")).await.unwrap();
    assert!(first.is_extended_by(&again));
    session.event(node.finished(&first, None, "lease.ended")).await;
    session.acked(1).await;
    let (next, _grant) = session.claim(client::claim("c1")).await.unwrap();
    assert!(next.lease_id != first.lease_id && next.job != first.job);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claimed_job_that_its_node_lost_is_dead_and_not_tried_again() {
    let folder = tempfile::tempdir().unwrap();
    let server = client::start(folder.path()).await;
    let admin = client::admin(folder.path()).await;
    apply_policy(&admin, 1).await;
    let mut node = Node::join(folder.path(), "n1").await;
    let mut session = node.session(vec![]).await;
    let (claims, _grant) = session.claim(client::claim("c1")).await.unwrap();
    let receipt = node.receipt(&claims);
    session.event(node.started(&claims, receipt)).await;
    session.acked(1).await;
    drop(session);
    let mut session = node.session(vec![]).await;
    session.heartbeat().await;
    let dead = client::reach(&admin, &name(&claims), JobState::Dead).await;
    assert_eq!((dead.reason.as_str(), dead.attempts.len()), ("node.lost", 1));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claimed_lease_that_nobody_asks_for_again_ends_with_the_time_in_which_it_could_start() {
    const HOUR: i64 = 3600;
    let folder = tempfile::tempdir().unwrap();
    // So that certificates are valid by the real clock, too.
    let begin = SystemClock.unix().0 - HOUR;
    let clock = Arc::new(ManualClock::at(BootNanos(0).plus_seconds(1000), UnixSeconds(begin)));
    let args = client::args(client::data(folder.path()));
    let server = Server::start(&args, Arc::<ManualClock>::clone(&clock)).await.unwrap();
    let admin = client::admin(folder.path()).await;
    apply_policy(&admin, 1).await;
    let node = Node::join(folder.path(), "n1").await;
    let mut session = node.session(vec![]).await;
    let (claims, _grant) = session.claim(client::claim("c1")).await.unwrap();
    drop(session);
    let mut session = node.session(vec![]).await;
    session.heartbeat().await;
    session.claim(client::claim("c2")).await.unwrap();
    assert_eq!(client::get(&admin, &name(&claims)).await.state(), JobState::Leased);
    let passed = claims.start_by.0 - claims.iat.0 + 33;
    let boottime = BootNanos(0).plus_seconds(1000 + passed.unsigned_abs());
    clock.set(boottime, UnixSeconds(begin + passed));
    session.heartbeat().await;
    let dead = client::reach(&admin, &name(&claims), JobState::Dead).await;
    assert_eq!(dead.reason, "node.lost");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claimed_job_is_cancelled_by_its_node_and_not_leased_again_meanwhile() {
    let folder = tempfile::tempdir().unwrap();
    let server = client::start(folder.path()).await;
    let admin = client::admin(folder.path()).await;
    apply_policy(&admin, 1).await;
    let mut node = Node::join(folder.path(), "n1").await;
    let mut session = node.session(vec![]).await;
    let (claims, _grant) = session.claim(client::claim("c1")).await.unwrap();
    let cancel = CancelJobRequest { name: name(&claims) };
    client::jobs(&admin).cancel_job(cancel).await.unwrap();
    let (lease_id, reason) = session.revoked().await;
    assert_eq!((lease_id.as_str(), reason.as_str()), (claims.lease_id.as_str(), "job.cancelled"));
    assert_eq!(session.claim(client::claim("c1")).await.unwrap_err(), "job.cancelled");
    session.event(node.finished(&claims, None, "lease.revoked")).await;
    session.acked(1).await;
    client::reach(&admin, &name(&claims), JobState::Cancelled).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_claims_are_each_answered_once_and_a_heartbeat_among_them_counts() {
    const CLAIMS: usize = 1000;
    let folder = tempfile::tempdir().unwrap();
    let server = client::start(folder.path()).await;
    let admin = client::admin(folder.path()).await;
    apply_policy(&admin, 1).await;
    set_quota(&admin, 2000).await;
    let node = Node::join(folder.path(), "n1").await;
    let mut session = node.session(vec![]).await;
    let sender = session.sender();
    let second = uuid::Uuid::new_v4().as_bytes().to_vec();
    let nonce = second.clone();
    let sending = tokio::spawn(async move {
        for number in 0..CLAIMS {
            if number == CLAIMS / 2 {
                let beat = Heartbeat { nonce: nonce.clone(), policy_serial: None };
                sender.send(client::message(node_message::Kind::Heartbeat(beat))).await.unwrap();
            }
            let mut claim = client::claim(&format!("c{number}"));
            claim.id = number.to_string();
            sender.send(client::message(node_message::Kind::Claim(claim))).await.unwrap();
        }
    });
    let mut answered = vec![false; CLAIMS];
    let mut leased = 0;
    for _ in 0..CLAIMS {
        let (id, outcome) = session.answer().await;
        let number: usize = id.parse().unwrap();
        assert!(!std::mem::replace(&mut answered[number], true), "{number} twice");
        match outcome {
            Ok((claims, _grant)) => {
                leased += 1;
                if number >= CLAIMS / 2 {
                    assert_eq!(claims.nonce, hex::encode(&second), "{number}");
                }
            }
            Err(code) => assert_eq!(code, "node.busy"),
        }
    }
    sending.await.unwrap();
    assert!(leased >= 256, "{leased} leased");
    // However many of the later ones found no room: the heartbeat among them was taken.
    let (claims, _grant) = session.claim(client::claim("next")).await.unwrap();
    assert_eq!(claims.nonce, hex::encode(&second));
    session.heartbeat().await;
    let (claims, _grant) = session.claim(client::claim("last")).await.unwrap();
    assert_eq!(claims.nonce, hex::encode(&session.nonce));
    server.stop().await;
}

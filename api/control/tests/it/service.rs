//! What the service promises to people and nodes.

use std::sync::Arc;
use std::time::Duration;

use nimbus_api::clock::{BootNanos, Clock as _, ManualClock, SystemClock, UnixSeconds};
use nimbus_api::keys::KeySet;
use nimbus_api::process::ProcessIdentity;
use nimbus_api::proto::control::v1::keys_client::KeysClient;
use nimbus_api::proto::control::v1::logs_client::LogsClient;
use nimbus_api::proto::control::v1::nodes_client::NodesClient;
use nimbus_api::proto::control::v1::policies_client::PoliciesClient;
use nimbus_api::proto::control::v1::quotas_client::QuotasClient;
use nimbus_api::proto::control::v1::{
    ApplyPolicyRequest, CancelJobRequest, CreateJoinTokenRequest, GetJobRequest, GetKeySetRequest,
    GetQuotaRequest, JobState, ListJobsRequest, ListNodesRequest, LogStream, Quota,
    ReadLogsRequest, UpdateQuotaRequest,
};
use nimbus_api::proto::node::v1::enrollment_client::EnrollmentClient;
use nimbus_api::proto::node::v1::sessions_client::SessionsClient;
use nimbus_api::proto::node::v1::{HeldLease, JoinRequest, LogData, RenewCertificateRequest};
use nimbus_api::{Digest, Refusal, RefusalCode};
use nimbus_control::{CredentialsArgs, Exit, Server, StartError};
use tonic_types::StatusExt as _;

use crate::client::{self, Credentials, Kind, Node};

/// How often control looks for leases that have run out.
const SWEEP: Duration = Duration::from_secs(1);

pub(crate) fn code(status: &tonic::Status) -> RefusalCode {
    let code = Refusal::code_in(status.message()).expect("a refusal");
    let details = status.get_error_details();
    let info = details.error_info().expect("ErrorInfo");
    assert_eq!((info.reason.as_str(), info.domain.as_str()), (code.as_str(), "nimbus.io"));
    assert_eq!(i32::from(status.code()), code.class().grpc_code());
    code
}

fn log(job: &str, stream: LogStream, data: &[u8], offset: u64) -> LogData {
    LogData {
        job: job.to_owned(),
        attempt: 1,
        stream: stream as i32,
        offset,
        data: data.to_vec(),
        eof: true,
    }
}

fn policy(serial: u64) -> Vec<u8> {
    let text = format!(
        "version = 1\nid = \"p\"\nserial = {serial}\nnot_after = 2099-01-01T00:00:00Z\n\
         [trust.t]\nkind = \"key\"\nkey = \"k\"\ntlog = \"off\"\n[need.n]\ntrust = \"t\"\n\
         predicate = [\"x\"]\n[[rule]]\nimages = [\"a/**\"]\nrequire = [\"n\"]\n"
    );
    let key = nimbus_api::dsse::SigningKey::from_seed([5; 32]);
    nimbus_api::policy::sign(text.as_bytes(), &key).unwrap().to_json()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_goes_its_whole_way_and_a_restart_in_the_middle_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let server = client::start(folder.path()).await;
    let admin = client::admin(folder.path()).await;
    let mut node = Node::join(folder.path(), "n1").await;
    PoliciesClient::new(admin.clone())
        .apply_policy(ApplyPolicyRequest { envelope: policy(3) })
        .await
        .unwrap();
    let mut session = node.session(vec![]).await;
    assert!(matches!(session.next().await, Kind::Welcome(w) if w.heartbeat_interval_ms == 2000));
    assert!(matches!(session.next().await, Kind::KeySet(_)));
    assert!(matches!(session.next().await, Kind::Policy(envelope) if envelope == policy(3)));
    assert!(matches!(session.next().await, Kind::EventAck(ack) if ack.seq == 0));
    let job = client::submit(&admin).await;
    let (claims, grant) = session.grant().await;
    assert_eq!(job.name, format!("orgs/default/jobs/{}", claims.job));
    assert_eq!(claims.process_sha256, ProcessIdentity::from(&client::spec()).digest());
    assert_eq!(claims.nonce, hex::encode(&session.nonce));
    assert_eq!((claims.attempt, claims.policy.unwrap().serial), (1, 3));
    assert_eq!(claims.node, Digest::of(&node.spki));
    assert_eq!(grant.spec.unwrap().bundles, client::spec().bundles);
    assert_eq!((claims.lifetime_seconds(), claims.start_by.0 - claims.iat.0), (900, 300));
    let receipt = node.receipt(&claims);
    let started = node.started(&claims, receipt.clone());
    session.event(started.clone()).await;
    session.acked(1).await;
    session.log(log(claims.job.as_str(), LogStream::Stdout, b"hello\n", 0)).await;
    let is_log_ack = |kind| if let Kind::LogAck(ack) = kind { Some(ack) } else { None };
    let ack = session.find(is_log_ack).await;
    assert_eq!((ack.next_offset, ack.eof), (6, true));

    drop((session, admin));
    server.stop().await;
    let server = client::start(folder.path()).await;
    node.moved_to(&server);
    let admin = client::admin(folder.path()).await;
    let found = client::get(&admin, &job.name).await;
    assert_eq!((found.state(), &found.attempts[0].receipt), (JobState::Running, &receipt));
    let held = HeldLease {
        lease_id: claims.lease_id.to_string(),
        job: claims.job.to_string(),
        attempt: 1,
        started: true,
    };
    let mut session = node.session(vec![held]).await;
    let ack = session.find(is_log_ack).await;
    assert_eq!((ack.next_offset, ack.eof), (6, true), "held output goes on where it was");
    session.heartbeat().await;
    session.event(started).await;
    session.acked(1).await;
    session.event(node.finished(&claims, Some(7), "")).await;
    session.acked(2).await;
    let done = client::reach(&admin, &job.name, JobState::Done).await;
    assert_eq!((done.exit_code, done.attempts.len()), (Some(7), 1));
    let request = ReadLogsRequest { name: job.name.clone(), attempt: 0, follow: false };
    let mut logs = LogsClient::new(admin.clone()).read_logs(request).await.unwrap().into_inner();
    let chunk = logs.message().await.unwrap().unwrap();
    assert_eq!((chunk.data.as_slice(), chunk.attempt), (&b"hello\n"[..], 1));
    assert!(logs.message().await.unwrap().is_none());
    drop((session, admin));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_job_is_cancelled_by_its_node_and_followed_to_its_end() {
    let folder = tempfile::tempdir().unwrap();
    let server = client::start(folder.path()).await;
    let admin = client::admin(folder.path()).await;
    let mut node = Node::join(folder.path(), "n1").await;
    let mut session = node.session(vec![]).await;
    let job = client::submit(&admin).await;
    let (claims, _grant) = session.grant().await;
    let receipt = node.receipt(&claims);
    session.event(node.started(&claims, receipt)).await;
    session.acked(1).await;
    let request = ReadLogsRequest { name: job.name.clone(), attempt: 0, follow: true };
    let mut logs = LogsClient::new(admin.clone()).read_logs(request).await.unwrap().into_inner();
    session.log(log(claims.job.as_str(), LogStream::Stdout, b"out", 0)).await;
    assert_eq!(logs.message().await.unwrap().unwrap().data, b"out");
    let cancel = CancelJobRequest { name: job.name.clone() };
    client::jobs(&admin).cancel_job(cancel.clone()).await.unwrap();
    let (lease_id, reason) = session.revoked().await;
    assert_eq!((lease_id, reason.as_str()), (claims.lease_id.to_string(), "job.cancelled"));
    session.log(log(claims.job.as_str(), LogStream::Stderr, b"err", 0)).await;
    session.event(node.finished(&claims, None, "lease.revoked")).await;
    session.acked(2).await;
    let ended = client::reach(&admin, &job.name, JobState::Cancelled).await;
    assert_eq!(ended.reason, "job.cancelled");
    assert_eq!(logs.message().await.unwrap().unwrap().data, b"err");
    assert!(logs.message().await.unwrap().is_none());
    client::jobs(&admin).cancel_job(cancel).await.unwrap();
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_node_no_longer_has_is_granted_again_or_lost() {
    let folder = tempfile::tempdir().unwrap();
    let server = client::start(folder.path()).await;
    let admin = client::admin(folder.path()).await;
    let mut node = Node::join(folder.path(), "n1").await;
    let mut session = node.session(vec![]).await;
    let job = client::submit(&admin).await;
    let (first, _grant) = session.grant().await;
    drop(session);
    // The grant was lost on its way: the same lease comes again with the new nonce.
    let mut session = node.session(vec![]).await;
    session.heartbeat().await;
    let (again, _grant) = session.grant().await;
    assert!(first.is_extended_by(&again));
    assert_eq!(again.nonce, hex::encode(&session.nonce));
    let receipt = node.receipt(&again);
    session.event(node.started(&again, receipt)).await;
    session.acked(1).await;
    drop(session);
    // It had started and is gone: a new attempt.
    let stale = HeldLease {
        lease_id: "lold".to_owned(),
        job: "jold".to_owned(),
        attempt: 1,
        started: true,
    };
    let mut session = node.session(vec![stale]).await;
    assert_eq!(session.revoked().await, ("lold".to_owned(), "lease.stale".to_owned()));
    session.heartbeat().await;
    let (second, _grant) = session.grant().await;
    assert_eq!((second.job, second.attempt), (first.job, 2));
    let found = client::get(&admin, &job.name).await;
    assert_eq!(found.attempts[0].reason, "node.lost");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forged_receipt_is_refused_and_a_policy_refusal_ends_the_job() {
    let folder = tempfile::tempdir().unwrap();
    let server = client::start(folder.path()).await;
    let admin = client::admin(folder.path()).await;
    let mut node = Node::join(folder.path(), "n1").await;
    let mut session = node.session(vec![]).await;
    let job = client::submit(&admin).await;
    let (claims, _grant) = session.grant().await;
    let own = std::mem::replace(&mut node.key, nimbus_api::dsse::SigningKey::generate());
    let forged = node.receipt(&claims);
    session.event(node.started(&claims, forged)).await;
    assert_eq!(session.revoked().await.1, "lease.revoked");
    node.key = own;
    session.event(node.finished(&claims, Some(0), "")).await;
    let (second, _grant) = session.grant().await;
    assert_eq!(second.attempt, 2, "a run whose receipt is forged does not count");
    session.event(node.finished(&second, None, "image.unattested")).await;
    let dead = client::reach(&admin, &job.name, JobState::Dead).await;
    assert_eq!((dead.reason.as_str(), dead.attempts.len()), ("image.unattested", 2));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn running_leases_are_extended_with_the_newest_nonce() {
    let folder = tempfile::tempdir().unwrap();
    let server = client::start_with(folder.path(), |args| {
        args.lease_ttl_seconds = 60;
        args.lease_extension_seconds = 1;
    })
    .await;
    let admin = client::admin(folder.path()).await;
    let mut node = Node::join(folder.path(), "n1").await;
    let mut session = node.session(vec![]).await;
    client::submit(&admin).await;
    let (claims, _grant) = session.grant().await;
    let receipt = node.receipt(&claims);
    session.event(node.started(&claims, receipt)).await;
    session.acked(1).await;
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
    assert_eq!(newer.nonce, hex::encode(&session.nonce));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_are_idempotent_checked_and_paged() {
    let folder = tempfile::tempdir().unwrap();
    let server = client::start(folder.path()).await;
    let admin = client::admin(folder.path()).await;
    let mut jobs = client::jobs(&admin);
    let request = client::submission();
    let first = jobs.submit_job(request.clone()).await.unwrap().into_inner();
    let again = jobs.submit_job(request.clone()).await.unwrap().into_inner();
    assert_eq!(first.name, again.name);
    let mut other = request.clone();
    other.spec.as_mut().unwrap().args.push("x".to_owned());
    assert_eq!(code(&jobs.submit_job(other).await.unwrap_err()), RefusalCode::RequestConflict);
    let mut bad = client::submission();
    bad.spec.as_mut().unwrap().args.clear();
    let refused = jobs.submit_job(bad).await.unwrap_err();
    assert_eq!(code(&refused), RefusalCode::RequestInvalid);
    let details = refused.get_error_details();
    assert_eq!(details.bad_request().unwrap().field_violations[0].field, "spec.args");
    let mut large = client::submission();
    large.spec.as_mut().unwrap().bundles = vec![vec![1; 4 << 20]];
    assert_eq!(code(&jobs.submit_job(large).await.unwrap_err()), RefusalCode::RequestTooLarge);
    for _ in 0..4 {
        client::submit(&admin).await;
    }
    let mut list =
        ListJobsRequest { parent: "orgs/default".to_owned(), page_size: 2, ..Default::default() };
    let mut names = Vec::new();
    loop {
        let page = jobs.list_jobs(list.clone()).await.unwrap().into_inner();
        names.extend(page.jobs.iter().map(|job| job.name.clone()));
        assert!(page.jobs.iter().all(|job| job.spec.as_ref().unwrap().bundles.is_empty()));
        if page.next_page_token.is_empty() {
            break;
        }
        list.page_token = page.next_page_token;
    }
    assert_eq!(names.len(), 5);
    assert!(names.is_sorted_by(|a, b| a > b), "newest first");
    list.parent = "orgs/-".to_owned();
    assert_eq!(code(&jobs.list_jobs(list).await.unwrap_err()), RefusalCode::RequestInvalid);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn everybody_sees_only_what_is_theirs() {
    let folder = tempfile::tempdir().unwrap();
    let server = client::start(folder.path()).await;
    let admin = client::admin(folder.path()).await;
    let job = client::submit(&admin).await;
    let out = folder.path().join("ann.json");
    let args = CredentialsArgs {
        data_dir: client::data(folder.path()),
        org: "acme".parse().unwrap(),
        user: "ann".parse().unwrap(),
        out: out.clone(),
    };
    nimbus_control::issue_credentials(&args).unwrap();
    let ann = Credentials::read(&out);
    assert_eq!(ann.org, "acme");
    let ann = ann.connect().await;
    let get = GetJobRequest { name: job.name.clone() };
    let refused = client::jobs(&ann).get_job(get.clone()).await.unwrap_err();
    let absent = GetJobRequest { name: "orgs/acme/jobs/j1".to_owned() };
    let missing = client::jobs(&ann).get_job(absent).await.unwrap_err();
    assert_eq!(code(&refused), RefusalCode::JobNotFound);
    assert_eq!(refused.message(), missing.message());
    let renamed = GetJobRequest { name: job.name.replace("default", "acme") };
    assert_eq!(
        code(&client::jobs(&ann).get_job(renamed).await.unwrap_err()),
        RefusalCode::JobNotFound
    );
    let submitted = client::jobs(&ann).submit_job(client::submission()).await;
    assert_eq!(code(&submitted.unwrap_err()), RefusalCode::RequestForbidden);
    let token = CreateJoinTokenRequest { node: "n9".to_owned(), ttl_seconds: 0 };
    let refused = NodesClient::new(ann.clone()).create_join_token(token).await.unwrap_err();
    assert_eq!(code(&refused), RefusalCode::RequestForbidden);

    let node = Node::join(folder.path(), "n1").await;
    let channel = node.credentials.connect().await;
    assert_eq!(
        code(&client::jobs(&channel).get_job(get).await.unwrap_err()),
        RefusalCode::RequestForbidden
    );
    let renew = RenewCertificateRequest { csr: vec![] };
    let refused = SessionsClient::new(admin.clone()).renew_certificate(renew).await.unwrap_err();
    assert_eq!(code(&refused), RefusalCode::RequestForbidden);
    let own = rcgen::KeyPair::from_pem(&node.key_pem).unwrap();
    let renew = RenewCertificateRequest { csr: client::request_for(&own) };
    let fresh = SessionsClient::new(channel.clone()).renew_certificate(renew).await.unwrap();
    assert!(fresh.into_inner().chain_pem.contains("BEGIN CERTIFICATE"));
    let other = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    let renew = RenewCertificateRequest { csr: client::request_for(&other) };
    let refused = SessionsClient::new(channel).renew_certificate(renew).await.unwrap_err();
    assert_eq!(code(&refused), RefusalCode::RequestForbidden);
    let nodes = NodesClient::new(admin).list_nodes(ListNodesRequest::default()).await.unwrap();
    assert_eq!(nodes.into_inner().nodes[0].thumbprint, Digest::of(&node.spki).hex());
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn quotas_policies_and_tokens_are_guarded() {
    let folder = tempfile::tempdir().unwrap();
    let server = client::start(folder.path()).await;
    let admin = client::admin(folder.path()).await;
    let mut quotas = QuotasClient::new(admin.clone());
    let name = "orgs/default/quota".to_owned();
    let present =
        quotas.get_quota(GetQuotaRequest { name: name.clone() }).await.unwrap().into_inner();
    assert_eq!((present.max_running_jobs, present.max_queued_jobs), (16, 10_000));
    let quota = Quota { max_running_jobs: 1, ..present };
    let update = UpdateQuotaRequest { quota: Some(quota) };
    let changed = quotas.update_quota(update.clone()).await.unwrap().into_inner();
    assert_eq!(code(&quotas.update_quota(update).await.unwrap_err()), RefusalCode::RequestConflict);
    let mut node = Node::join(folder.path(), "n1").await;
    let mut session = node.session(vec![]).await;
    let (first, second) = (client::submit(&admin).await, client::submit(&admin).await);
    let (claims, _grant) = session.grant().await;
    assert_eq!(client::get(&admin, &first.name).await.state(), JobState::Leased);
    assert_eq!(client::get(&admin, &second.name).await.state(), JobState::Queued);
    session.event(node.finished(&claims, Some(0), "")).await;
    let (claims, _grant) = session.grant().await;
    assert!(second.name.ends_with(claims.job.as_str()));
    let quota = Quota { max_queued_jobs: 0, ..changed };
    quotas.update_quota(UpdateQuotaRequest { quota: Some(quota) }).await.unwrap();
    let refused = client::jobs(&admin).submit_job(client::submission()).await.unwrap_err();
    assert_eq!(code(&refused), RefusalCode::QuotaQueued);

    let mut policies = PoliciesClient::new(admin.clone());
    let mut apply = async |envelope: Vec<u8>| {
        policies.apply_policy(ApplyPolicyRequest { envelope }).await.map_err(|status| code(&status))
    };
    assert_eq!(apply(b"{}".to_vec()).await.unwrap_err(), RefusalCode::PolicyInvalid);
    apply(policy(2)).await.unwrap();
    assert_eq!(apply(policy(1)).await.unwrap_err(), RefusalCode::PolicyRolledBack);
    let pushed =
        session.find(|kind| if let Kind::Policy(policy) = kind { Some(policy) } else { None });
    assert_eq!(pushed.await, policy(2));

    let credentials = Credentials::read(&client::data(folder.path()).join("admin.json"));
    let channel = client::join_channel(folder.path(), &credentials).await;
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    let join = JoinRequest { secret: "guess".to_owned(), csr: client::request_for(&key) };
    let refused = EnrollmentClient::new(channel).join(join).await.unwrap_err();
    assert_eq!(code(&refused), RefusalCode::JoinTokenInvalid);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_session_of_a_node_ends_the_older() {
    let folder = tempfile::tempdir().unwrap();
    let server = client::start(folder.path()).await;
    let node = Node::join(folder.path(), "n1").await;
    let mut old = node.session(vec![]).await;
    old.acked(0).await;
    let mut new = node.session(vec![]).await;
    new.acked(0).await;
    assert!(old.try_next().await.is_none());
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_keeps_keys_and_a_second_control_is_kept_out() {
    let folder = tempfile::tempdir().unwrap();
    let server = client::start(folder.path()).await;
    let keys = async || {
        let admin = client::admin(folder.path()).await;
        KeysClient::new(admin).get_key_set(GetKeySetRequest {}).await.unwrap().into_inner()
    };
    let before = keys().await;
    let root =
        nimbus_api::dsse::VerifyingKey::from_bytes(before.root_key.clone().try_into().unwrap());
    let set = KeySet::verify(&before.envelope, &root).unwrap();
    // How a test that plays an attacker with all of control's keys gets at them.
    let hot = client::data(folder.path()).join("hot").join(format!("{}.key", set.keys[0].kid));
    let hot = std::fs::read_to_string(hot).unwrap();
    let hot = nimbus_api::dsse::SigningKey::from_file_text(&hot).unwrap();
    assert_eq!(hot.verifying_key(), set.keys[0].key);
    let args = client::args(client::data(folder.path()));
    let clock = Arc::new(SystemClock);
    let second = Server::start(&args, clock.clone()).await.unwrap_err();
    assert_eq!(second.exit(), Exit::Locked);
    server.stop().await;
    let mut other = args.clone();
    other.trust_domain = "other.test".parse().unwrap();
    let refused = Server::start(&other, clock.clone()).await.unwrap_err();
    assert!(matches!(refused, StartError::Keys(_)));
    let server = client::start(folder.path()).await;
    assert_eq!(keys().await, before);
    server.stop().await;
    let root = client::data(folder.path()).join("root.key");
    let exposed = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    std::fs::set_permissions(root, exposed).unwrap();
    assert_eq!(Server::start(&args, clock).await.unwrap_err().exit(), Exit::KeyFile);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_join_listener_shows_the_ca_whose_hash_the_token_carries() {
    use rustls::pki_types::ServerName;
    use rustls::pki_types::pem::PemObject as _;
    let folder = tempfile::tempdir().unwrap();
    let server = client::start(folder.path()).await;
    let admin = Credentials::read(&client::data(folder.path()).join("admin.json"));
    let ca = rustls::pki_types::CertificateDer::from_pem_slice(admin.ca_pem.as_bytes()).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(ca.clone()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let stream = tokio::net::TcpStream::connect(server.endpoints().join).await.unwrap();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let name = ServerName::try_from("localhost").unwrap();
    let stream = connector.connect(name, stream).await.unwrap();
    let chain = stream.get_ref().1.peer_certificates().unwrap();
    assert_eq!((chain.len(), &chain[1]), (2, &ca));
    server.stop().await;
}

/// The node is in session but holds no lease that it told of: only its silence is seen.
#[tokio::test(flavor = "multi_thread")]
async fn a_clock_set_forward_ends_a_lease_late_and_then_its_node_is_told() {
    const HOUR: i64 = 3600;
    let folder = tempfile::tempdir().unwrap();
    // So that certificates made after the step are valid by the real clock, too.
    let begin = SystemClock.unix().0 - 2 * HOUR;
    let clock = Arc::new(ManualClock::at(BootNanos(0).plus_seconds(1000), UnixSeconds(begin)));
    let passed = |seconds: u64, stepped: i64| {
        let since = i64::try_from(seconds).unwrap();
        let boottime = BootNanos(0).plus_seconds(1000 + seconds);
        clock.set(boottime, UnixSeconds(begin + since + stepped));
    };
    let args = client::args(client::data(folder.path()));
    let server = Server::start(&args, Arc::<ManualClock>::clone(&clock)).await.unwrap();
    let admin = client::admin(folder.path()).await;
    let node = Node::join(folder.path(), "n1").await;
    let mut session = node.session(vec![]).await;
    let job = client::submit(&admin).await;
    let (claims, _grant) = session.grant().await;
    client::reach(&admin, &job.name, JobState::Leased).await;

    // Long after the lease's end by the wall clock, which is not by what has passed.
    passed(60, HOUR);
    tokio::time::sleep(3 * SWEEP).await;
    assert_eq!(client::get(&admin, &job.name).await.state(), JobState::Leased);
    server.stop().await;
    let server = Server::start(&args, Arc::<ManualClock>::clone(&clock)).await.unwrap();
    let admin = client::admin(folder.path()).await;
    passed(800, HOUR);
    tokio::time::sleep(3 * SWEEP).await;
    assert_eq!(client::get(&admin, &job.name).await.state(), JobState::Leased);

    let mut node = node;
    node.moved_to(&server);
    let mut session = node.session(vec![]).await;
    session.acked(0).await;
    passed(60 + 900 + 60, HOUR);
    let (lease, reason) = session.revoked().await;
    assert_eq!((lease, reason.as_str()), (claims.lease_id.to_string(), "lease.stale"));
    let job = client::get(&admin, &job.name).await;
    assert!(matches!(job.state(), JobState::Queued | JobState::Leased), "{job:?}");
    assert_eq!(job.attempts[0].reason, "node.lost");
    server.stop().await;
}

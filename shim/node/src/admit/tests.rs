//! The server over its real socket, with the real decision; images, filter and verifier are in memory.

use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering;

use nimbus_api::clock::BootNanos;
use nimbus_api::dsse::SigningKey;
use nimbus_api::frame::{self, Frame, FrameReader};
use nimbus_api::lease::{LeaseClaims, LeasedEgress};
use nimbus_api::plan::Plan;
use nimbus_api::process::ProcessIdentity;
use nimbus_api::proto::admit::v1::agent_message::Kind as ToShim;
use nimbus_api::proto::admit::v1::shim_message::Kind as FromShim;
use nimbus_api::proto::admit::v1::{Admit, AgentMessage, Released, Resume, ShimMessage, Started};
use nimbus_api::proto::node::v1::event::Kind as Event;
use nimbus_api::receipt::Receipt;
use prost::Message as _;

use super::*;
use crate::jobs::{reconcile, spec};
use crate::ledger::{Revoked, Stage};
use crate::testing::{self, NODE, World};

mod claimed;

struct Shim {
    stream: UnixStream,
    reader: FrameReader,
}

impl Shim {
    fn connect(agent: &Agent) -> Self {
        let stream = UnixStream::connect(agent.config.socket()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        Self { stream, reader: FrameReader::default() }
    }

    fn say(&self, kind: FromShim) {
        let message = ShimMessage { kind: Some(kind) }.encode_to_vec();
        frame::write_frame(&self.stream, &message, &[]).unwrap();
    }

    fn hear(&mut self) -> (ToShim, Frame) {
        let frame = self.reader.read(&self.stream).unwrap();
        (AgentMessage::decode(frame.bytes.as_slice()).unwrap().kind.unwrap(), frame)
    }

    fn granted(&mut self) -> (Plan, String, Frame) {
        match self.hear() {
            (ToShim::Granted(granted), frame) => {
                let plan = Plan::parse(&granted.plan_json).unwrap();
                (plan, granted.plan_sha256, frame)
            }
            (other, _) => panic!("expected Granted, found {other:?}"),
        }
    }

    fn deadline(&mut self) -> BootNanos {
        match self.hear() {
            (ToShim::Deadline(deadline), _) => BootNanos(deadline.boottime_ns),
            (other, _) => panic!("expected Deadline, found {other:?}"),
        }
    }

    fn refused(&mut self) -> String {
        match self.hear() {
            (ToShim::Refused(refused), _) => refused.code,
            (other, _) => panic!("expected Refused, found {other:?}"),
        }
    }

    fn revoked(&mut self) -> String {
        match self.hear() {
            (ToShim::Revoked(revoked), _) => revoked.code,
            (other, _) => panic!("expected Revoked, found {other:?}"),
        }
    }
}

struct Running {
    dir: tempfile::TempDir,
    world: World,
    agent: Arc<Agent>,
}

impl Running {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let world = World::new();
        let agent = world.agent(dir.path());
        serve(&agent, bind(&agent.config.socket()).unwrap()).unwrap();
        Self { dir, world, agent }
    }

    /// A new agent on the same directory takes the socket over.
    fn restart(&mut self) {
        self.agent = self.world.agent(self.dir.path());
        reconcile::settle(&self.agent).unwrap();
        serve(&self.agent, bind(&self.agent.config.socket()).unwrap()).unwrap();
    }

    fn ask(&self, claims: &LeaseClaims) -> Shim {
        let shim = Shim::connect(&self.agent);
        shim.say(FromShim::Admit(admit(claims)));
        shim
    }

    fn stage(&self, claims: &LeaseClaims) -> Stage {
        self.agent.ledger.get(&claims.lease_id).unwrap().stage
    }
}

fn admit(claims: &LeaseClaims) -> Admit {
    let id = format!("{}-{}", claims.job, claims.attempt);
    let process = ProcessIdentity::from(&testing::job());
    let config_json = spec::config(&id, &process, claims, &testing::sign(claims));
    Admit { version: 1, namespace: "nimbus".to_owned(), id, config_json, ..Admit::default() }
}

fn until(mut condition: impl FnMut() -> bool) {
    for _ in 0..600 {
        if condition() {
            return;
        }
        thread::sleep(Duration::from_millis(50));
    }
    panic!("it did not come to that");
}

#[test]
fn a_leased_and_attested_container_is_granted_with_filter_and_layers() {
    let running = Running::start();
    let claims = World::grant(&running.agent);
    let mut shim = running.ask(&claims);
    let (plan, digest, mut frame) = shim.granted();
    assert_eq!(running.stage(&claims), Stage::Used, "durable before the answer");
    assert_eq!(plan.digest().to_string(), digest);
    assert_eq!(plan.lease.lease_id, claims.lease_id);
    // Heartbeat at 1000 s, 900 s of life, 2 s of skew.
    assert_eq!(plan.deadline, BootNanos(0).plus_seconds(1898));
    assert_eq!(frame.fds.len(), 1 + testing::LAYERS);
    let mut program = Vec::new();
    let filter = std::fs::File::from(frame.fds.remove(0));
    (&filter).take(1 << 20).read_to_end(&mut program).unwrap();
    assert_eq!(nimbus_api::Digest::of(&program), plan.seccomp.program_sha256);
    let seals = rustix::fs::fcntl_get_seals(&filter).unwrap();
    assert!(seals.contains(rustix::fs::SealFlags::WRITE | rustix::fs::SealFlags::SEAL));
    assert_eq!(shim.deadline(), plan.deadline);
}

#[test]
fn an_allow_list_is_granted_with_its_own_network_or_not_at_all() {
    let running = Running::start();
    let allowed =
        |rule: &str| nimbus_api::egress::EgressRules::sorted(vec![rule.parse().unwrap()]).unwrap();
    let mut claims = World::grant(&running.agent);
    claims.egress = LeasedEgress::Allow(allowed("192.0.2.0/24:443/tcp"));
    assert_eq!(running.ask(&claims).refused(), "network.unavailable");
    // Rules are in force for another allow-list under the same lease: control has signed two.
    let networks = &running.agent.networks;
    let namespace = || std::fs::File::open("/proc/self/ns/net").unwrap().into();
    networks.pretend(&claims.lease_id, allowed("192.0.2.7/32:443/tcp"), namespace());
    assert_eq!(running.ask(&claims).refused(), "network.unavailable");
    networks.pretend(&"l9".parse().unwrap(), allowed("192.0.2.0/24:443/tcp"), namespace());
    assert_eq!(running.ask(&claims).refused(), "network.unavailable");
    assert_eq!(running.stage(&claims), Stage::Granted);
    networks.pretend(&claims.lease_id, allowed("192.0.2.0/24:443/tcp"), namespace());
    let (plan, _, frame) = running.ask(&claims).granted();
    assert_eq!(plan.egress, claims.egress);
    let inode = |fd: &OwnedFd| rustix::fs::fstat(fd).unwrap().st_ino;
    assert_eq!(frame.fds.len(), 2 + testing::LAYERS);
    assert_eq!(frame.fds.last().map(inode), Some(inode(&namespace())));
}

#[test]
fn no_lease_a_forged_one_and_a_strangers_nonce_are_refused_and_leave_nothing() {
    let running = Running::start();
    let claims = World::grant(&running.agent);
    let mut shim = Shim::connect(&running.agent);
    let config_json = br#"{"ociVersion":"1.0.2"}"#.to_vec();
    shim.say(FromShim::Admit(Admit { config_json, ..admit(&claims) }));
    assert_eq!(shim.refused(), "lease.missing");
    let twice = br#"{"annotations":{},"annotations":{}}"#.to_vec();
    let mut shim = Shim::connect(&running.agent);
    shim.say(FromShim::Admit(Admit { config_json: twice, ..admit(&claims) }));
    assert_eq!(shim.refused(), "spec.duplicate_key");
    let mut other = claims.clone();
    other.nonce = "ff".repeat(16);
    assert_eq!(running.ask(&other).refused(), "lease.unknown_nonce");
    let mut other = claims.clone();
    other.node = nimbus_api::Digest::of(b"other");
    assert_eq!(running.ask(&other).refused(), "lease.wrong_node");
    assert_eq!(running.stage(&claims), Stage::Granted);
}

#[test]
fn a_lease_that_control_did_not_grant_here_starts_nothing() {
    let running = Running::start();
    let mut claims = World::grant(&running.agent);
    claims.lease_id = "l9".parse().unwrap();
    claims.job = "j9".parse().unwrap();
    assert_eq!(running.ask(&claims).refused(), "image.unattested");
    running.agent.bundles.keep(&claims.lease_id, vec![testing::BUNDLE.to_vec()]).unwrap();
    assert_eq!(running.ask(&claims).refused(), "lease.missing");
}

#[test]
fn a_forged_bundle_is_refused() {
    let running = Running::start();
    let claims = World::grant(&running.agent);
    running.agent.bundles.keep(&claims.lease_id, vec![b"forged".to_vec()]).unwrap();
    assert_eq!(running.ask(&claims).refused(), "image.bundle_invalid");
}

#[test]
fn the_same_question_gets_the_same_plan_and_another_container_nothing() {
    let running = Running::start();
    let claims = World::grant(&running.agent);
    let (first, digest, _) = running.ask(&claims).granted();
    let (again, digest_again, frame) = running.ask(&claims).granted();
    assert_eq!((first, digest), (again, digest_again));
    assert_eq!(frame.fds.len(), 1 + testing::LAYERS);
    assert_eq!(running.world.verifier.0.load(Ordering::SeqCst), 1, "the second is warm");
    let mut shim = Shim::connect(&running.agent);
    shim.say(FromShim::Admit(Admit { id: "thief".to_owned(), ..admit(&claims) }));
    assert_eq!(shim.refused(), "lease.replayed");
}

#[test]
fn a_start_leaves_a_receipt_by_the_nodes_key_and_a_lease_starts_once() {
    let running = Running::start();
    let claims = World::grant(&running.agent);
    let mut shim = running.ask(&claims);
    let (plan, _, _) = shim.granted();
    shim.say(FromShim::Started(Started { pid: 7 }));
    until(|| running.stage(&claims) == Stage::Started);
    let Some(Event::Started(started)) = running.agent.spool.after(0).unwrap().kind else {
        panic!("expected Started")
    };
    let key = SigningKey::from_seed(NODE).verifying_key();
    let receipt = Receipt::verify(&started.receipt, &key).unwrap();
    assert_eq!(receipt.predicate.plan_sha256, plan.digest());
    assert_eq!(running.ask(&claims).refused(), "lease.replayed");
    shim.say(FromShim::Released(Released { exit_status: 3, ..Released::default() }));
    until(|| running.stage(&claims) == Stage::Ended);
    let end = running.agent.ledger.get(&claims.lease_id).unwrap().end.unwrap();
    assert_eq!(end.exit_status, Some(3));
    assert_eq!(running.ask(&claims).refused(), "lease.ended");
}

#[test]
fn an_extension_moves_the_deadline_and_a_shorter_one_does_not() {
    let running = Running::start();
    let claims = World::grant(&running.agent);
    let mut shim = running.ask(&claims);
    let (plan, _, _) = shim.granted();
    assert_eq!(shim.deadline(), plan.deadline);
    let now = nimbus_api::clock::UnixSeconds(claims.iat.0 + 300);
    running.world.clock.set(BootNanos(0).plus_seconds(1300), now);
    let mut newer = claims.clone();
    newer.nonce = hex::encode(running.agent.new_nonce());
    (newer.iat, newer.exp) = (now, nimbus_api::clock::UnixSeconds(now.0 + 900));
    running.agent.extend(&testing::sign(&newer)).unwrap();
    assert_eq!(shim.deadline(), BootNanos(0).plus_seconds(1300 + 898));
    let mut shorter = newer.clone();
    shorter.exp.0 -= 800;
    running.agent.extend(&testing::sign(&shorter)).unwrap();
    let kept = running.agent.deadline_of(&claims.lease_id).unwrap();
    assert_eq!(kept, BootNanos(0).plus_seconds(1300 + 898));
    let mut replayed = newer.clone();
    replayed.nonce = "ee".repeat(16);
    let refusal = running.agent.extend(&testing::sign(&replayed)).unwrap_err();
    assert_eq!(refusal.code, RefusalCode::LeaseUnknownNonce);
    let mut other = newer;
    other.resources.pids += 1;
    assert!(running.agent.extend(&testing::sign(&other)).is_err());
}

#[test]
fn a_revocation_reaches_the_shim_and_forbids_a_start() {
    let running = Running::start();
    let claims = World::grant(&running.agent);
    let mut shim = running.ask(&claims);
    shim.granted();
    shim.deadline();
    let revoked = Revoked { code: RefusalCode::JobCancelled, message: "by u".to_owned() };
    running.agent.revoke(&claims.lease_id, &revoked).unwrap();
    assert_eq!(shim.revoked(), "job.cancelled");
    assert_eq!(running.ask(&claims).refused(), "lease.revoked");
}

#[test]
fn a_shim_resumes_with_a_restarted_agent_by_its_plan_only() {
    let mut running = Running::start();
    let claims = World::grant(&running.agent);
    let mut shim = running.ask(&claims);
    let (plan, plan_sha256, _) = shim.granted();
    shim.say(FromShim::Started(Started { pid: 7 }));
    until(|| running.stage(&claims) == Stage::Started);
    running.restart();
    let id = plan.container.id.to_string();
    let resume = Resume { version: 1, namespace: "nimbus".to_owned(), id, plan_sha256 };
    let mut shim = Shim::connect(&running.agent);
    shim.say(FromShim::Resume(resume.clone()));
    assert_eq!(shim.deadline(), plan.deadline);
    shim.say(FromShim::Started(Started { pid: 7 }));
    shim.say(FromShim::Released(Released {
        exit_status: 137,
        reason: "lease.ended".to_owned(),
        oom_killed: false,
    }));
    until(|| running.stage(&claims) == Stage::Ended);
    assert_eq!(running.agent.spool.waiting(), 1, "one start, reported once");
    let wrong = nimbus_api::Digest::of(b"x").to_string();
    let mut shim = Shim::connect(&running.agent);
    shim.say(FromShim::Resume(Resume { plan_sha256: wrong, ..resume.clone() }));
    assert_eq!(shim.refused(), "lease.missing");
    let mut shim = Shim::connect(&running.agent);
    shim.say(FromShim::Resume(resume));
    assert_eq!(shim.deadline(), plan.deadline);
    assert_eq!(shim.revoked(), "lease.ended");
}

#[test]
fn a_task_deleted_while_it_was_made_is_lost_and_not_cancelled() {
    let running = Running::start();
    let claims = World::grant(&running.agent);
    let mut shim = running.ask(&claims);
    shim.granted();
    let reason = "job.cancelled".to_owned();
    shim.say(FromShim::Released(Released { reason, ..Released::default() }));
    until(|| running.stage(&claims) == Stage::Ended);
    let end = running.agent.ledger.get(&claims.lease_id).unwrap().end.unwrap();
    assert_eq!(end.reason, Some(RefusalCode::NodeLost));
}

#[test]
fn a_restart_voids_what_was_not_started() {
    let mut running = Running::start();
    let claims = World::grant(&running.agent);
    running.restart();
    assert_eq!(running.stage(&claims), Stage::Ended);
    assert_eq!(running.ask(&claims).refused(), "lease.unknown_nonce");
    let Some(Event::Finished(finished)) = running.agent.spool.after(0).unwrap().kind else {
        panic!("expected Finished")
    };
    assert_eq!(finished.reason, "node.lost");
    running.restart();
    assert_eq!(running.agent.spool.waiting(), 1, "lost once");
}

#[test]
fn a_panic_in_the_decision_is_a_refusal() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::new();
    let mut agent = world.agent(dir.path());
    Arc::get_mut(&mut agent).unwrap().admission = Arc::new(|_facts| panic!("on purpose"));
    serve(&agent, bind(&agent.config.socket()).unwrap()).unwrap();
    let claims = World::grant(&agent);
    let mut shim = Shim::connect(&agent);
    shim.say(FromShim::Admit(admit(&claims)));
    assert_eq!(shim.refused(), "node.internal");
}

#[test]
fn a_wrong_protocol_version_and_noise_are_answered_or_closed() {
    let running = Running::start();
    let claims = World::grant(&running.agent);
    let mut shim = Shim::connect(&running.agent);
    shim.say(FromShim::Admit(Admit { version: 2, ..admit(&claims) }));
    assert_eq!(shim.refused(), "node.internal");
    let mut shim = Shim::connect(&running.agent);
    frame::write_frame(&shim.stream, b"\xff\xff\xff", &[]).unwrap();
    assert!(shim.reader.read(&shim.stream).is_err());
    let mut shim = Shim::connect(&running.agent);
    shim.say(FromShim::Started(Started { pid: 1 }));
    assert!(shim.reader.read(&shim.stream).is_err());
}

//! Containers that bring no lease: claimed of a control that is a thread at the desk and signs for what
//! it is asked.

use nimbus_api::id::ContainerKey;
use nimbus_api::lease::{LEASE_ANNOTATION, LeasedClaim, LeasedPod};
use nimbus_api::proto::control::v1::JobSpec;
use nimbus_api::proto::node::v1::claim_answer::Kind as Answer;
use nimbus_api::proto::node::v1::node_message::Kind as FromNode;
use nimbus_api::proto::node::v1::{Claim, ClaimAnswer, ClaimRefused, Grant};

use super::*;
use crate::claims::record::Record;
use crate::ledger::End;

type Change = fn(&mut LeaseClaims);

/// What control answers, given the claims that it would sign.
type Answers = dyn Fn(&Claim, LeaseClaims) -> Answer + Send;

fn grant(claims: &LeaseClaims) -> Answer {
    let spec = JobSpec { bundles: vec![testing::BUNDLE.to_vec()], ..JobSpec::default() };
    Answer::Grant(Grant { lease: testing::sign(claims).as_str().to_owned(), spec: Some(spec) })
}

fn container(namespace: &str, id: &str) -> ContainerKey {
    ContainerKey { namespace: namespace.parse().unwrap(), id: id.parse().unwrap() }
}

/// Opens the desk; every claim gets its own lease.
fn control(running: &Running, answers: Box<Answers>) {
    let (send, mut claims) = tokio::sync::mpsc::channel(8);
    running.agent.desk.open(send);
    let agent = Arc::clone(&running.agent);
    thread::spawn(move || {
        while let Some(message) = claims.blocking_recv() {
            let Some(FromNode::Claim(claim)) = message.kind else { panic!("not a claim") };
            let signed = LeaseClaims {
                lease_id: format!("l-{}", claim.container).parse().unwrap(),
                job: format!("j-{}", claim.container).parse().unwrap(),
                nonce: hex::encode(agent.new_nonce()),
                process_sha256: format!("sha256:{}", claim.process_sha256).parse().unwrap(),
                claim: Some(LeasedClaim {
                    container: container(&claim.namespace, &claim.container),
                    pod: claim.pod.as_ref().map(|pod| LeasedPod {
                        sandbox: pod.sandbox.parse().unwrap(),
                        namespace: pod.namespace.clone(),
                        name: pod.name.clone(),
                        uid: pod.uid.clone(),
                        container: Some(pod.container.clone()).filter(|name| !name.is_empty()),
                        restart: pod.restart,
                    }),
                }),
                ..testing::claims()
            };
            let kind = Some(answers(&claim, signed));
            agent.desk.answer(ClaimAnswer { id: claim.id.clone(), kind });
        }
    });
}

/// A container with a record, and what its shim asks.
fn made(running: &Running, key: &ContainerKey, pod: Option<LeasedPod>) -> Admit {
    let image = testing::claims().images.remove(0);
    let record = Record { images: vec![image.name], digest: image.digest, pod };
    running.world.records.0.lock().unwrap().insert(key.clone(), record);
    let mut config: serde_json::Value =
        serde_json::from_slice(&admit(&testing::claims()).config_json).unwrap();
    config["annotations"].as_object_mut().unwrap().remove(LEASE_ANNOTATION);
    Admit {
        version: 1,
        namespace: key.namespace.to_string(),
        id: key.id.to_string(),
        config_json: serde_json::to_vec(&config).unwrap(),
        ..Admit::default()
    }
}

fn ask(running: &Running, admit: Admit) -> Shim {
    let shim = Shim::connect(&running.agent);
    shim.say(FromShim::Admit(admit));
    shim
}

fn end_of(running: &Running, id: &str) -> End {
    running.agent.ledger.get(&id.parse().unwrap()).unwrap().end.unwrap()
}

#[test]
fn a_container_of_a_mapped_namespace_is_leased_started_and_its_end_told() {
    let running = Running::start();
    control(&running, Box::new(|_claim, claims| grant(&claims)));
    let key = container("testing", "c1");
    let mut shim = ask(&running, made(&running, &key, None));
    let (plan, ..) = shim.granted();
    assert_eq!((plan.container, plan.lease.lease_id.as_str()), (key, "l-c1"));
    shim.say(FromShim::Started(Started { pid: 1 }));
    until(|| running.agent.ledger.get(&"l-c1".parse().unwrap()).unwrap().stage == Stage::Started);
    shim.say(FromShim::Released(Released { exit_status: 3, ..Released::default() }));
    until(|| running.agent.ledger.get(&"l-c1".parse().unwrap()).unwrap().reported);
    assert_eq!(end_of(&running, "l-c1").exit_status, Some(3));
    assert_eq!(running.agent.spool.waiting(), 2, "a start and an end, each once");
}

#[test]
fn without_a_rule_a_record_or_control_nothing_is_started() {
    let running = Running::start();
    let elsewhere = made(&running, &container("default", "c1"), None);
    assert_eq!(ask(&running, elsewhere).refused(), "lease.missing");
    let mut unknown = made(&running, &container("testing", "c1"), None);
    unknown.id = "c2".to_owned();
    assert_eq!(ask(&running, unknown).refused(), "claim.malformed");
    let refused = ClaimRefused { reason: "quota.exceeded".to_owned(), ..ClaimRefused::default() };
    control(&running, Box::new(move |_, _| Answer::Refused(refused.clone())));
    let refused = ask(&running, made(&running, &container("testing", "c3"), None)).refused();
    assert_eq!(refused, "claim.unavailable", "a code that this version does not know");
    assert!(running.agent.ledger.all().is_empty());
}

#[test]
fn a_lease_for_another_container_process_or_image_is_refused_and_given_back() {
    let cases: [(&str, Change); 4] = [
        ("lease.wrong_container", |claims| {
            claims.claim.as_mut().unwrap().container = container("testing", "other");
        }),
        ("lease.wrong_process", |claims| claims.process_sha256 = nimbus_api::Digest::of(b"x")),
        ("image.missing", |claims| claims.images[0].digest = nimbus_api::Digest::of(b"x")),
        ("claim.not_mapped", |claims| claims.org = "another".parse().unwrap()),
    ];
    for (code, change) in cases {
        let running = Running::start();
        let answers = move |_: &Claim, mut claims: LeaseClaims| {
            change(&mut claims);
            grant(&claims)
        };
        control(&running, Box::new(answers));
        let admit = made(&running, &container("testing", "c1"), None);
        assert_eq!(ask(&running, admit).refused(), code);
        let end = end_of(&running, "l-c1");
        assert_eq!(end.reason.unwrap().as_str(), code);
        assert_eq!(running.agent.spool.waiting(), 1, "control is told, once");
    }
}

#[test]
fn a_pod_is_read_in_the_cri_plugins_namespace_and_mapped_by_its_kubernetes_namespace() {
    let running = Running::start();
    control(&running, Box::new(|_claim, claims| grant(&claims)));
    let pod = |sandbox: &str, namespace: &str| LeasedPod {
        sandbox: sandbox.parse().unwrap(),
        namespace: namespace.to_owned(),
        name: "p".to_owned(),
        uid: "u".to_owned(),
        container: None,
        restart: 0,
    };
    let unmapped = made(&running, &container("k8s.io", "s1"), Some(pod("s1", "kube-system")));
    assert_eq!(ask(&running, unmapped).refused(), "claim.not_mapped");
    let no_pod = made(&running, &container("k8s.io", "s2"), None);
    assert_eq!(ask(&running, no_pod).refused(), "claim.not_mapped");
    let elsewhere = made(&running, &container("testing", "s3"), Some(pod("s3", "ci")));
    assert_eq!(ask(&running, elsewhere).refused(), "claim.not_mapped");
    let inside = LeasedPod { container: Some("c".to_owned()), ..pod("s9", "ci") };
    let alone = made(&running, &container("k8s.io", "c1"), Some(inside));
    assert_eq!(ask(&running, alone).refused(), "pod.sandbox_missing");
}

#[test]
fn what_is_made_and_removed_unstarted_ends_and_what_vanishes_is_lost_at_the_second_look() {
    use crate::claims::{Judged, judge};
    let running = Running::start();
    control(&running, Box::new(|_claim, claims| grant(&claims)));
    let mut shim = ask(&running, made(&running, &container("testing", "c1"), None));
    shim.granted();
    shim.say(FromShim::Released(Released::default()));
    until(|| running.agent.ledger.get(&"l-c1".parse().unwrap()).unwrap().reported);
    assert_eq!(end_of(&running, "l-c1").reason, Some(RefusalCode::LeaseEnded));

    let mut shim = ask(&running, made(&running, &container("testing", "c2"), None));
    shim.granted();
    let id = "l-c2".parse().unwrap();
    until(|| running.agent.peers.is_connected(&id));
    assert_eq!(judge(&running.agent, &id, true), Judged::Goes, "its shim is there");
    drop(shim);
    until(|| !running.agent.peers.is_connected(&id));
    let dir = running.agent.config.runtime_dir(&container("testing", "c2"));
    std::fs::create_dir_all(&dir).unwrap();
    assert_eq!(judge(&running.agent, &id, true), Judged::Goes, "its container is there");
    std::fs::remove_dir(&dir).unwrap();
    assert_eq!(judge(&running.agent, &id, false), Judged::Missing);
    assert_eq!(judge(&running.agent, &id, true), Judged::Over(End::unknown()));
}

//! What a claim must say, and what a policy makes of it.

use proptest::prelude::*;

use super::*;
use nimbus_api::proto::control::v1::Image;

const NOW: UnixSeconds = UnixSeconds(1_800_000_000);
const SANDBOX: &str = "5f0d";

const DOCUMENT: &str = r#"
version = 1
id = "p"
serial = 7
not_after = 2099-01-01T00:00:00Z
[trust.t]
kind = "key"
key = "k"
tlog = "off"
[need.n]
trust = "t"
predicate = ["x"]
[[rule]]
images = ["registry.test/pinned"]
digests = ["sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"]
[[rule]]
images = ["registry.test/ci/**"]
require = ["n"]
[[claim]]
namespace = "k8s.io"
kubernetes = ["ci"]
org = "acme"
network = "pod"
most = { cpu_millis = 2000, memory_bytes = 1073741824, pids = 512, scratch_bytes = 67108864 }
max_runtime_seconds = 86400
[[claim]]
namespace = "k8s.io"
kubernetes = ["tickets"]
most = { cpu_millis = 2000, memory_bytes = 1073741824, pids = 512, scratch_bytes = 67108864 }
[[claim]]
namespace = "testing"
org = "tools"
most = { cpu_millis = 2000, memory_bytes = 1073741824, pids = 512, scratch_bytes = 67108864 }
[deny]
digests = ["sha256:bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"]
"#;

fn policy() -> Policy {
    Policy::parse(DOCUMENT.as_bytes()).unwrap()
}

fn good() -> Claim {
    Claim {
        id: "1".to_owned(),
        namespace: "k8s.io".to_owned(),
        container: "c1".to_owned(),
        image: Some(Image {
            name: "registry.test/ci/app".to_owned(),
            digest: Digest::of(b"i").to_string(),
            platform: "linux/amd64".to_owned(),
        }),
        process_sha256: Digest::of(b"p").hex(),
        args: vec!["/bin/app".to_owned()],
        cwd: "/".to_owned(),
        uid: 65_532,
        gid: 65_532,
        resources: None,
        pod: Some(PodContainer {
            sandbox: SANDBOX.to_owned(),
            namespace: "ci".to_owned(),
            name: "build-1.a".to_owned(),
            uid: "0b6d0b0e-6a3c-4a55-9d0a-000000000001".to_owned(),
            container: "app".to_owned(),
            restart: 2,
        }),
        ticket: String::new(),
    }
}

type Case = (&'static str, fn(&mut Claim));

fn pod(claim: &mut Claim) -> &mut PodContainer {
    claim.pod.as_mut().unwrap()
}

#[test]
fn each_bad_field_of_a_claim_is_named() {
    let cases: [Case; 25] = [
        ("namespace", |c| c.namespace.clear()),
        ("namespace", |c| c.namespace = "../x".to_owned()),
        ("container", |c| c.container = "a/b".to_owned()),
        ("image", |c| c.image = None),
        ("image.name", |c| c.image.as_mut().unwrap().name = "busybox".to_owned()),
        ("image.digest", |c| c.image.as_mut().unwrap().digest = "sha256:1".to_owned()),
        ("image.platform", |c| c.image.as_mut().unwrap().platform = "x".to_owned()),
        ("process_sha256", |c| c.process_sha256.clear()),
        ("process_sha256", |c| c.process_sha256 = Digest::of(b"p").to_string()),
        ("process_sha256", |c| c.process_sha256 = c.process_sha256.to_uppercase()),
        ("args", |c| c.args.clear()),
        ("args", |c| c.args.push("\0".to_owned())),
        ("cwd", |c| c.cwd = "tmp".to_owned()),
        ("uid", |c| c.uid = u32::MAX),
        ("pod.sandbox", |c| pod(c).sandbox.clear()),
        ("pod.namespace", |c| pod(c).namespace = "CI".to_owned()),
        ("pod.name", |c| pod(c).name = "a..b".to_owned()),
        ("pod.name", |c| pod(c).name = "a".repeat(254)),
        ("pod.uid", |c| pod(c).uid = "A".to_owned()),
        ("pod.uid", |c| pod(c).uid = "a".repeat(65)),
        ("pod.container", |c| pod(c).container = "-a".to_owned()),
        ("pod.container", |c| pod(c).container.clear()),
        ("pod.container", |c| c.container = SANDBOX.to_owned()),
        ("ticket", |c| c.ticket = "x".repeat(129)),
        ("ticket", |c| {
            c.ticket = "nt1.x".to_owned();
            c.pod = None;
        }),
    ];
    for (field, change) in cases {
        let mut claim = good();
        change(&mut claim);
        let refusal = check(claim).unwrap_err();
        assert_eq!(refusal.code, RefusalCode::ClaimMalformed, "{field}");
        assert!(refusal.detail().starts_with(&format!("{field}: ")), "{field}: {refusal}");
    }
}

#[test]
fn a_claim_is_read_with_its_pod_and_the_sandbox_is_the_one_without_a_name() {
    let asked = check(good()).unwrap();
    let of_pod = asked.claim.pod.clone().unwrap();
    assert_eq!((of_pod.container.as_deref(), of_pod.restart), (Some("app"), 2));
    assert_eq!((asked.process, asked.ticket), (Digest::of(b"p"), None));
    assert_eq!((asked.spec.max_attempts, asked.spec.env.len()), (1, 0));
    let mut sandbox = good();
    sandbox.container = SANDBOX.to_owned();
    pod(&mut sandbox).container.clear();
    assert_eq!(check(sandbox).unwrap().claim.pod.unwrap().container, None);
    let mut ticket = good();
    ticket.ticket = "nt1.x".to_owned();
    assert_eq!(check(ticket).unwrap().ticket, Some(Digest::of(b"nt1.x")));
}

fn decided(change: impl FnOnce(&mut Claim)) -> Result<Given, RefusalCode> {
    let mut claim = good();
    change(&mut claim);
    let capacity = Resources { cpu_millis: 1500, ..Resources::default() };
    decide(&policy(), &check(claim).unwrap(), &capacity, NOW).map_err(|refusal| refusal.code)
}

#[test]
fn the_policy_says_whose_it_is_and_what_it_gets() {
    let given = decided(|_| {}).unwrap();
    let has = |given: &Given, name: &str| given.capabilities.iter().any(|known| known == name);
    assert!(has(&given, "CAP_CHOWN") && !has(&given, RAW), "not with a network");
    assert_eq!(given.org.unwrap().as_str(), "acme");
    assert_eq!(given.egress, LeasedEgress::Pod);
    assert_eq!(given.spec.max_runtime_seconds, 86_400);
    let got = given.spec.resources.unwrap();
    assert_eq!((got.cpu_millis, got.memory_bytes), (1500, 1 << 30), "no more than the node has");
    assert_eq!((got.pids, got.scratch_bytes, got.log_bytes), (512, 64 << 20, 16 << 20));

    let outside = decided(|c| {
        c.pod = None;
        c.namespace = "testing".to_owned();
        c.resources = Some(Resources { cpu_millis: 2000, pids: 1, ..Resources::default() });
    })
    .unwrap();
    assert!(has(&outside, RAW));
    assert_eq!(outside.org.unwrap().as_str(), "tools");
    assert_eq!((outside.egress, outside.spec.max_runtime_seconds), (LeasedEgress::None, 0));
    let got = outside.spec.resources.unwrap();
    assert_eq!((got.cpu_millis, got.pids), (2000, 1), "what was asked for is asked of the node");
}

#[test]
fn what_the_policy_does_not_give_is_refused() {
    type Case = (RefusalCode, fn(&mut Claim));
    let cases: [Case; 10] = [
        (RefusalCode::ClaimNotMapped, |c| pod(c).namespace = "default".to_owned()),
        (RefusalCode::ClaimNotMapped, |c| c.namespace = "testing".to_owned()),
        (RefusalCode::ClaimNotMapped, |c| c.pod = None),
        (RefusalCode::ClaimTicketInvalid, |c| pod(c).namespace = "tickets".to_owned()),
        (RefusalCode::PolicyNoMatch, |c| {
            c.image.as_mut().unwrap().name = "registry.test/other".to_owned();
        }),
        (RefusalCode::ImageDenied, |c| {
            c.image.as_mut().unwrap().digest = format!("sha256:{}", "b".repeat(64));
        }),
        (RefusalCode::LeaseResources, |c| {
            c.resources = Some(Resources { cpu_millis: 2001, ..Resources::default() });
        }),
        (RefusalCode::LeaseResources, |c| {
            c.resources = Some(Resources { memory_bytes: (1 << 30) + 1, ..Resources::default() });
        }),
        (RefusalCode::LeaseResources, |c| {
            c.resources = Some(Resources { pids: 513, ..Resources::default() });
        }),
        (RefusalCode::LeaseResources, |c| {
            c.resources = Some(Resources { scratch_bytes: 64 << 30, ..Resources::default() });
        }),
    ];
    for (code, change) in cases {
        assert_eq!(decided(change).unwrap_err(), code);
    }
    let late =
        decide(&policy(), &check(good()).unwrap(), &Resources::default(), UnixSeconds(1 << 33));
    assert_eq!(late.unwrap_err().code, RefusalCode::PolicyExpired);
}

/// The manifest of an index is known on the node alone, and a rule may list that.
#[test]
fn an_image_that_a_rule_by_digest_may_cover_is_left_to_the_node() {
    let named = |c: &mut Claim| c.image.as_mut().unwrap().name = "registry.test/pinned".to_owned();
    assert!(decided(named).is_ok());
}

proptest! {
    #[test]
    fn no_words_of_a_node_panic_or_grow_beyond_a_lease(
        name in "\\PC{0,40}", uid in "[a-zA-Z0-9-]{0,70}", container in "[a-z0-9-]{0,260}", image in "[a-z/]{0,1100}",
    ) {
        let mut claim = good();
        claim.image.as_mut().unwrap().name = image;
        let of_pod = pod(&mut claim);
        (of_pod.name, of_pod.uid, of_pod.container) = (name, uid, container);
        if let Ok(asked) = check(claim) {
            prop_assert!(lease_text_bytes(&asked) <= LEASE_TEXT_BYTES_MAX);
        }
    }
}

//! What the module above promises.

use super::*;
use proptest::prelude::*;

const GOOD: &str = r#"
version = 1
id = "demo"
serial = 3
not_after = 2027-01-01T00:00:00Z
[trust.release]
kind = "key"
key = "-----BEGIN PUBLIC KEY-----"
tlog = "off"
[trust.corp]
kind = "keyless"
trusted_root = "{}"
[need.release]
trust = "release"
predicate = ["https://slsa.dev/provenance/v1"]
[need.prov]
trust = "corp"
predicate = ["https://slsa.dev/provenance/v1"]
identity = "https://github.com/acme/app/.github/workflows/release.yml@refs/heads/main"
issuer = "https://token.actions.githubusercontent.com"
max_age_seconds = 3600
[[rule]]
images = ["127.0.0.1:5000/demo/**"]
require = ["release"]
[[rule]]
images = ["registry.corp/*/app"]
require = ["prov", "release"]
"#;

#[test]
fn a_good_document_is_read_and_its_rules_match_by_segment() {
    let policy = Policy::parse(GOOD.as_bytes()).unwrap();
    assert_eq!(policy.not_after, UnixSeconds(1_798_761_600));
    let requires = |image: &str| policy.rule_for(image, &[]).map(|rule| rule.require.len());
    assert_eq!(requires("127.0.0.1:5000/demo/a/b"), Some(1));
    assert_eq!(requires("127.0.0.1:5000/demo"), None);
    assert_eq!(requires("127.0.0.1:5000/demo-evil/a"), None);
    assert_eq!(requires("registry.corp/ml/app"), Some(2));
    assert_eq!(requires("registry.corp/ml/x/app"), None);
    assert_eq!(requires("registry.corp//app"), None);
}

#[test]
fn a_rule_with_digests_is_for_those_alone_and_needs_no_attestation() {
    let digest = |text: &str| Digest::of(text.as_bytes());
    let rule = format!(
        "[[rule]]\nimages = [\"127.0.0.1:5000/demo/**\"]\ndigests = [\"{}\"]\n[[rule]]\n",
        digest("one")
    );
    let policy = Policy::parse(GOOD.replacen("[[rule]]\n", &rule, 1).as_bytes()).unwrap();
    let requires = |digests: &[Digest]| {
        policy.rule_for("127.0.0.1:5000/demo/a", digests).map(|rule| rule.require.len())
    };
    assert_eq!(requires(&[digest("other"), digest("one")]), Some(0));
    assert_eq!(requires(&[digest("other")]), Some(1));
    assert_eq!(requires(&[]), Some(1));
}

const CLAIM: &str = r#"
[[claim]]
namespace = "k8s.io"
kubernetes = ["ci", "ci-2"]
org = "acme"
network = "pod"
most = { cpu_millis = 1000, memory_bytes = 1048576, pids = 64, scratch_bytes = 8388608 }
[[claim]]
namespace = "testing"
org = "tools"
most = { cpu_millis = 1000, memory_bytes = 1048576, pids = 64, scratch_bytes = 8388608 }
"#;

#[test]
fn a_claim_rule_is_found_by_exact_names() {
    let policy = Policy::parse(format!("{GOOD}{CLAIM}").as_bytes()).unwrap();
    let org = |namespace: &str, kubernetes: Option<&str>| {
        let found = policy.claim_for(&namespace.parse().unwrap(), kubernetes);
        found.and_then(|rule| rule.org.as_ref()).map(ToString::to_string)
    };
    assert_eq!(org("k8s.io", Some("ci-2")).as_deref(), Some("acme"));
    assert_eq!(org("testing", None).as_deref(), Some("tools"));
    assert_eq!(org("k8s.io", None), None);
    assert_eq!(org("k8s.io", Some("ci-3")), None);
    assert_eq!(org("testing", Some("ci")), None);
    assert_eq!(org("default", None), None);
}

#[test]
fn a_claim_rule_that_could_map_more_than_it_says_is_refused() {
    let cases = [
        (r#"kubernetes = ["ci", "ci-2"]"#, ""),
        (r#"kubernetes = ["ci", "ci-2"]"#, r#"kubernetes = ["ci-*"]"#),
        (r#"kubernetes = ["ci", "ci-2"]"#, r#"kubernetes = [""]"#),
        (r#"namespace = "testing""#, "namespace = \"testing\"\nkubernetes = [\"ci\"]"),
        (r#"namespace = "testing""#, "namespace = \"testing\"\nnetwork = \"pod\""),
        (r#"org = "tools""#, ""),
        ("pids = 64", "pids = 0"),
        (r#"org = "acme""#, "org = \"acme\"\ncapabilities = [\"CAP_SYS_ADMIN\"]"),
        (r#"org = "acme""#, "org = \"acme\"\ncapabilities = [\"CAP_KILL\", \"CAP_CHOWN\"]"),
        ("scratch_bytes = 8388608", "scratch_bytes = 4194303"),
        ("pids = 64", "pids = 64, devices = 1"),
        (r#"org = "acme""#, "org = \"acme\"\nmax_runtime_seconds = 0"),
    ];
    for (good, bad) in cases {
        let text = format!("{GOOD}{CLAIM}").replace(good, bad);
        assert!(Policy::parse(text.as_bytes()).is_err(), "{bad}");
    }
    let tickets = CLAIM.replace("org = \"acme\"\n", "");
    Policy::parse(format!("{GOOD}{tickets}").as_bytes()).unwrap();
}

#[test]
fn a_document_that_could_accept_by_accident_is_refused() {
    let cases = [
        ("version = 1", "version = 2"),
        ("serial = 3", "serial = 0"),
        ("serial = 3", "serial = 3\nunknown = 1"),
        ("serial = 3", "serial = 3\nserial = 4"),
        ("2027-01-01T00:00:00Z", "2027-01-01"),
        (r#"require = ["release"]"#, "require = []"),
        (r#"require = ["release"]"#, r#"require = ["absent"]"#),
        (r#"images = ["127.0.0.1:5000/demo/**"]"#, "images = []"),
        (r#"images = ["127.0.0.1:5000/demo/**"]"#, r#"images = ["**"]"#),
        (r#"images = ["127.0.0.1:5000/demo/**"]"#, r#"images = ["a/**/b"]"#),
        (r#"images = ["127.0.0.1:5000/demo/**"]"#, r#"images = ["a*/b"]"#),
        (r#"issuer = "https://token.actions.githubusercontent.com""#, ""),
        (r#"issuer = "https://token.actions.githubusercontent.com""#, r#"issuer = """#),
        (r#"trust = "release""#, r#"trust = "nobody""#),
        (r#"trust = "release""#, "trust = \"release\"\nmax_age_seconds = 1"),
        (r#"tlog = "off""#, r#"tlog = "require""#),
        (r#"tlog = "off""#, ""),
    ];
    for (from, to) in cases {
        assert!(GOOD.contains(from), "{from}");
        let changed = GOOD.replacen(from, to, 1);
        assert!(Policy::parse(changed.as_bytes()).is_err(), "{from} -> {to}");
    }
}

#[test]
fn only_the_policy_keys_signature_counts() {
    let key = SigningKey::generate();
    let envelope = sign(GOOD.as_bytes(), &key).unwrap().to_json();
    let signed = SignedPolicy::verify(&envelope, &key.verifying_key()).unwrap();
    assert_eq!(signed.sha256, Digest::of(GOOD.as_bytes()));
    assert!(SignedPolicy::verify(&envelope, &SigningKey::generate().verifying_key()).is_err());
    assert!(SignedPolicy::verify(b"{}", &key.verifying_key()).is_err());
}

proptest! {
    #[test]
    fn no_text_panics_the_parser(text in "\\PC{0,200}") {
        let _unused = Policy::parse(text.as_bytes());
    }

    #[test]
    fn a_pattern_without_stars_matches_itself_alone(a in "[a-z]{1,4}(/[a-z]{1,4}){0,3}", b in "[a-z]{1,4}(/[a-z]{1,4}){0,3}") {
        prop_assert!(pattern_matches(&a, &a));
        prop_assert_eq!(pattern_matches(&a, &b), a == b);
    }
}

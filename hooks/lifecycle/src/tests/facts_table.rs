//! One fact missing or wrong at a time, each with its code.

use nimbus_api::clock::{BootNanos, NANOS_PER_SECOND, UnixSeconds};
use nimbus_api::lease::{LeaseClaims, LeasedImage};
use nimbus_api::plan::JoinedNamespace;
use nimbus_api::verify::BundleOutcome;
use nimbus_api::{Digest, Refusal, RefusalCode as Code};

use super::fixtures::*;
use crate::admit;
use crate::facts::*;

#[test]
fn the_good_case_is_granted_with_what_the_lease_says() {
    let plan = admit(&good()).unwrap();
    let claims = claims();
    assert_eq!(plan.container, key());
    assert_eq!(plan.resources, claims.resources);
    assert_eq!(plan.image.attestations, [digest("bundle")]);
    assert_eq!(plan.rootfs.layers, image().layers);
    assert_eq!(plan.exec.capabilities, claims.capabilities);
    assert_eq!(plan.policy_serial, 7);
    let lifetime = u64::try_from(LIFETIME).unwrap();
    assert_eq!(plan.deadline, BootNanos(SENT + (lifetime - 2) * NANOS_PER_SECOND));
    assert!(plan.tightened.iter().any(|line| line.contains("capabilities")));
    assert_eq!(admit(&good()).unwrap().digest(), plan.digest());
    assert_eq!(nimbus_api::plan::Plan::parse(&plan.to_json()).unwrap(), plan);
}

type Change = fn(&mut Facts);

fn each(table: &[(Code, &str, Change)]) {
    for (code, case, change) in table {
        let mut facts = good();
        change(&mut facts);
        refused(&facts, *code, case);
    }
}

fn some_refusal(code: Code) -> Refusal {
    Refusal::with(code, "by the agent")
}

#[test]
fn a_missing_or_unusable_fact_is_refused_with_its_own_code() {
    each(&[
        (Code::LeaseMissing, "no lease", |f| f.lease = LeaseFact::Missing),
        (Code::KeysMissing, "no keys", |f| {
            f.lease = LeaseFact::NoKeys(some_refusal(Code::KeysMissing));
        }),
        (Code::LeaseBadSignature, "lease refused", |f| {
            f.lease = LeaseFact::Refused(some_refusal(Code::LeaseBadSignature));
        }),
        (Code::NodeNotJoined, "no identity", |f| f.node.thumbprint = None),
        (Code::LeaseUnknownNonce, "no heartbeat", |f| f.heartbeat = HeartbeatFact::Unknown),
        (Code::NodeLedgerFailed, "no ledger", |f| {
            f.use_of_lease = LeaseUse::Unreadable(some_refusal(Code::NodeLedgerFailed));
        }),
        (Code::PolicyMissing, "no policy", |f| f.policy = PolicyFact::Missing),
        (Code::PolicyRolledBack, "policy refused", |f| {
            f.policy = PolicyFact::Refused(some_refusal(Code::PolicyRolledBack));
        }),
        (Code::VerifyDown, "no verifier", |f| {
            f.attestations = AttestationFact::Unavailable(some_refusal(Code::VerifyDown));
        }),
        (Code::ImageUnattested, "no bundle", |f| {
            f.attestations = AttestationFact::Outcomes(vec![]);
        }),
        (Code::ImagePreparing, "no image", |f| {
            f.image = ImageFact::Unavailable(some_refusal(Code::ImagePreparing));
        }),
        (Code::LeaseUnsupported, "no filter", |f| {
            f.seccomp = SeccompFact::Unavailable(some_refusal(Code::LeaseUnsupported));
        }),
        (Code::SpecMalformed, "no specification", |f| f.task.config_json.clear()),
    ]);
}

#[test]
fn an_allow_list_needs_its_network_and_reaches_the_plan() {
    let rules = ["192.0.2.0/24:443/tcp", "0.0.0.0/0:53/udp", "[2001:db8::/32]:1-65535/tcp"];
    let plan = admit(&with_egress(&rules)).unwrap();
    assert_eq!(plan.egress, claims_of(&with_egress(&rules)).egress);
    assert!(plan.joins == [JoinedNamespace::Network] && admit(&good()).unwrap().joins.is_empty());
    assert_eq!(nimbus_api::plan::Plan::parse(&plan.to_json()).unwrap(), plan);
    let unavailable = some_refusal(Code::NodeInternal);
    for (code, network) in [
        (Code::NetworkUnavailable, NetworkFact::Missing),
        (Code::NodeInternal, NetworkFact::Unavailable(unavailable)),
    ] {
        let case = format!("{network:?}");
        refused(&Facts { network, ..with_egress(&rules) }, code, &case);
    }
}

fn claims_of(facts: &Facts) -> LeaseClaims {
    match &facts.lease {
        LeaseFact::Verified(lease) => lease.claims.clone(),
        LeaseFact::Missing | LeaseFact::NoKeys(_) | LeaseFact::Refused(_) => panic!("no lease"),
    }
}

#[test]
fn what_no_job_may_reach_is_refused_however_it_is_leased() {
    for rule in [
        "127.0.0.1:80/tcp",
        "169.254.169.254:80/tcp",
        "169.254.0.0/17:1-65535/udp",
        "224.0.0.251:5353/udp",
        "0.0.0.0:80/tcp",
        "[::1]:80/tcp",
        "[::]:80/tcp",
        "[fe80::1]:80/tcp",
        "[ff02::1]:80/udp",
        "[::ffff:127.0.0.1]:80/tcp",
        "[fd00:ec2::254]:80/tcp",
    ] {
        refused(&with_egress(&[rule]), Code::EgressForbidden, rule);
        refused(&with_egress(&["192.0.2.0/24:443/tcp", rule]), Code::EgressForbidden, rule);
    }
}

#[test]
fn times_that_do_not_hold_are_refused() {
    each(&[
        (Code::NodeClockBack, "clock behind the floor", |f| {
            f.clock.floor = UnixSeconds(NOW + 31);
        }),
        (Code::LeaseExpired, "past the end by the wall clock", |f| {
            f.clock.unix = UnixSeconds(NOW - 5 + LIFETIME);
        }),
        (Code::LeaseStartLate, "past the start", |f| f.clock.unix = UnixSeconds(NOW + 61)),
        (Code::LeaseExpired, "past the deadline by boottime", |f| {
            f.clock.boottime = BootNanos(SENT).plus_seconds(898);
        }),
        (Code::LeaseUnknownNonce, "a heartbeat still to be sent", |f| {
            f.heartbeat = HeartbeatFact::Sent(BootNanos(BOOT + 1));
        }),
    ]);
    let mut just_before = good();
    just_before.clock.boottime = BootNanos(SENT + 898 * NANOS_PER_SECOND - 1);
    assert!(admit(&just_before).is_ok());
    let mut tolerated = good();
    tolerated.clock.floor = UnixSeconds(NOW + 30);
    assert!(admit(&tolerated).is_ok());
}

#[test]
fn what_the_lease_was_used_for_is_refused_but_the_same_start_is_not() {
    let config = Digest::of(CTR_SPEC.as_bytes());
    let used = |container, config_sha256| LeaseUse::Used { container, config_sha256 };
    let mut other = key();
    other.id = "j1-2".parse().unwrap();
    let cases = [
        (Code::LeaseReplayed, used(other, config)),
        (Code::LeaseReplayed, used(key(), digest("another"))),
        (Code::LeaseEnded, LeaseUse::Ended),
        (Code::LeaseRevoked, LeaseUse::Revoked),
        (Code::LeaseStale, LeaseUse::Superseded { attempt: 2 }),
    ];
    for (code, use_of_lease) in cases {
        let case = format!("{use_of_lease:?}");
        refused(&Facts { use_of_lease, ..good() }, code, &case);
    }
    let mut again = Facts { use_of_lease: used(key(), config), ..good() };
    again.node.containers = again.node.containers_max;
    assert_eq!(admit(&again).unwrap(), admit(&good()).unwrap());
    again.use_of_lease = LeaseUse::Unused;
    refused(&again, Code::NodeBusy, "a full node");
}

#[test]
fn claims_that_do_not_fit_are_refused() {
    type Spoil = fn(&mut LeaseClaims);
    let table: [(Code, &str, Spoil); 18] = [
        (Code::LeaseMalformed, "attempt", |c| c.attempt = 0),
        (Code::LeaseWrongNode, "node", |c| c.node = digest("other")),
        (Code::LeaseNotYetValid, "nbf", |c| c.nbf = UnixSeconds(NOW + 31)),
        (Code::LeaseExpired, "no lifetime", |c| c.exp = c.iat),
        (Code::LeaseExpired, "times turned round", |c| {
            (c.iat, c.exp) = (UnixSeconds(NOW + 20), UnixSeconds(NOW + 10));
        }),
        (Code::LeaseUnknownNonce, "nonce", |c| c.nonce = "xyz".to_owned()),
        (Code::LeaseUnsupported, "for ever", |c| c.exp = UnixSeconds(NOW + 86_400 * 365)),
        (Code::LeaseResources, "no cpu", |c| c.resources.cpu_millis = 9),
        (Code::LeaseResources, "no memory", |c| c.resources.memory_bytes = 0),
        (Code::LeaseResources, "no pids", |c| c.resources.pids = 0),
        (Code::LeaseResources, "no scratch", |c| c.resources.scratch_bytes = 0),
        (Code::LeaseResources, "too much cpu", |c| c.resources.cpu_millis = 2001),
        (Code::LeaseResources, "too much memory", |c| c.resources.memory_bytes = (1 << 30) + 1),
        (Code::LeaseUnsupported, "capability", |c| {
            c.capabilities = vec!["CAP_SYS_ADMIN".to_owned()];
        }),
        (Code::LeaseUnsupported, "no image", |c| c.images.clear()),
        (Code::LeaseWrongImage, "image", |c| c.images[0].digest = digest("other")),
        (Code::LeaseWrongImage, "image name", |c| c.images[0].name.push('x')),
        (Code::LeaseWrongProcess, "process", |c| c.process_sha256 = digest("other")),
    ];
    for (code, case, change) in table {
        refused(&with_claims(change), code, case);
    }
    refused(
        &with_claims(|c| c.seccomp.sha256 = Some(digest("other"))),
        Code::LeaseUnsupported,
        "profile text",
    );
    refused(
        &with_claims(|c| c.seccomp.profile = "other".to_owned()),
        Code::LeaseUnsupported,
        "profile name",
    );
}

#[test]
fn an_image_that_is_not_the_leased_one_is_refused() {
    type Spoil = fn(&mut MeasuredImage);
    let table: [(Code, &str, Spoil); 7] = [
        (Code::LeaseWrongImage, "digest", |i| i.digest = digest("other")),
        (Code::LeaseWrongImage, "name", |i| i.name.push('x')),
        (Code::ImagePlatform, "architecture", |i| i.platform = "linux/arm64".to_owned()),
        (Code::ImagePlatform, "no architecture", |i| i.platform = "linux".to_owned()),
        (Code::ImageMalformed, "no layers", |i| i.layers.clear()),
        (Code::ImageMalformed, "too many layers", |i| i.layers = vec![digest("l"); 129]),
        (Code::RootfsHostile, "/dev", |i| {
            i.hostile_mount_point = Some("/dev is a symlink".to_owned());
        }),
    ];
    for (code, case, change) in table {
        let mut image = image();
        change(&mut image);
        refused(&Facts { image: ImageFact::Measured(image), ..good() }, code, case);
    }
    let mut elsewhere = good();
    elsewhere.node.platform = "linux/arm64".to_owned();
    refused(&elsewhere, Code::ImagePlatform, "the node's platform");
}

#[test]
fn a_policy_that_does_not_grant_is_refused() {
    let expired = POLICY.replace("2040", "2020");
    refused(&with_policy(&expired), Code::PolicyExpired, "expired");
    let elsewhere = POLICY.replace("/team/*", "/other/*");
    refused(&with_policy(&elsewhere), Code::PolicyNoMatch, "no rule");
    for denied in ["index", "manifest"] {
        let denying = format!("{POLICY}\n[deny]\ndigests = [\"{}\"]\n", digest(denied));
        refused(&with_policy(&denying), Code::ImageDenied, denied);
    }
    let newer = POLICY.replace("serial = 7", "serial = 8");
    let facts = Facts { policy: PolicyFact::Verified(Box::new(signed_policy(&newer))), ..good() };
    refused(&facts, Code::LeaseWrongPolicy, "another policy than the lease's");
    let fewer = format!("{POLICY}\n[limits]\nbundles = 1\n");
    let mut facts = with_policy(&fewer);
    let one = BundleOutcome::Verified(attestation());
    facts.attestations = AttestationFact::Outcomes(vec![one.clone(), one]);
    refused(&facts, Code::VerifyTooLarge, "more bundles than the policy allows");
}

fn rejected(code: Code) -> BundleOutcome {
    BundleOutcome::Rejected { bundle: digest("bad"), refusal: Refusal::new(code) }
}

fn with_outcomes(outcomes: Vec<BundleOutcome>) -> Facts {
    Facts { attestations: AttestationFact::Outcomes(outcomes), ..good() }
}

#[test]
fn an_attestation_counts_only_for_what_it_says() {
    type Spoil = fn(&mut nimbus_api::verify::VerifiedAttestation);
    let table: [(Code, Spoil); 6] = [
        (Code::ImageWrongSubject, |a| a.subject = digest("other")),
        (Code::ImageUnattested, |a| a.needs = vec!["another".to_owned()]),
        (Code::ImageWrongPredicate, |a| a.predicate_type.push('x')),
        (Code::ImageAttestationStale, |a| a.signed_at = Some(UnixSeconds(NOW - 3601))),
        (Code::ImageAttestationStale, |a| a.signed_at = None),
        (Code::ImageAttestationStale, |a| a.signed_at = Some(UnixSeconds(NOW + 31))),
    ];
    for (code, spoil) in table {
        let mut attestation = attestation();
        spoil(&mut attestation);
        let case = format!("{attestation:?}");
        let spoilt = BundleOutcome::Verified(attestation);
        refused(&with_outcomes(vec![spoilt.clone()]), code, &case);
        // Junk beside a good one costs nothing.
        let good = BundleOutcome::Verified(super::fixtures::attestation());
        assert!(admit(&with_outcomes(vec![spoilt, rejected(code), good])).is_ok());
    }
}

#[test]
fn a_managed_key_is_believed_within_its_window_only_whatever_the_verifier_said_before() {
    let unlogged = POLICY
        .replace("tlog = \"require\"\ntrusted_root = \"r\"", "tlog = \"off\"\nWINDOW")
        .replace("max_age_seconds = 3600\n", "");
    let logged = POLICY.replace("trusted_root = \"r\"", "trusted_root = \"r\"\nWINDOW");
    let signed = NOW - 100;
    for (policy, signed_at, at) in [(unlogged, None, NOW), (logged, Some(signed), signed)] {
        let admitted = |bound: &str, time: i64| {
            let window = format!("{bound} = {}", UnixSeconds(time));
            let mut facts = with_policy(&policy.replace("WINDOW", &window));
            let mut attestation = attestation();
            attestation.signed_at = signed_at.map(UnixSeconds);
            facts.attestations =
                AttestationFact::Outcomes(vec![BundleOutcome::Verified(attestation)]);
            admit(&facts).map(drop).map_err(|refusal| refusal.code)
        };
        assert_eq!(admitted("not_after", at), Ok(()), "up to its last second");
        assert_eq!(admitted("not_after", at - 1), Err(Code::ImageUntrustedSigner), "past it");
        assert_eq!(admitted("not_before", at), Ok(()), "from its first second on");
        assert_eq!(admitted("not_before", at + 1), Err(Code::ImageUntrustedSigner), "before it");
    }
}

#[test]
fn the_most_telling_rejection_is_the_one_reported() {
    let order = [
        Code::ImageAttestationStale,
        Code::ImageBundleInvalid,
        Code::ImageWrongSubject,
        Code::ImageUntrustedSigner,
        Code::ImageWrongPredicate,
    ];
    for from in 0..order.len() {
        let outcomes = order[from..].iter().rev().map(|code| rejected(*code)).collect();
        refused(&with_outcomes(outcomes), order[from], "the first in the order");
    }
}

#[test]
fn every_need_of_a_rule_must_be_satisfied() {
    let two = POLICY.replace("require = [\"provenance\"]", "require = [\"provenance\", \"scan\"]")
        + "[need.scan]\ntrust = \"build\"\npredicate = [\"scan/v1\"]\n";
    let mut facts = with_policy(&two);
    refused(&facts, Code::ImageUnattested, "one of two");
    let mut scan = attestation();
    scan.bundle = digest("scan");
    scan.needs = vec!["scan".to_owned()];
    scan.predicate_type = "scan/v1".to_owned();
    facts.attestations = AttestationFact::Outcomes(vec![
        BundleOutcome::Verified(attestation()),
        BundleOutcome::Verified(scan),
    ]);
    let plan = admit(&facts).unwrap();
    assert_eq!(plan.image.attestations, [digest("bundle"), digest("scan")]);
}

#[test]
fn requests_of_another_shape_are_refused() {
    each(&[
        (Code::SpecCheckpointForbidden, "checkpoint", |f| f.task.checkpoint = true),
        (Code::SpecTerminalMismatch, "terminal", |f| f.task.terminal = true),
        (Code::SpecRootfsForbidden, "mounts", |f| f.task.rootfs_mounts = 2),
        (Code::SpecOptionsForbidden, "options", |f| f.task.options_type = "x.Options".to_owned()),
        (Code::SpecStdioForbidden, "binary", |f| f.task.stdout = "binary:///bin/sh".to_owned()),
        (Code::SpecStdioForbidden, "fifo elsewhere", |f| f.task.stdin = "/etc/shadow".to_owned()),
        (Code::SpecStdioForbidden, "input from a file", |f| {
            f.task.stdin = "file:///var/lib/nimbus/node/logs/j1-1/stdin".to_owned();
        }),
        (Code::SpecStdioForbidden, "another's log", |f| {
            f.task.stdout = "file:///var/lib/nimbus/node/logs/j2-1/stdout".to_owned();
        }),
        (Code::SpecStdioForbidden, "climbing", |f| {
            f.task.stderr = "file:///var/lib/nimbus/node/logs/../j1-1/x".to_owned();
        }),
    ]);
    for options in ["", "types.containerd.io/runtimeoptions.v1.Options"] {
        let mut facts = good();
        facts.task.options_type = options.to_owned();
        assert!(admit(&facts).is_ok(), "{options}");
    }
}

/// What is not worth fetching would not have been granted either, and is told the same.
#[test]
fn what_may_not_be_fetched_is_refused_as_admission_would() {
    let facts = good();
    let image = claims().images.remove(0);
    assert_eq!(crate::may_fetch(&facts.policy, &image, 1), Ok(()));
    let refused = |policy: &PolicyFact, image: &LeasedImage, bundles| {
        crate::may_fetch(policy, image, bundles).unwrap_err().code
    };
    assert_eq!(refused(&PolicyFact::Missing, &image, 1), Code::PolicyMissing);
    let own = Refusal::new(Code::PolicyBadSignature);
    assert_eq!(refused(&PolicyFact::Refused(own), &image, 1), Code::PolicyBadSignature);
    assert_eq!(refused(&facts.policy, &image, 0), Code::ImageUnattested);
    let other = LeasedImage { name: "evil.example/x".to_owned(), ..image.clone() };
    assert_eq!(refused(&facts.policy, &other, 1), Code::PolicyNoMatch);
    let denying = format!("{POLICY}[deny]\ndigests = [\"{}\"]\n", image.digest);
    let denied = with_policy(&denying).policy;
    assert_eq!(refused(&denied, &image, 1), Code::ImageDenied);
}

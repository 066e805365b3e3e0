//! A case that is granted, and ways to change it.

use nimbus_api::clock::{BootNanos, NANOS_PER_SECOND, UnixSeconds};
use nimbus_api::dsse::SigningKey;
use nimbus_api::egress::EgressRules;
use nimbus_api::id::ContainerKey;
use nimbus_api::keys::{HotKey, KeyPurpose, KeySet};
use nimbus_api::lease::{
    GpuMode, LEASE_VERSION, LeaseClaims, LeaseToken, LeasedEgress, LeasedGpu, LeasedImage,
    LeasedPolicy, LeasedResources, LeasedSeccomp, NONCE_BYTES, ScratchMedium, VerifiedLease,
};
use nimbus_api::policy::{SignedPolicy, sign};
use nimbus_api::verify::{BundleOutcome, VerifiedAttestation};
use nimbus_api::{Digest, RefusalCode};
use serde_json::Value;

use crate::admit;
use crate::facts::{
    AttestationFact, ClockFacts, Facts, HeartbeatFact, ImageFact, LeaseFact, LeaseUse,
    MeasuredImage, NetworkFact, NodeFacts, PodFact, PodRoots, PolicyFact, SeccompFact, TaskFacts,
};

pub(super) const NOW: i64 = 1_900_000_000;
pub(super) const BOOT: u64 = 5_000 * NANOS_PER_SECOND;
pub(super) const SENT: u64 = BOOT - 10 * NANOS_PER_SECOND;
pub(super) const LIFETIME: i64 = 900;
pub(super) const IMAGE: &str = "127.0.0.1:5000/team/app";
/// Written by `ctr containers create --seccomp` of containerd 1.6.20; id, cgroup and annotation are
/// the test's.
pub(super) const CTR_SPEC: &str = include_str!("ctr-1.6.20-spec.json");

/// A policy that asks for one provenance, at most an hour old.
pub(super) const POLICY: &str = r#"
version = 1
id = "test"
serial = 7
not_after = 2040-01-01T00:00:00Z
[trust.build]
kind = "key"
key = "k"
tlog = "require"
trusted_root = "r"
[need.provenance]
trust = "build"
predicate = ["https://slsa.dev/provenance/v1"]
max_age_seconds = 3600
[[rule]]
images = ["127.0.0.1:5000/team/*"]
require = ["provenance"]
"#;

pub(super) fn config() -> Value {
    serde_json::from_str(CTR_SPEC).unwrap()
}

pub(super) fn key() -> ContainerKey {
    ContainerKey { namespace: "nimbus".parse().unwrap(), id: "j1-1".parse().unwrap() }
}

pub(super) fn digest(text: &str) -> Digest {
    Digest::of(text.as_bytes())
}

pub(super) fn signed_policy(document: &str) -> SignedPolicy {
    let key = SigningKey::from_seed([2; 32]);
    let envelope = sign(document.as_bytes(), &key).unwrap().to_json();
    SignedPolicy::verify(&envelope, &key.verifying_key()).unwrap()
}

pub(super) fn claims() -> LeaseClaims {
    let process = crate::process_identity(CTR_SPEC.as_bytes()).unwrap();
    LeaseClaims {
        ver: LEASE_VERSION,
        lease_id: "l1".parse().unwrap(),
        job: "j1".parse().unwrap(),
        attempt: 1,
        org: "acme".parse().unwrap(),
        node: digest("node"),
        images: vec![LeasedImage {
            name: IMAGE.to_owned(),
            digest: digest("index"),
            platform: "linux/amd64".to_owned(),
        }],
        process_sha256: process.digest(),
        resources: LeasedResources {
            cpu_millis: 500,
            memory_bytes: 64 << 20,
            pids: 64,
            scratch_bytes: 1 << 20,
            scratch: ScratchMedium::Memory,
            log_bytes: 1 << 20,
        },
        gpu: LeasedGpu { mode: GpuMode::None },
        seccomp: LeasedSeccomp { profile: "default".to_owned(), sha256: Some(digest("profile")) },
        egress: LeasedEgress::None,
        capabilities: vec!["CAP_CHOWN".to_owned(), "CAP_KILL".to_owned()],
        policy: Some(LeasedPolicy { serial: 7, sha256: digest(POLICY) }),
        claim: None,
        generation: 1,
        nonce: "ab".repeat(NONCE_BYTES),
        iat: UnixSeconds(NOW - 5),
        nbf: UnixSeconds(NOW - 5),
        start_by: UnixSeconds(NOW + 60),
        exp: UnixSeconds(NOW - 5 + LIFETIME),
    }
}

/// Signs and verifies: there is no other way to a verified lease.
pub(super) fn verified(claims: &LeaseClaims) -> VerifiedLease {
    let key = SigningKey::from_seed([1; 32]);
    let public = key.verifying_key();
    let domain = "nimbus.test".parse().unwrap();
    let keys = KeySet {
        version: 1,
        trust_domain: "nimbus.test".parse().unwrap(),
        serial: 1,
        generation: 1,
        issued_at: UnixSeconds(0),
        keys: vec![HotKey {
            kid: public.key_id().parse().unwrap(),
            key: public,
            purpose: KeyPurpose::Lease,
            nbf: UnixSeconds(0),
            exp: UnixSeconds(i64::MAX),
            generation: 1,
        }],
    };
    LeaseToken::sign(claims, &key, &domain).unwrap().verify(&keys).unwrap()
}

pub(super) fn attestation() -> VerifiedAttestation {
    VerifiedAttestation {
        bundle: digest("bundle"),
        subject: digest("manifest"),
        predicate_type: "https://slsa.dev/provenance/v1".to_owned(),
        needs: vec!["provenance".to_owned()],
        signed_at: Some(UnixSeconds(NOW - 100)),
    }
}

pub(super) fn image() -> MeasuredImage {
    MeasuredImage {
        name: IMAGE.to_owned(),
        digest: digest("index"),
        manifest: digest("manifest"),
        platform: "linux/amd64".to_owned(),
        layers: vec![digest("layer 1"), digest("layer 2")],
        rootfs: digest("rootfs"),
        hostile_mount_point: None,
    }
}

/// Everything is as it should be.
pub(super) fn good() -> Facts {
    Facts {
        container: key(),
        task: TaskFacts {
            config_json: CTR_SPEC.as_bytes().to_vec(),
            rootfs_mounts: 1,
            options_type: "containerd.runc.v1.Options".to_owned(),
            stdin: "/run/fifo/1/stdin".to_owned(),
            stdout: "file:///var/lib/nimbus/node/logs/j1-1/stdout".to_owned(),
            stderr: "fifo:///run/fifo/1/stderr".to_owned(),
            ..TaskFacts::default()
        },
        node: NodeFacts {
            thumbprint: Some(digest("node")),
            platform: "linux/amd64".to_owned(),
            log_root: "/var/lib/nimbus/node/logs".to_owned(),
            fifo_roots: vec!["/run/fifo".to_owned()],
            skew_seconds: 2,
            cpu_millis_max: 2000,
            memory_bytes_max: 1 << 30,
            pids_max: 1024,
            containers: 3,
            containers_max: 4,
            pod_roots: PodRoots::default(),
        },
        clock: ClockFacts {
            boottime: BootNanos(BOOT),
            unix: UnixSeconds(NOW),
            floor: UnixSeconds(NOW - 5),
        },
        lease: LeaseFact::Verified(Box::new(verified(&claims()))),
        heartbeat: HeartbeatFact::Sent(BootNanos(SENT)),
        use_of_lease: LeaseUse::Unused,
        policy: PolicyFact::Verified(Box::new(signed_policy(POLICY))),
        attestations: AttestationFact::Outcomes(vec![BundleOutcome::Verified(attestation())]),
        image: ImageFact::Measured(image()),
        seccomp: SeccompFact::Compiled {
            profile: "default".to_owned(),
            profile_sha256: digest("profile"),
            program_sha256: digest("program"),
            instructions: 300,
        },
        network: NetworkFact::Missing,
        pod: PodFact::None,
    }
}

/// The good case under another lease.
pub(super) fn with_claims(change: impl FnOnce(&mut LeaseClaims)) -> Facts {
    let mut claims = claims();
    change(&mut claims);
    Facts { lease: LeaseFact::Verified(Box::new(verified(&claims))), ..good() }
}

/// The good case with another specification, under a lease that names its process: so that what is
/// refused is refused for the specification's sake.
pub(super) fn with_config(config: &Value) -> Facts {
    let bytes = config.to_string().into_bytes();
    let process = crate::process_identity(&bytes);
    let mut facts = with_claims(|claims| {
        if let Ok(process) = process {
            claims.process_sha256 = process.digest();
        }
    });
    facts.task.config_json = bytes;
    facts
}

/// The good case with another policy, under a lease that leaves the policy to the node.
pub(super) fn with_policy(document: &str) -> Facts {
    let facts = with_claims(|claims| claims.policy = None);
    Facts { policy: PolicyFact::Verified(Box::new(signed_policy(document))), ..facts }
}

/// The good case with an allow-list and the network for it.
pub(super) fn with_egress(rules: &[&str]) -> Facts {
    let rules = rules.iter().map(|rule| rule.parse().unwrap()).collect();
    let rules = EgressRules::sorted(rules).unwrap();
    let facts = with_claims(|claims| claims.egress = LeasedEgress::Allow(rules));
    Facts { network: NetworkFact::Ready, ..facts }
}

#[track_caller]
pub(super) fn refused(facts: &Facts, code: RefusalCode, case: &str) {
    match admit(facts) {
        Err(refusal) => assert_eq!(refusal.code, code, "{case}: {refusal}"),
        Ok(_) => panic!("{case}: granted"),
    }
}

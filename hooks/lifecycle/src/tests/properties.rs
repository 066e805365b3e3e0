//! Whatever comes in: no plan from a spoilt case, and nothing forbidden in a plan.

use std::collections::BTreeSet;

use nimbus_api::clock::UnixSeconds;
use nimbus_api::plan::Plan;
use nimbus_api::verify::BundleOutcome;
use nimbus_api::{Refusal, RefusalCode};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::fixtures::*;
use crate::admit;
use crate::facts::*;

/// Ways to spoil a good case: each leaves a part missing, expired, mismatched or unverifiable.
const SPOILS: [fn(&mut Facts); 26] = [
    |f| f.lease = LeaseFact::Missing,
    |f| f.lease = LeaseFact::NoKeys(Refusal::new(RefusalCode::KeysInvalid)),
    |f| f.lease = LeaseFact::Refused(Refusal::new(RefusalCode::LeaseMalformed)),
    |f| f.heartbeat = HeartbeatFact::Unknown,
    |f| f.node.thumbprint = None,
    |f| f.node.thumbprint = Some(digest("x")),
    |f| f.node.platform.clear(),
    |f| f.node.containers_max = 0,
    |f| f.node.memory_bytes_max = 0,
    |f| f.clock.unix = UnixSeconds(i64::MAX),
    |f| f.clock.unix = UnixSeconds(i64::MIN),
    |f| f.clock.boottime.0 = u64::MAX,
    |f| f.clock.boottime.0 = 0,
    |f| f.clock.floor = UnixSeconds(i64::MAX),
    |f| f.use_of_lease = LeaseUse::Ended,
    |f| f.use_of_lease = LeaseUse::Revoked,
    |f| f.use_of_lease = LeaseUse::Superseded { attempt: 9 },
    |f| f.use_of_lease = LeaseUse::Unreadable(Refusal::new(RefusalCode::NodeLedgerFailed)),
    |f| f.policy = PolicyFact::Missing,
    |f| f.policy = PolicyFact::Refused(Refusal::new(RefusalCode::PolicyBadSignature)),
    |f| f.attestations = AttestationFact::Outcomes(vec![]),
    |f| {
        f.attestations = AttestationFact::Unavailable(Refusal::new(RefusalCode::VerifyTimeout));
    },
    |f| f.image = ImageFact::Unavailable(Refusal::new(RefusalCode::ImageMissing)),
    |f| f.seccomp = SeccompFact::Unavailable(Refusal::new(RefusalCode::LeaseUnsupported)),
    |f| f.task.config_json = b"{}".to_vec(),
    |f| f.task.checkpoint = true,
];

/// Parts of a specification that somebody may want to smuggle in.
fn smuggled() -> impl Strategy<Value = (String, Value)> {
    let pairs = vec![
        ("/hooks", json!({"poststop": []})),
        ("/linux/namespaces/-", json!({"type": "cgroup"})),
        ("/linux/namespaces/0", json!({"type": "user"})),
        ("/linux/namespaces/0/path", json!("/proc/1/ns/pid")),
        ("/linux/devices", json!([])),
        ("/linux/devices", json!([{"path": "/dev/sda"}])),
        ("/linux/seccomp", Value::Null),
        ("/linux/seccomp/defaultAction", json!("SCMP_ACT_ALLOW")),
        ("/linux/sysctl", json!({"net.ipv4.tcp_syncookies": "1"})),
        ("/linux/cgroupsPath", json!("/")),
        ("/linux/cgroupsPath", json!("system.slice:nimbus:j1-1")),
        ("/linux/maskedPaths", json!([])),
        ("/linux/readonlyPaths", json!([])),
        ("/linux/maskedPaths/-", json!("/sys/power")),
        ("/linux/rootfsPropagation", json!("private")),
        ("/linux/resources", Value::Null),
        ("/linux/resources", json!({"memory": {"limit": 1}, "pids": {"limit": 1}})),
        ("/linux/resources/devices", json!([])),
        ("/linux/resources/devices/-", json!({"allow": true, "type": "a"})),
        ("/mounts", json!([])),
        ("/mounts/-", json!({"destination": "/etc", "type": "bind", "source": "/etc"})),
        ("/mounts/-", json!({"destination": "/sys/fs/cgroup", "type": "cgroup"})),
        ("/mounts/1/options", json!(["rw", "size=1g"])),
        ("/mounts/5/options", json!([])),
        ("/process/noNewPrivileges", json!(false)),
        ("/process/capabilities", Value::Null),
        ("/process/capabilities/ambient", json!(["CAP_CHOWN", "CAP_NET_RAW"])),
        ("/process/capabilities/inheritable", json!(["CAP_KILL"])),
        ("/process/capabilities/bounding", json!(["CAP_SYS_ADMIN"])),
        ("/process/apparmorProfile", json!("unconfined")),
        ("/process/oomScoreAdj", json!(7)),
        ("/process/rlimits", json!([{"type": "RLIMIT_MEMLOCK", "hard": u64::MAX, "soft": 0}])),
        ("/process/user/umask", json!(0)),
        ("/root/readonly", json!(true)),
        ("/annotations", json!({"nimbus.io/lease": "secret", "run.oci.handler": "wasm"})),
        ("/hostname", json!("h")),
        ("/domainname", json!("d")),
    ];
    prop::sample::select(pairs).prop_map(|(at, value)| (at.to_owned(), value))
}

fn scalar() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        prop::sample::select(vec!["", "/", "..", "bind", "host", "shared", "CAP_SYS_ADMIN", "x"])
            .prop_map(Value::from),
        Just(json!([])),
        Just(json!({})),
    ]
}

/// Pointers to every value of a document.
fn pointers(value: &Value, at: &str, into: &mut Vec<String>) {
    if !at.is_empty() {
        into.push(at.to_owned());
    }
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                let key = key.replace('~', "~0").replace('/', "~1");
                pointers(value, &format!("{at}/{key}"), into);
            }
        }
        Value::Array(list) => {
            for (index, value) in list.iter().enumerate().take(12) {
                pointers(value, &format!("{at}/{index}"), into);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

#[derive(Debug, Clone)]
pub(super) enum Mutation {
    Smuggle(String, Value),
    Replace(prop::sample::Index, Value),
    Remove(prop::sample::Index),
}

pub(super) fn mutation() -> impl Strategy<Value = Mutation> {
    prop_oneof![
        3 => smuggled().prop_map(|(at, value)| Mutation::Smuggle(at, value)),
        1 => (any::<prop::sample::Index>(), scalar())
            .prop_map(|(at, value)| Mutation::Replace(at, value)),
        1 => any::<prop::sample::Index>().prop_map(Mutation::Remove),
    ]
}

pub(super) fn mutate(config: &mut Value, mutation: Mutation) {
    let mut all = Vec::new();
    pointers(config, "", &mut all);
    match mutation {
        Mutation::Smuggle(at, value) => {
            let parent = at.rsplit_once('/').map_or("", |(parent, _)| parent);
            let fits = match config.pointer(parent) {
                Some(Value::Object(_)) => true,
                Some(Value::Array(list)) => at.ends_with("/-") || !list.is_empty(),
                _ => false,
            };
            if fits && (config.pointer(&at).is_some() || !at.ends_with(|c: char| c.is_numeric())) {
                super::spec_table::set(config, &at, value);
            }
        }
        Mutation::Replace(at, value) => {
            *config.pointer_mut(at.get(all.as_slice()).as_str()).unwrap() = value;
        }
        Mutation::Remove(at) => {
            let (parent, last) = at.get(all.as_slice()).rsplit_once('/').unwrap();
            match config.pointer_mut(parent).unwrap() {
                Value::Object(map) => {
                    drop(map.remove(&last.replace("~1", "/").replace("~0", "~")));
                }
                Value::Array(list) => drop(list.remove(last.parse::<usize>().unwrap())),
                Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {
                    panic!("{at:?}")
                }
            }
        }
    }
}

pub(super) fn keys(value: &Value) -> BTreeSet<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

/// What rule 3 forbids in a projection, and what it demands.
fn assert_contained(plan: &Plan) {
    let spec = &plan.spec;
    let claims = claims();
    let top = ["hostname", "linux", "mounts", "ociVersion", "process", "root"];
    assert_eq!(keys(spec), BTreeSet::from(top));
    let linux = &spec["linux"];
    let fields = [
        "cgroupsPath",
        "maskedPaths",
        "namespaces",
        "readonlyPaths",
        "resources",
        "rootfsPropagation",
        "sysctl",
    ];
    assert_eq!(keys(linux), BTreeSet::from(fields));
    let kinds = ["pid", "network", "mount", "ipc", "uts", "cgroup"];
    let namespaces: Vec<Value> = kinds.iter().map(|kind| json!({"type": kind})).collect();
    assert_eq!(linux["namespaces"], json!(namespaces));
    assert_eq!(linux["rootfsPropagation"], "private");
    assert_eq!(keys(&linux["resources"]), BTreeSet::from(["cpu", "memory", "pids"]));
    assert_eq!(linux["resources"]["memory"]["limit"], claims.resources.memory_bytes);
    assert_eq!(linux["resources"]["memory"]["swap"], claims.resources.memory_bytes);
    assert_eq!(linux["resources"]["pids"]["limit"], claims.resources.pids);
    assert_eq!(spec["root"]["path"], "rootfs");
    let cgroup = linux["cgroupsPath"].as_str().unwrap();
    assert!(cgroup.len() > 1 && cgroup.starts_with('/') && cgroup.ends_with("j1-1"), "{cgroup}");
    for mask in crate::project::masks::MASKED {
        assert!(linux["maskedPaths"].as_array().unwrap().contains(&json!(mask)), "{mask}");
    }
    assert_eq!(spec["mounts"], admit(&good()).unwrap().spec["mounts"]);
    assert!(plan.binds.is_empty() && plan.joins.is_empty() && plan.pod.is_none());
    assert_process_contained(plan);
    assert_eq!(plan.spec["process"]["terminal"], false);
}

/// What holds for the first process and its devices, wherever it is.
pub(super) fn assert_process_contained(plan: &Plan) {
    let claims = claims();
    let process = &plan.spec["process"];
    assert_eq!(process["noNewPrivileges"], true);
    assert_eq!(process["capabilities"]["ambient"], json!([]));
    assert_eq!(process["capabilities"]["inheritable"], json!([]));
    for set in ["bounding", "effective", "permitted"] {
        for name in process["capabilities"][set].as_array().unwrap() {
            assert!(claims.capabilities.iter().any(|leased| name == leased), "{name}");
        }
    }
    assert!(plan.exec.capabilities.iter().all(|name| claims.capabilities.contains(name)));
    assert!(plan.devices.iter().all(|device| matches!(device.major, 1 | 5 | 136)));
    assert_eq!(plan.resources, claims.resources);
}

proptest! {
    #[test]
    fn a_case_with_any_part_spoilt_is_never_granted(
        spoils in prop::collection::vec(prop::sample::select(SPOILS.to_vec()), 1..4),
    ) {
        let mut facts = good();
        for spoil in spoils {
            spoil(&mut facts);
        }
        prop_assert!(admit(&facts).is_err());
    }

    #[test]
    fn a_projection_never_holds_what_is_forbidden(
        mutations in prop::collection::vec(mutation(), 1..5),
    ) {
        let mut config = config();
        for mutation in mutations {
            mutate(&mut config, mutation);
        }
        if let Ok(plan) = admit(&with_config(&config)) {
            assert_contained(&plan);
        }
    }

    #[test]
    fn no_bytes_panic_the_reader_or_are_granted(bytes: Vec<u8>) {
        let mut facts = good();
        facts.task.config_json = bytes;
        prop_assert!(admit(&facts).is_err());
    }

    #[test]
    fn no_time_outside_the_lease_is_granted(
        unix in prop_oneof![any::<i64>(), NOW - 2000..NOW + 2000], boot in any::<u64>(),
    ) {
        let mut facts = good();
        facts.clock.unix = UnixSeconds(unix);
        facts.clock.boottime.0 = boot;
        if let Ok(plan) = admit(&facts) {
            let claims = claims();
            prop_assert!(plan.deadline.0 > boot && boot >= SENT);
            prop_assert!(unix <= claims.start_by.0 && unix + 30 >= claims.iat.0);
        }
    }

    #[test]
    fn an_attestation_is_enough_only_when_it_fits(
        subject in prop::sample::select(vec!["index", "manifest", "other"]),
        need in prop::sample::select(vec!["provenance", "other"]),
        fits: bool,
        age in prop::option::of(-100_i64..8000),
    ) {
        let mut attestation = attestation();
        attestation.subject = digest(subject);
        attestation.needs = vec![need.to_owned()];
        if !fits {
            attestation.predicate_type = "https://example.com/other".to_owned();
        }
        attestation.signed_at = age.map(|age| UnixSeconds(NOW - age));
        let facts = Facts {
            attestations: AttestationFact::Outcomes(vec![BundleOutcome::Verified(attestation)]),
            ..good()
        };
        let young = age.is_some_and(|age| (-30..=3600).contains(&age));
        let enough = subject != "other" && need == "provenance" && fits && young;
        prop_assert_eq!(admit(&facts).is_ok(), enough);
    }
}

#[test]
fn harmless_changes_are_still_granted() {
    for (at, value) in [
        ("/linux/seccomp", Value::Null),
        ("/linux/resources", Value::Null),
        ("/linux/cgroupsPath", json!("system.slice:nimbus:j1-1")),
        ("/process/noNewPrivileges", json!(false)),
        ("/mounts", json!([])),
        ("/hostname", json!("h")),
    ] {
        let mut config = config();
        super::spec_table::set(&mut config, at, value);
        assert_contained(&admit(&with_config(&config)).unwrap());
    }
}

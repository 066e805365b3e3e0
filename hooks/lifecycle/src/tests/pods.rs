//! A pod that is granted, and ways to change it: what containerd's CRI plugins of three versions write.

use std::collections::BTreeMap;

use nimbus_api::lease::{LeaseClaims, LeasedClaim, LeasedEgress, LeasedPod};
use nimbus_api::plan::Plan;
use serde_json::Value;

use super::fixtures::*;
use crate::admit;
use crate::facts::{Facts, LeaseFact, PodFact, PodRoots, PolicyFact, SandboxRecord};

/// `config.json` of containerd 1.6.20, 1.7.24 and 2.1.9, asked for a pod as kubelet asks. Ids, pids, paths
/// and names of images are the test's, and the filters have been cut short.
const SPECS: &str = include_str!("cri-specs.json");
pub(super) const SANDBOX: &str = "5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a";
pub(super) const CONTAINER: &str =
    "c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0";
pub(super) const UID: &str = "11111111-2222-3333-4444-555555555555";
pub(super) const PID: u32 = 4321;
/// Maps the pod's namespace to the org of the leases.
pub(super) const CLAIM: &str = r#"
[[claim]]
namespace = "k8s.io"
kubernetes = ["tenant-a"]
org = "acme"
network = "pod"
most = { cpu_millis = 500, memory_bytes = 67108864, pids = 64, scratch_bytes = 4194304 }
"#;

/// All of them, by version and what they are of.
pub(super) fn specs() -> BTreeMap<String, Value> {
    serde_json::from_str(SPECS).unwrap()
}

pub(super) fn container_spec() -> Value {
    specs().remove("1.6.20 container").unwrap()
}

pub(super) fn sandbox_spec() -> Value {
    specs().remove("1.6.20 sandbox").unwrap()
}

pub(super) fn pod(container: Option<&str>) -> LeasedPod {
    LeasedPod {
        sandbox: SANDBOX.parse().unwrap(),
        namespace: "tenant-a".to_owned(),
        name: "pod-a".to_owned(),
        uid: UID.to_owned(),
        container: container.map(str::to_owned),
        restart: 0,
    }
}

pub(super) fn record() -> SandboxRecord {
    SandboxRecord {
        container: in_k8s(SANDBOX),
        org: "acme".parse().unwrap(),
        pod: pod(None),
        network: LeasedEgress::Pod,
        pid: PID,
    }
}

pub(super) fn in_k8s(id: &str) -> nimbus_api::id::ContainerKey {
    nimbus_api::id::ContainerKey { namespace: "k8s.io".parse().unwrap(), id: id.parse().unwrap() }
}

/// Facts of a container with this specification, claimed as it says it is, under claims as changed.
pub(super) fn in_pod(config: &Value, change: impl FnOnce(&mut LeaseClaims)) -> Facts {
    let bytes = config.to_string().into_bytes();
    let sandbox = config["annotations"]["io.kubernetes.cri.container-type"] == "sandbox";
    let (key, name) =
        if sandbox { (in_k8s(SANDBOX), None) } else { (in_k8s(CONTAINER), Some("main")) };
    let mut claims = claims();
    if let Ok(process) = crate::process_identity(&bytes) {
        claims.process_sha256 = process.digest();
    }
    claims.egress = LeasedEgress::Pod;
    claims.policy = None;
    claims.claim = Some(LeasedClaim { container: key.clone(), pod: Some(pod(name)) });
    change(&mut claims);
    let mut facts = good();
    facts.container = key;
    facts.task.config_json = bytes;
    facts.task.stdout = "/run/fifo/1/stdout".to_owned();
    facts.lease = LeaseFact::Verified(Box::new(verified(&claims)));
    facts.policy = with_rules(CLAIM);
    facts.pod = if sandbox { PodFact::None } else { PodFact::Sandbox(record()) };
    facts.node.pod_roots = PodRoots {
        cri_state: "/run/containerd/io.containerd.grpc.v1.cri".to_owned(),
        cri_root: "/var/lib/containerd/io.containerd.grpc.v1.cri".to_owned(),
        kubelet: "/var/lib/kubelet".to_owned(),
        netns: vec!["/var/run/netns".to_owned(), "/run/netns".to_owned()],
    };
    facts
}

/// The policy of the other tests with something more.
pub(super) fn with_rules(rules: &str) -> PolicyFact {
    PolicyFact::Verified(Box::new(signed_policy(&format!("{POLICY}{rules}"))))
}

pub(super) fn container(config: &Value) -> Facts {
    in_pod(config, |_| {})
}

#[track_caller]
pub(super) fn plan(config: &Value) -> Plan {
    admit(&container(config)).unwrap()
}

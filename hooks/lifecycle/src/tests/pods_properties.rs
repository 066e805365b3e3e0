//! Whatever a pod's specification says: nothing of another pod's, and nothing of the host's.

use std::path::{Component, Path};

use nimbus_api::plan::{JoinedNamespace, Plan};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::pods::*;
use super::properties::{Mutation, assert_process_contained, keys, mutate, mutation};
use super::spec_table::set;
use crate::admit;

/// What paths are put together from: what is allowed, what is nearly, and what leads elsewhere.
fn path() -> impl Strategy<Value = String> {
    let starts = vec![
        "/var/lib/kubelet/pods",
        "/run/containerd/io.containerd.grpc.v1.cri/sandboxes",
        "/var/lib/containerd/io.containerd.grpc.v1.cri/sandboxes",
        "/proc",
        "/var/run/netns",
        "",
        "relative",
    ];
    let other = "99999999-2222-3333-4444-555555555555";
    let parts = vec![
        UID,
        SANDBOX,
        CONTAINER,
        other,
        "volumes",
        "containers",
        "main",
        "shm",
        "hosts",
        "hostname",
        "etc-hosts",
        "kubernetes.io~empty-dir",
        "kubernetes.io~csi",
        "x",
        "..",
        ".",
        "",
        "4321",
        "1",
        "self",
        "ns",
        "net",
        "ipc",
        "uts",
        "pid",
        "mnt",
        "root",
    ];
    let parts = prop::collection::vec(prop::sample::select(parts), 0..5);
    (prop::sample::select(starts), parts).prop_map(|(start, parts)| {
        parts.iter().fold(start.to_owned(), |path, part| format!("{path}/{part}"))
    })
}

/// Paths that are nearly right, most often.
fn near() -> impl Strategy<Value = String> {
    let right = vec![
        format!("/var/lib/kubelet/pods/{UID}/etc-hosts"),
        format!("/var/lib/kubelet/pods/{UID}/containers/main/x"),
        format!("/var/lib/kubelet/pods/{UID}/volumes/kubernetes.io~secret/x"),
        format!("/run/containerd/io.containerd.grpc.v1.cri/sandboxes/{SANDBOX}/shm"),
        format!("/proc/{PID}/ns/net"),
        format!("/proc/{PID}/ns/pid"),
        "/var/run/netns/x".to_owned(),
    ];
    let change = (prop::sample::select(right), any::<prop::sample::Index>(), "[/.x0]{0,3}");
    prop_oneof![
        change.prop_map(|(path, at, put)| {
            let at = at.index(path.len());
            format!("{}{put}{}", &path[..at], &path[at..])
        }),
        path(),
    ]
}

/// Read by the standard library, not by what is tested.
fn is_the_pods_own(source: &str) -> bool {
    let roots = [
        format!("/var/lib/kubelet/pods/{UID}"),
        format!("/run/containerd/io.containerd.grpc.v1.cri/sandboxes/{SANDBOX}"),
        format!("/var/lib/containerd/io.containerd.grpc.v1.cri/sandboxes/{SANDBOX}"),
    ];
    let path = Path::new(source);
    let plain = path.components().skip(1).all(|part| matches!(part, Component::Normal(_)));
    plain && roots.iter().any(|root| path.starts_with(root) && path != Path::new(root))
}

fn assert_contained(plan: &Plan, config: &Value) {
    let spec = &plan.spec;
    let allowed = ["hostname", "linux", "mounts", "ociVersion", "process", "root"];
    assert!(keys(spec).iter().all(|key| allowed.contains(key)));
    let list = spec["linux"]["namespaces"].as_array().unwrap();
    assert!(list.iter().all(|one| keys(one).iter().eq(["type"].iter())), "{list:?}");
    // Each kind is new or joined.
    let mut kinds: Vec<_> = list.iter().map(|one| one["type"].as_str().unwrap()).collect();
    kinds.extend(plan.joins.iter().map(|kind| match kind {
        JoinedNamespace::Network => "network",
        JoinedNamespace::Ipc => "ipc",
        JoinedNamespace::Uts => "uts",
        JoinedNamespace::Pid => "pid",
    }));
    kinds.sort_unstable();
    assert_eq!(kinds, ["cgroup", "ipc", "mount", "network", "pid", "uts"]);
    // What was named to be joined was the sandbox's, or the network that CNI made.
    let named = config["linux"]["namespaces"].as_array().unwrap().iter();
    for path in named.filter_map(|one| one["path"].as_str()).filter(|path| !path.is_empty()) {
        let sandboxes = ["net", "ipc", "uts", "pid"].map(|kind| format!("/proc/{PID}/ns/{kind}"));
        let cni = Path::new(path).parent() == Some(Path::new("/var/run/netns"));
        assert!(sandboxes.contains(&path.to_owned()) || cni, "{path}");
    }
    for bind in &plan.binds {
        assert!(is_the_pods_own(&bind.source), "{bind:?}");
        let at = Path::new(&bind.destination);
        let plain = at.components().skip(1).all(|part| matches!(part, Component::Normal(_)));
        let kernels =
            ["/proc", "/sys", "/dev/pts", "/dev/mqueue"].iter().any(|one| at.starts_with(one));
        assert!(at.has_root() && plain && !kernels, "{bind:?}");
        assert!(at != Path::new("/") && at != Path::new("/dev"), "{bind:?}");
    }
    for mount in spec["mounts"].as_array().unwrap() {
        let kinds = ["proc", "tmpfs", "devpts", "mqueue", "sysfs"];
        assert!(kinds.contains(&mount["type"].as_str().unwrap()), "{mount}");
    }
    assert!(spec["process"]["oomScoreAdj"].as_i64().unwrap() >= 0);
    for mask in crate::project::masks::MASKED {
        assert!(spec["linux"]["maskedPaths"].as_array().unwrap().contains(&json!(mask)), "{mask}");
    }
    assert_process_contained(plan);
}

fn of_pod() -> impl Strategy<Value = Value> {
    prop::sample::select(specs().into_values().collect::<Vec<_>>())
}

proptest! {
    #[test]
    fn no_source_but_the_pods_own_is_bound(
        mut config in of_pod(),
        source in near(),
        destination in prop_oneof![Just("/mnt".to_owned()), "(/(dev|proc|sys|pts|run|shm|x|[.]{1,2})?){0,4}"],
        options in prop::sample::subsequence(
            vec!["rbind", "bind", "ro", "rw", "rprivate", "nosuid", "noexec", "slave"], 0..6),
    ) {
        set(&mut config, "/mounts/-", json!({
            "source": source, "destination": destination, "type": "bind", "options": options,
        }));
        if let Ok(plan) = admit(&container(&config)) {
            assert_contained(&plan, &config);
        }
    }

    #[test]
    fn no_namespace_but_the_sandboxs_is_joined(
        mut config in of_pod(), index in 0_usize..5, path in near(),
    ) {
        config["linux"]["namespaces"][index]["path"] = json!(path);
        if let Ok(plan) = admit(&container(&config)) {
            assert_contained(&plan, &config);
        }
    }

    #[test]
    fn a_projection_of_a_pod_never_holds_what_is_forbidden(
        mut config in of_pod(), mutations in prop::collection::vec(mutation(), 1..4),
    ) {
        let keeps_its_shape = |mutation: &Mutation| match mutation {
            // These expect the other specification's mounts.
            Mutation::Smuggle(at, _) => !at.starts_with("/mounts/"),
            Mutation::Replace(..) | Mutation::Remove(_) => true,
        };
        for mutation in mutations.into_iter().filter(keeps_its_shape) {
            mutate(&mut config, mutation);
        }
        if let Ok(plan) = admit(&container(&config)) {
            assert_contained(&plan, &config);
        }
    }

    #[test]
    fn no_claim_is_granted_but_as_the_policy_maps_it(
        org in prop::sample::select(vec!["acme", "other"]),
        namespace in prop::sample::select(vec!["tenant-a", "tenant-b", ""]),
        pod_network: bool,
        cpu in 1_u32..1000,
    ) {
        let mut config = container_spec();
        config["annotations"]["io.kubernetes.cri.sandbox-namespace"] = json!(namespace);
        let egress = if pod_network {
            nimbus_api::lease::LeasedEgress::Pod
        } else {
            nimbus_api::lease::LeasedEgress::None
        };
        let mut facts = in_pod(&config, |claims| {
            claims.org = org.parse().unwrap();
            claims.egress = egress.clone();
            claims.resources.cpu_millis = cpu;
            claims.claim.as_mut().unwrap().pod.as_mut().unwrap().namespace = namespace.to_owned();
        });
        // The specification asks for half a core.
        let mut record = record();
        (record.org, record.network) = (org.parse().unwrap(), egress);
        record.pod.namespace = namespace.to_owned();
        facts.pod = crate::facts::PodFact::Sandbox(record);
        let mapped = org == "acme" && namespace == "tenant-a";
        prop_assert_eq!(admit(&facts).is_ok(), mapped && cpu == 500);
    }
}

//! Containers of pods: what another client of containerd may have, and what it may not ask for.

use nimbus_api::RefusalCode as Code;
use nimbus_api::lease::{LeaseClaims, LeasedEgress};
use nimbus_api::plan::{BINDS_MAX, JoinedNamespace, Plan};
use serde_json::{Value, json};

use super::fixtures::*;
use super::pods::*;
use super::spec_table::set;
use crate::facts::*;
use crate::{admit, exec, network_path, update};

fn refuse_each(config: &Value, code: Code, changes: &[(&str, Value)]) {
    for (pointer, value) in changes {
        let mut config = config.clone();
        set(&mut config, pointer, value.clone());
        refused(&container(&config), code, &format!("{pointer} = {value}"));
    }
}

fn bind(source: &str, destination: &str, options: &[&str]) -> Value {
    json!({"source": source, "destination": destination, "type": "bind", "options": options})
}

fn kinds(plan: &Plan) -> Vec<&str> {
    let list = plan.spec["linux"]["namespaces"].as_array().unwrap();
    list.iter().map(|one| one["type"].as_str().unwrap()).collect()
}

fn mounts(plan: &Plan) -> Vec<&str> {
    let list = plan.spec["mounts"].as_array().unwrap();
    list.iter().map(|one| one["destination"].as_str().unwrap()).collect()
}

#[test]
fn what_real_cri_plugins_write_is_granted() {
    let specs = specs();
    assert_eq!(specs.len(), 9);
    for (name, config) in specs {
        let facts = container(&config);
        let plan = admit(&facts).unwrap_or_else(|refusal| panic!("{name}: {refusal}"));
        assert_eq!(Plan::parse(&plan.to_json()).unwrap(), plan, "{name}");
        let sandbox = name.ends_with("sandbox");
        assert_eq!(plan.pod, Some(pod((!sandbox).then_some("main"))), "{name}");
        // The image's own is to be seen.
        assert!(!mounts(&plan).contains(&"/run"), "{name}");
        assert!(!mounts(&plan).contains(&"/dev/shm"), "{name}");
        assert!(plan.binds.iter().any(|bind| bind.destination == "/dev/shm"), "{name}");
        assert_eq!(plan.binds.len(), if sandbox { 2 } else { 7 }, "{name}");
    }
}

#[test]
fn a_sandbox_joins_the_network_that_cni_made_and_nothing_else() {
    let plan = plan(&sandbox_spec());
    assert_eq!(plan.joins, [JoinedNamespace::Network]);
    assert_eq!(kinds(&plan), ["pid", "mount", "ipc", "uts", "cgroup"]);
    assert_eq!(plan.spec["hostname"], "pod-a");
    assert!(plan.rootfs.read_only);
    assert!(plan.binds.iter().all(|bind| bind.read_only && bind.recursive));
    let path = network_path(&container(&sandbox_spec()).task.config_json).unwrap();
    assert_eq!(path.unwrap(), sandbox_spec()["linux"]["namespaces"][4]["path"]);
}

#[test]
fn a_sandbox_whose_lease_has_no_network_gets_a_new_one_whatever_it_names() {
    let facts = in_pod(&sandbox_spec(), |claims| claims.egress = LeasedEgress::None);
    let plan = admit(&facts).unwrap();
    assert_eq!(plan.joins, []);
    assert!(kinds(&plan).contains(&"network"));
    assert!(plan.tightened.iter().any(|line| line.contains("network of the pod's own")));
    // Its containers share that one.
    let mut facts = in_pod(&container_spec(), |claims| claims.egress = LeasedEgress::None);
    facts.pod = PodFact::Sandbox(SandboxRecord { network: LeasedEgress::None, ..record() });
    assert_eq!(admit(&facts).unwrap().joins[0], JoinedNamespace::Network);
}

#[test]
fn a_container_joins_its_sandbox_and_has_what_kubelet_made_for_it() {
    let plan = plan(&container_spec());
    assert_eq!(plan.joins, [JoinedNamespace::Network, JoinedNamespace::Ipc, JoinedNamespace::Uts]);
    assert_eq!(kinds(&plan), ["pid", "mount", "cgroup"]);
    assert_eq!(plan.spec.get("hostname"), None);
    let found: Vec<_> =
        plan.binds.iter().map(|bind| (bind.destination.as_str(), bind.read_only)).collect();
    let wanted = [
        ("/scratch", false),
        ("/etc/hosts", false),
        ("/dev/termination-log", false),
        ("/etc/hostname", false),
        ("/etc/resolv.conf", false),
        ("/dev/shm", false),
        ("/var/run/secrets/kubernetes.io/serviceaccount", true),
    ];
    assert_eq!(found, wanted);
    let shared = super::pods::plan(&specs()["1.6.20 container-sharepid"]);
    assert_eq!(shared.joins[3..], [JoinedNamespace::Pid]);
    assert_eq!(shared.joins[..3], plan.joins);
    assert_eq!(kinds(&shared), ["mount", "cgroup"]);
    assert_eq!(plan.spec["linux"]["resources"]["memory"]["limit"], 64 << 20);
}

#[test]
fn what_is_weaker_in_a_pod_is_set_and_noted() {
    let plan = plan(&specs()["1.6.20 container-defaults"]);
    for part in ["linux.seccomp", "linux.maskedPaths", "process.noNewPrivileges", "memory", "pids"]
    {
        assert!(plan.tightened.iter().any(|line| line.contains(part)), "{part}");
    }
    assert_eq!(plan.spec["process"]["oomScoreAdj"], 1000);
    // kubelet's own choice for guaranteed pods and the CRI plugin's for sandboxes.
    for adjust in [-997, -998] {
        let mut config = container_spec();
        config["process"]["oomScoreAdj"] = json!(adjust);
        let plan = super::pods::plan(&config);
        assert_eq!(plan.spec["process"]["oomScoreAdj"], 0);
        assert!(plan.tightened.iter().any(|line| line.contains("oomScoreAdj")));
        let process = config["process"].to_string();
        assert_eq!(exec(&plan, process.as_bytes(), false).unwrap().oom_score_adj, 0);
    }
    let mut config = container_spec();
    config["linux"]["resources"]["unified"] =
        json!({"memory.oom.group": "1", "memory.swap.max": "0"});
    config["linux"]["resources"]["hugepageLimits"] = json!([{"pageSize": "2MB", "limit": 0}]);
    let plan = super::pods::plan(&config);
    assert!(plan.tightened.iter().any(|line| line.contains("unified")));
    let resources = config["linux"]["resources"].to_string();
    update(&plan, resources.as_bytes()).unwrap();
    // A trailing slash is what people write.
    set(&mut config, "/mounts/6/destination", json!("/scratch/"));
    assert_eq!(super::pods::plan(&config).binds[0].destination, "/scratch");
}

const KUBELET: &str = "/var/lib/kubelet/pods/11111111-2222-3333-4444-555555555555";
const STATE: &str = "/run/containerd/io.containerd.grpc.v1.cri";
const ROOT: &str = "/var/lib/containerd/io.containerd.grpc.v1.cri";

#[test]
fn binds_of_what_was_not_made_for_the_pod_are_refused() {
    let kubelet = "/var/lib/kubelet/pods";
    let other = UID.replace('1', "9");
    let sandboxes = format!("{ROOT}/sandboxes");
    let own = format!("{sandboxes}/{SANDBOX}");
    let sources = [
        "/".to_owned(),
        String::new(),
        "/etc/hosts".to_owned(),
        "/dev/shm".to_owned(),
        "/run/containerd/containerd.sock".to_owned(),
        "/proc/4321/root".to_owned(),
        "relative".to_owned(),
        // Other pods, and all pods.
        format!("{kubelet}/{other}/volumes/kubernetes.io~empty-dir/scratch"),
        format!("{kubelet}/{other}/etc-hosts"),
        kubelet.to_owned(),
        KUBELET.to_owned(),
        format!("{KUBELET}x/etc-hosts"),
        format!("{sandboxes}/{}/hosts", SANDBOX.replace('5', "6")),
        format!("{STATE}/sandboxes/{}/shm", SANDBOX.replace('5', "6")),
        sandboxes.clone(),
        own.clone(),
        format!("{own}/state.json"),
        format!("{own}/hosts/x"),
        format!("{STATE}/containers/{CONTAINER}/io"),
        // Volumes of another container's image, and what is beside them.
        format!("{ROOT}/containers/{SANDBOX}/volumes/x"),
        format!("{ROOT}/containers/{CONTAINER}/volumes"),
        format!("{ROOT}/containers/{CONTAINER}/volumes/x/y"),
        format!("{ROOT}/containers/{CONTAINER}/volumes/.."),
        format!("{ROOT}/containers/{CONTAINER}/status"),
        // Not in the right one of both.
        format!("{STATE}/sandboxes/{SANDBOX}/hosts"),
        format!("{own}/shm"),
        // Climbing.
        format!("{KUBELET}/volumes/kubernetes.io~empty-dir/.."),
        format!("{KUBELET}/volumes/kubernetes.io~empty-dir/../../../{other}/etc-hosts"),
        format!("{KUBELET}/./etc-hosts"),
        format!("{KUBELET}//etc-hosts"),
        format!("{KUBELET}/etc-hosts/"),
        format!("{KUBELET}/etc-hosts\0/x"),
        // Volumes that may be anything, and parts of volumes.
        format!("{KUBELET}/volumes/kubernetes.io~csi/x/mount"),
        format!("{KUBELET}/volumes/kubernetes.io~csi/x"),
        format!("{KUBELET}/volumes/kubernetes.io~local-volume/x"),
        format!("{KUBELET}/volumes/kubernetes.io~empty-dir"),
        format!("{KUBELET}/volumes/kubernetes.io~empty-dir/scratch/below"),
        format!("{KUBELET}/volume-subpaths/scratch/main/0"),
        format!("{KUBELET}/plugins/kubernetes.io~empty-dir/x"),
        format!("{KUBELET}/containers"),
        format!("{KUBELET}/containers/main"),
        format!("{KUBELET}/containers/other/abcdef12"),
    ];
    for source in &sources {
        for options in [&["rbind", "rprivate", "ro"][..], &["bind"], &[]] {
            let mut config = container_spec();
            set(&mut config, "/mounts/-", bind(source, "/mnt", options));
            refused(&container(&config), Code::SpecBindForbidden, source);
        }
    }
}

#[test]
fn a_bind_by_its_option_and_one_on_a_node_without_roots_are_refused() {
    // A bind by its option alone.
    let mut config = container_spec();
    set(
        &mut config,
        "/mounts/-",
        json!({"source": "/", "destination": "/mnt", "options": ["bind"]}),
    );
    refused(&container(&config), Code::SpecBindForbidden, "by option");
    set(&mut config, "/mounts/13/type", json!("tmpfs"));
    refused(&container(&config), Code::SpecBindForbidden, "as a tmpfs");
    // A sandbox has nothing of kubelet's, and a node without roots gives nothing.
    let mut config = sandbox_spec();
    set(&mut config, "/mounts/-", bind(&format!("{KUBELET}/etc-hosts"), "/etc/hosts", &["rbind"]));
    refused(&container(&config), Code::SpecBindForbidden, "a sandbox");
    let mut facts = container(&container_spec());
    facts.node.pod_roots = PodRoots::default();
    refused(&facts, Code::SpecBindForbidden, "no roots");
    let mut config = container_spec();
    set(&mut config, "/mounts/-", bind(&format!("/pods/{UID}/etc-hosts"), "/mnt", &["rbind"]));
    facts.task.config_json = config.to_string().into_bytes();
    refused(&facts, Code::SpecBindForbidden, "below an empty root");
}

#[test]
fn a_volume_that_the_image_names_is_what_was_measured_and_not_the_clients_copy() {
    let source = format!("{ROOT}/containers/{CONTAINER}/volumes/0f");
    let mut config = container_spec();
    set(&mut config, "/mounts/-", bind(&source, "/srv/data", &["rbind", "rprivate", "rw"]));
    let plan = plan(&config);
    assert_eq!(plan.binds, super::pods::plan(&container_spec()).binds);
    assert!(plan.tightened.iter().any(|line| line.contains("image's volumes")));
    set(&mut config, "/mounts/13/destination", json!("/proc/x"));
    refused(&container(&config), Code::SpecMountForbidden, "over the kernel's");
    // A sandbox's image has none.
    let mut config = sandbox_spec();
    let source = format!("{ROOT}/containers/{SANDBOX}/volumes/0f");
    set(&mut config, "/mounts/-", bind(&source, "/srv/data", &["rbind"]));
    refused(&container(&config), Code::SpecBindForbidden, "a sandbox");
}

#[test]
fn a_uid_or_a_name_that_climbs_leads_to_no_bind() {
    for (uid, name, source) in [
        ("..", "main", "/var/lib/kubelet/pods/../etc-hosts"),
        ("../x", "main", "/var/lib/kubelet/pods/../x/etc-hosts"),
        ("x/volumes", "main", "/var/lib/kubelet/pods/x/volumes/etc-hosts"),
        ("", "main", "/var/lib/kubelet/pods//etc-hosts"),
        ("u", "a/b", "/var/lib/kubelet/pods/u/containers/a/b"),
        ("u", "..", "/var/lib/kubelet/pods/u/containers/../x"),
        ("u", "", "/var/lib/kubelet/pods/u/containers//x"),
    ] {
        let mut config = container_spec();
        config["annotations"]["io.kubernetes.cri.sandbox-uid"] = json!(uid);
        config["annotations"]["io.kubernetes.cri.container-name"] = json!(name);
        config["mounts"] = json!([bind(source, "/mnt", &["rbind"])]);
        let mut facts = in_pod(&config, |claims| {
            let pod = claims.claim.as_mut().unwrap().pod.as_mut().unwrap();
            (pod.uid, pod.container) = (uid.to_owned(), Some(name.to_owned()));
        });
        let mut record = record();
        record.pod.uid = uid.to_owned();
        facts.pod = PodFact::Sandbox(record);
        refused(&facts, Code::SpecBindForbidden, source);
    }
}

#[test]
fn binds_that_travel_or_cover_what_the_container_stands_on_are_refused() {
    let source = format!("{KUBELET}/volumes/kubernetes.io~empty-dir/scratch");
    for option in ["rshared", "shared", "rslave", "slave"] {
        let mut config = container_spec();
        set(&mut config, "/mounts/-", bind(&source, "/mnt", &["rbind", option]));
        refused(&container(&config), Code::SpecPropagationForbidden, option);
    }
    refuse_each(
        &container_spec(),
        Code::SpecPropagationForbidden,
        &[("/linux/rootfsPropagation", json!("rslave"))],
    );
    for option in ["dev", "suid", "exec", "noexec", "idmap", "x-anything", "size=1g", "remount"] {
        let mut config = container_spec();
        set(&mut config, "/mounts/-", bind(&source, "/mnt", &["rbind", option]));
        refused(&container(&config), Code::SpecMountForbidden, option);
    }
    for destination in [
        "/",
        "",
        "//",
        "mnt",
        "/a/../b",
        "/a/./b",
        "/a//b",
        "/a\0b",
        "/proc",
        "/proc/",
        "/proc/self",
        "/proc/sys/kernel",
        "/sys",
        "/sys/fs/cgroup",
        "/dev",
        "/dev/",
        "/dev/pts",
        "/dev/pts/0",
        "/dev/mqueue",
        "/dev/null",
        "/dev/ptmx",
        "/dev/console",
        "/dev/fd",
        "/dev/stdout",
        // Taken already.
        "/scratch",
        "/scratch/",
        "/dev/shm",
        "/etc/hosts",
    ] {
        let mut config = container_spec();
        set(&mut config, "/mounts/-", bind(&source, destination, &["rbind"]));
        refused(&container(&config), Code::SpecMountForbidden, destination);
    }
    for (code, mount) in [
        (Code::SpecMountForbidden, json!({"destination": "/mnt", "type": "tmpfs"})),
        // After the bind: it would hide it.
        (Code::SpecMountForbidden, json!({"destination": "/dev/shm", "type": "tmpfs"})),
        (Code::SpecMountForbidden, json!({"destination": "/sys/fs/cgroup", "type": "cgroup"})),
    ] {
        let mut config = container_spec();
        set(&mut config, "/mounts/-", mount.clone());
        refused(&container(&config), code, &mount.to_string());
    }
    let mut mapped = container_spec();
    set(&mut mapped, "/mounts/6/uidMappings", json!([{"containerID": 0, "hostID": 0, "size": 1}]));
    refused(&container(&mapped), Code::SpecMountForbidden, "mapped");
    let mut many = container_spec();
    for n in 0..BINDS_MAX {
        set(&mut many, "/mounts/-", bind(&source, &format!("/mnt/{n}"), &["rbind"]));
    }
    refused(&container(&many), Code::SpecTooLarge, "many");
}

#[test]
fn a_bind_takes_the_place_of_run_and_of_shared_memory() {
    let source = format!("{KUBELET}/volumes/kubernetes.io~empty-dir/scratch");
    let mut config = container_spec();
    set(&mut config, "/mounts/11/source", json!(source));
    set(&mut config, "/mounts/-", bind(&source, "/run", &["rbind"]));
    set(
        &mut config,
        "/mounts/-",
        json!({"destination": "/run/x", "type": "bind", "source": source,
        "options": ["bind", "rro", "private", "nosuid", "nodev"]}),
    );
    let plan = plan(&config);
    let found: Vec<_> = plan.binds[5..].iter().map(|bind| bind.destination.as_str()).collect();
    assert_eq!(found[0], "/dev/shm");
    assert_eq!(found[2..], ["/run", "/run/x"]);
    assert!(plan.binds[8].read_only && !plan.binds[8].recursive);
    assert!(!mounts(&plan).contains(&"/dev/shm") && !mounts(&plan).contains(&"/run"));
    // Whoever asks for a tmpfs there and binds nothing gets one.
    let mut config = container_spec();
    config["mounts"] = json!([{"destination": "/run", "type": "tmpfs", "source": "tmpfs"}]);
    let plan = super::pods::plan(&config);
    assert!(mounts(&plan).contains(&"/run") && mounts(&plan).contains(&"/dev/shm"));
    assert_eq!(plan.binds, []);
}

#[test]
fn namespaces_of_anybody_but_the_sandbox_are_refused() {
    let at = "/linux/namespaces";
    for (index, own) in [(1, "ipc"), (2, "uts"), (4, "net")] {
        for path in [
            format!("/proc/1/ns/{own}"),
            format!("/proc/self/ns/{own}"),
            format!("/proc/{}/ns/{own}", PID + 1),
            format!("/proc/{PID}0/ns/{own}"),
            format!("/proc/0{PID}/ns/{own}"),
            format!("/proc//{PID}/ns/{own}"),
            format!("/proc/{PID}/ns/../ns/{own}"),
            format!("/proc/{PID}/task/{PID}/ns/{own}"),
            format!("/proc/{PID}/ns/mnt"),
            format!("/proc/{PID}/ns/pid"),
            format!("/var/run/netns/{own}"),
            "/var/run/netns/cni-1".to_owned(),
        ] {
            let change = (format!("{at}/{index}/path"), json!(path));
            refuse_each(
                &container_spec(),
                Code::SpecHostNamespace,
                &[(change.0.as_str(), change.1)],
            );
        }
    }
    refuse_each(
        &container_spec(),
        Code::SpecHostNamespace,
        &[
            // Host pid, another container's pid, the sandbox's mounts and cgroups.
            ("/linux/namespaces/0/path", json!("/proc/1/ns/pid")),
            ("/linux/namespaces/0/path", json!("/proc/4322/ns/pid")),
            ("/linux/namespaces/3/path", json!("/proc/4321/ns/mnt")),
            ("/linux/namespaces/-", json!({"type": "cgroup", "path": "/proc/4321/ns/cgroup"})),
        ],
    );
    refuse_each(
        &sandbox_spec(),
        Code::SpecHostNamespace,
        &[
            ("/linux/namespaces/0/path", json!("/proc/4321/ns/pid")),
            ("/linux/namespaces/1/path", json!("/var/run/netns/cni-1")),
            ("/linux/namespaces/4/path", json!("/proc/1/ns/net")),
            ("/linux/namespaces/4/path", json!("/var/run/netns")),
            ("/linux/namespaces/4/path", json!("/var/run/netns/")),
            ("/linux/namespaces/4/path", json!("/var/run/netns/..")),
            ("/linux/namespaces/4/path", json!("/var/run/netns/../../../proc/1/ns/net")),
            ("/linux/namespaces/4/path", json!("/var/run/netns/a/b")),
            ("/linux/namespaces/4/path", json!("/var/run/netnsx/a")),
            ("/linux/namespaces/4/path", json!("run/netns/a")),
        ],
    );
}

#[test]
fn namespaces_of_the_host_are_refused() {
    for config in [container_spec(), sandbox_spec()] {
        refuse_each(
            &config,
            Code::SpecPrivilegeForbidden,
            &[("/linux/namespaces/-", json!({"type": "user", "path": "/proc/4321/ns/user"}))],
        );
        // hostNetwork, hostPID, hostIPC.
        for missing in 0..5 {
            let mut config = config.clone();
            config["linux"]["namespaces"].as_array_mut().unwrap().remove(missing);
            refused(&container(&config), Code::SpecHostNamespace, "one is missing");
        }
        let mut config = config.clone();
        config["linux"]["namespaces"][4].as_object_mut().unwrap().remove("path");
        refused(&container(&config), Code::PodMismatch, "not in its pod's network");
    }
    // Outside a pod nothing is joined, and no root of nobody's leads anywhere.
    let mut facts = good();
    facts.node.pod_roots.netns = vec![String::new(), "/run/netns".to_owned()];
    for path in ["/run/netns/x", "/x"] {
        let mut config = config();
        set(&mut config, "/linux/namespaces/4/path", json!(path));
        facts.task.config_json = config.to_string().into_bytes();
        refused(&facts, Code::SpecHostNamespace, path);
    }
}

#[test]
fn a_privileged_pod_is_refused() {
    for config in [container_spec(), sandbox_spec()] {
        refuse_each(
            &config,
            Code::DeviceNotLeased,
            &[
                (
                    "/linux/devices",
                    json!([{"path": "/dev/sda", "type": "b", "major": 8, "minor": 0}]),
                ),
                ("/linux/resources/devices/-", json!({"allow": true, "access": "rwm"})),
            ],
        );
        refuse_each(
            &config,
            Code::SpecCapabilityForbidden,
            &[("/process/capabilities/bounding", json!(["CAP_SYS_ADMIN"]))],
        );
        refuse_each(&config, Code::SpecHooksPresent, &[("/hooks", json!({"createRuntime": []}))]);
        refuse_each(
            &config,
            Code::SpecSysctlForbidden,
            &[("/linux/sysctl", json!({"kernel.core_pattern": "|/bin/sh"}))],
        );
        refuse_each(
            &config,
            Code::SpecResourcesForbidden,
            &[
                ("/linux/resources/memory", json!({"limit": (64 << 20) + 1})),
                ("/linux/resources/unified", json!({"memory.min": "1"})),
                ("/linux/resources/unified", json!({"memory.swap.max": "max"})),
            ],
        );
    }
    refuse_each(
        &container_spec(),
        Code::SpecMountForbidden,
        &[("/mounts/4/options", json!(["rw"])), ("/mounts/5/options", json!(["rw"]))],
    );
}

type Change = fn(&mut LeaseClaims);

#[test]
fn a_lease_that_was_claimed_for_another_container_is_refused() {
    let cases: [Change; 3] = [
        |c| c.claim.as_mut().unwrap().container = in_k8s(&"d0".repeat(32)),
        |c| c.claim.as_mut().unwrap().container.namespace = "nimbus".parse().unwrap(),
        |c| c.claim.as_mut().unwrap().container = in_k8s(SANDBOX),
    ];
    for change in cases {
        let facts = in_pod(&container_spec(), change);
        refused(&facts, Code::LeaseWrongContainer, "another container");
    }
    // A lease that was claimed is of no use on the agent's own path either.
    let facts = with_claims(|claims| {
        claims.claim =
            Some(nimbus_api::lease::LeasedClaim { container: in_k8s(CONTAINER), pod: None });
    });
    refused(&facts, Code::LeaseWrongContainer, "the agent's container");
}

#[test]
fn a_namespace_that_the_policy_does_not_map_is_not_leased_whoever_signed() {
    let facts = || container(&container_spec());
    for rules in [
        String::new(),
        CLAIM.replace("tenant-a", "tenant-b"),
        CLAIM.replace("org = \"acme\"", "org = \"other\""),
        CLAIM.replace("network = \"pod\"", "network = \"none\""),
        CLAIM.replace("network = \"pod\"\n", ""),
    ] {
        let facts = Facts { policy: with_rules(&rules), ..facts() };
        refused(&facts, Code::ClaimNotMapped, &rules);
    }
    refused(&Facts { policy: PolicyFact::Missing, ..facts() }, Code::PolicyMissing, "no policy");
    let bad = nimbus_api::Refusal::new(Code::PolicyBadSignature);
    refused(
        &Facts { policy: PolicyFact::Refused(bad), ..facts() },
        Code::PolicyBadSignature,
        "bad",
    );
    // Whoever the ticket says, and less than the policy gives.
    let rules = CLAIM.replace("org = \"acme\"\n", "").replace("500", "501");
    admit(&Facts { policy: with_rules(&rules), ..facts() }).unwrap();
    for (name, most) in [("cpu_millis = 500", 499), ("67108864", 67_108_863), ("pids = 64", 63)] {
        let value = name.rsplit(' ').next().unwrap();
        let rules = CLAIM.replace(name, &name.replace(value, &most.to_string()));
        let facts = Facts { policy: with_rules(&rules), ..facts() };
        refused(&facts, Code::LeaseResources, name);
    }
    let scratch =
        in_pod(&container_spec(), |claims| claims.resources.scratch_bytes = (4 << 20) + 1);
    refused(&scratch, Code::LeaseResources, "scratch");
    let rules = CLAIM.replace("network", "capabilities = [\"CAP_CHOWN\"]\nnetwork");
    let facts = Facts { policy: with_rules(&rules), ..facts() };
    refused(&facts, Code::ClaimNotMapped, "CAP_KILL, which the policy does not give");
}

#[test]
fn a_claim_outside_kubernetes_needs_its_own_rule_and_has_no_network() {
    const RULE: &str = r#"
[[claim]]
namespace = "testing"
org = "acme"
most = { cpu_millis = 500, memory_bytes = 67108864, pids = 64, scratch_bytes = 4194304 }
"#;
    let facts = |egress: LeasedEgress, rules: &str| {
        let key = nimbus_api::id::ContainerKey {
            namespace: "testing".parse().unwrap(),
            id: "c1".parse().unwrap(),
        };
        let mut facts = with_claims(|claims| {
            claims.policy = None;
            claims.egress = egress;
            let container = key.clone();
            claims.claim = Some(nimbus_api::lease::LeasedClaim { container, pod: None });
        });
        facts.container = key;
        facts.task.stdout.clear();
        facts.policy = with_rules(rules);
        facts.network = NetworkFact::Ready;
        facts
    };
    let plan = admit(&facts(LeasedEgress::None, RULE)).unwrap();
    assert_eq!((plan.pod, plan.binds, plan.joins), (None, vec![], vec![]));
    refused(&facts(LeasedEgress::None, CLAIM), Code::ClaimNotMapped, "only pods are mapped");
    refused(&facts(LeasedEgress::Pod, RULE), Code::ClaimNotMapped, "a pod's network");
    let rules = vec!["192.0.2.0/24:443/tcp".parse().unwrap()];
    let rules = nimbus_api::egress::EgressRules::sorted(rules).unwrap();
    refused(&facts(LeasedEgress::Allow(rules), RULE), Code::ClaimNotMapped, "an allow-list");
    let mut pod = facts(LeasedEgress::None, RULE);
    pod.pod = PodFact::Sandbox(record());
    refused(&pod, Code::PodMismatch, "a sandbox came from somewhere");
    // And no pod's container runs on a lease that names no pod.
    let in_k8s = in_pod(&container_spec(), |claims| claims.claim.as_mut().unwrap().pod = None);
    refused(&in_k8s, Code::ClaimNotMapped, "k8s.io without a pod");
}

#[test]
fn a_container_whose_sandbox_is_not_held_here_is_refused() {
    for pod in [PodFact::None, PodFact::SandboxMissing] {
        let facts = Facts { pod, ..container(&container_spec()) };
        refused(&facts, Code::PodSandboxMissing, "no sandbox");
    }
    // A sandbox needs none, and cannot be in one.
    for pod in [PodFact::SandboxMissing, PodFact::Sandbox(record())] {
        let facts = Facts { pod, ..container(&sandbox_spec()) };
        refused(&facts, Code::PodMismatch, "a sandbox in a sandbox");
    }
    let facts = Facts { pod: PodFact::Sandbox(record()), ..good() };
    refused(&facts, Code::PodMismatch, "a job in a sandbox");
}

#[test]
fn a_container_that_does_not_belong_to_the_sandbox_is_refused() {
    type Spoil = fn(&mut SandboxRecord);
    let records: [(&str, Spoil); 11] = [
        ("another org", |r| r.org = "other".parse().unwrap()),
        ("another Kubernetes namespace", |r| r.pod.namespace = "tenant-b".to_owned()),
        ("another name", |r| r.pod.name = "pod-b".to_owned()),
        ("another uid", |r| r.pod.uid.push('0')),
        ("another sandbox", |r| r.container.id = CONTAINER.parse().unwrap()),
        ("another sandbox by its lease", |r| r.pod.sandbox = CONTAINER.parse().unwrap()),
        ("another containerd namespace", |r| r.container.namespace = "nimbus".parse().unwrap()),
        ("a container that is no sandbox", |r| r.pod.container = Some("main".to_owned())),
        ("another network", |r| r.network = LeasedEgress::None),
        ("nobody's pid", |r| r.pid = 0),
        ("the host's first pid", |r| r.pid = 1),
    ];
    for (case, spoil) in records {
        let mut record = record();
        spoil(&mut record);
        let facts = Facts { pod: PodFact::Sandbox(record), ..container(&container_spec()) };
        refused(&facts, Code::PodMismatch, case);
    }
    let own = in_pod(&container_spec(), |claims| {
        claims.claim.as_mut().unwrap().pod.as_mut().unwrap().sandbox = CONTAINER.parse().unwrap();
    });
    refused(&own, Code::PodMismatch, "its own sandbox");
    let another = in_pod(&sandbox_spec(), |claims| {
        claims.claim.as_mut().unwrap().pod.as_mut().unwrap().sandbox = CONTAINER.parse().unwrap();
    });
    refused(&another, Code::PodMismatch, "a sandbox that is another's");
    // With the network that it has itself, and that its sandbox has not.
    let alone = in_pod(&container_spec(), |claims| claims.egress = LeasedEgress::None);
    refused(&alone, Code::PodMismatch, "without the pod's network");
}

#[test]
fn a_specification_that_says_it_is_of_another_pod_is_refused() {
    for config in [container_spec(), sandbox_spec()] {
        let annotations = config["annotations"].as_object().unwrap().clone();
        for name in
            ["container-type", "sandbox-id", "sandbox-namespace", "sandbox-name", "sandbox-uid"]
        {
            let name = format!("io.kubernetes.cri.{name}");
            let facts = |annotations: &serde_json::Map<String, Value>| {
                let mut facts = container(&config);
                let mut config = config.clone();
                config["annotations"] = annotations.clone().into();
                facts.task.config_json = config.to_string().into_bytes();
                facts
            };
            let mut other = annotations.clone();
            other.insert(name.clone(), json!("other"));
            refused(&facts(&other), Code::PodMismatch, &name);
            other.remove(&name);
            refused(&facts(&other), Code::PodMismatch, &name);
        }
    }
    let mut config = container_spec();
    config["annotations"]["io.kubernetes.cri.container-name"] = json!("sidecar");
    refused(&container(&config), Code::PodMismatch, "another container of the pod");
    // In the CRI plugin's namespace a lease without a pod is not enough.
    let mut facts = with_config(&container_spec());
    facts.container = in_k8s(CONTAINER);
    facts.task.stdout.clear();
    refused(&facts, Code::PodMismatch, "a lease of no pod");
}

#[test]
fn binds_are_a_part_of_what_the_lease_names() {
    let mut facts = container(&container_spec());
    for (pointer, value) in [
        ("/mounts/12/options", json!(["rbind", "rprivate", "rw"])),
        ("/mounts/6/destination", json!("/elsewhere")),
        ("/mounts/6/source", json!(format!("{KUBELET}/volumes/kubernetes.io~secret/token"))),
    ] {
        let mut config = container_spec();
        set(&mut config, pointer, value);
        facts.task.config_json = config.to_string().into_bytes();
        refused(&facts, Code::LeaseWrongProcess, pointer);
    }
}

#[test]
fn a_pods_network_is_not_leased_to_jobs_nor_together_with_raw_sockets() {
    let job = with_claims(|claims| claims.egress = LeasedEgress::Pod);
    refused(&job, Code::LeaseUnsupported, "a job");
    let raw =
        in_pod(&container_spec(), |claims| claims.capabilities.push("CAP_NET_RAW".to_owned()));
    refused(&raw, Code::EgressForbidden, "raw sockets");
}

#[test]
fn a_digest_that_the_policy_lists_needs_no_attestation_and_no_other_does_without() {
    let vouching = |digest: &str| {
        POLICY.replace(
            "[[rule]]",
            &format!(
                "[[rule]]\nimages = [\"127.0.0.1:5000/**\"]\ndigests = [\"{}\"]\n[[rule]]",
                super::fixtures::digest(digest)
            ),
        )
    };
    for by in ["index", "manifest"] {
        let mut facts = with_policy(&vouching(by));
        facts.attestations = AttestationFact::Outcomes(vec![]);
        assert_eq!(admit(&facts).unwrap().image.attestations, []);
        let down = nimbus_api::Refusal::new(Code::VerifyDown);
        facts.attestations = AttestationFact::Unavailable(down);
        admit(&facts).unwrap();
    }
    let image = claims().images.remove(0);
    assert_eq!(crate::may_fetch(&with_policy(&vouching("index")).policy, &image, 0), Ok(()));
    let mut other = with_policy(&vouching("another"));
    other.attestations = AttestationFact::Outcomes(vec![]);
    refused(&other, Code::ImageUnattested, "another digest");
    let refusal = crate::may_fetch(&other.policy, &image, 0).unwrap_err();
    assert_eq!(refusal.code, Code::ImageUnattested);
    // A rule may list digests and ask for attestations too.
    let both = vouching("index").replacen("[[rule]]", "[[rule]]\nrequire = [\"provenance\"]", 1);
    let mut facts = with_policy(&both);
    admit(&facts).unwrap();
    facts.attestations = AttestationFact::Outcomes(vec![]);
    refused(&facts, Code::ImageUnattested, "listed, and yet to be attested");
    // What is denied stays denied.
    let denied = format!("{}\n[deny]\ndigests = [\"{}\"]\n", vouching("index"), digest("manifest"));
    refused(&with_policy(&denied), Code::ImageDenied, "denied");
    assert_eq!(
        crate::may_fetch(
            &with_policy(
                &denied.replace(&digest("manifest").to_string(), &digest("index").to_string())
            )
            .policy,
            &image,
            0
        )
        .unwrap_err()
        .code,
        Code::ImageDenied
    );
}

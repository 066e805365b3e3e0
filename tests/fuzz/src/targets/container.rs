//! What a client of containerd asks for.

use std::path::Component;
use std::sync::OnceLock;

use nimbus_api::id::ContainerKey;
use nimbus_api::lease::LeaseClaims;
use nimbus_api::plan::Plan;
use nimbus_api::proto::admit::v1::Admit;
use nimbus_hooks::facts::{NodeFacts, PodRoots, TaskFacts};
use prost::Message as _;

const LOG_ROOT: &str = "/var/log/nimbus/jobs";
const FIFO_ROOT: &str = "/run/containerd/fifo";

/// Any `config.json` ends in a projection or in a refusal. What it runs has one digest, and whatever
/// it asked for, the projection has the lease's capabilities at most, no new privileges, no hooks, no
/// device, no namespace of somebody else's, and the mounts of every other job.
pub fn spec(data: &[u8]) {
    if let Ok(process) = nimbus_hooks::process_identity(data) {
        let again = nimbus_hooks::process_identity(data).expect("it was read before");
        assert_eq!(process.digest(), again.digest());
    }
    let claims = claims();
    let Ok(spec) = nimbus_hooks::fuzzing::spec(data, &key(), claims) else { return };
    let at = |pointer: &str| spec.pointer(pointer);
    for absent in ["/hooks", "/linux/devices", "/linux/seccomp", "/annotations"] {
        assert_eq!(at(absent), None, "{absent}");
    }
    assert_eq!(at("/process/noNewPrivileges"), Some(&true.into()));
    let sets = at("/process/capabilities").and_then(|sets| sets.as_object()).expect("sets");
    for capability in sets.values().flat_map(|set| set.as_array().expect("a list")) {
        let leased = |name: &String| Some(name.as_str()) == capability.as_str();
        assert!(claims.capabilities.iter().any(leased), "{capability} was not leased");
    }
    let namespaces = at("/linux/namespaces").and_then(|all| all.as_array()).expect("namespaces");
    assert!(namespaces.iter().all(|namespace| namespace.get("path").is_none()), "{namespaces:?}");
    let mounts = at("/mounts").and_then(|all| all.as_array()).expect("mounts");
    assert!(mounts.iter().all(|mount| mount.get("type") != Some(&"bind".into())), "{mounts:?}");
}

/// Any OCI Process ends in what the runtime is to make or in a refusal; what is made has the plan's
/// capabilities at most, its own command, and a terminal when the client attaches one.
pub fn exec_spec(data: &[u8]) {
    let plan = plan();
    for terminal in [false, true] {
        let Ok(made) = nimbus_hooks::exec(plan, data, terminal) else { continue };
        let leased = |name: &String| plan.exec.capabilities.contains(name);
        assert!(made.capabilities.iter().all(leased), "{:?}", made.capabilities);
        assert!(made.cwd.starts_with('/') && !made.args.is_empty(), "{made:?}");
        assert!(made.nofile.soft <= made.nofile.hard, "{made:?}");
        assert_eq!(made.terminal.is_some(), terminal);
        assert_eq!(nimbus_hooks::exec(plan, data, terminal).as_ref(), Ok(&made));
    }
}

/// A plan that is a seed of another target.
fn plan() -> &'static Plan {
    static PLAN: OnceLock<Plan> = OnceLock::new();
    PLAN.get_or_init(|| Plan::parse(include_bytes!("../../seeds/plan/job.json")).expect("a plan"))
}

/// Any `CreateTaskRequest` ends in an answer. What is granted names no checkpoint, no options but
/// runc's, one rootfs mount at most, and streams that the shim too would open: none runs a program,
/// and a file is in the directory of this very container.
/// What `start` is told leads to a path below a hierarchy or to none.
pub fn options(data: &[u8]) {
    if let Some(path) = nimbus_shim::fuzzing::shim_cgroup(data) {
        let plain = |part: Component<'_>| matches!(part, Component::Normal(_));
        assert!(path.is_absolute() && path.components().skip(1).all(plain), "{path:?}");
    }
    let key = key();
    let Some(admit) = nimbus_shim::fuzzing::create(&key, data) else { return };
    let admit = Admit::decode(admit.encode_to_vec().as_slice()).expect("our own message");
    let task = TaskFacts {
        config_json: Vec::new(),
        rootfs_mounts: admit.rootfs.len(),
        checkpoint: admit.checkpoint,
        terminal: admit.terminal,
        options_type: admit.options_type,
        stdin: admit.stdin,
        stdout: admit.stdout,
        stderr: admit.stderr,
    };
    if let Err(refusal) = nimbus_hooks::fuzzing::task(&task, &node(), &key) {
        assert!(refusal.code.as_str().starts_with("spec."), "{refusal}");
        return;
    }
    assert!(!task.checkpoint && task.rootfs_mounts <= 1);
    assert!(task.options_type.is_empty() || task.options_type.ends_with(".v1.Options"));
    for (uri, input) in [(&task.stdin, true), (&task.stdout, false), (&task.stderr, false)] {
        assert!(nimbus_shim::fuzzing::opens(uri, input), "granted, and yet not opened: {uri:?}");
        let path = uri.split_once("://").map_or(uri.as_str(), |(_, path)| path);
        let own = format!("{LOG_ROOT}/");
        let inside = path.starts_with(&format!("{FIFO_ROOT}/"))
            || (uri.starts_with("file://") && path.starts_with(&own) && path.contains("/j1-1/"));
        assert!(uri.is_empty() || (inside && !path.contains("/../")), "{uri:?}");
    }
}

fn key() -> ContainerKey {
    ContainerKey {
        namespace: "nimbus".parse().expect("a constant id"),
        id: "j1-1".parse().expect("a constant id"),
    }
}

fn node() -> NodeFacts {
    NodeFacts {
        thumbprint: None,
        platform: "linux/amd64".to_owned(),
        log_root: LOG_ROOT.to_owned(),
        fifo_roots: vec![FIFO_ROOT.to_owned()],
        skew_seconds: 2,
        cpu_millis_max: 1000,
        memory_bytes_max: 1 << 30,
        pids_max: 100,
        containers: 0,
        containers_max: 1,
        pod_roots: PodRoots::default(),
    }
}

/// Claims that are a seed of another target, with capabilities that may be asked for.
fn claims() -> &'static LeaseClaims {
    static CLAIMS: OnceLock<LeaseClaims> = OnceLock::new();
    CLAIMS.get_or_init(|| {
        let seed = include_bytes!("../../seeds/lease_claims/job.json");
        let claims: LeaseClaims = serde_json::from_slice(seed).expect("claims");
        LeaseClaims { capabilities: vec!["CAP_CHOWN".to_owned(), "CAP_KILL".to_owned()], ..claims }
    })
}

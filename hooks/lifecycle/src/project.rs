//! The projection: a new specification, made field by field from judged parts and the lease.
//!
//! It has no seccomp, no devices and no device rules: those are in the plan, and we enforce them
//! ourselves (rule 5). It has no annotations: the lease token is a secret of the node's.

pub(crate) mod masks;

use nimbus_api::lease::LeasedResources;
use nimbus_api::plan::{DeviceKind, DeviceRule, JoinedNamespace};
use nimbus_api::runtime::TerminalSize;
use serde_json::{Map, Value, json};

use crate::spec::{Judged, StandardMount};

/// The version of the specification that the projection is written in.
const OCI_VERSION: &str = "1.0.2";
/// Period of the CPU quota, microseconds.
const CPU_PERIOD_USEC: u64 = 100_000;
/// Microseconds of quota for one thousandth of a core.
const QUOTA_USEC_PER_MILLI: u64 = CPU_PERIOD_USEC / 1000;
/// The kernel's smallest `cpu.shares`.
const SHARES_MIN: u64 = 2;
/// Terminals that a job may open inside itself (`script`, `expect`): each has a rule of its own,
/// because a rule names one node.
const PTYS: u32 = 16;
/// Major number of `/dev/pts/N`.
const PTS_MAJOR: u32 = 136;

/// The specification of a plan.
pub(crate) fn spec(judged: &Judged, resources: &LeasedResources) -> Value {
    let mut spec = json!({
        "ociVersion": OCI_VERSION,
        "process": process(judged),
        "root": { "path": "rootfs", "readonly": judged.read_only },
        "mounts": mounts(&judged.mounts),
        "linux": {
            "namespaces": namespaces(&judged.joins),
            "sysctl": judged.sysctl,
            "cgroupsPath": judged.cgroups_path,
            "resources": limits(resources),
            "maskedPaths": union(&masks::MASKED, &judged.masked_paths),
            "readonlyPaths": union(&masks::READ_ONLY, &judged.readonly_paths),
            "rootfsPropagation": "private",
        },
    });
    if let (Some(name), Some(spec)) = (&judged.hostname, spec.as_object_mut()) {
        spec.insert("hostname".to_owned(), name.clone().into());
    }
    spec
}

fn process(judged: &Judged) -> Value {
    let identity = &judged.process;
    let mut user = Map::new();
    user.insert("uid".to_owned(), identity.uid.into());
    user.insert("gid".to_owned(), identity.gid.into());
    user.insert("additionalGids".to_owned(), identity.additional_gids.clone().into());
    if let Some(umask) = judged.umask {
        user.insert("umask".to_owned(), umask.into());
    }
    let mut process = Map::new();
    let mut put = |name: &str, value: Value| process.insert(name.to_owned(), value);
    put("terminal", judged.terminal.is_some().into());
    if let Some(size) = judged.terminal.filter(|size| *size != TerminalSize::default()) {
        put("consoleSize", json!({ "height": size.rows, "width": size.columns }));
    }
    put("user", user.into());
    put("args", identity.args.clone().into());
    put("env", identity.env.clone().into());
    put("cwd", identity.cwd.clone().into());
    put("noNewPrivileges", true.into());
    put(
        "capabilities",
        json!({
            "bounding": judged.capabilities,
            "effective": judged.capabilities,
            "permitted": judged.capabilities,
            "inheritable": [],
            "ambient": [],
        }),
    );
    put(
        "rlimits",
        json!([
            { "type": "RLIMIT_NOFILE", "soft": judged.nofile.soft, "hard": judged.nofile.hard },
            // A core would go where the host's pattern says.
            { "type": "RLIMIT_CORE", "soft": 0, "hard": 0 },
        ]),
    );
    // Never left out: what is inherited is containerd's, and far below zero.
    put("oomScoreAdj", judged.oom_score_adj.into());
    process.into()
}

fn mounts(standard: &[&StandardMount]) -> Value {
    standard
        .iter()
        .map(|mount| {
            json!({
                "destination": mount.destination,
                "type": mount.kind,
                "source": mount.source,
                "options": mount.options,
            })
        })
        .collect()
}

/// The new ones: a namespace that is joined comes as a descriptor.
fn namespaces(joins: &[JoinedNamespace]) -> Value {
    let joined = |kind: &str| {
        joins.iter().any(|join| match join {
            JoinedNamespace::Network => kind == "network",
            JoinedNamespace::Ipc => kind == "ipc",
            JoinedNamespace::Uts => kind == "uts",
            JoinedNamespace::Pid => kind == "pid",
        })
    };
    ["pid", "network", "mount", "ipc", "uts", "cgroup"]
        .iter()
        .filter(|kind| !joined(kind))
        .map(|kind| json!({ "type": kind }))
        .collect()
}

/// Time on processors, as the kernel counts it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CpuLimits {
    pub(crate) shares: u64,
    /// Microseconds in each period.
    pub(crate) quota: u64,
    /// Microseconds.
    pub(crate) period: u64,
}

/// What a lease gives of it.
pub(crate) fn cpu_limits(resources: &LeasedResources) -> CpuLimits {
    let millis = u64::from(resources.cpu_millis);
    CpuLimits {
        shares: (millis * 1024 / 1000).max(SHARES_MIN),
        quota: millis * QUOTA_USEC_PER_MILLI,
        period: CPU_PERIOD_USEC,
    }
}

fn limits(resources: &LeasedResources) -> Value {
    let CpuLimits { shares, quota, period } = cpu_limits(resources);
    json!({
        // "swap" is memory and swap together: the same number is no swap.
        "memory": { "limit": resources.memory_bytes, "swap": resources.memory_bytes },
        "cpu": { "shares": shares, "quota": quota, "period": period },
        "pids": { "limit": resources.pids },
    })
}

fn union(ours: &[&str], given: &[String]) -> Vec<String> {
    let mut paths: Vec<String> = ours.iter().map(|path| (*path).to_owned()).collect();
    for path in given {
        if !paths.contains(path) {
            paths.push(path.clone());
        }
    }
    paths
}

/// The device allow-list of a job without a leased device.
pub(crate) fn devices() -> Vec<DeviceRule> {
    let character = |path: String, major, minor, mode| DeviceRule {
        path,
        kind: DeviceKind::Character,
        major,
        minor,
        writable: true,
        mode,
    };
    let nodes = [
        ("null", 1, 3),
        ("zero", 1, 5),
        ("full", 1, 7),
        ("random", 1, 8),
        ("urandom", 1, 9),
        ("tty", 5, 0),
    ];
    let nodes = nodes
        .into_iter()
        .map(|(name, major, minor)| character(format!("/dev/{name}"), major, minor, Some(0o666)));
    // Both are made by devpts; /dev/ptmx is a link to pts/ptmx.
    let ptmx = character("/dev/ptmx".to_owned(), 5, 2, None);
    let ptys = (0..PTYS).map(|n| character(format!("/dev/pts/{n}"), PTS_MAJOR, n, None));
    nodes.chain([ptmx]).chain(ptys).collect()
}

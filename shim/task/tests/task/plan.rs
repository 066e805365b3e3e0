//! A plan made by hand and a busybox root for it.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use nimbus_api::Digest;
use nimbus_api::clock::{BootNanos, Clock as _, SystemClock};
use nimbus_api::id::ContainerKey;
use nimbus_api::lease::{LeasedEgress, LeasedResources, ScratchMedium};
use nimbus_api::plan::{
    DeviceKind, DeviceRule, ExecClause, PLAN_VERSION, Plan, PlanImage, PlanLease, PlanSeccomp,
    RootfsRecipe,
};
use nimbus_api::proto::admit::v1::Granted;
use rustix::fs::{CWD, MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use rustix::mount::{OpenTreeFlags, open_tree};
use serde_json::{Value, json};

use crate::agent::Answer;

const MEBI: u64 = 1 << 20;
const HOUR_SECONDS: u64 = 3600;
const APPLETS: [&str; 10] =
    ["sh", "echo", "cat", "true", "sleep", "tail", "yes", "head", "stty", "tty"];
const CAPABILITIES: [&str; 2] = ["CAP_CHOWN", "CAP_KILL"];

/// A filter that allows everything: `ld nr; ret allow` in native endian.
fn filter() -> Vec<u8> {
    let instruction = |code: u16, k: u32| {
        let mut bytes = code.to_ne_bytes().to_vec();
        bytes.extend([0, 0]);
        bytes.extend(k.to_ne_bytes());
        bytes
    };
    [instruction(0x20, 0), instruction(0x06, 0x7fff_0000)].concat()
}

/// Runs a shell script, an hour at most.
pub(crate) fn plan(key: &ContainerKey, script: &str) -> Plan {
    let digest = Digest::of(b"test");
    let resources = LeasedResources {
        cpu_millis: 1000,
        memory_bytes: 64 * MEBI,
        pids: 32,
        scratch_bytes: 16 * MEBI,
        scratch: ScratchMedium::Memory,
        log_bytes: 64 << 10,
    };
    Plan {
        version: PLAN_VERSION,
        container: key.clone(),
        lease: PlanLease {
            lease_id: "l1".parse().unwrap(),
            job: "j1".parse().unwrap(),
            attempt: 1,
            org: "org".parse().unwrap(),
            token_sha256: digest,
        },
        image: PlanImage {
            name: "test".to_owned(),
            digest,
            manifest: digest,
            platform: "linux/amd64".to_owned(),
            attestations: vec![],
        },
        rootfs: RootfsRecipe {
            layers: vec![digest],
            digest,
            scratch_bytes: 16 * MEBI,
            scratch: ScratchMedium::Memory,
            read_only: false,
        },
        spec: spec(key, &resources, script),
        seccomp: PlanSeccomp {
            profile: "test".to_owned(),
            program_sha256: Digest::of(&filter()),
            instructions: 2,
        },
        devices: [("null", 1, 3), ("zero", 1, 5)]
            .map(|(name, major, minor)| node(name, major, minor))
            .to_vec(),
        resources,
        egress: LeasedEgress::None,
        binds: Vec::new(),
        joins: Vec::new(),
        pod: None,
        exec: ExecClause { capabilities: vec![] },
        deadline: SystemClock.boottime().plus_seconds(HOUR_SECONDS),
        policy_serial: 1,
        tightened: vec![],
    }
}

/// This many milliseconds from now.
pub(crate) fn soon(milliseconds: u64) -> BootNanos {
    BootNanos(SystemClock.boottime().0 + milliseconds * 1_000_000)
}

pub(crate) fn node(name: &str, major: u32, minor: u32) -> DeviceRule {
    DeviceRule {
        path: format!("/dev/{name}"),
        kind: DeviceKind::Character,
        major,
        minor,
        writable: true,
        mode: Some(0o666),
    }
}

fn spec(key: &ContainerKey, leased: &LeasedResources, script: &str) -> Value {
    let mount = |at: &str, kind: &str, options: &[&str]| json!({"destination": at, "type": kind, "source": kind, "options": options});
    let namespaces = ["pid", "ipc", "uts", "mount", "network"].map(|kind| json!({"type": kind}));
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": ["/bin/sh", "-c", script],
            "env": ["PATH=/bin"],
            "cwd": "/",
            "capabilities": {
                "bounding": CAPABILITIES, "effective": CAPABILITIES, "permitted": CAPABILITIES},
            "noNewPrivileges": true
        },
        "root": {"path": "rootfs"},
        "mounts": [
            mount("/proc", "proc", &["nosuid", "noexec", "nodev"]),
            mount("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
            mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"])],
        "linux": {
            "cgroupsPath": format!("/nimbus-test-{}", key.id),
            "namespaces": namespaces,
            "resources": {
                "memory": {"limit": leased.memory_bytes, "swap": leased.memory_bytes},
                "cpu": {"quota": u64::from(leased.cpu_millis) * 100, "period": 100_000},
                "pids": {"limit": leased.pids}},
            "maskedPaths": ["/proc/kcore"],
            "readonlyPaths": ["/proc/sys"],
            "rootfsPropagation": "private"
        }
    })
}

/// A root with a shell.
pub(crate) fn busybox_root(dir: &Path) -> PathBuf {
    let root = dir.join("layer");
    for name in ["bin", "dev", "proc", "sys", "tmp"] {
        fs::create_dir_all(root.join(name)).unwrap();
    }
    let busybox = root.join("bin/busybox");
    fs::write(&busybox, fs::read("/bin/busybox").unwrap()).unwrap();
    fs::set_permissions(&busybox, fs::Permissions::from_mode(0o755)).unwrap();
    for applet in APPLETS {
        symlink("busybox", root.join("bin").join(applet)).unwrap();
    }
    root
}

/// The message of a plan.
pub(crate) fn granted(plan: &Plan) -> Granted {
    let plan_json = plan.to_json();
    let plan_sha256 = Digest::of(&plan_json).to_string();
    Granted { plan_json, plan_sha256 }
}

/// Grants this plan over this layer.
pub(crate) fn grant(plan: &Plan, layer: PathBuf) -> Answer {
    Answer::Grant(granted(plan), Box::new(move || vec![sealed_filter(), detached(&layer)]))
}

pub(crate) fn sealed_filter() -> OwnedFd {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let mut file = File::from(memfd_create("filter", flags).unwrap());
    file.write_all(&filter()).unwrap();
    let seals = SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
    fcntl_add_seals(&file, seals).unwrap();
    file.into()
}

pub(crate) fn detached(layer: &Path) -> OwnedFd {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    open_tree(CWD, layer, flags).unwrap()
}

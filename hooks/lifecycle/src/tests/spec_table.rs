//! The list of what a specification may not ask for, each with its code; and what is tightened.

use nimbus_api::RefusalCode as Code;
use serde_json::{Value, json};

use super::fixtures::*;
use crate::{CONFIG_BYTES_MAX, admit};

/// Sets a value at a JSON pointer, making the last key; `-` appends.
pub(super) fn set(config: &mut Value, pointer: &str, value: Value) {
    let (parent, last) = pointer.rsplit_once('/').unwrap();
    match config.pointer_mut(parent).unwrap() {
        Value::Object(map) => {
            map.insert(last.to_owned(), value);
        }
        Value::Array(list) if last == "-" => list.push(value),
        Value::Array(list) => list[last.parse::<usize>().unwrap()] = value,
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => panic!("{parent}"),
    }
}

fn refuse_each(code: Code, changes: &[(&str, Value)]) {
    for (pointer, value) in changes {
        let mut config = config();
        set(&mut config, pointer, value.clone());
        refused(&with_config(&config), code, &format!("{pointer} = {value}"));
    }
}

#[test]
fn a_real_spec_of_containerd_1_6_is_granted() {
    let plan = admit(&good()).unwrap();
    assert_eq!(plan.spec["process"]["args"], json!(["/bin/true", "a", "b"]));
    assert_eq!(plan.spec["linux"]["cgroupsPath"], "/nimbus/j1-1");
    assert_eq!(plan.spec["linux"]["resources"]["cpu"]["quota"], 50_000);
    assert!(plan.spec.get("annotations").is_none());
    // The specification does not say; containerd's own, far below zero, would be inherited.
    assert_eq!(plan.spec["process"]["oomScoreAdj"], 0);
}

#[test]
fn hooks_and_host_namespaces_are_refused() {
    refuse_each(
        Code::SpecHooksPresent,
        &[("/hooks", json!({"prestart": [{"path": "/bin/sh"}]})), ("/hooks", json!({}))],
    );
    refuse_each(
        Code::SpecHostNamespace,
        &[
            ("/linux/namespaces", json!([])),
            ("/linux/namespaces/0/path", json!("/proc/1/ns/pid")),
            ("/linux/namespaces/4/path", json!("/run/netns/x")),
        ],
    );
    for missing in 0..5 {
        let mut config = config();
        config["linux"]["namespaces"].as_array_mut().unwrap().remove(missing);
        refused(&with_config(&config), Code::SpecHostNamespace, "one is missing");
    }
    refuse_each(
        Code::SpecPrivilegeForbidden,
        &[
            ("/linux/namespaces/-", json!({"type": "user"})),
            ("/linux/uidMappings", json!([{"containerID": 0, "hostID": 0, "size": 1}])),
            ("/linux/intelRdt", json!({})),
            ("/linux/personality", json!({"domain": "LINUX32"})),
            ("/linux/timeOffsets", json!({"boottime": {"secs": 1}})),
            ("/process/oomScoreAdj", json!(-1)),
            ("/process/scheduler", json!({"policy": "SCHED_FIFO"})),
            ("/process/cwd", json!("/proc/self/fd/7")),
            ("/process/cwd", json!("//proc/self/fd/7")),
            ("/linux/resources/cpu", json!({"realtimeRuntime": 1})),
            ("/linux/resources/memory", json!({"disableOOMKiller": true})),
        ],
    );
}

#[test]
fn binds_other_mounts_and_propagation_are_refused() {
    let mount = |destination: &str, kind: &str, options: &[&str]| json!({"destination": destination, "type": kind, "source": "/etc", "options": options});
    refuse_each(
        Code::SpecBindForbidden,
        &[
            ("/mounts/-", mount("/etc/resolv.conf", "bind", &["rbind", "ro"])),
            ("/mounts/-", mount("/x", "", &["bind"])),
            ("/mounts/0", mount("/proc", "proc", &["rbind"])),
        ],
    );
    refuse_each(
        Code::SpecPropagationForbidden,
        &[
            ("/mounts/-", mount("/x", "bind", &["rbind", "rshared"])),
            ("/mounts/0/options/-", json!("slave")),
            ("/linux/rootfsPropagation", json!("shared")),
            ("/linux/rootfsPropagation", json!("rslave")),
        ],
    );
    refuse_each(
        Code::SpecMountForbidden,
        &[
            ("/mounts/-", mount("/x", "tmpfs", &[])),
            ("/mounts/-", mount("/proc/sys", "tmpfs", &[])),
            ("/mounts/-", mount("/proc/", "proc", &[])),
            ("/mounts/-", mount("/proc", "proc", &[])),
            ("/mounts/0", mount("/proc", "overlay", &["lowerdir=/"])),
            ("/mounts/1/options/-", json!("dev")),
            ("/mounts/1/options/-", json!("idmap")),
            ("/mounts/5/options", json!(["rw"])),
            ("/mounts/-", mount("/sys/fs/cgroup", "cgroup", &["rw"])),
            ("/mounts/0/uidMappings", json!([])),
            ("/linux/maskedPaths/-", json!("/etc/../proc/kcore")),
            ("/linux/readonlyPaths/-", json!("/usr")),
        ],
    );
    refuse_each(
        Code::SpecRootfsForbidden,
        &[
            ("/root/path", json!("/")),
            ("/root/path", json!("/tmp/dir")),
            ("/root/path", json!("../rootfs")),
            ("/root/path", json!("/run/../rootfs")),
        ],
    );
}

#[test]
fn devices_capabilities_and_filters_beyond_the_lease_are_refused() {
    refuse_each(
        Code::DeviceNotLeased,
        &[
            ("/linux/devices", json!([{"path": "/dev/nvidia0", "type": "c"}])),
            ("/linux/resources/devices/-", json!({"allow": true, "access": "rwm"})),
            (
                "/linux/resources/devices/-",
                json!({"allow": true, "type": "c", "major": 195, "minor": 0, "access": "rw"}),
            ),
            ("/linux/resources/devices/-", json!({"allow": true, "type": "c", "major": 1})),
            (
                "/linux/resources/devices/-",
                json!({"allow": true, "type": "b", "major": 1, "minor": 3}),
            ),
            ("/annotations", json!({"cdi.k8s.io/x": "nvidia.com/gpu=0"})),
        ],
    );
    let sets = ["bounding", "effective", "permitted", "inheritable", "ambient"];
    for set_name in sets {
        let mut config = config();
        set(&mut config, &format!("/process/capabilities/{set_name}"), json!(["CAP_SYS_ADMIN"]));
        refused(&with_config(&config), Code::SpecCapabilityForbidden, set_name);
    }
    refuse_each(
        Code::SpecSeccompForbidden,
        &[
            ("/linux/seccomp", json!({"defaultAction": "SCMP_ACT_ALLOW"})),
            ("/linux/seccomp", json!({"defaultAction": "SCMP_ACT_LOG", "syscalls": []})),
            (
                "/linux/seccomp",
                json!({"defaultAction": "SCMP_ACT_ALLOW",
                       "syscalls": [{"names": ["read"], "action": "SCMP_ACT_ALLOW"}]}),
            ),
            ("/linux/seccomp/listenerPath", json!("/run/listener")),
            ("/linux/seccomp/defaultAction", json!("SCMP_ACT_NOTIFY")),
            ("/linux/seccomp/syscalls/0/action", json!("SCMP_ACT_NOTIFY")),
        ],
    );
}

#[test]
fn users_sysctls_and_resources_beyond_the_lease_are_refused() {
    refuse_each(
        Code::SpecUserForbidden,
        &[
            ("/process/user/uid", json!(1_u32 << 31)),
            ("/process/user/gid", json!(u32::MAX)),
            ("/process/user/additionalGids", json!([u32::MAX])),
            ("/process/user/username", json!("root")),
        ],
    );
    refuse_each(
        Code::SpecSysctlForbidden,
        &[
            ("/linux/sysctl", json!({"kernel.core_pattern": "|/bin/sh"})),
            ("/linux/sysctl", json!({"net.ipv4.ip_forward": "1"})),
            ("/linux/sysctl", json!({"net.ipv4.ping_group_range": "0 1\n"})),
        ],
    );
    refuse_each(
        Code::SpecResourcesForbidden,
        &[
            ("/linux/resources/memory", json!({"limit": (64 << 20) + 1})),
            ("/linux/resources/memory", json!({"limit": -1})),
            ("/linux/resources/memory", json!({"swap": -1})),
            ("/linux/resources/cpu", json!({"quota": 50_001, "period": 100_000})),
            ("/linux/resources/cpu", json!({"quota": 50_001})),
            ("/linux/resources/cpu", json!({"quota": 2, "period": 3})),
            ("/linux/resources/pids", json!({"limit": 65})),
            ("/linux/resources/unified", json!({"memory.max": "max"})),
        ],
    );
    refuse_each(Code::SpecTerminalMismatch, &[("/process/terminal", json!(true))]);
}

#[test]
fn a_text_that_is_not_a_strict_specification_is_refused() {
    refuse_each(
        Code::SpecUnknownField,
        &[
            ("/windows", json!({})),
            ("/vm", json!({})),
            ("/linux/novel", json!(1)),
            ("/process/user/novel", json!(1)),
            ("/mounts/0/novel", json!(1)),
        ],
    );
    refuse_each(
        Code::SpecMalformed,
        &[
            ("/ociVersion", json!("2.0")),
            ("/process/args", json!([])),
            ("/process/args/-", json!("a\0b")),
            ("/process/env/-", json!("=x")),
            ("/process/cwd", json!("relative")),
            ("/process/cwd", json!("/a/../proc/self")),
            ("/linux", Value::Null),
            ("/root", Value::Null),
            ("/linux/cgroupsPath", json!("/../x")),
            ("/linux/namespaces/-", json!({"type": "novel"})),
            ("/linux/namespaces/-", json!({"type": "pid"})),
            ("/hostname", json!("a b")),
        ],
    );
    let mut twice = good();
    let text = CTR_SPEC.replacen('{', r#"{"root":{"path":"rootfs"},"#, 1);
    twice.task.config_json = text.into_bytes();
    refused(&twice, Code::SpecDuplicateKey, "root twice");
    let mut long = good();
    long.task.config_json.resize(CONFIG_BYTES_MAX + 1, b' ');
    refused(&long, Code::SpecTooLarge, "too long");
}

#[test]
fn a_plan_too_long_to_be_sent_is_refused() {
    let mut config = config();
    // Each quote is one byte here and two in the plan.
    set(&mut config, "/process/args/-", json!("\"".repeat(CONFIG_BYTES_MAX / 2 - 20_000)));
    config["linux"]["seccomp"] = Value::Null;
    let size = config.to_string().len();
    assert!(size < CONFIG_BYTES_MAX);
    config["process"]["args"]
        .as_array_mut()
        .unwrap()
        .push(json!("x".repeat(CONFIG_BYTES_MAX - size - 8)));
    refused(&with_config(&config), Code::SpecTooLarge, "the plan");
}

#[test]
fn what_is_absent_or_weaker_is_set_and_noted() {
    let bare = json!({
        "ociVersion": "1.0.2",
        "process": {"user": {}, "args": ["/bin/true"], "cwd": "/", "noNewPrivileges": false,
                    "apparmorProfile": "unconfined", "selinuxLabel": "x",
                    "rlimits": [{"type": "RLIMIT_CORE", "hard": 1, "soft": 1},
                                {"type": "RLIMIT_NOFILE", "hard": 1_000_000, "soft": 1_000_000}]},
        "root": {"path": "rootfs", "readonly": true},
        "linux": {
            "namespaces": [{"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"},
                           {"type": "network", "path": ""}],
            "cgroupsPath": "/default/another",
            "maskedPaths": ["/proc/kcore", "/sys/mine"]},
    });
    let plan = admit(&with_config(&bare)).unwrap();
    let expected = [
        "process.noNewPrivileges",
        "linux.seccomp",
        "linux.maskedPaths",
        "linux.readonlyPaths",
        "linux.namespaces: cgroup",
        "mounts: /dev",
        "hostname",
        "linux.cgroupsPath",
        "linux.resources.memory",
        "linux.resources.cpu",
        "linux.resources.pids",
        "process.rlimits: RLIMIT_NOFILE cut",
        "process.rlimits: only",
        "security label",
    ];
    for part in expected {
        assert!(
            plan.tightened.iter().any(|line| line.contains(part)),
            "{part}: {:?}",
            plan.tightened
        );
    }
    assert_eq!(plan.spec["process"]["noNewPrivileges"], true);
    assert_eq!(plan.spec["process"]["rlimits"][0]["hard"], 65_536);
    assert_eq!(plan.spec["process"]["capabilities"]["bounding"], json!([]));
    assert_eq!(plan.spec["hostname"], "j1-1");
    assert_eq!(plan.spec["linux"]["cgroupsPath"], "/nimbus/nimbus@j1-1");
    assert!(plan.spec["linux"]["maskedPaths"].as_array().unwrap().contains(&json!("/sys/mine")));
    assert!(plan.rootfs.read_only);
}

#[test]
fn a_terminal_that_both_ask_for_is_planned_with_its_size() {
    let mut config = config();
    config["process"]["terminal"] = json!(true);
    let mut facts = with_config(&config);
    facts.task.terminal = true;
    assert_eq!(admit(&facts).unwrap().spec["process"]["terminal"], true);
    config["process"]["consoleSize"] = json!({"height": 24, "width": 80});
    facts.task.config_json = config.to_string().into_bytes();
    let plan = admit(&facts).unwrap();
    assert_eq!(plan.spec["process"]["consoleSize"], json!({"height": 24, "width": 80}));
}

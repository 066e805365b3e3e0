//! `config.json` as it comes: every field of the OCI runtime specification 1.2 for Linux, none
//! trusted. A field that is not here is refused (`spec.unknown_field`).
//!
//! What is refused whenever it is there has no shape here: its presence is enough.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct Spec {
    pub(crate) oci_version: String,
    pub(crate) process: Option<Process>,
    pub(crate) root: Option<Root>,
    pub(crate) hostname: Option<String>,
    pub(crate) domainname: Option<String>,
    #[serde(default)]
    pub(crate) mounts: Vec<Mount>,
    pub(crate) hooks: Option<Value>,
    #[serde(default)]
    pub(crate) annotations: BTreeMap<String, String>,
    pub(crate) linux: Option<Linux>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct Process {
    #[serde(default)]
    pub(crate) terminal: bool,
    pub(crate) console_size: Option<ConsoleSize>,
    pub(crate) user: User,
    #[serde(default)]
    pub(crate) args: Vec<String>,
    pub(crate) command_line: Option<String>,
    #[serde(default)]
    pub(crate) env: Vec<String>,
    pub(crate) cwd: String,
    pub(crate) capabilities: Option<Capabilities>,
    #[serde(default)]
    pub(crate) rlimits: Vec<Rlimit>,
    pub(crate) no_new_privileges: Option<bool>,
    pub(crate) apparmor_profile: Option<String>,
    pub(crate) oom_score_adj: Option<i64>,
    pub(crate) scheduler: Option<Value>,
    pub(crate) selinux_label: Option<String>,
    pub(crate) io_priority: Option<Value>,
    #[serde(rename = "execCPUAffinity")]
    pub(crate) exec_cpu_affinity: Option<Value>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ConsoleSize {
    pub(crate) height: u64,
    pub(crate) width: u64,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct User {
    #[serde(default)]
    pub(crate) uid: u32,
    #[serde(default)]
    pub(crate) gid: u32,
    pub(crate) umask: Option<u32>,
    #[serde(default)]
    pub(crate) additional_gids: Vec<u32>,
    pub(crate) username: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct Capabilities {
    #[serde(default)]
    pub(crate) bounding: Vec<String>,
    #[serde(default)]
    pub(crate) effective: Vec<String>,
    #[serde(default)]
    pub(crate) inheritable: Vec<String>,
    #[serde(default)]
    pub(crate) permitted: Vec<String>,
    #[serde(default)]
    pub(crate) ambient: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Rlimit {
    #[serde(rename = "type")]
    pub(crate) kind: String,
    pub(crate) hard: u64,
    pub(crate) soft: u64,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Root {
    pub(crate) path: String,
    #[serde(default)]
    pub(crate) readonly: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct Mount {
    pub(crate) destination: String,
    #[serde(rename = "type", default)]
    pub(crate) kind: String,
    /// Only a bind's says anything: the projected file systems have sources of their own.
    #[serde(default)]
    pub(crate) source: String,
    #[serde(default)]
    pub(crate) options: Vec<String>,
    pub(crate) uid_mappings: Option<Value>,
    pub(crate) gid_mappings: Option<Value>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct Linux {
    #[serde(default)]
    pub(crate) uid_mappings: Vec<Value>,
    #[serde(default)]
    pub(crate) gid_mappings: Vec<Value>,
    #[serde(default)]
    pub(crate) sysctl: BTreeMap<String, String>,
    pub(crate) resources: Option<Resources>,
    pub(crate) cgroups_path: Option<String>,
    #[serde(default)]
    pub(crate) namespaces: Vec<Namespace>,
    #[serde(default)]
    pub(crate) devices: Vec<Value>,
    pub(crate) net_devices: Option<Value>,
    pub(crate) seccomp: Option<Seccomp>,
    pub(crate) rootfs_propagation: Option<String>,
    #[serde(default)]
    pub(crate) masked_paths: Vec<String>,
    #[serde(default)]
    pub(crate) readonly_paths: Vec<String>,
    pub(crate) mount_label: Option<String>,
    pub(crate) intel_rdt: Option<Value>,
    pub(crate) personality: Option<Value>,
    pub(crate) time_offsets: Option<Value>,
    pub(crate) memory_policy: Option<Value>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Namespace {
    #[serde(rename = "type")]
    pub(crate) kind: NamespaceKind,
    pub(crate) path: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum NamespaceKind {
    Pid,
    Network,
    Mount,
    Ipc,
    Uts,
    User,
    Cgroup,
    Time,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct Seccomp {
    pub(crate) default_action: String,
    #[serde(rename = "defaultErrnoRet")]
    pub(crate) _default_errno_ret: Option<u32>,
    #[serde(rename = "architectures", default)]
    pub(crate) _architectures: Vec<String>,
    #[serde(rename = "flags", default)]
    pub(crate) _flags: Vec<String>,
    pub(crate) listener_path: Option<String>,
    pub(crate) listener_metadata: Option<String>,
    #[serde(default)]
    pub(crate) syscalls: Vec<SeccompRule>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct SeccompRule {
    #[serde(rename = "names", default)]
    pub(crate) _names: Vec<String>,
    pub(crate) action: String,
    #[serde(rename = "errnoRet")]
    pub(crate) _errno_ret: Option<u32>,
    #[serde(rename = "args", default)]
    pub(crate) _args: Vec<Value>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct Resources {
    #[serde(default)]
    pub(crate) devices: Vec<DeviceRule>,
    pub(crate) memory: Option<Memory>,
    pub(crate) cpu: Option<Cpu>,
    pub(crate) pids: Option<Pids>,
    #[serde(rename = "blockIO")]
    pub(crate) block_io: Option<Value>,
    pub(crate) hugepage_limits: Option<Value>,
    pub(crate) network: Option<Value>,
    pub(crate) rdma: Option<Value>,
    pub(crate) unified: Option<BTreeMap<String, String>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct DeviceRule {
    pub(crate) allow: bool,
    #[serde(rename = "type", default)]
    pub(crate) kind: String,
    pub(crate) major: Option<i64>,
    pub(crate) minor: Option<i64>,
    #[serde(rename = "access", default)]
    pub(crate) _access: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct Memory {
    pub(crate) limit: Option<i64>,
    pub(crate) reservation: Option<i64>,
    pub(crate) swap: Option<i64>,
    #[serde(rename = "kernel")]
    pub(crate) _kernel: Option<i64>,
    #[serde(rename = "kernelTCP")]
    pub(crate) _kernel_tcp: Option<i64>,
    pub(crate) swappiness: Option<u64>,
    #[serde(rename = "disableOOMKiller")]
    pub(crate) disable_oom_killer: Option<bool>,
    #[serde(rename = "useHierarchy")]
    pub(crate) _use_hierarchy: Option<bool>,
    #[serde(rename = "checkBeforeUpdate")]
    pub(crate) _check_before_update: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct Cpu {
    pub(crate) shares: Option<u64>,
    pub(crate) quota: Option<i64>,
    pub(crate) burst: Option<u64>,
    pub(crate) period: Option<u64>,
    pub(crate) realtime_runtime: Option<i64>,
    pub(crate) realtime_period: Option<u64>,
    pub(crate) cpus: Option<String>,
    pub(crate) mems: Option<String>,
    pub(crate) idle: Option<i64>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Pids {
    pub(crate) limit: Option<i64>,
}

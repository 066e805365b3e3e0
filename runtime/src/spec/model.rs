//! An OCI runtime specification as types: every field that is enforced, and no other.
//!
//! Input: JSON that is somebody's wish. A field that is not known here is refused, not skipped, and
//! so is one that is known and asks for what nobody here does ([`Absent`]). Fields that only describe
//! (annotations, a user's name, versions of libraries) are read and forgotten.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use serde::de::{Error as _, IgnoredAny};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

/// A field that must say nothing: absent, null, false, zero, or empty.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Absent;

impl<'de> Deserialize<'de> for Absent {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(from)?;
        if says_nothing(&value) {
            return Ok(Self);
        }
        Err(D::Error::custom("a field is set that is not supported here"))
    }
}

/// A field that only describes, or that the kernel has given up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Forgotten;

impl<'de> Deserialize<'de> for Forgotten {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        IgnoredAny::deserialize(from).map(|_said| Self)
    }
}

fn says_nothing(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Bool(true) => false,
        Value::Number(number) => number.as_u64() == Some(0),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.values().all(says_nothing),
    }
}

/// null is what Go writes for an empty list.
fn or_default<'de, D, T>(from: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Spec {
    #[serde(default, rename = "ociVersion")]
    _version: Forgotten,
    pub(crate) process: Process,
    /// Whoever reads a bundle, or assembles layers, has seen to it.
    #[serde(default, rename = "root")]
    _root: Forgotten,
    #[serde(default)]
    pub(crate) hostname: Option<String>,
    #[serde(default)]
    pub(crate) domainname: Option<String>,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) mounts: Vec<Mount>,
    pub(crate) linux: Linux,
    #[serde(default, rename = "hooks")]
    _hooks: Absent,
    #[serde(default, rename = "annotations")]
    _annotations: Forgotten,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Process {
    #[serde(default)]
    pub(crate) terminal: bool,
    #[serde(default)]
    pub(crate) console_size: Option<ConsoleSize>,
    pub(crate) user: User,
    pub(crate) args: Vec<String>,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) env: Vec<String>,
    pub(crate) cwd: String,
    #[serde(default)]
    pub(crate) capabilities: Capabilities,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) rlimits: Vec<Rlimit>,
    /// Always on, whatever it says.
    #[serde(default, rename = "noNewPrivileges")]
    _no_new_privileges: Option<bool>,
    #[serde(default)]
    pub(crate) oom_score_adj: Option<i32>,
    #[serde(default, rename = "apparmorProfile")]
    _apparmor_profile: Absent,
    #[serde(default, rename = "selinuxLabel")]
    _selinux_label: Absent,
    #[serde(default, rename = "ioPriority")]
    _io_priority: Absent,
    #[serde(default, rename = "scheduler")]
    _scheduler: Absent,
    #[serde(default, rename = "execCPUAffinity")]
    _exec_cpu_affinity: Absent,
    #[serde(default, rename = "commandLine")]
    _command_line: Absent,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ConsoleSize {
    pub(crate) height: u16,
    pub(crate) width: u16,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct User {
    #[serde(default)]
    pub(crate) uid: u32,
    #[serde(default)]
    pub(crate) gid: u32,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) additional_gids: Vec<u32>,
    #[serde(default)]
    pub(crate) umask: Option<u32>,
    #[serde(default, rename = "username")]
    _username: Forgotten,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Capabilities {
    #[serde(deserialize_with = "or_default")]
    pub(crate) bounding: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    pub(crate) permitted: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    pub(crate) effective: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    pub(crate) inheritable: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    pub(crate) ambient: Vec<String>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Rlimit {
    #[serde(rename = "type")]
    pub(crate) kind: String,
    pub(crate) soft: u64,
    pub(crate) hard: u64,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Mount {
    pub(crate) destination: String,
    #[serde(default, rename = "type")]
    pub(crate) kind: String,
    #[serde(default)]
    pub(crate) source: String,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) options: Vec<String>,
    #[serde(default, rename = "uidMappings")]
    _uid_mappings: Absent,
    #[serde(default, rename = "gidMappings")]
    _gid_mappings: Absent,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Linux {
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) namespaces: Vec<Namespace>,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) devices: Vec<Device>,
    #[serde(default)]
    pub(crate) cgroups_path: String,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) resources: Resources,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) sysctl: BTreeMap<String, String>,
    #[serde(default)]
    pub(crate) rootfs_propagation: String,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) masked_paths: Vec<String>,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) readonly_paths: Vec<String>,
    /// Ours comes compiled; whoever reads a bundle has seen to it that there is one.
    #[serde(default, rename = "seccomp")]
    _seccomp: Forgotten,
    #[serde(default, rename = "uidMappings")]
    _uid_mappings: Absent,
    #[serde(default, rename = "gidMappings")]
    _gid_mappings: Absent,
    #[serde(default, rename = "mountLabel")]
    _mount_label: Absent,
    #[serde(default, rename = "intelRdt")]
    _intel_rdt: Absent,
    #[serde(default, rename = "personality")]
    _personality: Absent,
    #[serde(default, rename = "timeOffsets")]
    _time_offsets: Absent,
    #[serde(default, rename = "netDevices")]
    _net_devices: Absent,
    #[serde(default, rename = "memoryPolicy")]
    _memory_policy: Absent,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Namespace {
    #[serde(rename = "type")]
    pub(crate) kind: NamespaceKind,
    #[serde(default)]
    pub(crate) path: String,
}

/// Kinds that can be made or joined; user namespaces are not among them yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum NamespaceKind {
    Pid,
    Network,
    Mount,
    Ipc,
    Uts,
    Cgroup,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Device {
    pub(crate) path: String,
    #[serde(rename = "type")]
    pub(crate) kind: String,
    #[serde(default)]
    pub(crate) major: u32,
    #[serde(default)]
    pub(crate) minor: u32,
    #[serde(default)]
    pub(crate) file_mode: Option<u32>,
    #[serde(default)]
    pub(crate) uid: Option<u32>,
    #[serde(default)]
    pub(crate) gid: Option<u32>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct Resources {
    #[serde(deserialize_with = "or_default")]
    pub(crate) devices: Vec<DeviceAccess>,
    #[serde(deserialize_with = "or_default")]
    pub(crate) memory: Memory,
    #[serde(deserialize_with = "or_default")]
    pub(crate) cpu: Cpu,
    #[serde(deserialize_with = "or_default")]
    pub(crate) pids: Pids,
    #[serde(rename = "blockIO", deserialize_with = "or_default")]
    pub(crate) block_io: BlockIo,
    #[serde(deserialize_with = "or_default")]
    pub(crate) hugepage_limits: Vec<Hugepages>,
    #[serde(deserialize_with = "or_default")]
    pub(crate) network: Network,
    /// Files of the unified hierarchy by name.
    #[serde(deserialize_with = "or_default")]
    pub(crate) unified: BTreeMap<String, String>,
    pub(crate) rdma: Absent,
}

/// A rule as specifications write it: what is left out means all.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct DeviceAccess {
    pub(crate) allow: bool,
    #[serde(default, rename = "type")]
    pub(crate) kind: Option<String>,
    #[serde(default)]
    pub(crate) major: Option<i64>,
    #[serde(default)]
    pub(crate) minor: Option<i64>,
    #[serde(default)]
    pub(crate) access: Option<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct Memory {
    /// Bytes; -1 is no limit.
    pub(crate) limit: Option<i64>,
    pub(crate) reservation: Option<i64>,
    /// Memory and swap together, as v1 counts it.
    pub(crate) swap: Option<i64>,
    pub(crate) swappiness: Option<u64>,
    #[serde(rename = "disableOOMKiller")]
    pub(crate) disable_oom_killer: Option<bool>,
    /// The kernel has given these up.
    #[serde(rename = "kernel")]
    pub(crate) kernel: Forgotten,
    #[serde(rename = "kernelTCP")]
    pub(crate) kernel_tcp: Forgotten,
    #[serde(rename = "useHierarchy")]
    pub(crate) use_hierarchy: Forgotten,
    #[serde(rename = "checkBeforeUpdate")]
    pub(crate) check_before_update: Forgotten,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct Cpu {
    pub(crate) shares: Option<u64>,
    /// Microseconds a period; -1 is no limit.
    pub(crate) quota: Option<i64>,
    pub(crate) period: Option<u64>,
    pub(crate) burst: Option<u64>,
    pub(crate) cpus: Option<String>,
    pub(crate) mems: Option<String>,
    pub(crate) idle: Option<i64>,
    #[serde(rename = "realtimeRuntime")]
    pub(crate) realtime_runtime: Absent,
    #[serde(rename = "realtimePeriod")]
    pub(crate) realtime_period: Absent,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Pids {
    /// Zero and less is no limit.
    pub(crate) limit: Option<i64>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct BlockIo {
    pub(crate) weight: Option<u16>,
    pub(crate) throttle_read_bps_device: Option<Vec<Throttle>>,
    pub(crate) throttle_write_bps_device: Option<Vec<Throttle>>,
    #[serde(rename = "throttleReadIOPSDevice")]
    pub(crate) throttle_read_iops_device: Option<Vec<Throttle>>,
    #[serde(rename = "throttleWriteIOPSDevice")]
    pub(crate) throttle_write_iops_device: Option<Vec<Throttle>>,
    #[serde(rename = "leafWeight")]
    pub(crate) leaf_weight: Absent,
    #[serde(rename = "weightDevice")]
    pub(crate) weight_device: Absent,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Throttle {
    pub(crate) major: u32,
    pub(crate) minor: u32,
    pub(crate) rate: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Hugepages {
    pub(crate) page_size: String,
    pub(crate) limit: u64,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Network {
    #[serde(rename = "classID")]
    pub(crate) class_id: Option<u32>,
    pub(crate) priorities: Option<Vec<Priority>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Priority {
    pub(crate) name: String,
    pub(crate) priority: u32,
}

//! The plan: everything the kernel is to enforce for one container, result of a granted admission.
//!
//! `nimbus_hooks::admit` makes it, the node agent records and hands it over, the shim judges Exec
//! and Update by it, `nimbus-runtime` enforces it. It travels as JSON; [`Plan::digest`] is over
//! exactly those bytes. Descriptors (filter, layers, network namespace) go beside it and are named in it by hash or
//! position, never by path.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::clock::BootNanos;
use crate::digest::Digest;
use crate::id::{ContainerKey, JobId, LeaseId, OrgId};
use crate::lease::{LeasedEgress, LeasedPod, LeasedResources, ScratchMedium};
use crate::strict_json::{self, Limits, StrictJsonError};

/// The version of [`Plan`].
pub const PLAN_VERSION: u32 = 1;
/// Longest plan, as JSON.
pub const PLAN_BYTES_MAX: usize = 1 << 20;
/// Most layers of a root filesystem: each is a descriptor in one message, of which the kernel
/// takes 253 (`SCM_MAX_FD`); binds, namespaces, the filter and three streams go along.
pub const LAYERS_MAX: usize = 128;
/// Most binds of a container; each is a descriptor in the same message.
pub const BINDS_MAX: usize = 96;
/// Kinds of [`JoinedNamespace`], and streams.
const JOINS_MAX: usize = 4;
const STREAMS: usize = 3;
const _: () = assert!(
    1 + LAYERS_MAX + BINDS_MAX + JOINS_MAX + STREAMS <= crate::frame::FRAME_FDS_MAX,
    "the largest plan's descriptors go with one message"
);

/// What the kernel is to enforce.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// [`PLAN_VERSION`].
    pub version: u32,
    /// For which container.
    pub container: ContainerKey,
    /// On whose authority.
    pub lease: PlanLease,
    /// Of what.
    pub image: PlanImage,
    /// How its root filesystem is put together.
    pub rootfs: RootfsRecipe,
    /// The projected OCI runtime specification: made field by field, never copied (rule 3). It has no
    /// `linux.seccomp`, no `linux.devices` and no device rules: those are below.
    pub spec: Value,
    /// The filter, loaded by the runtime (rule 5).
    pub seccomp: PlanSeccomp,
    /// The whole device allow-list; everything else is denied.
    pub devices: Vec<DeviceRule>,
    /// Limits, from the lease.
    pub resources: LeasedResources,
    /// Network.
    pub egress: LeasedEgress,
    /// What is mounted besides what the specification has: detached mounts that the agent opened below
    /// roots that it knows, in the order of their descriptors.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub binds: Vec<PlanBind>,
    /// Namespaces that are entered instead of new ones, in the order of their descriptors.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub joins: Vec<JoinedNamespace>,
    /// The pod that it is of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<LeasedPod>,
    /// By what an Exec is judged.
    pub exec: ExecClause,
    /// Killed then, unless an extension comes; on this boot's CLOCK_BOOTTIME.
    pub deadline: BootNanos,
    /// Serial of the policy that admitted it.
    pub policy_serial: u64,
    /// What the specification left unset or weaker and the plan has set, for the receipt.
    pub tightened: Vec<String>,
}

/// On whose authority a container runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlanLease {
    /// The lease.
    pub lease_id: LeaseId,
    /// The job.
    pub job: JobId,
    /// Which try.
    pub attempt: u32,
    /// The tenant.
    pub org: OrgId,
    /// SHA-256 of the token.
    pub token_sha256: Digest,
}

/// Which image runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlanImage {
    /// Where it came from.
    pub name: String,
    /// As the lease names it: manifest or index.
    pub digest: Digest,
    /// The manifest; the same as `digest` when that is no index.
    pub manifest: Digest,
    /// `os/architecture[/variant]`.
    pub platform: String,
    /// Digest of each attestation (bundle bytes) that satisfied the policy.
    pub attestations: Vec<Digest>,
}

/// How a root filesystem is put together: an overlay of measured layers under a fresh upper.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RootfsRecipe {
    /// diff id of each layer, lowest first: the order of the descriptors.
    pub layers: Vec<Digest>,
    /// SHA-256 over the layers' diff ids and the unpacker's version: what "the rootfs" means in a
    /// receipt.
    pub digest: Digest,
    /// Size of the upper.
    pub scratch_bytes: u64,
    /// What the upper is made of.
    pub scratch: ScratchMedium,
    /// Whether the root is mounted read-only.
    pub read_only: bool,
}

/// The filter of a plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlanSeccomp {
    /// Name of the profile.
    pub profile: String,
    /// SHA-256 of the program in the sealed memfd: `sock_filter` structs, native endian.
    pub program_sha256: Digest,
    /// Number of instructions.
    pub instructions: u32,
}

/// One entry of the device allow-list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceRule {
    /// Path below the container's `/dev`, for example `/dev/null`.
    pub path: String,
    /// `c` or `b`.
    pub kind: DeviceKind,
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
    /// Whether the node may be opened for writing as well as reading. `m` (mknod) is never given.
    pub writable: bool,
    /// Permission bits of the node that is made; none makes no node (the rule alone).
    pub mode: Option<u32>,
}

/// Kind of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeviceKind {
    /// Character.
    #[serde(rename = "c")]
    Character,
    /// Block.
    #[serde(rename = "b")]
    Block,
}

/// Something of the host's that a container sees: a file or directory that kubelet or the CRI plugin
/// made for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlanBind {
    /// Absolute path on the host. The agent opens it below a root that it knows, without following a
    /// link; whoever mounts it has only the descriptor.
    pub source: String,
    /// Absolute path in the container.
    pub destination: String,
    /// Whether it can be written.
    pub read_only: bool,
    /// Whether what is mounted below it comes along.
    pub recursive: bool,
}

/// Kind of a namespace that a container enters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JoinedNamespace {
    /// Of the network.
    Network,
    /// Of System V IPC and POSIX message queues.
    Ipc,
    /// Of the host name.
    Uts,
    /// Of processes.
    Pid,
}

/// By what an Exec is judged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExecClause {
    /// The most that an exec may have.
    pub capabilities: Vec<String>,
}

impl Plan {
    /// The JSON that travels.
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// How many descriptors go with it: the filter, a mount for the upper when that is on disk, layers,
    /// binds, joined namespaces, in this order.
    pub const fn descriptors(&self) -> usize {
        let scratch = match self.rootfs.scratch {
            ScratchMedium::Memory => 0,
            ScratchMedium::Disk => 1,
        };
        1 + scratch + self.rootfs.layers.len() + self.binds.len() + self.joins.len()
    }

    /// Reads the JSON.
    pub fn parse(text: &[u8]) -> Result<Self, StrictJsonError> {
        strict_json::parse(text, Limits::bytes(PLAN_BYTES_MAX))
    }

    /// SHA-256 of the JSON that travels.
    pub fn digest(&self) -> Digest {
        Digest::of(&self.to_json())
    }
}

//! Everything that admission may look at, and nothing else.
//!
//! Each fact says how it may be missing. The node agent fills them in without judging: it verifies
//! signatures, reads clocks, measures files; what follows from them is [`crate::admit`]'s alone.

use nimbus_api::clock::{BootNanos, UnixSeconds};
use nimbus_api::id::{ContainerKey, NodeThumbprint, OrgId};
use nimbus_api::lease::{LeasedEgress, LeasedPod, VerifiedLease};
use nimbus_api::policy::SignedPolicy;
use nimbus_api::verify::BundleOutcome;
use nimbus_api::{Digest, Refusal};

/// The facts of one `Task.Create`.
#[derive(Debug, Clone)]
pub struct Facts {
    /// Which container.
    pub container: ContainerKey,
    /// What containerd asked for.
    pub task: TaskFacts,
    /// This node.
    pub node: NodeFacts,
    /// What time it is.
    pub clock: ClockFacts,
    /// The lease that came in annotation `nimbus.io/lease` of the specification.
    pub lease: LeaseFact,
    /// When this boot of the node sent the heartbeat that the lease echoes.
    pub heartbeat: HeartbeatFact,
    /// What the lease has been used for.
    pub use_of_lease: LeaseUse,
    /// The policy.
    pub policy: PolicyFact,
    /// What the verifier said about the image's attestations.
    pub attestations: AttestationFact,
    /// The image that the lease names, as the node's store has it.
    pub image: ImageFact,
    /// The filter that the lease names.
    pub seccomp: SeccompFact,
    /// The network namespace that was made for the lease.
    pub network: NetworkFact,
    /// The sandbox of the pod that the lease says the container is of.
    pub pod: PodFact,
}

/// What containerd asked for, as it came.
#[derive(Debug, Clone, Default)]
pub struct TaskFacts {
    /// `config.json`, byte for byte: not trusted, not parsed.
    pub config_json: Vec<u8>,
    /// The rootfs mounts of the request; only their shape is looked at, they are never used.
    pub rootfs_mounts: usize,
    /// A checkpoint was named.
    pub checkpoint: bool,
    /// A terminal was asked for.
    pub terminal: bool,
    /// Type URL of the runtime options; empty when none came.
    pub options_type: String,
    /// Where input comes from and output goes, as URIs or paths; empty is none.
    pub stdin: String,
    /// See `stdin`.
    pub stdout: String,
    /// See `stdin`.
    pub stderr: String,
}

/// This node.
#[derive(Debug, Clone)]
pub struct NodeFacts {
    /// Its identity; none before it has joined.
    pub thumbprint: Option<NodeThumbprint>,
    /// `os/architecture`.
    pub platform: String,
    /// Directory below which `file://` output may go, absolute, without a final slash.
    pub log_root: String,
    /// Directories below which stdio fifos may be.
    pub fifo_roots: Vec<String>,
    /// Skew that the deadline is shortened by, seconds.
    pub skew_seconds: u64,
    /// The most that one lease may have.
    pub cpu_millis_max: u32,
    /// The most that one lease may have.
    pub memory_bytes_max: u64,
    /// The most that one lease may have.
    pub pids_max: u32,
    /// Containers admitted and not released.
    pub containers: usize,
    /// The most of them.
    pub containers_max: usize,
    /// Where the sources of pods' mounts and namespaces are.
    pub pod_roots: PodRoots,
}

/// Directories that kubelet and the CRI plugin keep what they made for pods in; absolute, without a
/// final slash. An empty one is none: nothing is below it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PodRoots {
    /// The CRI plugin's state directory; `sandboxes/<id>` is below.
    pub cri_state: String,
    /// The CRI plugin's root directory; `sandboxes/<id>` is below.
    pub cri_root: String,
    /// kubelet's root directory; `pods/<uid>` is below.
    pub kubelet: String,
    /// Where CNI network namespaces are named.
    pub netns: Vec<String>,
}

/// What time it is.
#[derive(Debug, Clone, Copy)]
pub struct ClockFacts {
    /// CLOCK_BOOTTIME.
    pub boottime: BootNanos,
    /// CLOCK_REALTIME.
    pub unix: UnixSeconds,
    /// The highest `iat` of a verified lease; the clock is not believed when it is more than
    /// [`crate::FLOOR_TOLERANCE_SECONDS`] below.
    pub floor: UnixSeconds,
}

/// The lease that came.
#[derive(Debug, Clone)]
pub enum LeaseFact {
    /// No annotation.
    Missing,
    /// No verified key set to check it with.
    NoKeys(Refusal),
    /// It did not verify.
    Refused(Refusal),
    /// It verified.
    Verified(Box<VerifiedLease>),
}

/// When the heartbeat was sent that the lease echoes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeartbeatFact {
    /// This boot of the node sent none with this nonce (or it is too long ago to be remembered).
    Unknown,
    /// It was sent then.
    Sent(BootNanos),
}

/// What a lease has been used for, from the node's ledger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LeaseUse {
    /// The ledger could not be read or written.
    Unreadable(Refusal),
    /// Nothing yet.
    Unused,
    /// For a container, with this specification.
    Used {
        /// Which one.
        container: ContainerKey,
        /// SHA-256 of its `config.json`.
        config_sha256: Digest,
    },
    /// It has been finished with: its container was released, or it was never started in time.
    Ended,
    /// Control revoked it.
    Revoked,
    /// The ledger knows a higher attempt of the same job.
    Superseded {
        /// The attempt known.
        attempt: u32,
    },
}

/// The policy.
#[derive(Debug, Clone)]
pub enum PolicyFact {
    /// None has ever come.
    Missing,
    /// What is there cannot be used: `policy.invalid`, `policy.bad_signature`,
    /// `policy.rolled_back`.
    Refused(Refusal),
    /// Signature checked, serial not below the highest seen.
    Verified(Box<SignedPolicy>),
}

/// What the verifier said.
#[derive(Debug, Clone)]
pub enum AttestationFact {
    /// It could not say: `verify.down`, `verify.failed`, `verify.timeout`, `verify.too_large`.
    Unavailable(Refusal),
    /// One outcome for each bundle that is known for the image; none when there is no bundle.
    Outcomes(Vec<BundleOutcome>),
}

/// The image that the lease names.
#[derive(Debug, Clone)]
pub enum ImageFact {
    /// It is not in the store, or not whole: `image.missing`, `image.preparing`,
    /// `image.fetch_failed`, `image.digest_mismatch`, `image.layer_hostile`, ...
    Unavailable(Refusal),
    /// Fetched, every blob and diff id checked, every layer unpacked by us.
    Measured(MeasuredImage),
}

/// An image in the node's store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MeasuredImage {
    /// The name that it was fetched under.
    pub name: String,
    /// The digest that it was fetched by.
    pub digest: Digest,
    /// The manifest; the same as `digest` when that is no index.
    pub manifest: Digest,
    /// `os/architecture[/variant]` by its configuration.
    pub platform: String,
    /// diff ids, lowest first.
    pub layers: Vec<Digest>,
    /// SHA-256 over diff ids and unpacker version.
    pub rootfs: Digest,
    /// What is wrong with `/dev`, `/proc` or `/sys` in the merged tree (a symlink, a file).
    pub hostile_mount_point: Option<String>,
}

/// The filter that the lease names.
#[derive(Debug, Clone)]
pub enum SeccompFact {
    /// This node has no profile of that name, or it does not compile.
    Unavailable(Refusal),
    /// Compiled.
    Compiled {
        /// Name.
        profile: String,
        /// SHA-256 of the profile's text.
        profile_sha256: Digest,
        /// SHA-256 of the program.
        program_sha256: Digest,
        /// Its length.
        instructions: u32,
    },
}

/// The network of a job whose lease has an allow-list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NetworkFact {
    /// None was made, or none is there any more.
    Missing,
    /// It could not be looked at.
    Unavailable(Refusal),
    /// It is there, and its rules are in force.
    Ready,
}

/// The sandbox of the pod that a container is of.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "there is one of it for each Create")]
pub enum PodFact {
    /// The container is of no pod, or it is the sandbox itself.
    None,
    /// It is of one whose sandbox is not held on this node, not started, or of an earlier boot.
    SandboxMissing,
    /// Held on this node, started, in this boot.
    Sandbox(SandboxRecord),
}

/// What the agent recorded when it admitted a sandbox, and when the sandbox started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SandboxRecord {
    /// The sandbox container.
    pub container: ContainerKey,
    /// Whose it is.
    pub org: OrgId,
    /// As its lease names it.
    pub pod: LeasedPod,
    /// Network of its lease.
    pub network: LeasedEgress,
    /// Its init process, in the host's pid namespace.
    pub pid: u32,
}

//! Leases: signed permission to run one attempt of one job on one node, until a time.
//!
//! PASETO v4.public over the JSON of [`LeaseClaims`], key id in the footer, and an implicit
//! assertion of trust domain and purpose, so that no token of another domain or kind verifies.
//! Claims are read only after the signature has been checked, by a key of the verified [`KeySet`];
//! an unknown claim is refused.
//!
//! Whether a lease is *enough* is not decided here but in `nimbus_hooks::admit`.

use std::fmt;

use pasetors::keys::{AsymmetricPublicKey, AsymmetricSecretKey};
use pasetors::token::UntrustedToken;
use pasetors::version4::{PublicToken, V4};
use pasetors::{Public, errors::Error as PasetoError};
use serde::{Deserialize, Serialize};

use crate::clock::UnixSeconds;
use crate::digest::Digest;
use crate::dsse::SigningKey;
use crate::egress::EgressRules;
use crate::id::{
    ContainerId, ContainerKey, JobId, KeyId, LeaseId, NodeThumbprint, OrgId, TrustDomain,
};
use crate::keys::{KeyPurpose, KeySet};
use crate::refusal::{Refusal, RefusalCode};
use crate::strict_json::{self, Limits};

/// Longest token.
pub const TOKEN_BYTES_MAX: usize = 4096;
/// The version of [`LeaseClaims`].
pub const LEASE_VERSION: u32 = 1;
/// Name of the annotation that carries the token.
pub const LEASE_ANNOTATION: &str = "nimbus.io/lease";
/// containerd's seccomp profile: what a job gets that asks for none.
pub const SECCOMP_DEFAULT: &str = "default";
/// Our own, which takes away from it.
pub const SECCOMP_STRICT: &str = "nimbus-strict";
/// Every seccomp profile that a job may ask for.
pub const SECCOMP_PROFILES: [&str; 2] = [SECCOMP_DEFAULT, SECCOMP_STRICT];
/// The capabilities that containerd gives by default: a specification that names no others demands
/// nothing, and a lease can name no others. Sorted.
pub const DEFAULT_CAPABILITIES: [&str; 14] = [
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];
/// Smallest file system that a job's writable space can be.
pub const SCRATCH_DISK_BYTES_MIN: u64 = 4 << 20;
/// Bytes of a heartbeat nonce.
pub const NONCE_BYTES: usize = 16;

/// What a lease says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LeaseClaims {
    /// [`LEASE_VERSION`].
    pub ver: u32,
    /// This lease; extensions keep it.
    pub lease_id: LeaseId,
    /// The job.
    pub job: JobId,
    /// From 1; fences the job.
    pub attempt: u32,
    /// The tenant.
    pub org: OrgId,
    /// The node, by its identity key.
    pub node: NodeThumbprint,
    /// The images that may be started under it; exactly one on the agent path.
    pub images: Vec<LeasedImage>,
    /// Digest of the [`crate::process::ProcessIdentity`].
    pub process_sha256: Digest,
    /// Limits, all of them enforced.
    pub resources: LeasedResources,
    /// Devices.
    pub gpu: LeasedGpu,
    /// Seccomp profile.
    pub seccomp: LeasedSeccomp,
    /// Network.
    pub egress: LeasedEgress,
    /// Names of the capabilities that the job has, `CAP_...`, sorted; all else is dropped.
    pub capabilities: Vec<String>,
    /// The policy it was made under; none when control had none (then the node decides by its own).
    pub policy: Option<LeasedPolicy>,
    /// For which container of another client of containerd it is; none on the agent path, where the
    /// agent makes the container. A node that does not know it cannot read the lease, and refuses it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claim: Option<LeasedClaim>,
    /// Store generation of control.
    pub generation: u64,
    /// Hex of the heartbeat nonce that the deadline counts from.
    pub nonce: String,
    /// Issued.
    pub iat: UnixSeconds,
    /// Not valid before.
    pub nbf: UnixSeconds,
    /// The latest start.
    pub start_by: UnixSeconds,
    /// The end. With `iat` it gives the lifetime, see [`LeaseClaims::lifetime_seconds`].
    pub exp: UnixSeconds,
}

/// One image that a lease names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LeasedImage {
    /// Where it comes from, without tag: what policy rules match.
    pub name: String,
    /// Of the manifest or index.
    pub digest: Digest,
    /// `os/architecture[/variant]`.
    pub platform: String,
}

/// Limits of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LeasedResources {
    /// Thousandths of a core.
    pub cpu_millis: u32,
    /// Memory; swap is 0.
    pub memory_bytes: u64,
    /// Tasks.
    pub pids: u32,
    /// Writable space of the root filesystem.
    pub scratch_bytes: u64,
    /// What the writable space is made of.
    pub scratch: ScratchMedium,
    /// Output kept of both streams together.
    pub log_bytes: u64,
}

/// What the writable space of a root filesystem is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScratchMedium {
    /// tmpfs, counted in the job's memory.
    Memory,
    /// A file system of its own in a file of the node's, of this size. A node that does not know it
    /// cannot read the lease, and refuses it.
    Disk,
}

/// The container that a lease was claimed for: one that a client of containerd made (kubelet, `ctr`),
/// not the node agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LeasedClaim {
    /// This one and no other: its id is never used again by who made it.
    pub container: ContainerKey,
    /// The pod that it is of; none outside Kubernetes.
    pub pod: Option<LeasedPod>,
}

/// Which container of which pod, as the CRI names them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LeasedPod {
    /// Id of the pod's sandbox container.
    pub sandbox: ContainerId,
    /// Kubernetes namespace.
    pub namespace: String,
    /// The pod's name.
    pub name: String,
    /// The pod's uid.
    pub uid: String,
    /// Name of the container in the pod; none for the sandbox itself.
    pub container: Option<String>,
    /// How often kubelet has made it anew.
    pub restart: u32,
}

/// Devices of a lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LeasedGpu {
    /// How devices are given.
    pub mode: GpuMode,
}

/// How a lease gives devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GpuMode {
    /// No device.
    None,
}

/// The filter that a lease names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LeasedSeccomp {
    /// Name of the profile; the node agent has its text.
    pub profile: String,
    /// SHA-256 of the profile's text as control knows it; the node's must be the same.
    pub sha256: Option<Digest>,
}

/// Network of a lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LeasedEgress {
    /// A network namespace with a loopback device and nothing else.
    None,
    /// Connections to these, enforced on the host's side, and nothing else. A node that does not know
    /// it cannot read the lease, and refuses it.
    Allow(EgressRules),
    /// The network that the cluster gave the pod, shared by the pod's containers; for pods only.
    Pod,
}

impl LeasedEgress {
    /// Whether the node agent makes a network for the job.
    pub const fn is_made(&self) -> bool {
        matches!(self, Self::Allow(_))
    }
}

/// The policy that control had when it signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LeasedPolicy {
    /// Its serial.
    pub serial: u64,
    /// SHA-256 of the document.
    pub sha256: Digest,
}

impl LeaseClaims {
    /// How long the lease lasts from the heartbeat that it echoes; zero when the times are turned
    /// round.
    pub fn lifetime_seconds(&self) -> u64 {
        u64::try_from(self.exp.0.saturating_sub(self.iat.0)).unwrap_or(0)
    }

    /// The heartbeat nonce, if it is one.
    pub fn nonce_bytes(&self) -> Option<[u8; NONCE_BYTES]> {
        let mut bytes = [0; NONCE_BYTES];
        hex::decode_to_slice(&self.nonce, &mut bytes).ok()?;
        Some(bytes)
    }

    /// Whether `newer` is this lease with another end: everything but nonce and times the same.
    pub fn is_extended_by(&self, newer: &Self) -> bool {
        let mut same = newer.clone();
        same.nonce.clone_from(&self.nonce);
        (same.iat, same.nbf, same.start_by, same.exp) =
            (self.iat, self.nbf, self.start_by, self.exp);
        same == *self
    }
}

/// A token that nobody has checked. Not printed: it is a bearer secret on its node.
#[derive(Clone, PartialEq, Eq)]
pub struct LeaseToken(String);

impl LeaseToken {
    /// Takes a text as a token to be checked.
    pub const fn unchecked(text: String) -> Self {
        Self(text)
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Names the token in records without giving it away.
    pub fn digest(&self) -> Digest {
        Digest::of(self.0.as_bytes())
    }

    /// Signs claims with a hot key.
    pub fn sign(
        claims: &LeaseClaims,
        key: &SigningKey,
        domain: &TrustDomain,
    ) -> Result<Self, LeaseSignError> {
        let message = serde_json::to_vec(claims).unwrap_or_default();
        let footer = key.verifying_key().key_id();
        let secret =
            AsymmetricSecretKey::<V4>::from(&key.secret_bytes()).map_err(LeaseSignError::Paseto)?;
        let assertion = assertion(domain);
        let token = PublicToken::sign(&secret, &message, Some(footer.as_bytes()), Some(&assertion))
            .map_err(LeaseSignError::Paseto)?;
        if token.len() > TOKEN_BYTES_MAX {
            return Err(LeaseSignError::TooLarge { bytes: token.len() });
        }
        Ok(Self(token))
    }

    /// Checks size, key and signature, then reads the claims. Times, node and image are for
    /// `nimbus_hooks::admit`.
    pub fn verify(&self, keys: &KeySet) -> Result<VerifiedLease, Refusal> {
        if self.0.len() > TOKEN_BYTES_MAX {
            let found = format!("found {} bytes, expected at most {TOKEN_BYTES_MAX}", self.0.len());
            return Err(Refusal::with(RefusalCode::LeaseTooLarge, found));
        }
        let untrusted = UntrustedToken::<Public, V4>::try_from(self.0.as_str())
            .map_err(|error| Refusal::with(RefusalCode::LeaseMalformed, error))?;
        let footer = untrusted.untrusted_footer().to_vec();
        let kid = std::str::from_utf8(&footer).unwrap_or_default();
        let key = keys.find(kid, KeyPurpose::Lease).ok_or_else(|| {
            let shown: String = kid.chars().take(32).collect();
            Refusal::with(RefusalCode::LeaseUnknownKey, format!("found key id {shown:?}"))
        })?;
        let public = AsymmetricPublicKey::<V4>::from(key.key.as_bytes())
            .map_err(|error| Refusal::with(RefusalCode::LeaseUnknownKey, error))?;
        let assertion = assertion(&keys.trust_domain);
        let trusted = PublicToken::verify(&public, &untrusted, Some(&footer), Some(&assertion))
            .map_err(|_invalid| Refusal::new(RefusalCode::LeaseBadSignature))?;
        let claims = read_claims(trusted.payload().as_bytes())?;
        if claims.iat < key.nbf || claims.iat > key.exp {
            let found =
                format!("issued {} with a key valid from {} to {}", claims.iat, key.nbf, key.exp);
            return Err(Refusal::with(RefusalCode::LeaseUnknownKey, found));
        }
        if claims.generation < keys.generation {
            let found = format!(
                "found store generation {}, expected {}",
                claims.generation, keys.generation
            );
            return Err(Refusal::with(RefusalCode::LeaseStale, found));
        }
        Ok(VerifiedLease { claims, kid: key.kid.clone(), token: self.digest() })
    }
}

fn read_claims(payload: &[u8]) -> Result<LeaseClaims, Refusal> {
    #[derive(Deserialize)]
    struct Version {
        ver: u32,
    }
    let malformed = |error: &dyn std::error::Error| {
        Refusal::with(RefusalCode::LeaseMalformed, crate::error::Chain(error))
    };
    let limits = Limits::bytes(TOKEN_BYTES_MAX);
    let version: Version =
        strict_json::parse(payload, limits).map_err(|error| malformed(&error))?;
    if version.ver != LEASE_VERSION {
        let found = format!("found version {}, expected {LEASE_VERSION}", version.ver);
        return Err(Refusal::with(RefusalCode::LeaseVersion, found));
    }
    strict_json::parse(payload, limits).map_err(|error| malformed(&error))
}

/// What the signature covers besides the claims.
fn assertion(domain: &TrustDomain) -> Vec<u8> {
    format!("nimbus-lease-v1 {domain}").into_bytes()
}

impl fmt::Debug for LeaseToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LeaseToken({})", self.digest())
    }
}

/// Claims whose signature has been checked. Only [`LeaseToken::verify`] makes one.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct VerifiedLease {
    /// What it says.
    pub claims: LeaseClaims,
    /// Who signed.
    pub kid: KeyId,
    /// Which token it was.
    pub token: Digest,
}

/// Why a lease could not be signed.
#[derive(Debug, thiserror::Error)]
pub enum LeaseSignError {
    /// The library refused.
    #[error("cannot sign the lease")]
    Paseto(#[source] PasetoError),
    /// The claims are too long.
    #[error("the lease would be {bytes} bytes long, at most {TOKEN_BYTES_MAX} are allowed")]
    TooLarge {
        /// Bytes it would have.
        bytes: usize,
    },
}

#[cfg(test)]
mod tests;

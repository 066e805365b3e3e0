//! Receipts: signed statements of what was started.
//!
//! An in-toto Statement v1 (<https://github.com/in-toto/attestation>) about the image digest, in a
//! DSSE envelope signed by the node's identity key. The certificate chain travels beside it.

use serde::{Deserialize, Serialize};

use crate::clock::UnixSeconds;
use crate::digest::Digest;
use crate::dsse::{Envelope, EnvelopeError, SigningKey, VerifyingKey};
use crate::id::{ContainerKey, JobId, LeaseId, NodeThumbprint, OrgId};
use crate::plan::Plan;
use crate::strict_json::{self, Limits, StrictJsonError};

/// DSSE payload type of in-toto statements.
pub const STATEMENT_PAYLOAD_TYPE: &str = "application/vnd.in-toto+json";
/// `_type` of an in-toto statement.
pub const STATEMENT_TYPE: &str = "https://in-toto.io/Statement/v1";
/// `predicateType` of a receipt.
pub const RECEIPT_TYPE: &str = "https://nimbus.io/receipt/v1";
/// Longest payload.
pub const RECEIPT_BYTES_MAX: usize = 256 << 10;

/// An in-toto statement that is a receipt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Receipt {
    /// [`STATEMENT_TYPE`].
    #[serde(rename = "_type")]
    pub statement_type: String,
    /// The image.
    pub subject: [Subject; 1],
    /// [`RECEIPT_TYPE`].
    #[serde(rename = "predicateType")]
    pub predicate_type: String,
    /// What was started.
    pub predicate: ReceiptPredicate,
}

/// What a statement is about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Subject {
    /// Image name.
    pub name: String,
    /// Image digest.
    pub digest: SubjectDigest,
}

/// The one digest of a subject.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SubjectDigest {
    /// 64 hex digits.
    pub sha256: String,
}

/// What was started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReceiptPredicate {
    /// The lease.
    pub lease_id: LeaseId,
    /// The job.
    pub job: JobId,
    /// Which try.
    pub attempt: u32,
    /// The tenant.
    pub org: OrgId,
    /// The node.
    pub node: NodeThumbprint,
    /// Where on the node.
    pub container: ContainerKey,
    /// Measured rootfs, see [`crate::plan::RootfsRecipe::digest`].
    pub rootfs_sha256: Digest,
    /// The plan.
    pub plan_sha256: Digest,
    /// The seccomp program.
    pub seccomp_sha256: Digest,
    /// Which bundles satisfied the policy.
    pub attestations: Vec<Digest>,
    /// Serial of the policy.
    pub policy_serial: u64,
    /// What was unset or weaker in the client's specification and has been set.
    pub tightened: Vec<String>,
    /// When the process was started.
    pub started_at: UnixSeconds,
}

/// Why a receipt was refused.
#[derive(Debug, thiserror::Error)]
pub enum ReceiptError {
    /// The envelope or its signature.
    #[error("receipt is not signed by that node")]
    Envelope(#[source] EnvelopeError),
    /// The payload.
    #[error("receipt cannot be read")]
    Payload(#[source] StrictJsonError),
    /// Another statement.
    #[error("expected a {RECEIPT_TYPE} statement, found {found:?}")]
    WrongType {
        /// The predicate type found.
        found: String,
    },
}

impl Receipt {
    /// What happened when this plan was started on this node.
    pub fn of(plan: &Plan, node: NodeThumbprint, started_at: UnixSeconds) -> Self {
        Self {
            statement_type: STATEMENT_TYPE.to_owned(),
            subject: [Subject {
                name: plan.image.name.clone(),
                digest: SubjectDigest { sha256: plan.image.digest.hex() },
            }],
            predicate_type: RECEIPT_TYPE.to_owned(),
            predicate: ReceiptPredicate {
                lease_id: plan.lease.lease_id.clone(),
                job: plan.lease.job.clone(),
                attempt: plan.lease.attempt,
                org: plan.lease.org.clone(),
                node,
                container: plan.container.clone(),
                rootfs_sha256: plan.rootfs.digest,
                plan_sha256: plan.digest(),
                seccomp_sha256: plan.seccomp.program_sha256,
                attestations: plan.image.attestations.clone(),
                policy_serial: plan.policy_serial,
                tightened: plan.tightened.clone(),
                started_at,
            },
        }
    }

    /// Signs it.
    pub fn sign(&self, key: &SigningKey) -> Envelope {
        Envelope::sign(STATEMENT_PAYLOAD_TYPE, &serde_json::to_vec(self).unwrap_or_default(), key)
    }

    /// Reads an envelope that this key must have signed.
    pub fn verify(envelope: &[u8], key: &VerifyingKey) -> Result<Self, ReceiptError> {
        let envelope = Envelope::parse(envelope).map_err(ReceiptError::Envelope)?;
        let payload =
            envelope.verify(STATEMENT_PAYLOAD_TYPE, key).map_err(ReceiptError::Envelope)?;
        let receipt: Self = strict_json::parse(&payload, Limits::bytes(RECEIPT_BYTES_MAX))
            .map_err(ReceiptError::Payload)?;
        if receipt.statement_type != STATEMENT_TYPE || receipt.predicate_type != RECEIPT_TYPE {
            let found = receipt.predicate_type.chars().take(100).collect();
            return Err(ReceiptError::WrongType { found });
        }
        Ok(receipt)
    }
}

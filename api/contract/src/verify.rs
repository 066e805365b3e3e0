//! What the node agent and control ask of `nimbus-verify`, and what it answers.
//!
//! One process a verification: the request is JSON on its stdin, the answer JSON on its stdout.
//! The verifier says which bundles verify for which signer and what they say; whether that is
//! *enough* is decided by `nimbus_hooks::admit` against the policy.

use serde::{Deserialize, Serialize};

use crate::clock::UnixSeconds;
use crate::digest::Digest;
use crate::policy::{Policy, TlogRule, Trust};
use crate::refusal::{Refusal, RefusalCode};

/// The version of [`VerifyRequest`].
pub const VERIFY_VERSION: u32 = 1;
/// Longest request, all bundles and trust roots in base64 included.
pub const REQUEST_BYTES_MAX: usize = 96 << 20;
/// Longest answer.
pub const REPLY_BYTES_MAX: usize = 4 << 20;
/// Longest sum of all bundles of one request.
pub const BUNDLES_BYTES_MAX: u64 = 64 << 20;

/// One verification.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VerifyRequest {
    /// [`VERIFY_VERSION`].
    pub version: u32,
    /// The digests that count as the image: manifest, and index when there is one.
    pub subjects: Vec<Digest>,
    /// Each in base64.
    pub bundles: Vec<String>,
    /// Whom to try each bundle with.
    pub signers: Vec<Signer>,
    /// Longest bundle.
    pub bundle_bytes_max: u64,
    /// Now, for what is checked against the present.
    pub now: UnixSeconds,
}

/// Somebody who may have signed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Signer {
    /// Name of the need (policy `[need.NAME]`) that this signer is for.
    pub need: String,
    /// Predicate types that satisfy it, compared exactly.
    pub predicate_types: Vec<String>,
    /// How to tell.
    pub how: SignerKind,
}

/// How a signer is known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
pub enum SignerKind {
    /// A managed key.
    Key {
        /// PEM.
        key: String,
        /// Whether a log entry is asked for.
        tlog: TlogRule,
        /// trusted_root.json, for the log.
        trusted_root: Option<String>,
        /// The key's window, against the verified time if there is one, else against now.
        not_before: Option<UnixSeconds>,
        /// The key's window.
        not_after: Option<UnixSeconds>,
    },
    /// A certificate with this identity from this issuer.
    Keyless {
        /// trusted_root.json.
        trusted_root: String,
        /// Compared exactly.
        identity: String,
        /// Compared exactly.
        issuer: String,
    },
}

/// The answer: one outcome for each bundle, in order; or a refusal of the whole request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
pub enum VerifyReply {
    /// The request was worked through.
    Outcomes(Vec<BundleOutcome>),
    /// It was not.
    Refused(Refusal),
}

/// What became of one bundle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
pub enum BundleOutcome {
    /// It verifies and satisfies these needs, at least one.
    Verified(VerifiedAttestation),
    /// It satisfies none; the refusal is that of the signer it got furthest with.
    Rejected {
        /// SHA-256 of the bundle's bytes.
        bundle: Digest,
        /// `image.bundle_invalid`, `image.wrong_subject`, `image.untrusted_signer` or
        /// `image.wrong_predicate`.
        refusal: Refusal,
    },
}

/// What a verified bundle says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VerifiedAttestation {
    /// SHA-256 of the bundle's bytes.
    pub bundle: Digest,
    /// Which of the request's subjects it is about.
    pub subject: Digest,
    /// Its predicate type.
    pub predicate_type: String,
    /// Names of the needs whose signer and predicate type fit; age is not looked at.
    pub needs: Vec<String>,
    /// The time of signing that a log or timestamp authority vouches for; the *earliest* of them is
    /// not trusted more than the latest, so the oldest is given.
    pub signed_at: Option<UnixSeconds>,
}

impl VerifyRequest {
    /// What has to be asked to judge an image by this rule of this policy.
    pub fn for_rule(
        policy: &Policy,
        require: &[String],
        subjects: Vec<Digest>,
        bundles: Vec<String>,
        now: UnixSeconds,
    ) -> Result<Self, Refusal> {
        let mut signers = Vec::new();
        for name in require {
            let need = policy.need.get(name);
            let trust = need.and_then(|need| policy.trust.get(&need.trust));
            let (Some(need), Some(trust)) = (need, trust) else {
                return Err(Refusal::with(RefusalCode::PolicyInvalid, format!("no need {name:?}")));
            };
            let how = match trust {
                Trust::Key { key, tlog, trusted_root, not_before, not_after } => SignerKind::Key {
                    key: key.clone(),
                    tlog: *tlog,
                    trusted_root: trusted_root.clone(),
                    not_before: *not_before,
                    not_after: *not_after,
                },
                Trust::Keyless { trusted_root } => SignerKind::Keyless {
                    trusted_root: trusted_root.clone(),
                    identity: need.identity.clone().unwrap_or_default(),
                    issuer: need.issuer.clone().unwrap_or_default(),
                },
            };
            signers.push(Signer {
                need: name.clone(),
                predicate_types: need.predicate.clone(),
                how,
            });
        }
        Ok(Self {
            version: VERIFY_VERSION,
            subjects,
            bundles,
            signers,
            bundle_bytes_max: policy.limits.bundle_bytes,
            now,
        })
    }
}

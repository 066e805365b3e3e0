//! What the sigstore conformance suite asks of a client: one bundle, one artifact, one signer.
//!
//! The same strict reading and the same trust roots as for images, but plain signatures over
//! artifacts are verified too, and no predicate type is asked for. Source: sigstore-conformance,
//! `docs/cli_protocol.md`.

use nimbus_api::Digest;
use sigstore_verify::trust_root::{
    SIGSTORE_PRODUCTION_TRUSTED_ROOT, SIGSTORE_STAGING_TRUSTED_ROOT,
};
use sigstore_verify::types::{Artifact, Sha256Hash};
use sigstore_verify::{PublicKeyVerificationPolicy, VerificationPolicy};

use crate::bundle::{CheckedBundle, Profile};
use crate::root;
use crate::signer::{assert_keyless, public_key};

/// Longest bundle.
pub const BUNDLE_BYTES_MAX: usize = 16 << 20;

/// Who must have signed.
#[derive(Debug, Clone, Copy)]
pub enum Expected<'a> {
    /// A certificate with exactly this identity and issuer.
    Identity {
        /// Subject alternative name.
        identity: &'a str,
        /// OIDC issuer.
        issuer: &'a str,
    },
    /// This key, in PEM.
    Key(&'a str),
}

/// Which trust root decides.
#[derive(Debug, Clone, Copy)]
pub enum Root<'a> {
    /// The public good instance's, as of the release of the sigstore crates.
    Production,
    /// The staging instance's.
    Staging,
    /// A trusted_root.json.
    Json(&'a str),
}

/// What was signed.
#[derive(Debug, Clone, Copy)]
pub enum Signed<'a> {
    /// These bytes.
    Bytes(&'a [u8]),
    /// Bytes with this digest.
    Digest(Digest),
}

/// Why a bundle was not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NotVerified(String);

/// Accepts the bundle, or says why not.
pub fn verify_bundle(
    bundle: &[u8],
    profile: Profile,
    expected: Expected<'_>,
    root: Root<'_>,
    signed: Signed<'_>,
) -> Result<(), NotVerified> {
    let refuse = |detail: &dyn std::fmt::Display| NotVerified(detail.to_string());
    let checked = CheckedBundle::parse(bundle, BUNDLE_BYTES_MAX, profile)
        .map_err(|rejection| refuse(&rejection))?;
    let json = match root {
        Root::Production => SIGSTORE_PRODUCTION_TRUSTED_ROOT,
        Root::Staging => SIGSTORE_STAGING_TRUSTED_ROOT,
        Root::Json(json) => json,
    };
    let verifier = root::verifier(json).map_err(|error| refuse(&error))?;
    let digest = match signed {
        Signed::Bytes(bytes) => Digest::of(bytes),
        Signed::Digest(digest) => digest,
    };
    if checked.statement.as_ref().is_some_and(|statement| statement.about(&[digest]).is_none()) {
        return Err(refuse(&"the statement is about another artifact"));
    }
    let artifact = match signed {
        Signed::Bytes(bytes) => Artifact::from(bytes),
        Signed::Digest(digest) => Artifact::from(Sha256Hash::new(*digest.as_bytes())),
    };
    match expected {
        Expected::Identity { identity, issuer } => {
            if identity.is_empty() || issuer.is_empty() {
                return Err(refuse(&"identity and issuer must not be empty"));
            }
            let policy = VerificationPolicy::new(identity, issuer);
            let result = verifier
                .verify(artifact, &checked.bundle, &policy)
                .map_err(|error| refuse(&error))?;
            assert_keyless(&result, identity, issuer).map_err(|rejection| refuse(&rejection))
        }
        Expected::Key(pem) => {
            let key = public_key(pem).map_err(|detail| refuse(&detail))?;
            let policy = PublicKeyVerificationPolicy::new(key);
            let result = verifier
                .verify(artifact, &checked.bundle, &policy)
                .map_err(|error| refuse(&error))?;
            let entries = &checked.bundle.verification_material.tlog_entries;
            if !result.tlog_verified() || entries.is_empty() {
                return Err(refuse(&"no log entry was verified"));
            }
            Ok(())
        }
    }
}

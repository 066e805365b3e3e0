//! One signer of a request, made ready once, tried with every bundle.
//!
//! A managed key's identity is the SHA-256 of its SubjectPublicKeyInfo in DER. A bundle's
//! `publicKey.hint` (or its signature's `keyid`) that is this, in base64 or hex, claims the key: a
//! signature that then fails is damage or forgery. Any other hint claims nothing; such a bundle is
//! still tried with the key, and is a stranger's when that fails. Hints never decide acceptance.

use std::collections::BTreeMap;
use std::rc::Rc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use nimbus_api::clock::UnixSeconds;
use nimbus_api::policy::TlogRule;
use nimbus_api::verify::{Signer, SignerKind};
use nimbus_api::{Digest, Refusal, RefusalCode};
use sigstore_verify::crypto::{KeyAlgorithm, parse_certificate_info, verify_signature};
use sigstore_verify::types::bundle::VerificationMaterialContent;
use sigstore_verify::types::{DerPublicKey, DsseEnvelope, Sha256Hash, SignatureContent};
use sigstore_verify::{
    CertificateError, Error, PublicKeyVerificationPolicy, VerificationPolicy, VerificationResult,
    Verifier,
};

use crate::bundle::CheckedBundle;
use crate::rejection::{Reached, Rejection};
use crate::root;
use crate::statement::Statement;

/// How far a verified time may be in the future before it is not believed, seconds.
pub(crate) const FUTURE_TOLERANCE_SECONDS: i64 = 60;
/// Longest PEM of a key.
pub(crate) const KEY_PEM_BYTES_MAX: usize = 16 << 10;

/// A signer, ready.
pub(crate) struct PreparedSigner<'a> {
    signer: &'a Signer,
    how: How<'a>,
}

enum How<'a> {
    Key(ManagedKey),
    Keyless { verifier: Rc<Verifier>, identity: &'a str, issuer: &'a str },
}

struct ManagedKey {
    key: DerPublicKey,
    /// What a hint that claims this key says.
    names: [String; 2],
    /// Present when a log entry is asked for.
    log: Option<Rc<Verifier>>,
    not_before: Option<UnixSeconds>,
    not_after: Option<UnixSeconds>,
}

/// What a signer vouches for.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) subject: Digest,
    pub(crate) predicate_type: String,
    pub(crate) signed_at: Option<UnixSeconds>,
}

impl<'a> PreparedSigner<'a> {
    /// Makes all of them ready; a root that several name is read once. One that cannot be used
    /// refuses the request: the policy it came from is wrong, not the bundles.
    pub(crate) fn prepare_all(signers: &'a [Signer]) -> Result<Vec<Self>, Refusal> {
        let mut roots = BTreeMap::new();
        signers.iter().map(|signer| Self::prepare(signer, &mut roots)).collect()
    }

    fn prepare(
        signer: &'a Signer,
        roots: &mut BTreeMap<&'a str, Rc<Verifier>>,
    ) -> Result<Self, Refusal> {
        let refuse = |detail: &dyn std::fmt::Display| {
            Refusal::with(RefusalCode::PolicyInvalid, format!("need {}: {detail}", signer.need))
        };
        if signer.predicate_types.is_empty() || signer.predicate_types.iter().any(String::is_empty)
        {
            return Err(refuse(&"no predicate type"));
        }
        let mut verifier = |json: &'a str| -> Result<Rc<Verifier>, Refusal> {
            if let Some(known) = roots.get(json) {
                return Ok(Rc::clone(known));
            }
            let made = Rc::new(root::verifier(json).map_err(|error| refuse(&error))?);
            roots.insert(json, Rc::clone(&made));
            Ok(made)
        };
        let how = match &signer.how {
            SignerKind::Keyless { trusted_root, identity, issuer } => {
                if identity.is_empty() || issuer.is_empty() {
                    return Err(refuse(&"keyless trust needs both identity and issuer"));
                }
                How::Keyless { verifier: verifier(trusted_root)?, identity, issuer }
            }
            SignerKind::Key { key, tlog, trusted_root, not_before, not_after } => {
                let log = match (tlog, trusted_root) {
                    (TlogRule::Off, _) => None,
                    (TlogRule::Require, Some(json)) => Some(verifier(json)?),
                    (TlogRule::Require, None) => {
                        return Err(refuse(&"a log entry is asked for without a trusted root"));
                    }
                };
                let key = public_key(key).map_err(|detail| refuse(&detail))?;
                let names = key_names(&key);
                let (not_before, not_after) = (*not_before, *not_after);
                How::Key(ManagedKey { key, names, log, not_before, not_after })
            }
        };
        Ok(Self { signer, how })
    }

    /// Name of the need that this signer is for.
    pub(crate) fn need(&self) -> &'a str {
        &self.signer.need
    }

    /// Whether this signer vouches that the bundle is about one of these images.
    pub(crate) fn verify(
        &self,
        bundle: &CheckedBundle,
        images: &[Digest],
        now: UnixSeconds,
    ) -> Result<Found, Rejection> {
        let SignatureContent::DsseEnvelope(envelope) = &bundle.bundle.content else {
            return Err(Rejection::invalid("it holds no attestation but a plain signature"));
        };
        let Some(statement) = &bundle.statement else {
            return Err(Rejection::invalid("it holds no statement"));
        };
        let subject = statement.about(images);
        // About another image: verified all the same, so that the refusal says what is really
        // wrong with it.
        let artifact = subject.or_else(|| statement.subjects.first().copied());
        let Some(artifact) = artifact.or_else(|| images.first().copied()) else {
            return Err(Rejection::invalid("there is no image to compare with"));
        };
        let times = match &self.how {
            How::Key(key) => key.verify(bundle, envelope, &artifact, now)?,
            How::Keyless { verifier, identity, issuer } => {
                check_claims(bundle, identity, issuer)?;
                let policy = VerificationPolicy::new(*identity, *issuer);
                let result = verifier
                    .verify(sha256(&artifact), &bundle.bundle, &policy)
                    .map_err(|error| keyless_rejection(&error))?;
                assert_keyless(&result, identity, issuer)?;
                times(&result)
            }
        };
        check_future(&times, now)?;
        let subject = subject.ok_or_else(|| other_subject(statement, images))?;
        if !self.signer.predicate_types.contains(&statement.predicate_type) {
            let found = &statement.predicate_type;
            let expected = self.signer.predicate_types.join(" or ");
            let detail = format!("found {found:?}, expected {expected}");
            return Err(Rejection::new(Reached::OtherPredicate, detail));
        }
        let predicate_type = statement.predicate_type.clone();
        Ok(Found { subject, predicate_type, signed_at: times.into_iter().min() })
    }
}

impl ManagedKey {
    /// The verified times, none without a log.
    fn verify(
        &self,
        bundle: &CheckedBundle,
        envelope: &DsseEnvelope,
        artifact: &Digest,
        now: UnixSeconds,
    ) -> Result<Vec<UnixSeconds>, Rejection> {
        let VerificationMaterialContent::PublicKey(hint) =
            &bundle.bundle.verification_material.content
        else {
            return Err(Rejection::new(
                Reached::Stranger,
                "it is signed with a certificate, the policy names a key",
            ));
        };
        let scheme = KeyAlgorithm::from_spki(&self.key)
            .map_err(Rejection::invalid)?
            .default_signing_scheme();
        if verify_signature(&self.key, &envelope.pae(), &envelope.signature.sig, scheme).is_err() {
            let keyid = envelope.signature.keyid.to_string();
            return Err(if self.claimed_by(&hint.hint) || self.claimed_by(&keyid) {
                Rejection::invalid("the signature is not the key's that the bundle names")
            } else {
                Rejection::new(Reached::Stranger, "the signature is not one of the policy's key")
            });
        }
        let times = match &self.log {
            None => Vec::new(),
            Some(log) => {
                let policy = PublicKeyVerificationPolicy::new(self.key.clone());
                let result = log
                    .verify(sha256(artifact), &bundle.bundle, &policy)
                    .map_err(|error| Rejection::invalid(format!("no valid log entry: {error}")))?;
                let entries = &bundle.bundle.verification_material.tlog_entries;
                if !result.tlog_verified() || entries.is_empty() {
                    return Err(Rejection::invalid("no log entry was verified"));
                }
                times(&result)
            }
        };
        self.check_window(&times, now)?;
        Ok(times)
    }

    fn claimed_by(&self, hint: &str) -> bool {
        self.names.iter().any(|name| name.eq_ignore_ascii_case(hint)) && !hint.is_empty()
    }

    /// Against each verified time if there is one, else against now.
    fn check_window(&self, times: &[UnixSeconds], now: UnixSeconds) -> Result<(), Rejection> {
        let now = [now];
        let times = if times.is_empty() { now.as_slice() } else { times };
        for time in times {
            let early = self.not_before.is_some_and(|bound| *time < bound);
            let late = self.not_after.is_some_and(|bound| *time > bound);
            if early || late {
                let detail = format!("the key is not believed for {time}");
                return Err(Rejection::new(Reached::KeyWindow, detail));
            }
        }
        Ok(())
    }
}

/// Reads a PEM of a SubjectPublicKeyInfo.
pub(crate) fn public_key(pem: &str) -> Result<DerPublicKey, String> {
    if pem.len() > KEY_PEM_BYTES_MAX {
        return Err(format!("key of more than {KEY_PEM_BYTES_MAX} bytes"));
    }
    let key = DerPublicKey::from_pem(pem).map_err(|error| error.to_string())?;
    KeyAlgorithm::from_spki(&key).map_err(|error| error.to_string())?;
    Ok(key)
}

fn key_names(key: &DerPublicKey) -> [String; 2] {
    let id = Digest::of(key.as_bytes());
    [BASE64.encode(id.as_bytes()), id.hex()]
}

fn sha256(digest: &Digest) -> Sha256Hash {
    Sha256Hash::new(*digest.as_bytes())
}

fn times(result: &VerificationResult) -> Vec<UnixSeconds> {
    result.verified_timestamps().iter().map(|time| UnixSeconds(time.as_second())).collect()
}

fn check_future(times: &[UnixSeconds], now: UnixSeconds) -> Result<(), Rejection> {
    let latest = now.0.saturating_add(FUTURE_TOLERANCE_SECONDS);
    match times.iter().find(|time| time.0 > latest) {
        None => Ok(()),
        Some(time) => Err(Rejection::invalid(format!("signed in the future, at {time}"))),
    }
}

/// Whether the certificate claims to be this signer's at all. Proves nothing; without it, whatever
/// else is wrong with a stranger's bundle would be told as damage.
fn check_claims(bundle: &CheckedBundle, identity: &str, issuer: &str) -> Result<(), Rejection> {
    let stranger = |detail: String| Rejection::new(Reached::Stranger, detail);
    let Some(certificate) = bundle.bundle.signing_certificate() else {
        return Err(stranger("it is signed with a key, the policy names an identity".to_owned()));
    };
    let info = parse_certificate_info(certificate).map_err(Rejection::invalid)?;
    let san = info.identity.as_ref().map_or("none", |san| san.as_str());
    if san != identity {
        return Err(stranger(format!("found identity {san:?}, expected {identity:?}")));
    }
    let found = info.issuer.as_deref().unwrap_or("none");
    if found != issuer {
        return Err(stranger(format!("found issuer {found:?}, expected {issuer:?}")));
    }
    Ok(())
}

/// What sigstore promised is asserted, not assumed: a relaxed policy or a changed default upstream
/// must not become an acceptance here.
pub(crate) fn assert_keyless(
    result: &VerificationResult,
    identity: &str,
    issuer: &str,
) -> Result<(), Rejection> {
    let complete = result.tlog_verified()
        && result.certificate_verified()
        && result.sct_verified()
        && result.identity_policy_checked()
        && !result.verified_timestamps().is_empty();
    if !complete {
        return Err(Rejection::invalid("not every part of it was verified"));
    }
    let san = result.identity().map(|identity| identity.as_str().to_owned());
    if san.as_deref() != Some(identity) || result.issuer() != Some(issuer) {
        return Err(Rejection::new(Reached::Stranger, "another identity signed it"));
    }
    Ok(())
}

#[allow(
    clippy::wildcard_enum_match_arm,
    clippy::allow_attributes,
    reason = "sigstore's errors are non-exhaustive; every unknown one is damage"
)]
fn keyless_rejection(error: &Error) -> Rejection {
    let reached = match error {
        Error::IdentityMismatch { .. }
        | Error::IssuerMismatch { .. }
        | Error::Certificate(
            CertificateError::ChainInvalid(_) | CertificateError::NoValidAuthority { .. },
        ) => Reached::Stranger,
        Error::ArtifactMismatch(_) => Reached::OtherSubject,
        _ => Reached::Broken,
    };
    Rejection::new(reached, error)
}

fn other_subject(statement: &Statement, images: &[Digest]) -> Rejection {
    let list = |digests: &[Digest]| {
        digests.iter().take(2).map(ToString::to_string).collect::<Vec<_>>().join(", ")
    };
    let detail = format!("it is about {}, expected {}", list(&statement.subjects), list(images));
    Rejection::new(Reached::OtherSubject, detail)
}

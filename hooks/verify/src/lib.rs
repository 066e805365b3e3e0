//! Which bundles verify for which signer, and what they say.
//!
//! Inputs: one [`VerifyRequest`], wholly untrusted but for its signers. Output: one
//! [`VerifyReply`]. The only crate of Nimbus that names sigstore; its types do not leave it.
//!
//! Order of one bundle: our own strict reading ([`bundle`]), then sigstore's verification with each
//! signer ([`signer`]), then our own checks of what sigstore leaves to its caller ([`statement`],
//! [`root`]). A panic anywhere is that bundle's rejection.
//!
//! Deliberately absent: files, network, the decision whether what verified is enough. The program
//! around this library puts itself into a sandbox first ([`sandbox`]).
#![forbid(unsafe_code)]

pub mod bundle;
pub mod conformance;
mod rejection;
pub mod root;
pub mod sandbox;
mod signer;
pub mod statement;

use std::panic::{AssertUnwindSafe, catch_unwind};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use nimbus_api::clock::UnixSeconds;
use nimbus_api::policy::POLICY_ENTRIES_MAX;
use nimbus_api::verify::{
    BUNDLES_BYTES_MAX, BundleOutcome, VERIFY_VERSION, VerifiedAttestation, VerifyReply,
    VerifyRequest,
};
use nimbus_api::{Digest, Refusal, RefusalCode};

use bundle::{CheckedBundle, Profile};
use rejection::{Reached, Rejection};
use signer::PreparedSigner;

/// Most bundles of one request.
pub const BUNDLES_MAX: usize = 256;
/// Most digests that count as the image.
pub const SUBJECTS_MAX: usize = 16;

/// Works a request through. Never panics, never accepts in doubt.
pub fn verify(request: &VerifyRequest) -> VerifyReply {
    match catch_unwind(AssertUnwindSafe(|| verify_all(request))) {
        Ok(Ok(outcomes)) => VerifyReply::Outcomes(outcomes),
        Ok(Err(refusal)) => VerifyReply::Refused(refusal),
        Err(_panic) => {
            VerifyReply::Refused(Refusal::with(RefusalCode::VerifyFailed, "it panicked"))
        }
    }
}

fn verify_all(request: &VerifyRequest) -> Result<Vec<BundleOutcome>, Refusal> {
    check_request(request)?;
    let signers = PreparedSigner::prepare_all(&request.signers)?;
    let mut bytes_left = BUNDLES_BYTES_MAX;
    let mut outcomes = Vec::new();
    for text in &request.bundles {
        let bundle = BASE64.decode(text).map_err(|_not_base64| {
            Refusal::with(RefusalCode::RequestInvalid, "a bundle is not base64")
        })?;
        let length = u64::try_from(bundle.len()).unwrap_or(u64::MAX);
        bytes_left = bytes_left.checked_sub(length).ok_or_else(|| {
            Refusal::with(
                RefusalCode::VerifyTooLarge,
                format!("bundles of more than {BUNDLES_BYTES_MAX} bytes together"),
            )
        })?;
        let digest = Digest::of(&bundle);
        let judged = catch_unwind(AssertUnwindSafe(|| verify_one(request, &signers, &bundle)));
        let judged = judged.unwrap_or_else(|_panic| Err(Rejection::invalid("reading it panicked")));
        outcomes.push(match judged {
            Ok(attestation) => BundleOutcome::Verified(attestation),
            Err(rejection) => {
                BundleOutcome::Rejected { bundle: digest, refusal: rejection.refusal() }
            }
        });
    }
    Ok(outcomes)
}

/// An empty list must never come to mean "anything".
fn check_request(request: &VerifyRequest) -> Result<(), Refusal> {
    let refuse = |code, detail: String| Err(Refusal::with(code, detail));
    if request.version != VERIFY_VERSION {
        let detail = format!("found version {}, expected {VERIFY_VERSION}", request.version);
        return refuse(RefusalCode::RequestInvalid, detail);
    }
    if request.subjects.is_empty() || request.subjects.len() > SUBJECTS_MAX {
        let detail = format!("{} subjects, 1 to {SUBJECTS_MAX} may be", request.subjects.len());
        return refuse(RefusalCode::RequestInvalid, detail);
    }
    if request.signers.is_empty() || request.signers.len() > POLICY_ENTRIES_MAX {
        let detail = format!("{} signers, 1 to {POLICY_ENTRIES_MAX} may be", request.signers.len());
        return refuse(RefusalCode::PolicyInvalid, detail);
    }
    if request.bundles.len() > BUNDLES_MAX {
        let detail = format!("{} bundles, at most {BUNDLES_MAX} may be", request.bundles.len());
        return refuse(RefusalCode::VerifyTooLarge, detail);
    }
    Ok(())
}

fn verify_one(
    request: &VerifyRequest,
    signers: &[PreparedSigner<'_>],
    bytes: &[u8],
) -> Result<VerifiedAttestation, Rejection> {
    let bytes_max = usize::try_from(request.bundle_bytes_max).unwrap_or(usize::MAX);
    let bundle = CheckedBundle::parse(bytes, bytes_max, Profile::Strict)?;
    let mut best: Option<VerifiedAttestation> = None;
    let mut furthest = Rejection::new(Reached::Nothing, "no signer was tried");
    for signer in signers {
        match signer.verify(&bundle, &request.subjects, request.now) {
            Ok(found) => match &mut best {
                None => {
                    best = Some(VerifiedAttestation {
                        bundle: Digest::of(bytes),
                        subject: found.subject,
                        predicate_type: found.predicate_type,
                        needs: vec![signer.need().to_owned()],
                        signed_at: found.signed_at,
                    });
                }
                Some(attestation) => {
                    attestation.needs.push(signer.need().to_owned());
                    attestation.signed_at = oldest(attestation.signed_at, found.signed_at);
                }
            },
            Err(rejection) if rejection.reached > furthest.reached => furthest = rejection,
            Err(_not_further) => {}
        }
    }
    best.ok_or(furthest)
}

/// The older of two times; a known one counts before none.
fn oldest(one: Option<UnixSeconds>, other: Option<UnixSeconds>) -> Option<UnixSeconds> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (known, None) | (None, known) => known,
    }
}

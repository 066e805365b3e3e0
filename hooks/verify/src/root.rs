//! Trust roots: sigstore's `trusted_root.json`, read strictly and with every window closed.
//!
//! webpki does not look at the validity of trust anchors, so an authority that did not exist yet,
//! or no longer, at the time of signing would be believed. `validFor` in the document is its
//! owner's word on that and is obeyed; a bound that it leaves open is taken from the certificates
//! of the authority's own chain (latest notBefore, earliest notAfter), so that sigstore's check
//! against each verified time has two bounds to check.

use std::fmt;

use nimbus_api::error::Chain;
use nimbus_api::strict_json::{self, Limits};
use sigstore_verify::Verifier;
use sigstore_verify::crypto::parse_certificate_info;
use sigstore_verify::trust_root::TrustedRoot;
use sigstore_verify::types::{DerCertificate, TimeRange};

/// Longest trusted_root.json.
pub const ROOT_BYTES_MAX: usize = 4 << 20;
/// Most logs or authorities of a kind in one.
pub const ROOT_ENTRIES_MAX: usize = 256;

/// Why a trust root cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("trusted root: {0}")]
pub struct RootError(String);

impl RootError {
    fn new(detail: impl fmt::Display) -> Self {
        Self(detail.to_string())
    }
}

/// A verifier for this root.
pub(crate) fn verifier(json: &str) -> Result<Verifier, RootError> {
    strict_json::value(json.as_bytes(), Limits::bytes(ROOT_BYTES_MAX))
        .map_err(|error| RootError::new(Chain(&error)))?;
    let mut root = TrustedRoot::from_json(json).map_err(RootError::new)?;
    let counts = [
        root.tlogs.len(),
        root.ctlogs.len(),
        root.certificate_authorities.len(),
        root.timestamp_authorities.len(),
    ];
    if counts.iter().any(|count| *count > ROOT_ENTRIES_MAX) {
        return Err(RootError::new(format!("more than {ROOT_ENTRIES_MAX} entries of a kind")));
    }
    for authority in &mut root.certificate_authorities {
        let chain = authority.cert_chain.certificates.iter().map(|entry| &entry.raw_bytes);
        authority.valid_for = Some(closed(authority.valid_for, chain)?);
    }
    for authority in &mut root.timestamp_authorities {
        let chain = authority.cert_chain.certificates.iter().map(|entry| &entry.raw_bytes);
        authority.valid_for = Some(closed(authority.valid_for, chain)?);
    }
    Verifier::new(&root).map_err(RootError::new)
}

/// The window with both bounds.
fn closed<'a>(
    window: Option<TimeRange>,
    chain: impl Iterator<Item = &'a DerCertificate>,
) -> Result<TimeRange, RootError> {
    let mut own: Option<TimeRange> = None;
    for certificate in chain {
        let info = parse_certificate_info(certificate).map_err(RootError::new)?;
        let start = own.map_or(info.not_before, |own| own.start.max(info.not_before));
        let end = own.and_then(|own| own.end).map_or(info.not_after, |end| end.min(info.not_after));
        own = Some(TimeRange::new(start, Some(end)));
    }
    let own = own.ok_or_else(|| RootError::new("an authority has no certificate"))?;
    let start = window.map_or(own.start, |window| window.start);
    let end = window.and_then(|window| window.end).or(own.end);
    Ok(TimeRange::new(start, end))
}

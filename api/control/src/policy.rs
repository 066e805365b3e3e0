//! Control's own reading of the policy that it hands to nodes.
//!
//! It cannot check the signature (it never holds the policy key, rule 11): what it decides by this
//! document can only be refused again by a node, which does check. Pure.

use nimbus_api::dsse::Envelope;
use nimbus_api::error::Chain;
use nimbus_api::policy::{POLICY_TYPE, Policy};
use nimbus_api::{Digest, Refusal, RefusalCode};

use crate::store::PolicyRow;

/// Reads an envelope for the store; the document that is in it comes along.
pub(crate) fn read(envelope: Vec<u8>) -> Result<(PolicyRow, Policy), Refusal> {
    let (document, policy) = document(&envelope)?;
    let row = PolicyRow {
        serial: policy.serial,
        id: policy.id.clone(),
        not_after_ms: policy.not_after.0.saturating_mul(1000),
        document: Digest::of(&document),
        envelope,
    };
    Ok((row, policy))
}

/// The document in an envelope, as bytes and read.
pub(crate) fn document(envelope: &[u8]) -> Result<(Vec<u8>, Policy), Refusal> {
    let invalid =
        |error: &dyn std::error::Error| Refusal::with(RefusalCode::PolicyInvalid, Chain(error));
    let parsed = Envelope::parse(envelope).map_err(|error| invalid(&error))?;
    if parsed.payload_type != POLICY_TYPE {
        let found = format!("found payload type {:?}", parsed.payload_type);
        return Err(Refusal::with(RefusalCode::PolicyInvalid, found));
    }
    let document = parsed.unverified_payload().map_err(|error| invalid(&error))?;
    let policy = Policy::parse(&document).map_err(|error| invalid(&error))?;
    Ok((document, policy))
}

//! Whether a receipt is this node's, and about the lease that its event names. Pure.

use nimbus_api::Digest;
use nimbus_api::dsse::VerifyingKey;
use nimbus_api::error::Chain;
use nimbus_api::proto::node::v1::Event;
use nimbus_api::receipt::Receipt;

use crate::limits::RECEIPT_ENVELOPE_BYTES_MAX;

/// What stands before the 32 bytes of an Ed25519 key in its SubjectPublicKeyInfo (RFC 8410).
const ED25519_SPKI: [u8; 12] =
    [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// The raw key of a SubjectPublicKeyInfo.
pub(super) fn key_of(spki: &[u8]) -> Option<VerifyingKey> {
    let raw: [u8; 32] = spki.strip_prefix(&ED25519_SPKI)?.try_into().ok()?;
    Some(VerifyingKey::from_bytes(raw))
}

/// Says what is wrong with a receipt, if anything is.
pub(super) fn problem(spki: &[u8], event: &Event, envelope: &[u8]) -> Option<String> {
    if envelope.len() > RECEIPT_ENVELOPE_BYTES_MAX {
        return Some(format!("{} bytes, at most {RECEIPT_ENVELOPE_BYTES_MAX}", envelope.len()));
    }
    let Some(key) = key_of(spki) else { return Some("the node's key is not Ed25519".to_owned()) };
    let receipt = match Receipt::verify(envelope, &key) {
        Ok(receipt) => receipt.predicate,
        Err(error) => return Some(Chain(&error).to_string()),
    };
    let about_it = receipt.lease_id.as_str() == event.lease_id
        && receipt.job.as_str() == event.job
        && receipt.attempt == event.attempt
        && receipt.node == Digest::of(spki);
    if about_it { None } else { Some("it is about another lease, attempt or node".to_owned()) }
}

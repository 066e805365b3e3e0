//! Ways to spoil a bundle.
//!
//! Each takes a good one and returns a bad one; what a verifier must say to it is in the name of
//! the file that [`crate::bundle`]'s users write it to.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};

use crate::Bundle;

/// Changes one byte of the signed payload; it stays JSON, and stays about the same image.
#[must_use]
pub fn tamper(bundle: &Bundle) -> Bundle {
    let payload = String::from_utf8_lossy(&bundle.payload()).into_owned();
    let changed = payload.replacen("nimbus.io/forge", "nimbus.io/f0rge", 1);
    let changed = if changed == payload { format!("{payload} ") } else { changed };
    set(bundle, "/dsseEnvelope/payload", json!(BASE64.encode(changed)))
}

/// Puts another payload under the old signature.
#[must_use]
pub fn with_payload(bundle: &Bundle, payload: &[u8]) -> Bundle {
    set(bundle, "/dsseEnvelope/payload", json!(BASE64.encode(payload)))
}

/// Changes a bit of the signature.
#[must_use]
pub fn break_signature(bundle: &Bundle) -> Bundle {
    flip(bundle, "/dsseEnvelope/signatures/0/sig")
}

/// Changes a bit of the log's promise: the time is no longer vouched for.
#[must_use]
pub fn break_promise(bundle: &Bundle) -> Bundle {
    flip(bundle, "/verificationMaterial/tlogEntries/0/inclusionPromise/signedEntryTimestamp")
}

/// Claims another time of logging.
#[must_use]
pub fn move_integrated_time(bundle: &Bundle, seconds: i64) -> Bundle {
    let at = "/verificationMaterial/tlogEntries/0/integratedTime";
    let old = bundle.0.pointer(at).and_then(Value::as_str).and_then(|text| text.parse().ok());
    let new = old.unwrap_or(0_i64).saturating_add(seconds);
    set(bundle, at, json!(new.to_string()))
}

/// Removes the proof of inclusion and names the old media type that did not ask for one.
#[must_use]
pub fn downgrade(bundle: &Bundle) -> Bundle {
    let mut changed = bundle.clone();
    if let Some(Value::Object(entry)) = changed.0.pointer_mut("/verificationMaterial/tlogEntries/0")
    {
        entry.remove("inclusionProof");
    }
    set(&changed, "/mediaType", json!("application/vnd.dev.sigstore.bundle+json;version=0.1"))
}

/// Adds a second, equal signature.
#[must_use]
pub fn two_signatures(bundle: &Bundle) -> Bundle {
    let mut changed = bundle.clone();
    if let Some(Value::Array(signatures)) = changed.0.pointer_mut("/dsseEnvelope/signatures") {
        signatures.extend(signatures.first().cloned());
    }
    changed
}

/// Adds a second kind of content.
#[must_use]
pub fn both_contents(bundle: &Bundle) -> Bundle {
    let signature = bundle.0.pointer("/dsseEnvelope/signatures/0/sig").cloned();
    let mut changed = bundle.clone();
    if let Value::Object(top) = &mut changed.0 {
        top.insert("messageSignature".to_owned(), json!({"signature": signature}));
    }
    changed
}

/// Adds a field that no version of the format has.
#[must_use]
pub fn unknown_field(bundle: &Bundle) -> Bundle {
    let mut changed = bundle.clone();
    if let Value::Object(top) = &mut changed.0 {
        top.insert("extra".to_owned(), json!(1));
    }
    changed
}

/// The bytes of a bundle in which `mediaType` stands twice.
#[must_use]
pub fn duplicate_key(bundle: &Bundle) -> Vec<u8> {
    let text = bundle.0.to_string();
    text.replacen("\"mediaType\":", "\"mediaType\":\"x\",\"mediaType\":", 1).into_bytes()
}

/// Names another key in the hint.
#[must_use]
pub fn with_hint(bundle: &Bundle, hint: &str) -> Bundle {
    set(bundle, "/verificationMaterial/publicKey/hint", json!(hint))
}

fn flip(bundle: &Bundle, at: &str) -> Bundle {
    let old = bundle.0.pointer(at).and_then(Value::as_str).unwrap_or_default();
    let mut bytes = BASE64.decode(old).unwrap_or_default();
    if let Some(last) = bytes.last_mut() {
        *last ^= 1;
    }
    set(bundle, at, json!(BASE64.encode(bytes)))
}

fn set(bundle: &Bundle, at: &str, value: Value) -> Bundle {
    let mut changed = bundle.clone();
    if let Some(place) = changed.0.pointer_mut(at) {
        *place = value;
    }
    changed
}

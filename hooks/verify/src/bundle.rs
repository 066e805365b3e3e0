//! Our own strict reading of a bundle, before sigstore's.
//!
//! Whatever could be read in two ways is refused here: duplicate keys at any depth of the bundle
//! and of the signed payload, fields that no version of the format has, two members of a oneof, two
//! signatures, more of anything than its limit. Sigstore then reads the *same bytes*.
//!
//! [`Profile::Strict`] takes bundles v0.3 in the one spelling of their media type that the
//! specification asks writers for, and wants an inclusion proof in every log entry.
//! [`Profile::Legacy`] also takes the older media types that it asks readers for; it exists for the
//! conformance command line, no policy can ask for it.

use nimbus_api::error::Chain;
use nimbus_api::strict_json::{self, Limits};
use serde_json::{Map, Value};
use sigstore_verify::types::{Bundle, SignatureContent};

use crate::rejection::Rejection;
use crate::statement::{PAYLOAD_TYPE, Statement};

/// Media type of bundles v0.3.
pub const MEDIA_TYPE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";
/// Older media types, in the legacy profile only.
pub const MEDIA_TYPES_LEGACY: [&str; 3] = [
    "application/vnd.dev.sigstore.bundle+json;version=0.1",
    "application/vnd.dev.sigstore.bundle+json;version=0.2",
    "application/vnd.dev.sigstore.bundle+json;version=0.3",
];
/// Most log entries of one bundle.
pub const TLOG_ENTRIES_MAX: usize = 16;
/// Most timestamps of one bundle.
pub const TIMESTAMPS_MAX: usize = 16;
/// Most certificates of one bundle's chain.
pub const CERTIFICATES_MAX: usize = 8;
/// Most hashes of one inclusion proof: a tree of 2^64 leaves needs no more.
pub const PROOF_HASHES_MAX: usize = 64;

const CONTENTS: &[&str] = &["dsseEnvelope", "messageSignature"];
const MATERIALS: &[&str] = &["publicKey", "certificate", "x509CertificateChain"];

/// Which bundles are taken at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    /// v0.3 only.
    Strict,
    /// v0.1 and v0.2 too.
    Legacy,
}

/// A bundle that reads in one way only. Nothing in it has been verified.
#[derive(Debug, Clone)]
pub struct CheckedBundle {
    pub(crate) bundle: Bundle,
    /// The statement, when the bundle holds an envelope.
    pub(crate) statement: Option<Statement>,
}

impl CheckedBundle {
    pub(crate) fn parse(
        bytes: &[u8],
        bytes_max: usize,
        profile: Profile,
    ) -> Result<Self, Rejection> {
        let value = strict_json::value(bytes, Limits::bytes(bytes_max))
            .map_err(|error| Rejection::invalid(Chain(&error)))?;
        check_shape(&value, profile)?;
        drop(value);
        let text = std::str::from_utf8(bytes).map_err(Rejection::invalid)?;
        let bundle = Bundle::from_json(text).map_err(Rejection::invalid)?;
        // Whatever is no envelope has no statement, and no verifier of ours takes it for an image.
        let statement = if let SignatureContent::DsseEnvelope(envelope) = &bundle.content {
            if envelope.payload_type != PAYLOAD_TYPE {
                let found = &envelope.payload_type;
                return Err(Rejection::invalid(format!("payload type {found:?}")));
            }
            Some(Statement::parse(envelope.payload.as_bytes())?)
        } else {
            None
        };
        Ok(Self { bundle, statement })
    }
}

fn check_shape(value: &Value, profile: Profile) -> Result<(), Rejection> {
    let top = object("bundle", Some(value))?;
    known(
        "bundle",
        top,
        &["mediaType", "verificationMaterial", "dsseEnvelope", "messageSignature"],
    )?;
    let media_type = top.get("mediaType").and_then(Value::as_str).unwrap_or_default();
    let legacy = profile == Profile::Legacy && MEDIA_TYPES_LEGACY.contains(&media_type);
    if media_type != MEDIA_TYPE && !legacy {
        return Err(Rejection::invalid(format!("media type {media_type:?} is not accepted")));
    }
    if one_of("bundle", top, CONTENTS)? == "dsseEnvelope" {
        check_envelope(object("dsseEnvelope", top.get("dsseEnvelope"))?)?;
    } else {
        let signature = object("messageSignature", top.get("messageSignature"))?;
        known("messageSignature", signature, &["messageDigest", "signature"])?;
    }
    check_material(object("verificationMaterial", top.get("verificationMaterial"))?)
}

fn check_envelope(envelope: &Map<String, Value>) -> Result<(), Rejection> {
    known("dsseEnvelope", envelope, &["payload", "payloadType", "signatures"])?;
    let signatures = list("signatures", envelope.get("signatures"), 1)?;
    let [signature] = signatures else {
        return Err(Rejection::invalid("the envelope has no signature"));
    };
    known("signature", object("signature", Some(signature))?, &["keyid", "sig"])
}

fn check_material(material: &Map<String, Value>) -> Result<(), Rejection> {
    let at = "verificationMaterial";
    let rest = ["tlogEntries", "timestampVerificationData"];
    known(at, material, &[MATERIALS, &rest].concat())?;
    match one_of(at, material, MATERIALS)? {
        "publicKey" => {
            known("publicKey", object("publicKey", material.get("publicKey"))?, &["hint"])?;
        }
        "certificate" => {
            known(
                "certificate",
                object("certificate", material.get("certificate"))?,
                &["rawBytes"],
            )?;
        }
        _chain => {
            let field = material.get("x509CertificateChain");
            let chain = object("x509CertificateChain", field)?;
            known("x509CertificateChain", chain, &["certificates"])?;
            list("certificates", chain.get("certificates"), CERTIFICATES_MAX)?;
        }
    }
    if let Some(data) = material.get("timestampVerificationData").filter(|data| !data.is_null()) {
        let data = object("timestampVerificationData", Some(data))?;
        known("timestampVerificationData", data, &["rfc3161Timestamps"])?;
        if data.contains_key("rfc3161Timestamps") {
            list("rfc3161Timestamps", data.get("rfc3161Timestamps"), TIMESTAMPS_MAX)?;
        }
    }
    if material.contains_key("tlogEntries") {
        for entry in list("tlogEntries", material.get("tlogEntries"), TLOG_ENTRIES_MAX)? {
            check_entry(object("a log entry", Some(entry))?)?;
        }
    }
    Ok(())
}

/// Every entry must be proven to be in its log: what selects a weaker rule is not signed, so no
/// rule may be weaker.
fn check_entry(entry: &Map<String, Value>) -> Result<(), Rejection> {
    let fields = [
        "logIndex",
        "logId",
        "kindVersion",
        "integratedTime",
        "inclusionPromise",
        "inclusionProof",
        "canonicalizedBody",
    ];
    known("a log entry", entry, &fields)?;
    let Some(proof) = entry.get("inclusionProof").filter(|proof| !proof.is_null()) else {
        return Err(Rejection::invalid("a log entry has no inclusion proof"));
    };
    let proof = object("inclusionProof", Some(proof))?;
    known("inclusionProof", proof, &["logIndex", "rootHash", "treeSize", "hashes", "checkpoint"])?;
    if proof.contains_key("hashes") {
        list("hashes", proof.get("hashes"), PROOF_HASHES_MAX)?;
    }
    let checkpoint = object("checkpoint", proof.get("checkpoint"))?;
    known("checkpoint", checkpoint, &["envelope"])?;
    if checkpoint.get("envelope").and_then(Value::as_str).is_none_or(str::is_empty) {
        return Err(Rejection::invalid("a log entry has no checkpoint"));
    }
    Ok(())
}

fn object<'a>(at: &str, value: Option<&'a Value>) -> Result<&'a Map<String, Value>, Rejection> {
    value
        .and_then(Value::as_object)
        .ok_or_else(|| Rejection::invalid(format!("{at} is missing or not an object")))
}

fn list<'a>(at: &str, value: Option<&'a Value>, max: usize) -> Result<&'a [Value], Rejection> {
    let list = value
        .and_then(Value::as_array)
        .ok_or_else(|| Rejection::invalid(format!("{at} is missing or not a list")))?;
    if list.len() > max {
        return Err(Rejection::invalid(format!("{} {at}, at most {max} may be", list.len())));
    }
    Ok(list)
}

fn known(at: &str, object: &Map<String, Value>, fields: &[&str]) -> Result<(), Rejection> {
    match object.keys().find(|key| !fields.contains(&key.as_str())) {
        None => Ok(()),
        Some(key) => {
            let key: String = key.chars().take(64).collect();
            Err(Rejection::invalid(format!("{at} has an unknown field {key:?}")))
        }
    }
}

fn one_of(
    at: &str,
    object: &Map<String, Value>,
    members: &[&'static str],
) -> Result<&'static str, Rejection> {
    let mut present = members.iter().filter(|member| object.contains_key(**member));
    match (present.next(), present.next()) {
        (Some(member), None) => Ok(member),
        (None, _) => Err(Rejection::invalid(format!("{at} has none of {}", members.join(", ")))),
        (Some(one), Some(other)) => {
            Err(Rejection::invalid(format!("{at} has both {one} and {other}")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn good() -> Value {
        let text = include_str!("../testdata/ok-logged.json");
        serde_json::from_str(text).unwrap()
    }

    fn parse(value: &Value, profile: Profile) -> Result<CheckedBundle, Rejection> {
        CheckedBundle::parse(value.to_string().as_bytes(), 1 << 20, profile)
    }

    fn with(at: &str, field: &str, value: Value) -> Value {
        let mut changed = good();
        changed.pointer_mut(at).unwrap()[field] = value;
        changed
    }

    #[test]
    fn whatever_reads_in_two_ways_or_is_too_much_is_refused() {
        assert!(parse(&good(), Profile::Strict).is_ok());
        let material = "/verificationMaterial";
        let entry = good().pointer("/verificationMaterial/tlogEntries/0").cloned().unwrap();
        let proof = "/verificationMaterial/tlogEntries/0/inclusionProof";
        for bad in [
            with("", "messageSignature", Value::Null),
            with("", "media_type", json!(MEDIA_TYPE)),
            with("", "mediaType", json!(MEDIA_TYPE.to_uppercase())),
            with("", "verificationMaterial", json!({})),
            with("", "verificationMaterial", Value::Null),
            with(material, "certificate", json!({"rawBytes": ""})),
            with(material, "x509CertificateChain", Value::Null),
            with(material, "other", json!(1)),
            with(material, "tlogEntries", json!(vec![entry; TLOG_ENTRIES_MAX + 1])),
            with(material, "tlogEntries", json!([{}])),
            with("/verificationMaterial/tlogEntries/0", "inclusionProof", Value::Null),
            with(proof, "checkpoint", json!({"envelope": ""})),
            with(proof, "hashes", json!(vec!["AA=="; PROOF_HASHES_MAX + 1])),
            with("/dsseEnvelope", "signatures", json!([])),
            with("/dsseEnvelope", "payloadType", json!("text/plain")),
        ] {
            for profile in [Profile::Strict, Profile::Legacy] {
                let parsed = parse(&bad, profile);
                assert!(parsed.is_err(), "{bad:#}");
            }
        }
    }

    #[test]
    fn older_media_types_are_for_the_legacy_profile_alone() {
        for media_type in MEDIA_TYPES_LEGACY {
            let old = with("", "mediaType", json!(media_type));
            assert!(parse(&old, Profile::Strict).is_err(), "{media_type}");
            assert!(parse(&old, Profile::Legacy).is_ok(), "{media_type}");
        }
    }
}

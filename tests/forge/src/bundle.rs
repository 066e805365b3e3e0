//! In-toto statements and sigstore bundles v0.3 signed by a managed key.
//!
//! The form is the one that `cosign attest --key --tlog-upload=false --new-bundle-format` and
//! `nimbusctl attest` make: a DSSE envelope with one signature, a key hint, no log entry.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use nimbus_api::Digest;
use nimbus_api::dsse::pae;
use serde_json::{Value, json};

use crate::{ForgeError, KeyPair};

/// Predicate type of SLSA provenance v1.
pub const SLSA_PROVENANCE: &str = "https://slsa.dev/provenance/v1";
/// Payload type of in-toto statements.
pub const IN_TOTO: &str = "application/vnd.in-toto+json";
/// Media type of bundles v0.3.
pub const BUNDLE_V03: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";

/// A bundle that can still be changed, to make bad ones.
#[derive(Debug, Clone, PartialEq)]
pub struct Bundle(pub Value);

impl Bundle {
    /// Its bytes.
    pub fn to_json(&self) -> Vec<u8> {
        self.0.to_string().into_bytes()
    }

    /// Reads what [`Self::to_json`] wrote; nothing is checked but that it is JSON.
    pub fn from_json(text: &[u8]) -> Result<Self, ForgeError> {
        serde_json::from_slice(text).map(Self).map_err(ForgeError::Json)
    }

    /// The DSSE payload.
    pub fn payload(&self) -> Vec<u8> {
        let text = self.0.pointer("/dsseEnvelope/payload").and_then(Value::as_str);
        text.and_then(|text| BASE64.decode(text).ok()).unwrap_or_default()
    }
}

/// A small SLSA provenance predicate.
pub fn provenance() -> Value {
    json!({
        "buildDefinition": {
            "buildType": "https://nimbus.io/forge/v1",
            "externalParameters": {"source": "tests/forge"},
            "resolvedDependencies": [],
        },
        "runDetails": {"builder": {"id": "https://nimbus.io/forge"}},
    })
}

/// The bytes of an in-toto statement v1 about one image.
pub fn statement(name: &str, digest: &Digest, predicate_type: &str, predicate: &Value) -> Vec<u8> {
    json!({
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": name, "digest": {"sha256": digest.hex()}}],
        "predicateType": predicate_type,
        "predicate": predicate,
    })
    .to_string()
    .into_bytes()
}

/// An envelope with one signature, and the signature.
pub(crate) fn envelope(key: &KeyPair, statement: &[u8]) -> Result<(Value, Vec<u8>), ForgeError> {
    let signature = key.sign(&pae(IN_TOTO, statement))?;
    let envelope = json!({
        "payload": BASE64.encode(statement),
        "payloadType": IN_TOTO,
        "signatures": [{"sig": BASE64.encode(&signature)}],
    });
    Ok((envelope, signature))
}

/// A bundle signed by a managed key, without a log entry: a statement of any bytes is signed.
pub fn bundle_with_key(key: &KeyPair, statement: &[u8]) -> Result<Bundle, ForgeError> {
    let (envelope, _signature) = envelope(key, statement)?;
    Ok(Bundle(json!({
        "mediaType": BUNDLE_V03,
        "verificationMaterial": {
            "publicKey": {"hint": key.hint()?},
            "tlogEntries": [],
        },
        "dsseEnvelope": envelope,
    })))
}

//! Sigstore bundles v0.3 with a managed key and no log entry: for use without a network.
//!
//! What is signed is an in-toto Statement v1 about one image digest, in a DSSE envelope with exactly
//! one signature. There is no verified time in such a bundle; a policy with `max_age_seconds`
//! refuses it.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use nimbus_api::dsse::pae;
use nimbus_api::receipt::{STATEMENT_PAYLOAD_TYPE, STATEMENT_TYPE};
use serde_json::{Value, json};

use crate::error::CtlError;
use crate::image::Resolved;
use crate::keys::AttestKey;

const MEDIA_TYPE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";

/// The statement about an image, as it is signed.
fn statement(image: &Resolved, predicate_type: &str, predicate: &Value) -> Vec<u8> {
    json!({
        "_type": STATEMENT_TYPE,
        "subject": [{"name": image.name, "digest": {"sha256": image.digest.hex()}}],
        "predicateType": predicate_type,
        "predicate": predicate,
    })
    .to_string()
    .into_bytes()
}

/// A bundle about an image.
pub(crate) fn make(
    image: &Resolved,
    predicate_type: &str,
    predicate: &Value,
    key: &AttestKey,
) -> Result<Value, CtlError> {
    let payload = statement(image, predicate_type, predicate);
    let signature = key.sign(&pae(STATEMENT_PAYLOAD_TYPE, &payload))?;
    Ok(json!({
        "mediaType": MEDIA_TYPE,
        "verificationMaterial": {"publicKey": {"hint": key.hint()?}, "tlogEntries": []},
        "dsseEnvelope": {
            "payload": BASE64.encode(payload),
            "payloadType": STATEMENT_PAYLOAD_TYPE,
            "signatures": [{"sig": BASE64.encode(signature)}],
        },
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
    use nimbus_api::Digest;

    #[test]
    fn a_bundle_is_about_the_digest_and_its_signature_verifies() {
        let key = AttestKey::generate().unwrap();
        let image = Resolved { name: "127.0.0.1:5000/a".to_owned(), digest: Digest::of(b"image") };
        let bundle =
            make(&image, "https://slsa.dev/provenance/v1", &json!({"a": 1}), &key).unwrap();
        assert_eq!(bundle["mediaType"], MEDIA_TYPE);
        assert_eq!(bundle["verificationMaterial"]["publicKey"]["hint"], key.hint().unwrap());
        let envelope = &bundle["dsseEnvelope"];
        assert_eq!(envelope["signatures"].as_array().unwrap().len(), 1);
        let payload = BASE64.decode(envelope["payload"].as_str().unwrap()).unwrap();
        let signed: Value = serde_json::from_slice(&payload).unwrap();
        assert_eq!(signed["_type"], "https://in-toto.io/Statement/v1");
        assert_eq!(signed["subject"][0]["digest"]["sha256"], image.digest.hex());
        assert_eq!(signed["predicate"], json!({"a": 1}));
        let signature = envelope["signatures"][0]["sig"].as_str().unwrap();
        let pem = key.public_pem().unwrap();
        let der: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
        let public = UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, BASE64.decode(der).unwrap());
        let message = pae("application/vnd.in-toto+json", &payload);
        assert!(public.verify(&message, &BASE64.decode(signature).unwrap()).is_ok());
    }
}

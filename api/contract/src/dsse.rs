//! DSSE envelopes with one Ed25519 signature: key sets, policies and receipts.
//!
//! Source: <https://github.com/secure-systems-lab/dsse> (protocol and envelope). Exactly one
//! signature, by construction: an envelope with several could be checked by one and believed by
//! another. Sigstore bundles are not read here but in `nimbus-verify`.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use ed25519_compact::{KeyPair, PublicKey, SecretKey, Seed, Signature};
use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::strict_json::{self, Limits, StrictJsonError};

/// Longest envelope, as JSON.
pub const ENVELOPE_BYTES_MAX: usize = 4 << 20;

/// An Ed25519 public key.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct VerifyingKey([u8; 32]);

/// An Ed25519 private key. Never printed.
pub struct SigningKey(KeyPair);

/// Why a key cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Not 64 hex digits.
    #[error("expected an Ed25519 public key as 64 lower-case hex digits")]
    NotAKey,
    /// The text is not a private key in our form.
    #[error("expected \"nimbus-ed25519-seed:\" and 64 hex digits")]
    NotASeed,
}

impl VerifyingKey {
    /// From 32 raw bytes.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The 32 raw bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// 64 hex digits.
    pub fn hex(&self) -> String {
        hex::encode(self.0)
    }

    /// From 64 hex digits, blanks around them ignored.
    pub fn from_hex(text: &str) -> Result<Self, KeyError> {
        let mut bytes = [0; 32];
        hex::decode_to_slice(text.trim(), &mut bytes).map_err(|_not_hex| KeyError::NotAKey)?;
        Ok(Self(bytes))
    }

    /// The first 16 hex digits of the key's SHA-256: names it in envelopes and token footers.
    pub fn key_id(&self) -> String {
        Digest::of(&self.0).hex().chars().take(16).collect()
    }

    /// Whether `signature` is this key's over `message`. Small-order keys never verify.
    pub fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        let Ok(signature) = Signature::from_slice(signature) else { return false };
        PublicKey::new(self.0).verify(message, &signature).is_ok()
    }
}

impl fmt::Debug for VerifyingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VerifyingKey({})", self.hex())
    }
}

impl Serialize for VerifyingKey {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.hex())
    }
}

impl<'de> Deserialize<'de> for VerifyingKey {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        Self::from_hex(&text).map_err(serde::de::Error::custom)
    }
}

impl SigningKey {
    const FILE_PREFIX: &'static str = "nimbus-ed25519-seed:";

    /// A new key from the kernel's randomness.
    pub fn generate() -> Self {
        Self(KeyPair::from_seed(Seed::generate()))
    }

    /// The key of this seed.
    pub fn from_seed(seed: [u8; 32]) -> Self {
        Self(KeyPair::from_seed(Seed::new(seed)))
    }

    /// The seed, to be kept secret.
    pub fn seed(&self) -> [u8; 32] {
        *self.0.sk.seed()
    }

    /// Seed and public half, as PASETO wants a secret key. To be kept secret.
    pub fn secret_bytes(&self) -> [u8; 64] {
        *self.0.sk
    }

    /// The text of a key file.
    pub fn to_file_text(&self) -> String {
        format!("{}{}\n", Self::FILE_PREFIX, hex::encode(self.seed()))
    }

    /// Reads the text of a key file.
    pub fn from_file_text(text: &str) -> Result<Self, KeyError> {
        let digits = text.trim().strip_prefix(Self::FILE_PREFIX).ok_or(KeyError::NotASeed)?;
        let mut seed = [0; 32];
        hex::decode_to_slice(digits, &mut seed).map_err(|_not_hex| KeyError::NotASeed)?;
        Ok(Self::from_seed(seed))
    }

    /// The public half.
    pub fn verifying_key(&self) -> VerifyingKey {
        VerifyingKey(*self.0.pk)
    }

    /// Signs a message.
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        let secret: &SecretKey = &self.0.sk;
        *secret.sign(message, None)
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey(public {})", self.verifying_key().hex())
    }
}

/// A DSSE envelope as it travels.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Envelope {
    /// What the payload is.
    pub payload_type: String,
    /// Base64 of the payload.
    pub payload: String,
    /// Exactly one.
    pub signatures: [EnvelopeSignature; 1],
}

/// The one signature of an envelope.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EnvelopeSignature {
    /// A hint, never trusted.
    #[serde(default)]
    pub keyid: String,
    /// Base64 of the signature.
    pub sig: String,
}

/// Why an envelope was refused.
#[derive(Debug, thiserror::Error)]
pub enum EnvelopeError {
    /// Not the JSON of an envelope with one signature.
    #[error("not a DSSE envelope with exactly one signature")]
    Malformed(#[source] StrictJsonError),
    /// Another kind of document.
    #[error("expected payload type {expected}, found {found:?}")]
    WrongType {
        /// What was wanted.
        expected: &'static str,
        /// What it says.
        found: String,
    },
    /// Payload or signature are not base64.
    #[error("payload or signature is not base64")]
    NotBase64(#[source] base64::DecodeError),
    /// The signature is not one of this key's.
    #[error("signature does not verify with key {key}")]
    BadSignature {
        /// The key it was checked with.
        key: String,
    },
}

impl Envelope {
    /// Signs a payload.
    pub fn sign(payload_type: &str, payload: &[u8], key: &SigningKey) -> Self {
        let signature = key.sign(&pae(payload_type, payload));
        Self {
            payload_type: payload_type.to_owned(),
            payload: BASE64.encode(payload),
            signatures: [EnvelopeSignature {
                keyid: key.verifying_key().key_id(),
                sig: BASE64.encode(signature),
            }],
        }
    }

    /// As JSON.
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Reads the JSON; nothing in it is trusted yet.
    pub fn parse(text: &[u8]) -> Result<Self, EnvelopeError> {
        strict_json::parse(text, Limits::bytes(ENVELOPE_BYTES_MAX))
            .map_err(EnvelopeError::Malformed)
    }

    /// The payload, without checking anything. Only for showing and for routing.
    pub fn unverified_payload(&self) -> Result<Vec<u8>, EnvelopeError> {
        BASE64.decode(&self.payload).map_err(EnvelopeError::NotBase64)
    }

    /// The payload, if it is of this type and signed by this key.
    pub fn verify(
        &self,
        payload_type: &'static str,
        key: &VerifyingKey,
    ) -> Result<Vec<u8>, EnvelopeError> {
        if self.payload_type != payload_type {
            let found = self.payload_type.chars().take(100).collect();
            return Err(EnvelopeError::WrongType { expected: payload_type, found });
        }
        let payload = self.unverified_payload()?;
        let [signature] = &self.signatures;
        let signature = BASE64.decode(&signature.sig).map_err(EnvelopeError::NotBase64)?;
        if !key.verifies(&pae(payload_type, &payload), &signature) {
            return Err(EnvelopeError::BadSignature { key: key.key_id() });
        }
        Ok(payload)
    }
}

/// DSSE's pre-authentication encoding: what is really signed.
pub fn pae(payload_type: &str, payload: &[u8]) -> Vec<u8> {
    let mut bytes =
        format!("DSSEv1 {} {} {} ", payload_type.len(), payload_type, payload.len()).into_bytes();
    bytes.extend_from_slice(payload);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const KIND: &str = "application/vnd.nimbus.test+json";

    proptest! {
        #[test]
        fn any_flipped_bit_of_payload_or_signature_is_refused(
            payload in prop::collection::vec(any::<u8>(), 1..80), at: prop::sample::Index, bit in 0_u8..8,
        ) {
            let key = SigningKey::from_seed([7; 32]);
            let good = Envelope::sign(KIND, &payload, &key);
            prop_assert_eq!(good.verify(KIND, &key.verifying_key()).unwrap(), payload.clone());
            let mut changed = payload.clone();
            changed[at.index(payload.len())] ^= 1 << bit;
            let bad = Envelope { payload: BASE64.encode(&changed), ..good.clone() };
            prop_assert!(bad.verify(KIND, &key.verifying_key()).is_err());
            let mut signature = BASE64.decode(&good.signatures[0].sig).unwrap();
            let index = at.index(signature.len());
            signature[index] ^= 1 << bit;
            let mut bad = good;
            bad.signatures[0].sig = BASE64.encode(signature);
            prop_assert!(bad.verify(KIND, &key.verifying_key()).is_err());
        }
    }

    #[test]
    fn the_encoding_is_the_one_of_the_specification() {
        let expected = b"DSSEv1 29 http://example.com/HelloWorld 11 hello world";
        assert_eq!(pae("http://example.com/HelloWorld", b"hello world"), expected);
    }

    #[test]
    fn two_signatures_another_type_and_another_key_are_refused() {
        let key = SigningKey::generate();
        let envelope = Envelope::sign(KIND, b"{}", &key);
        let mut two: serde_json::Value = serde_json::from_slice(&envelope.to_json()).unwrap();
        let again = two["signatures"][0].clone();
        two["signatures"].as_array_mut().unwrap().push(again);
        assert!(Envelope::parse(two.to_string().as_bytes()).is_err());
        assert!(envelope.verify("application/other", &key.verifying_key()).is_err());
        assert!(envelope.verify(KIND, &SigningKey::generate().verifying_key()).is_err());
    }

    #[test]
    fn a_key_file_reads_back_and_is_not_printed() {
        let key = SigningKey::generate();
        let read = SigningKey::from_file_text(&key.to_file_text()).unwrap();
        assert_eq!(read.verifying_key(), key.verifying_key());
        assert!(!format!("{key:?}").contains(&hex::encode(key.seed())));
    }
}

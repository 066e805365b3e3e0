//! The key set: which hot keys may sign leases now, signed by the root that nodes pin (rule 11's
//! first root; the second, the policy key, is not in here and control never holds it).

use serde::{Deserialize, Serialize};

use crate::clock::UnixSeconds;
use crate::dsse::{Envelope, EnvelopeError, SigningKey, VerifyingKey};
use crate::id::{KeyId, TrustDomain};
use crate::strict_json::{self, Limits, StrictJsonError};

/// DSSE payload type of a key set.
pub const KEY_SET_TYPE: &str = "application/vnd.nimbus.keyset.v1+json";
/// Longest payload.
pub const KEY_SET_BYTES_MAX: usize = 64 << 10;
/// Most keys in one set.
pub const KEYS_MAX: usize = 64;

/// What a key may sign.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeyPurpose {
    /// Leases.
    Lease,
}

/// One key of the set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HotKey {
    /// Named in token footers.
    pub kid: KeyId,
    /// Ed25519, hex.
    pub key: VerifyingKey,
    /// What it may sign.
    pub purpose: KeyPurpose,
    /// Tokens issued before are refused.
    pub nbf: UnixSeconds,
    /// Tokens issued after are refused.
    pub exp: UnixSeconds,
    /// Store generation under which it was made; grows when a backup is restored.
    pub generation: u64,
}

/// All keys that are valid now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeySet {
    /// 1.
    pub version: u32,
    /// Whose keys these are.
    pub trust_domain: TrustDomain,
    /// Grows with every key set; a lower one than seen is refused.
    pub serial: u64,
    /// Present store generation: leases of a lower one are refused.
    pub generation: u64,
    /// When the root signed it.
    pub issued_at: UnixSeconds,
    /// The keys.
    pub keys: Vec<HotKey>,
}

/// Why a key set was refused.
#[derive(Debug, thiserror::Error)]
pub enum KeySetError {
    /// The envelope or its signature.
    #[error("key set is not signed by the pinned root")]
    Envelope(#[from] EnvelopeError),
    /// The payload.
    #[error("key set cannot be read")]
    Payload(#[from] StrictJsonError),
    /// A version from the future, too many keys, or two of one id.
    #[error(
        "key set has version {version} and {keys} keys, expected version 1 and at most {KEYS_MAX} different ones"
    )]
    Shape {
        /// Version found.
        version: u32,
        /// Keys found.
        keys: usize,
    },
}

impl KeySet {
    /// Signs the set with the root.
    pub fn sign(&self, root: &SigningKey) -> Envelope {
        Envelope::sign(KEY_SET_TYPE, &serde_json::to_vec(self).unwrap_or_default(), root)
    }

    /// Reads an envelope that the root must have signed.
    pub fn verify(envelope: &[u8], root: &VerifyingKey) -> Result<Self, KeySetError> {
        let payload = Envelope::parse(envelope)?.verify(KEY_SET_TYPE, root)?;
        let set: Self = strict_json::parse(&payload, Limits::bytes(KEY_SET_BYTES_MAX))?;
        let mut ids: Vec<_> = set.keys.iter().map(|key| &key.kid).collect();
        ids.sort();
        ids.dedup();
        if set.version != 1 || set.keys.len() > KEYS_MAX || ids.len() != set.keys.len() {
            return Err(KeySetError::Shape { version: set.version, keys: set.keys.len() });
        }
        Ok(set)
    }

    /// The key of this id and purpose.
    pub fn find(&self, kid: &str, purpose: KeyPurpose) -> Option<&HotKey> {
        self.keys.iter().find(|key| key.kid.as_str() == kid && key.purpose == purpose)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set() -> KeySet {
        let key = SigningKey::from_seed([1; 32]).verifying_key();
        KeySet {
            version: 1,
            trust_domain: "nimbus.test".parse().unwrap(),
            serial: 1,
            generation: 1,
            issued_at: UnixSeconds(0),
            keys: vec![HotKey {
                kid: key.key_id().parse().unwrap(),
                key,
                purpose: KeyPurpose::Lease,
                nbf: UnixSeconds(0),
                exp: UnixSeconds(10),
                generation: 1,
            }],
        }
    }

    #[test]
    fn only_the_pinned_roots_set_is_read() {
        let root = SigningKey::generate();
        let envelope = set().sign(&root).to_json();
        assert_eq!(KeySet::verify(&envelope, &root.verifying_key()).unwrap(), set());
        assert!(KeySet::verify(&envelope, &SigningKey::generate().verifying_key()).is_err());
    }

    #[test]
    fn a_key_id_that_stands_twice_is_refused() {
        let root = SigningKey::generate();
        let mut twice = set();
        twice.keys.push(twice.keys[0].clone());
        let refused = KeySet::verify(&twice.sign(&root).to_json(), &root.verifying_key());
        assert!(matches!(refused, Err(KeySetError::Shape { keys: 2, .. })));
    }
}

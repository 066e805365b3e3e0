//! A transparency log of one entry at a time, in the shape of Rekor v1.
//!
//! Each entry is put among three others in a tree of its own, with the signed entry timestamp, the
//! inclusion proof and the signed checkpoint that a verifier asks for; so the verified time of
//! signing is whatever the test wants. `trusted_root.json` names the log's key and nothing else
//! unless a certificate authority is added (see [`crate::fulcio`]).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use nimbus_api::clock::UnixSeconds;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::bundle::{BUNDLE_V03, envelope};
use crate::{Bundle, ForgeError, KeyPair};

/// The log's name in checkpoints.
pub const ORIGIN: &str = "log.forge.invalid";
/// From when on the log's key counts.
pub const VALID_FROM: &str = "2020-01-01T00:00:00Z";
/// Entries of every tree.
const TREE_SIZE: u64 = 4;
/// Where in the tree ours is.
const LEAF_INDEX: u64 = 2;

/// What is logged.
#[derive(Debug)]
pub struct Signed<'a> {
    /// The DSSE envelope.
    pub envelope: &'a Value,
    /// Its payload.
    pub payload: &'a [u8],
    /// Its signature.
    pub signature: &'a [u8],
}

/// A log.
#[derive(Debug, Clone)]
pub struct TestLog {
    key: KeyPair,
}

impl TestLog {
    /// A log that signs with this key.
    pub const fn new(key: KeyPair) -> Self {
        Self { key }
    }

    /// A `trusted_root.json` that names this log alone: for managed keys with a log.
    pub fn trusted_root(&self) -> Result<String, ForgeError> {
        Ok(format!("{:#}\n", self.trusted_root_value()?))
    }

    pub(crate) fn trusted_root_value(&self) -> Result<Value, ForgeError> {
        Ok(json!({
            "mediaType": "application/vnd.dev.sigstore.trustedroot+json;version=0.1",
            "tlogs": [log_instance(&self.key, "https://log.forge.invalid")?],
            "certificateAuthorities": [],
            "ctlogs": [],
            "timestampAuthorities": [],
        }))
    }

    /// A bundle signed by a managed key and logged at this time.
    pub fn bundle_with_key(
        &self,
        key: &KeyPair,
        statement: &[u8],
        at: UnixSeconds,
    ) -> Result<Bundle, ForgeError> {
        let (envelope, signature) = envelope(key, statement)?;
        let signed = Signed { envelope: &envelope, payload: statement, signature: &signature };
        let entry = self.entry(&signed, &key.public_pem()?, at)?;
        Ok(Bundle(json!({
            "mediaType": BUNDLE_V03,
            "verificationMaterial": {
                "publicKey": {"hint": key.hint()?},
                "tlogEntries": [entry],
            },
            "dsseEnvelope": envelope,
        })))
    }

    /// One element of `tlogEntries`: `dsse` 0.0.1, the canonical body that verifiers compare with.
    pub fn entry(
        &self,
        signed: &Signed<'_>,
        verifier_pem: &str,
        at: UnixSeconds,
    ) -> Result<Value, ForgeError> {
        let hash = |bytes: &[u8]| json!({"algorithm": "sha256", "value": hex::encode(Sha256::digest(bytes))});
        // Keys in the order of RFC 8785, which is what serde_json's sorted map gives.
        let body = json!({
            "apiVersion": "0.0.1",
            "kind": "dsse",
            "spec": {
                "envelopeHash": hash(signed.envelope.to_string().as_bytes()),
                "payloadHash": hash(signed.payload),
                "signatures": [{
                    "signature": BASE64.encode(signed.signature),
                    "verifier": BASE64.encode(verifier_pem),
                }],
            },
        })
        .to_string();
        let log_id = self.key.id()?;
        let promise = json!({
            "body": BASE64.encode(&body),
            "integratedTime": at.0,
            "logID": hex::encode(log_id),
            "logIndex": LEAF_INDEX,
        })
        .to_string();
        let (root, hashes) = tree_around(body.as_bytes());
        Ok(json!({
            "logIndex": LEAF_INDEX.to_string(),
            "logId": {"keyId": BASE64.encode(log_id)},
            "kindVersion": {"kind": "dsse", "version": "0.0.1"},
            "integratedTime": at.0.to_string(),
            "inclusionPromise": {
                "signedEntryTimestamp": BASE64.encode(self.key.sign(promise.as_bytes())?),
            },
            "inclusionProof": {
                "logIndex": LEAF_INDEX.to_string(),
                "rootHash": BASE64.encode(root),
                "treeSize": TREE_SIZE.to_string(),
                "hashes": hashes.map(|hash| BASE64.encode(hash)),
                "checkpoint": {"envelope": self.checkpoint(&root)?},
            },
            "canonicalizedBody": BASE64.encode(&body),
        }))
    }

    /// A signed note: origin, size, root; blank line; signature with the key's first four bytes.
    fn checkpoint(&self, root: &[u8; 32]) -> Result<String, ForgeError> {
        let note = format!("{ORIGIN}\n{TREE_SIZE}\n{}\n", BASE64.encode(root));
        let mut signature: Vec<u8> = self.key.id()?.into_iter().take(4).collect();
        signature.extend(self.key.sign(note.as_bytes())?);
        Ok(format!("{note}\n\u{2014} {ORIGIN} {}\n", BASE64.encode(signature)))
    }
}

/// A log of either kind, as a trusted root names it.
pub(crate) fn log_instance(key: &KeyPair, url: &str) -> Result<Value, ForgeError> {
    Ok(json!({
        "baseUrl": url,
        "hashAlgorithm": "SHA2_256",
        "publicKey": {
            "rawBytes": BASE64.encode(key.spki_der()?),
            "keyDetails": "PKIX_ECDSA_P256_SHA_256",
            "validFor": {"start": VALID_FROM},
        },
        "logId": {"keyId": BASE64.encode(key.id()?)},
    }))
}

/// Root of a tree of four with ours third, and the two hashes that prove it (RFC 6962).
fn tree_around(leaf: &[u8]) -> ([u8; 32], [[u8; 32]; 2]) {
    let ours = hash_leaf(leaf);
    let [first, second, fourth] = [b"first", b"other", b"after"].map(|text| hash_leaf(text));
    let left = hash_node(&first, &second);
    (hash_node(&left, &hash_node(&ours, &fourth)), [fourth, left])
}

fn hash_leaf(leaf: &[u8]) -> [u8; 32] {
    Sha256::new().chain_update([0]).chain_update(leaf).finalize().into()
}

fn hash_node(left: &[u8; 32], right: &[u8; 32]) -> [u8; 32] {
    Sha256::new().chain_update([1]).chain_update(left).chain_update(right).finalize().into()
}

//! Who this node is: a long-lived Ed25519 key and the certificates that control gives over it.
//!
//! The key is made once and never leaves `identity.key`; leases name its thumbprint (SHA-256 of the
//! SubjectPublicKeyInfo), receipts are signed with it, TLS certificates come and go over it.
//! `identity.json` holds what joining gave: certificate chain, CA, pinned lease root.

use std::path::{Path, PathBuf};

use nimbus_api::Digest;
use nimbus_api::clock::UnixSeconds;
use nimbus_api::dsse::{KeyError, SigningKey, VerifyingKey};
use nimbus_api::id::{NodeId, NodeThumbprint, TrustDomain};
use nimbus_api::strict_json::{self, Limits, StrictJsonError};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use serde::{Deserialize, Serialize};

use crate::files::{self, FileError};

/// Longest `identity.json`.
pub const IDENTITY_BYTES_MAX: usize = 256 << 10;
const KEY_BYTES_MAX: usize = 1024;
/// DER of everything before the 32 key bytes of an Ed25519 SubjectPublicKeyInfo (RFC 8410).
const SPKI_PREFIX: [u8; 12] =
    [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
/// DER of everything before the seed of an Ed25519 PKCS #8 key (RFC 8410).
const PKCS8_PREFIX: [u8; 16] = [
    0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20,
];

/// What joining gave, as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IdentityRecord {
    /// 1.
    pub version: u32,
    /// The node's name.
    pub node: NodeId,
    /// Whose node it is.
    pub trust_domain: TrustDomain,
    /// PEM, leaf first.
    pub chain_pem: String,
    /// PEM of the CA.
    pub ca_pem: String,
    /// The pinned root of lease key sets.
    pub root_key: VerifyingKey,
    /// `HOST:PORT` of control's API.
    pub api_address: String,
}

/// A node that has joined.
#[derive(Debug)]
pub struct Identity {
    /// What joining gave.
    pub record: IdentityRecord,
    /// The long-lived key.
    pub key: SigningKey,
    /// Its SHA-256.
    pub thumbprint: NodeThumbprint,
    /// When the certificate began and ends.
    pub validity: (UnixSeconds, UnixSeconds),
}

/// Why there is no identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A file.
    #[error("cannot use the identity's files")]
    File(#[from] FileError),
    /// `identity.key` holds something else.
    #[error("the identity key cannot be read")]
    Key(#[source] KeyError),
    /// `identity.json` holds something else.
    #[error("the identity record cannot be read")]
    Record(#[source] StrictJsonError),
    /// Another version.
    #[error("the identity record has version {found}, expected 1")]
    Version {
        /// Version found.
        found: u32,
    },
    /// A certificate of it cannot be read.
    #[error("a certificate of the identity cannot be read: {0}")]
    Certificate(String),
    /// The certificate is over another key.
    #[error("the certificate is over another key than the identity key")]
    OtherKey,
    /// The request for a certificate could not be made.
    #[error("cannot make a certificate request")]
    Request(#[source] rcgen::Error),
}

/// SubjectPublicKeyInfo of an Ed25519 key.
pub fn spki_der(key: &VerifyingKey) -> Vec<u8> {
    [SPKI_PREFIX.as_slice(), key.as_bytes()].concat()
}

/// The key as PKCS #8, for TLS and certificate requests.
pub fn pkcs8_der(key: &SigningKey) -> PrivatePkcs8KeyDer<'static> {
    [PKCS8_PREFIX.as_slice(), &key.seed()].concat().into()
}

/// What leases call the node with this key.
pub fn thumbprint(key: &VerifyingKey) -> NodeThumbprint {
    Digest::of(&spki_der(key))
}

/// A certificate request over this key, DER. Control decides what the certificate says.
pub fn certificate_request(key: &SigningKey) -> Result<Vec<u8>, IdentityError> {
    let pair = rcgen::KeyPair::from_pkcs8_der_and_sign_algo(&pkcs8_der(key), &rcgen::PKCS_ED25519)
        .map_err(IdentityError::Request)?;
    let params = rcgen::CertificateParams::default();
    let request = params.serialize_request(&pair).map_err(IdentityError::Request)?;
    Ok(request.der().to_vec())
}

/// Reads the key, or makes it when there is none.
pub fn load_or_make_key(data_dir: &Path) -> Result<SigningKey, IdentityError> {
    if let Some(key) = load_key(data_dir)? {
        return Ok(key);
    }
    let key = SigningKey::generate();
    files::write_durable(&key_path(data_dir), key.to_file_text().as_bytes())?;
    Ok(key)
}

fn load_key(data_dir: &Path) -> Result<Option<SigningKey>, IdentityError> {
    let Some(bytes) = files::read_bounded(&key_path(data_dir), KEY_BYTES_MAX)? else {
        return Ok(None);
    };
    let text = String::from_utf8_lossy(&bytes);
    SigningKey::from_file_text(&text).map(Some).map_err(IdentityError::Key)
}

impl Identity {
    /// Reads it; none before the node has joined.
    pub fn load(data_dir: &Path) -> Result<Option<Self>, IdentityError> {
        let path = record_path(data_dir);
        let Some(bytes) = files::read_bounded(&path, IDENTITY_BYTES_MAX)? else { return Ok(None) };
        let record = strict_json::parse(&bytes, Limits::bytes(IDENTITY_BYTES_MAX))
            .map_err(IdentityError::Record)?;
        let Some(key) = load_key(data_dir)? else { return Ok(None) };
        Self::of(record, key).map(Some)
    }

    /// Puts record and key together, if they belong together.
    pub fn of(record: IdentityRecord, key: SigningKey) -> Result<Self, IdentityError> {
        if record.version != 1 {
            return Err(IdentityError::Version { found: record.version });
        }
        let chain = certificates(&record.chain_pem)?;
        let leaf = chain.first().ok_or_else(|| bad_certificate(&"the chain is empty"))?;
        let (_rest, leaf) =
            x509_parser::parse_x509_certificate(leaf).map_err(|error| bad_certificate(&error))?;
        if leaf.public_key().raw != spki_der(&key.verifying_key()) {
            return Err(IdentityError::OtherKey);
        }
        let validity = leaf.validity();
        let validity = (
            UnixSeconds(validity.not_before.timestamp()),
            UnixSeconds(validity.not_after.timestamp()),
        );
        let thumbprint = thumbprint(&key.verifying_key());
        Ok(Self { record, key, thumbprint, validity })
    }

    /// Stores the record; the key has been stored when it was made.
    pub fn save(&self, data_dir: &Path) -> Result<(), IdentityError> {
        let json = serde_json::to_vec_pretty(&self.record).unwrap_or_default();
        Ok(files::write_durable(&record_path(data_dir), &json)?)
    }

    /// From when on a new certificate is asked for: half of the present one's life.
    pub fn renew_from(&self) -> UnixSeconds {
        let (from, to) = self.validity;
        UnixSeconds(from.0.saturating_add(to.0.saturating_sub(from.0) / 2))
    }
}

/// Reads the certificates of a PEM text.
pub fn certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|error| bad_certificate(&error))
}

fn bad_certificate(error: &dyn std::fmt::Display) -> IdentityError {
    IdentityError::Certificate(error.to_string())
}

fn key_path(data_dir: &Path) -> PathBuf {
    data_dir.join("identity.key")
}

fn record_path(data_dir: &Path) -> PathBuf {
    data_dir.join("identity.json")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(key: &SigningKey) -> IdentityRecord {
        let pair =
            rcgen::KeyPair::from_pkcs8_der_and_sign_algo(&pkcs8_der(key), &rcgen::PKCS_ED25519)
                .unwrap();
        let certificate = rcgen::CertificateParams::default().self_signed(&pair).unwrap();
        IdentityRecord {
            version: 1,
            node: "n".parse().unwrap(),
            trust_domain: "nimbus.test".parse().unwrap(),
            chain_pem: certificate.pem(),
            ca_pem: certificate.pem(),
            root_key: SigningKey::generate().verifying_key(),
            api_address: "127.0.0.1:1".to_owned(),
        }
    }

    #[test]
    fn the_key_is_made_once_and_kept_root_only() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let first = load_or_make_key(dir.path()).unwrap();
        let again = load_or_make_key(dir.path()).unwrap();
        assert_eq!(first.verifying_key(), again.verifying_key());
        let mode = key_path(dir.path()).metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn an_identity_reads_back_and_another_keys_certificate_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let key = load_or_make_key(dir.path()).unwrap();
        let record = record(&key);
        let identity = Identity::of(record.clone(), key).unwrap();
        identity.save(dir.path()).unwrap();
        let read = Identity::load(dir.path()).unwrap().unwrap();
        assert_eq!(read.record, record);
        assert_eq!(read.thumbprint, identity.thumbprint);
        assert!(read.renew_from() > read.validity.0 && read.renew_from() < read.validity.1);
        let other = Identity::of(record, SigningKey::generate());
        assert!(matches!(other, Err(IdentityError::OtherKey)));
    }

    #[test]
    fn a_request_carries_the_thumbprinted_key() {
        use x509_parser::prelude::FromDer as _;
        let key = SigningKey::generate();
        let request = certificate_request(&key).unwrap();
        let (_rest, parsed) =
            x509_parser::certification_request::X509CertificationRequest::from_der(&request)
                .unwrap();
        let spki = parsed.certification_request_info.subject_pki.raw;
        assert_eq!(Digest::of(spki), thumbprint(&key.verifying_key()));
    }

    #[test]
    fn no_identity_before_joining() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Identity::load(dir.path()).unwrap().is_none());
    }
}

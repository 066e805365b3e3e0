//! The CA: one Ed25519 key in the data directory that says who is who in the trust domain.
//!
//! It signs the server's certificate, people's and nodes'. Nothing of a signing request is believed
//! but its public key, and that only with the proof that the sender has the private one. Times are
//! Unix seconds; certificates begin [`BACKDATE_SECONDS`] early, for clocks that are a little behind.

use std::net::IpAddr;
use std::sync::{Arc, RwLock};

use nimbus_api::clock::UnixSeconds;
use nimbus_api::id::TrustDomain;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ED25519,
    PublicKeyData, SanType,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use crate::data_dir::{DataDir, DataDirError};
use crate::identity::Identity;
use crate::limits::CSR_BYTES_MAX;

/// Life of the CA.
const CA_SECONDS: i64 = 10 * 365 * 86_400;
/// Life of the server's certificate.
const SERVER_SECONDS: i64 = 30 * 86_400;
/// Life of a person's certificate.
pub(crate) const PERSON_SECONDS: i64 = 365 * 86_400;
/// Life of a node's certificate; it is renewed over the same key.
pub(crate) const NODE_SECONDS: i64 = 86_400;
/// How early a certificate begins.
const BACKDATE_SECONDS: i64 = 300;
const CA_KEY: &str = "ca.key";
const CA_CERTIFICATE: &str = "ca.pem";

/// Why a key or certificate cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A file.
    #[error("cannot keep the CA")]
    DataDir(#[source] DataDirError),
    /// A file that is not what it should be.
    #[error("{file} is missing or not a {what}")]
    File {
        /// Which.
        file: &'static str,
        /// What it should be.
        what: &'static str,
    },
    /// The library refused.
    #[error("cannot make a certificate")]
    Make(#[source] rcgen::Error),
    /// The TLS library refused.
    #[error("cannot use the server's certificate")]
    Tls(#[source] rustls::Error),
    /// The signing request is too long, not signed by its own key, or not for an Ed25519 key.
    #[error("signing request is not one: {problem}")]
    Request {
        /// What is wrong with it.
        problem: String,
    },
}

/// The certificate authority of the trust domain.
pub(crate) struct Ca {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
    der: CertificateDer<'static>,
    domain: TrustDomain,
}

/// A certificate that was made, and its private key where we made that too.
#[derive(Debug, Clone)]
pub(crate) struct Issued {
    pub(crate) cert_pem: String,
    pub(crate) der: CertificateDer<'static>,
    pub(crate) not_after: UnixSeconds,
}

/// A public key whose owner has proven to have the private half.
#[derive(Debug)]
pub(crate) struct ProvenKey(CertificateSigningRequestParams);

impl ProvenKey {
    /// Checks a PKCS #10 request.
    pub(crate) fn from_request(der: &[u8]) -> Result<Self, PkiError> {
        let refuse = |problem: String| PkiError::Request { problem };
        if der.len() > CSR_BYTES_MAX {
            return Err(refuse(format!("{} bytes, at most {CSR_BYTES_MAX}", der.len())));
        }
        let request = CertificateSigningRequestParams::from_der(&der.into())
            .map_err(|error| refuse(error.to_string()))?;
        if request.public_key.algorithm() != &PKCS_ED25519
            || request.public_key.der_bytes().len() != 32
        {
            return Err(refuse("identity keys are Ed25519".to_owned()));
        }
        Ok(Self(request))
    }

    /// SubjectPublicKeyInfo.
    pub(crate) fn spki(&self) -> Vec<u8> {
        self.0.public_key.subject_public_key_info()
    }
}

impl Ca {
    /// Reads the CA, or makes it when the data directory is new.
    pub(crate) fn open(
        data: &DataDir,
        domain: &TrustDomain,
        now: UnixSeconds,
    ) -> Result<Self, PkiError> {
        if data.read_secret(CA_KEY).map_err(PkiError::DataDir)?.is_none() {
            let key = KeyPair::generate_for(&PKCS_ED25519).map_err(PkiError::Make)?;
            let certificate = ca_params(domain, now).self_signed(&key).map_err(PkiError::Make)?;
            data.write_public(CA_CERTIFICATE, certificate.pem().as_bytes())
                .map_err(PkiError::DataDir)?;
            data.write_secret(CA_KEY, key.serialize_pem().as_bytes()).map_err(PkiError::DataDir)?;
        }
        let key = data.read_secret(CA_KEY).map_err(PkiError::DataDir)?.unwrap_or_default();
        let pem = std::fs::read_to_string(data.join(CA_CERTIFICATE)).unwrap_or_default();
        Self::from_pem(&key, pem, domain)
    }

    /// From the two files' text.
    pub(crate) fn from_pem(key: &str, pem: String, domain: &TrustDomain) -> Result<Self, PkiError> {
        let key = KeyPair::from_pem(key)
            .map_err(|_error| PkiError::File { file: CA_KEY, what: "private key" })?;
        let no_certificate = || PkiError::File { file: CA_CERTIFICATE, what: "certificate" };
        let der = certificate_der(&pem).ok_or_else(no_certificate)?;
        let issuer = Issuer::from_ca_cert_pem(&pem, key).map_err(|_error| no_certificate())?;
        Ok(Self { issuer, pem, der, domain: domain.clone() })
    }

    /// PEM of the CA's certificate.
    pub(crate) fn pem(&self) -> &str {
        &self.pem
    }

    /// DER of the CA's certificate.
    pub(crate) fn der(&self) -> &CertificateDer<'static> {
        &self.der
    }

    /// Trust domain.
    pub(crate) const fn domain(&self) -> &TrustDomain {
        &self.domain
    }

    /// SHA-256 of the CA's SubjectPublicKeyInfo, hex: what a join token carries.
    pub(crate) fn pin(&self) -> String {
        nimbus_api::Digest::of(&self.issuer.key().subject_public_key_info()).hex()
    }

    /// A certificate for a client whose key has been proven.
    pub(crate) fn issue(
        &self,
        who: &Identity,
        key: &ProvenKey,
        seconds: i64,
        now: UnixSeconds,
    ) -> Result<Issued, PkiError> {
        let params = leaf_params(&who.uri(&self.domain), ExtendedKeyUsagePurpose::ClientAuth)?;
        self.sign(params, &key.0.public_key, seconds, now)
    }

    /// A certificate for a client with a key made here.
    pub(crate) fn issue_with_key(
        &self,
        who: &Identity,
        key: &KeyPair,
        seconds: i64,
        now: UnixSeconds,
    ) -> Result<Issued, PkiError> {
        let params = leaf_params(&who.uri(&self.domain), ExtendedKeyUsagePurpose::ClientAuth)?;
        self.sign(params, key, seconds, now)
    }

    fn sign(
        &self,
        mut params: CertificateParams,
        key: &impl PublicKeyData,
        seconds: i64,
        now: UnixSeconds,
    ) -> Result<Issued, PkiError> {
        let not_after = UnixSeconds(now.0.saturating_add(seconds));
        set_life(&mut params, now, not_after);
        let certificate = params.signed_by(key, &self.issuer).map_err(PkiError::Make)?;
        Ok(Issued { cert_pem: certificate.pem(), der: certificate.der().clone(), not_after })
    }

    fn issue_server(
        &self,
        listen: &[IpAddr],
        now: UnixSeconds,
    ) -> Result<ServerCertificate, PkiError> {
        let uri = format!("spiffe://{}/control", self.domain);
        let mut params = leaf_params(&uri, ExtendedKeyUsagePurpose::ServerAuth)?;
        let dns = "localhost".try_into().map_err(PkiError::Make)?;
        params.subject_alt_names.push(SanType::DnsName(dns));
        let mut addresses =
            vec![IpAddr::from([127, 0, 0, 1]), IpAddr::from([0_u16, 0, 0, 0, 0, 0, 0, 1])];
        addresses.extend(listen.iter().filter(|address| !address.is_unspecified()));
        addresses.sort();
        addresses.dedup();
        params.subject_alt_names.extend(addresses.into_iter().map(SanType::IpAddress));
        let key = KeyPair::generate_for(&PKCS_ED25519).map_err(PkiError::Make)?;
        let issued = self.sign(params, &key, SERVER_SECONDS, now)?;
        let private = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let signer =
            rustls::crypto::aws_lc_rs::sign::any_supported_type(&private).map_err(PkiError::Tls)?;
        // The CA stands in the chain: a node that joins knows only the hash of its key.
        let certified = CertifiedKey::new(vec![issued.der, self.der.clone()], signer);
        Ok(ServerCertificate { certified: Arc::new(certified), not_after: issued.not_after })
    }
}

struct ServerCertificate {
    certified: Arc<CertifiedKey>,
    not_after: UnixSeconds,
}

/// The server's certificate, made anew at every start and at half of its life.
pub(crate) struct ServerIdentity {
    listen: Vec<IpAddr>,
    current: RwLock<ServerCertificate>,
}

impl std::fmt::Debug for ServerIdentity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServerIdentity").field("listen", &self.listen).finish_non_exhaustive()
    }
}

impl ServerIdentity {
    pub(crate) fn new(ca: &Ca, listen: Vec<IpAddr>, now: UnixSeconds) -> Result<Self, PkiError> {
        let current = RwLock::new(ca.issue_server(&listen, now)?);
        Ok(Self { listen, current })
    }

    /// Makes a new certificate when the present one has lived half of its life.
    pub(crate) fn renew(&self, ca: &Ca, now: UnixSeconds) -> Result<bool, PkiError> {
        let not_after = {
            let current = self.current.read().unwrap_or_else(std::sync::PoisonError::into_inner);
            current.not_after
        };
        if not_after.0.saturating_sub(now.0) > SERVER_SECONDS / 2 {
            return Ok(false);
        }
        let fresh = ca.issue_server(&self.listen, now)?;
        *self.current.write().unwrap_or_else(std::sync::PoisonError::into_inner) = fresh;
        Ok(true)
    }
}

impl ResolvesServerCert for ServerIdentity {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let current = self.current.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        Some(Arc::clone(&current.certified))
    }
}

fn ca_params(domain: &TrustDomain, now: UnixSeconds) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = named(&format!("Nimbus CA of {domain}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    set_life(&mut params, now, UnixSeconds(now.0.saturating_add(CA_SECONDS)));
    params
}

fn leaf_params(uri: &str, usage: ExtendedKeyUsagePurpose) -> Result<CertificateParams, PkiError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![usage];
    params.use_authority_key_identifier_extension = true;
    let uri = uri.try_into().map_err(PkiError::Make)?;
    params.subject_alt_names.push(SanType::URI(uri));
    Ok(params)
}

fn named(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}

fn set_life(params: &mut CertificateParams, now: UnixSeconds, not_after: UnixSeconds) {
    let time = |unix: i64| {
        time::OffsetDateTime::from_unix_timestamp(unix).unwrap_or(time::OffsetDateTime::UNIX_EPOCH)
    };
    params.not_before = time(now.0.saturating_sub(BACKDATE_SECONDS));
    params.not_after = time(not_after.0);
}

/// The first certificate of a PEM text.
pub(crate) fn certificate_der(pem: &str) -> Option<CertificateDer<'static>> {
    use rustls::pki_types::pem::PemObject as _;
    CertificateDer::from_pem_slice(pem.as_bytes()).ok()
}

/// A new Ed25519 key for a person.
pub(crate) fn new_key() -> Result<KeyPair, PkiError> {
    KeyPair::generate_for(&PKCS_ED25519).map_err(PkiError::Make)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::Peer;

    fn ca(data: &DataDir) -> Ca {
        Ca::open(data, &"nimbus.test".parse().unwrap(), UnixSeconds(1_800_000_000)).unwrap()
    }

    #[test]
    fn a_ca_survives_a_restart_and_names_whom_it_signs() {
        let temporary = tempfile::tempdir().unwrap();
        let data = DataDir::open(temporary.path()).unwrap();
        let first = ca(&data);
        let again = ca(&data);
        assert_eq!(first.pin(), again.pin());
        let key = new_key().unwrap();
        let request = CertificateParams::default().serialize_request(&key).unwrap();
        let proven = ProvenKey::from_request(request.der()).unwrap();
        let who = Identity::Node("n1".parse().unwrap());
        let issued = again.issue(&who, &proven, 60, UnixSeconds(1_800_000_000)).unwrap();
        let peer = Peer::from_certificate(&issued.der, again.domain()).unwrap();
        assert_eq!(peer.identity, who);
        assert_eq!(peer.spki.as_ref(), proven.spki());
        assert_eq!(peer.not_after, UnixSeconds(1_800_000_060));
    }

    #[test]
    fn a_request_without_proof_or_with_another_kind_of_key_is_refused() {
        let key = new_key().unwrap();
        let request = CertificateParams::default().serialize_request(&key).unwrap();
        let mut forged = request.der().to_vec();
        let last = forged.len() - 1;
        forged[last] ^= 1;
        assert!(ProvenKey::from_request(&forged).is_err());
        let other = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        let request = CertificateParams::default().serialize_request(&other).unwrap();
        assert!(ProvenKey::from_request(request.der()).is_err());
        assert!(ProvenKey::from_request(&vec![0; CSR_BYTES_MAX + 1]).is_err());
    }
}

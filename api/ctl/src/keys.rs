//! Managed keys of attestations: ECDSA P-256, as cosign uses them. Private halves are PKCS#8 in
//! PEM, public ones SubjectPublicKeyInfo in PEM: what a policy's `key` holds.

use aws_lc_rs::encoding::AsDer as _;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use nimbus_api::Digest;
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::pki_types::pem::PemObject as _;

use crate::error::CtlError;

/// Longest key file.
pub(crate) const KEY_BYTES_MAX: usize = 16 << 10;
/// Characters of a line of PEM.
const PEM_LINE: usize = 64;

/// A key pair. Never printed.
pub(crate) struct AttestKey(EcdsaKeyPair);

impl AttestKey {
    /// From the kernel's randomness.
    pub(crate) fn generate() -> Result<Self, CtlError> {
        EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING)
            .map(Self)
            .map_err(|_unspecified| CtlError::Key { what: "make" })
    }

    /// From PKCS#8 in PEM.
    pub(crate) fn from_pem(pem: &[u8]) -> Result<Self, CtlError> {
        let unread = || CtlError::Key { what: "read (expected ECDSA P-256, PKCS#8 in PEM)" };
        let der = PrivatePkcs8KeyDer::from_pem_slice(pem).map_err(|_not_pem| unread())?;
        EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, der.secret_pkcs8_der())
            .map(Self)
            .map_err(|_rejected| unread())
    }

    /// PKCS#8 in PEM. To be kept secret.
    pub(crate) fn private_pem(&self) -> Result<String, CtlError> {
        let der = self.0.to_pkcs8v1().map_err(|_unspecified| CtlError::Key { what: "write" })?;
        Ok(pem("PRIVATE KEY", der.as_ref()))
    }

    /// SubjectPublicKeyInfo in PEM.
    pub(crate) fn public_pem(&self) -> Result<String, CtlError> {
        Ok(pem("PUBLIC KEY", &self.spki()?))
    }

    /// What a bundle says about which key signed it: base64 of the SHA-256 of the public half.
    pub(crate) fn hint(&self) -> Result<String, CtlError> {
        Ok(BASE64.encode(Digest::of(&self.spki()?).as_bytes()))
    }

    /// ASN.1 signature over SHA-256 of the message.
    pub(crate) fn sign(&self, message: &[u8]) -> Result<Vec<u8>, CtlError> {
        let signature = self.0.sign(&SystemRandom::new(), message);
        let signature = signature.map_err(|_unspecified| CtlError::Key { what: "sign with" })?;
        Ok(signature.as_ref().to_vec())
    }

    fn spki(&self) -> Result<Vec<u8>, CtlError> {
        let der = self.0.public_key().as_der();
        let der = der.map_err(|_unspecified| CtlError::Key { what: "use" })?;
        Ok(der.as_ref().to_vec())
    }
}

fn pem(label: &str, der: &[u8]) -> String {
    let text = BASE64.encode(der);
    let mut pem = format!("-----BEGIN {label}-----\n");
    for (index, c) in text.chars().enumerate() {
        if index > 0 && index % PEM_LINE == 0 {
            pem.push('\n');
        }
        pem.push(c);
    }
    pem.extend(["\n-----END ", label, "-----\n"]);
    pem
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_survives_its_file_and_another_kind_is_refused() {
        let key = AttestKey::generate().unwrap();
        let read = AttestKey::from_pem(key.private_pem().unwrap().as_bytes()).unwrap();
        assert_eq!(read.public_pem().unwrap(), key.public_pem().unwrap());
        assert!(key.public_pem().unwrap().lines().all(|line| line.len() <= PEM_LINE));
        for bad in ["", "nonsense", &key.public_pem().unwrap()] {
            assert!(AttestKey::from_pem(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}

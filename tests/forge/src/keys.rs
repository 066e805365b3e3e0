//! ECDSA P-256 keys as cosign and `nimbusctl attest` use them.
//!
//! Public halves are PEM of the SubjectPublicKeyInfo, private ones PEM of PKCS#8. The hint that
//! goes into a bundle is `base64(sha256(SPKI DER))`, the same that `nimbus-verify` compares with.

use aws_lc_rs::encoding::AsDer as _;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use sha2::{Digest as _, Sha256};

use crate::ForgeError;

/// DER of an RFC 5915 ECPrivateKey up to its 32 bytes.
const EC_PRIVATE_HEAD: [u8; 7] = [0x30, 0x31, 0x02, 0x01, 0x01, 0x04, 0x20];
/// DER after them: `[0]` with the object identifier of P-256.
const EC_PRIVATE_TAIL: [u8; 12] =
    [0xa0, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];

/// A key pair.
#[derive(Debug, Clone)]
pub struct KeyPair(EcdsaKeyPair);

impl KeyPair {
    /// From the kernel's randomness.
    pub fn generate() -> Result<Self, ForgeError> {
        EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING)
            .map(Self)
            .map_err(|_unspecified| ForgeError::crypto("generate a key"))
    }

    /// Always the same key for the same seed. Not for anything but tests.
    pub fn from_seed(seed: &str) -> Result<Self, ForgeError> {
        let mut scalar: [u8; 32] = Sha256::digest(format!("nimbus-forge {seed}")).into();
        // Below 2^255 is below the order of the curve.
        if let Some(first) = scalar.first_mut() {
            *first &= 0x7f;
        }
        let der = [EC_PRIVATE_HEAD.as_slice(), &scalar, &EC_PRIVATE_TAIL].concat();
        EcdsaKeyPair::from_private_key_der(&ECDSA_P256_SHA256_ASN1_SIGNING, &der)
            .map(Self)
            .map_err(|_rejected| ForgeError::crypto("make a key from a seed"))
    }

    /// Reads what [`Self::private_pem`] wrote.
    pub fn from_private_pem(pem: &str) -> Result<Self, ForgeError> {
        let body: String = pem.lines().filter(|line| !line.starts_with("-----")).collect();
        let der = BASE64.decode(body.trim()).map_err(|_bad| ForgeError::crypto("read a key"))?;
        EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &der)
            .map(Self)
            .map_err(|_rejected| ForgeError::crypto("read a key"))
    }

    /// PKCS#8 in PEM.
    pub fn private_pem(&self) -> Result<String, ForgeError> {
        Ok(pem("PRIVATE KEY", &self.pkcs8()?))
    }

    /// PKCS#8 in DER.
    pub fn pkcs8(&self) -> Result<Vec<u8>, ForgeError> {
        let document =
            self.0.to_pkcs8v1().map_err(|_unspecified| ForgeError::crypto("write a key"))?;
        Ok(document.as_ref().to_vec())
    }

    /// SubjectPublicKeyInfo in DER.
    pub fn spki_der(&self) -> Result<Vec<u8>, ForgeError> {
        let der = self
            .0
            .public_key()
            .as_der()
            .map_err(|_unspecified| ForgeError::crypto("write a public key"))?;
        Ok(der.as_ref().to_vec())
    }

    /// SubjectPublicKeyInfo in PEM: what a policy's `key` holds.
    pub fn public_pem(&self) -> Result<String, ForgeError> {
        Ok(pem("PUBLIC KEY", &self.spki_der()?))
    }

    /// SHA-256 of the SubjectPublicKeyInfo.
    pub fn id(&self) -> Result<[u8; 32], ForgeError> {
        Ok(Sha256::digest(self.spki_der()?).into())
    }

    /// What a bundle's `publicKey.hint` says.
    pub fn hint(&self) -> Result<String, ForgeError> {
        Ok(BASE64.encode(self.id()?))
    }

    /// DER of an ECDSA signature over the SHA-256 of the message.
    pub fn sign(&self, message: &[u8]) -> Result<Vec<u8>, ForgeError> {
        self.0
            .sign(&SystemRandom::new(), message)
            .map(|signature| signature.as_ref().to_vec())
            .map_err(|_unspecified| ForgeError::crypto("sign"))
    }
}

/// PEM with lines of 64.
pub fn pem(label: &str, der: &[u8]) -> String {
    let body = BASE64.encode(der);
    let mut lines = String::new();
    for (index, letter) in body.chars().enumerate() {
        if index > 0 && index % 64 == 0 {
            lines.push('\n');
        }
        lines.push(letter);
    }
    format!("-----BEGIN {label}-----\n{lines}\n-----END {label}-----\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_always_gives_the_same_key_and_another_seed_another() {
        let id = |seed| KeyPair::from_seed(seed).unwrap().id().unwrap();
        assert_eq!(id("a"), id("a"));
        assert_ne!(id("a"), id("b"));
    }

    #[test]
    fn a_private_key_survives_its_file() {
        let key = KeyPair::generate().unwrap();
        let read = KeyPair::from_private_pem(&key.private_pem().unwrap()).unwrap();
        assert_eq!(read.id().unwrap(), key.id().unwrap());
        assert!(KeyPair::from_private_pem(&key.public_pem().unwrap()).is_err());
    }
}

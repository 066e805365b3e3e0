//! A certificate authority in the shape of Fulcio, with the certificate transparency log it needs.
//!
//! Certificates are good for [`CERTIFICATE_SECONDS`] from the authority's own time, carry the
//! identity as a URI, the issuer in Fulcio's extension 1.3.6.1.4.1.57264.1.8, and one embedded
//! signed certificate timestamp (RFC 6962, section 3.2 and 3.3).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use nimbus_api::clock::UnixSeconds;
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, CustomExtension, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyUsagePurpose, SanType, SerialNumber,
};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use time::OffsetDateTime;

use crate::bundle::{BUNDLE_V03, envelope};
use crate::keys::pem;
use crate::log::{Signed, log_instance};
use crate::{Bundle, ForgeError, KeyPair, TestLog};

/// How long a signing certificate is good for.
pub const CERTIFICATE_SECONDS: i64 = 600;
/// How long the authority's own certificate is good for, before and after its time.
pub const AUTHORITY_SECONDS: i64 = 365 * 86_400;
/// Fulcio's extension for the OIDC issuer, a DER UTF8String.
const ISSUER_OID: &[u64] = &[1, 3, 6, 1, 4, 1, 57264, 1, 8];
/// Embedded signed certificate timestamps.
const SCT_OID: &[u64] = &[1, 3, 6, 1, 4, 1, 11129, 2, 4, 2];

/// Whom a certificate names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Subject alternative name, a URI.
    pub san: String,
    /// OIDC issuer.
    pub issuer: String,
}

impl Default for Identity {
    fn default() -> Self {
        Self {
            san: "https://ci.invalid/acme/app/release.yml@refs/heads/main".to_owned(),
            issuer: "https://token.ci.invalid".to_owned(),
        }
    }
}

/// The authority and its certificate transparency log.
#[derive(Debug)]
pub struct TestCa {
    key: rcgen::KeyPair,
    params: CertificateParams,
    certificate: Certificate,
    ct_key: KeyPair,
    at: UnixSeconds,
}

impl TestCa {
    /// An authority whose keys come from the seed and whose time stands at `at`.
    pub fn new(seed: &str, at: UnixSeconds) -> Result<Self, ForgeError> {
        let key = signing_key(&KeyPair::from_seed(seed)?)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = name("forge");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.serial_number = Some(SerialNumber::from(1_u64));
        params.not_before = time_at(at.0.saturating_sub(AUTHORITY_SECONDS))?;
        params.not_after = time_at(at.0.saturating_add(AUTHORITY_SECONDS))?;
        let certificate = params.self_signed(&key).map_err(ForgeError::Certificate)?;
        let ct_key = KeyPair::from_seed(&format!("{seed} ct"))?;
        Ok(Self { key, params, certificate, ct_key, at })
    }

    /// A `trusted_root.json` that names this authority, its certificate log and a transparency log.
    /// The authority has no `validFor`: its certificate says when it counts.
    pub fn trusted_root(&self, log: &TestLog) -> Result<String, ForgeError> {
        let mut root = log.trusted_root_value()?;
        if let Value::Object(fields) = &mut root {
            let authority = json!({
                "subject": {"organization": "nimbus", "commonName": "forge"},
                "uri": "https://ca.forge.invalid",
                "certChain": {
                    "certificates": [{"rawBytes": BASE64.encode(self.certificate.der())}],
                },
            });
            fields.insert("certificateAuthorities".to_owned(), json!([authority]));
            let ct = log_instance(&self.ct_key, "https://ct.forge.invalid")?;
            fields.insert("ctlogs".to_owned(), json!([ct]));
        }
        Ok(format!("{root:#}\n"))
    }

    /// A bundle signed with a new key, certified for this identity at the authority's time, and
    /// logged at another time or the same.
    pub fn bundle(
        &self,
        log: &TestLog,
        identity: &Identity,
        statement: &[u8],
        logged_at: UnixSeconds,
    ) -> Result<Bundle, ForgeError> {
        let key = KeyPair::generate()?;
        let certificate = self.certify(&key, identity)?;
        let (envelope, signature) = envelope(&key, statement)?;
        let signed = Signed { envelope: &envelope, payload: statement, signature: &signature };
        let entry = log.entry(&signed, &pem("CERTIFICATE", &certificate), logged_at)?;
        Ok(Bundle(json!({
            "mediaType": BUNDLE_V03,
            "verificationMaterial": {
                "certificate": {"rawBytes": BASE64.encode(&certificate)},
                "tlogEntries": [entry],
            },
            "dsseEnvelope": envelope,
        })))
    }

    /// DER of a certificate for this key and identity.
    pub fn certify(&self, key: &KeyPair, identity: &Identity) -> Result<Vec<u8>, ForgeError> {
        let subject = signing_key(key)?;
        let issuer = Issuer::from_params(&self.params, &self.key);
        let san = identity.san.clone().try_into().map_err(ForgeError::Certificate)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![SanType::URI(san)];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning];
        params.use_authority_key_identifier_extension = true;
        params.serial_number = Some(SerialNumber::from(2_u64));
        params.not_before = time_at(self.at.0)?;
        params.not_after = time_at(self.at.0.saturating_add(CERTIFICATE_SECONDS))?;
        let claim = der(0x0c, identity.issuer.as_bytes());
        params.custom_extensions = vec![CustomExtension::from_oid_content(ISSUER_OID, claim)];
        let sign = |params: &CertificateParams| {
            params.signed_by(&subject, &issuer).map_err(ForgeError::Certificate)
        };
        // What the log signs is the certificate as it would be without the log's word in it.
        let before = sign(&params)?;
        let timestamp = self.certificate_timestamp(to_be_signed(before.der()))?;
        let list = der(0x04, &prefixed(&prefixed(&timestamp)));
        params.custom_extensions.push(CustomExtension::from_oid_content(SCT_OID, list));
        Ok(sign(&params)?.der().to_vec())
    }

    /// One SignedCertificateTimestamp over a TBSCertificate.
    fn certificate_timestamp(&self, tbs: &[u8]) -> Result<Vec<u8>, ForgeError> {
        let millis = u64::try_from(self.at.0.saturating_mul(1000)).unwrap_or(0).to_be_bytes();
        let ca = KeyPair::from_private_pem(&self.key.serialize_pem())?;
        let issuer_hash = Sha256::digest(ca.spki_der()?);
        let length = u32::try_from(tbs.len()).unwrap_or(0).to_be_bytes();
        // version, type, time, entry type precertificate, issuer, length in three bytes, no
        // extensions.
        let signed = [
            &[0, 0],
            millis.as_slice(),
            &[0, 1],
            &issuer_hash,
            length.get(1..).unwrap_or_default(),
            tbs,
            &[0, 0],
        ]
        .concat();
        let signature = self.ct_key.sign(&signed)?;
        let id = self.ct_key.id()?;
        // SHA-256 is 4, ECDSA is 3.
        Ok([&[0], id.as_slice(), &millis, &[0, 0, 4, 3], &prefixed(&signature)].concat())
    }
}

fn signing_key(key: &KeyPair) -> Result<rcgen::KeyPair, ForgeError> {
    rcgen::KeyPair::from_pem(&key.private_pem()?).map_err(ForgeError::Certificate)
}

fn name(common_name: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    name
}

fn time_at(seconds: i64) -> Result<OffsetDateTime, ForgeError> {
    OffsetDateTime::from_unix_timestamp(seconds)
        .map_err(|_out_of_range| ForgeError::Unfit(format!("{seconds} s after 1970 is no date")))
}

/// With its length in two bytes before it.
fn prefixed(bytes: &[u8]) -> Vec<u8> {
    let length = u16::try_from(bytes.len()).unwrap_or(0).to_be_bytes();
    [length.as_slice(), bytes].concat()
}

/// One DER element of less than 64 KiB.
fn der(tag: u8, content: &[u8]) -> Vec<u8> {
    let [high, low] = u16::try_from(content.len()).unwrap_or(0).to_be_bytes();
    let head = match (high, low) {
        (0, 0..=0x7f) => vec![tag, low],
        (0, _) => vec![tag, 0x81, low],
        (_, _) => vec![tag, 0x82, high, low],
    };
    [head.as_slice(), content].concat()
}

/// The first element inside a DER sequence: a certificate's TBSCertificate.
fn to_be_signed(certificate: &[u8]) -> &[u8] {
    let header = |bytes: &[u8]| -> Option<(usize, usize)> {
        match bytes.get(1..)? {
            [length @ 0..=0x7f, ..] => Some((2, usize::from(*length))),
            [0x81, length, ..] => Some((3, usize::from(*length))),
            [0x82, high, low, ..] => Some((4, usize::from(u16::from_be_bytes([*high, *low])))),
            _ => None,
        }
    };
    header(certificate)
        .and_then(|(skip, _length)| {
            let inner = certificate.get(skip..)?;
            let (head, length) = header(inner)?;
            inner.get(..head + length)
        })
        .unwrap_or_default()
}

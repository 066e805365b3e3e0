//! Client certificates of any identity and validity, by control's stolen CA or by another one.

use std::fs;
use std::io::Write as _;
use std::path::PathBuf;

use nimbus_api::clock::UnixSeconds;
use rcgen::{
    CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ED25519, SanType,
};
use serde_json::json;

use crate::lab::DOMAIN;
use crate::{Failure, Lab, mint};

/// Who signs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signer {
    /// Control's own CA.
    Control,
    /// A CA that has the same name and another key.
    Stranger,
}

impl Lab {
    /// A credentials file for this identity (`admin/eve`, `node/x`, `org/o/user/u`), valid from and
    /// to these times.
    pub fn credentials(
        &self,
        signer: Signer,
        identity: &str,
        from: UnixSeconds,
        to: UnixSeconds,
    ) -> Result<PathBuf, Failure> {
        let ca_pem = fs::read_to_string(self.control_dir().join("ca.pem"))?;
        let key = KeyPair::generate_for(&PKCS_ED25519)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let uri = format!("spiffe://{DOMAIN}/{identity}");
        params.subject_alt_names = vec![SanType::URI(uri.try_into()?)];
        params.not_before = date(from)?;
        params.not_after = date(to)?;
        let certificate = params.signed_by(&key, &self.issuer(signer, &ca_pem)?)?;
        let credentials = json!({
            "endpoint": self.api(),
            "ca_pem": ca_pem,
            "cert_pem": certificate.pem(),
            "key_pem": key.serialize_pem(),
            "org": "default",
        });
        let file = self.path("files").join(format!("{}.json", mint::unique()?));
        crate::child::append(&file)?.write_all(credentials.to_string().as_bytes())?;
        Ok(file)
    }

    fn issuer(&self, signer: Signer, ca_pem: &str) -> Result<Issuer<'static, KeyPair>, Failure> {
        let key = match signer {
            Signer::Control => {
                KeyPair::from_pem(&fs::read_to_string(self.control_dir().join("ca.key"))?)?
            }
            Signer::Stranger => KeyPair::generate_for(&PKCS_ED25519)?,
        };
        Ok(Issuer::from_ca_cert_pem(ca_pem, key)?)
    }
}

fn date(at: UnixSeconds) -> Result<time::OffsetDateTime, Failure> {
    Ok(time::OffsetDateTime::from_unix_timestamp(at.0)?)
}

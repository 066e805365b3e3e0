//! Certificates of any identity and validity, by control's stolen CA or by another one.

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

/// Life of a server's certificate.
const SERVER_SECONDS: i64 = 3600;

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
        let mut params = params(identity, ExtendedKeyUsagePurpose::ClientAuth)?;
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

    /// A certificate chain and key for a server that nodes take for control, PEM.
    pub fn server_certificate(&self) -> Result<(String, String), Failure> {
        let ca_pem = fs::read_to_string(self.control_dir().join("ca.pem"))?;
        let key = KeyPair::generate_for(&PKCS_ED25519)?;
        let mut params = params("control", ExtendedKeyUsagePurpose::ServerAuth)?;
        params.not_before = date(mint::at(-60))?;
        params.not_after = date(mint::at(SERVER_SECONDS))?;
        let leaf = params.signed_by(&key, &self.issuer(Signer::Control, &ca_pem)?)?.pem();
        Ok((leaf + &ca_pem, key.serialize_pem()))
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

/// A certificate for this identity and use.
fn params(identity: &str, usage: ExtendedKeyUsagePurpose) -> Result<CertificateParams, Failure> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![usage];
    let uri = format!("spiffe://{DOMAIN}/{identity}");
    params.subject_alt_names = vec![SanType::URI(uri.try_into()?)];
    Ok(params)
}

fn date(at: UnixSeconds) -> Result<time::OffsetDateTime, Failure> {
    Ok(time::OffsetDateTime::from_unix_timestamp(at.0)?)
}

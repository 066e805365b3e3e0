//! Credentials files: all that a person's program needs to call the API, in one private file.

use std::path::{Path, PathBuf};

use nimbus_api::clock::{Clock as _, SystemClock, UnixSeconds};
use serde::{Deserialize, Serialize};

use crate::config::CredentialsArgs;
use crate::data_dir::{self, DataDir, DataDirError};
use crate::identity::{Identity, Peer};
use crate::pki::{self, Ca, PERSON_SECONDS, PkiError};

/// Name of the first admin's credentials in the data directory.
const ADMIN: &str = "admin.json";

/// What a credentials file holds.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Credentials {
    endpoint: String,
    ca_pem: String,
    cert_pem: String,
    key_pem: String,
    org: String,
}

/// Why credentials could not be made.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// A file.
    #[error("cannot read or write a file")]
    DataDir(#[source] DataDirError),
    /// A certificate.
    #[error("cannot make a certificate")]
    Pki(#[source] PkiError),
    /// No control service has run here.
    #[error("{} is missing: start nimbus-control serve once", path.display())]
    NotServed {
        /// What is missing.
        path: PathBuf,
    },
    /// The file exists.
    #[error("{} exists already", path.display())]
    Exists {
        /// Which.
        path: PathBuf,
    },
}

fn new(
    ca: &Ca,
    who: &Identity,
    org: &str,
    endpoint: &str,
    now: UnixSeconds,
) -> Result<Credentials, PkiError> {
    let key = pki::new_key()?;
    let issued = ca.issue_with_key(who, &key, PERSON_SECONDS, now)?;
    Ok(Credentials {
        endpoint: endpoint.to_owned(),
        ca_pem: ca.pem().to_owned(),
        cert_pem: issued.cert_pem,
        key_pem: key.serialize_pem(),
        org: org.to_owned(),
    })
}

fn to_json(credentials: &Credentials) -> Vec<u8> {
    let mut text = serde_json::to_vec_pretty(credentials).unwrap_or_default();
    text.push(b'\n');
    text
}

/// Keeps the first admin's file: made once, renewed at half of its life, and always with the
/// address that is listened on now.
pub(crate) fn keep_admin(
    data: &DataDir,
    ca: &Ca,
    endpoint: &str,
    now: UnixSeconds,
) -> Result<(), CredentialsError> {
    let present = data.read_secret(ADMIN).map_err(CredentialsError::DataDir)?;
    let present = present.and_then(|text| serde_json::from_str::<Credentials>(&text).ok());
    let fresh = |found: &Credentials| {
        let peer = pki::certificate_der(&found.cert_pem)
            .and_then(|der| Peer::from_certificate(&der, ca.domain()).ok());
        found.ca_pem == ca.pem()
            && peer.is_some_and(|peer| peer.not_after.0.saturating_sub(now.0) > PERSON_SECONDS / 2)
    };
    let credentials = match present {
        Some(found) if fresh(&found) && found.endpoint == endpoint => return Ok(()),
        Some(found) if fresh(&found) => Credentials { endpoint: endpoint.to_owned(), ..found },
        Some(_) | None => {
            let who = Identity::Admin("first".to_owned());
            new(ca, &who, "default", endpoint, now).map_err(CredentialsError::Pki)?
        }
    };
    data.write_secret(ADMIN, &to_json(&credentials)).map_err(CredentialsError::DataDir)
}

/// Makes credentials for a user of an org. Works while the service runs: it only reads the CA.
pub fn issue(args: &CredentialsArgs) -> Result<(), CredentialsError> {
    let secret = |name: &str| -> Result<String, CredentialsError> {
        let path = args.data_dir.join(name);
        data_dir::read_secret(&path)
            .map_err(CredentialsError::DataDir)?
            .ok_or(CredentialsError::NotServed { path })
    };
    let admin = secret(ADMIN)?;
    let not_served = || CredentialsError::NotServed { path: args.data_dir.join(ADMIN) };
    let admin: Credentials = serde_json::from_str(&admin).map_err(|_error| not_served())?;
    let domain = pki::certificate_der(&admin.cert_pem)
        .and_then(|der| Peer::domain_of(&der))
        .ok_or_else(not_served)?;
    let ca =
        Ca::from_pem(&secret("ca.key")?, admin.ca_pem, &domain).map_err(CredentialsError::Pki)?;
    if Path::new(&args.out).exists() {
        return Err(CredentialsError::Exists { path: args.out.clone() });
    }
    let who = Identity::User(args.org.clone(), args.user.to_string());
    let now = SystemClock.unix();
    let made =
        new(&ca, &who, args.org.as_str(), &admin.endpoint, now).map_err(CredentialsError::Pki)?;
    data_dir::write_whole(&args.out, &to_json(&made), 0o600).map_err(CredentialsError::DataDir)
}

//! Credentials: where the control service is, whom to believe it is, and who we are.

use std::path::PathBuf;

use nimbus_api::strict_json::{self, Limits};
use serde::Deserialize;

use crate::error::CtlError;
use crate::files;

/// Longest credentials file.
const CREDENTIALS_BYTES_MAX: usize = 256 << 10;
/// Where `nimbus-control serve` leaves the first administrator's, on the same machine.
const ADMIN_FILE: &str = "/var/lib/nimbus/control/admin.json";
/// The environment variable that names the file.
const VARIABLE: &str = "NIMBUS_CREDENTIALS";
/// Below the home directory.
const HOME_FILE: &str = ".config/nimbus/credentials.json";

/// What the file says.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Credentials {
    /// `HOST:PORT`.
    pub(crate) endpoint: String,
    pub(crate) ca_pem: String,
    pub(crate) cert_pem: String,
    /// Secret.
    pub(crate) key_pem: String,
    /// The org of jobs that name none.
    pub(crate) org: String,
}

/// The given file, else the environment's, else the first that exists of the two usual ones.
pub(crate) fn load(given: Option<&PathBuf>) -> Result<Credentials, CtlError> {
    let variable = || std::env::var_os(VARIABLE).filter(|path| !path.is_empty());
    let path = match given.cloned().or_else(|| variable().map(PathBuf::from)) {
        Some(path) => path,
        None => usual().into_iter().find(|path| path.exists()).ok_or(CtlError::NoCredentials)?,
    };
    let text = files::read(&path, CREDENTIALS_BYTES_MAX)?;
    strict_json::parse(&text, Limits::bytes(CREDENTIALS_BYTES_MAX))
        .map_err(|source| CtlError::Credentials { path, source })
}

fn usual() -> Vec<PathBuf> {
    let home = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(HOME_FILE));
    home.into_iter().chain([PathBuf::from(ADMIN_FILE)]).collect()
}

//! Registries: one question, what a tag means now. The answer is believed by its hash only.

use nimbus_api::Digest;
use oci_client::client::{ClientConfig, ClientProtocol};
use oci_client::secrets::RegistryAuth;
use oci_client::{Client, Reference};
use std::time::Duration;

use super::problem;
use crate::error::CtlError;

const MANIFEST_TYPES: [&str; 4] = [
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.docker.distribution.manifest.v2+json",
];
/// Longest manifest or index.
const MANIFEST_BYTES_MAX: usize = 4 << 20;
const TIMEOUT: Duration = Duration::from_secs(30);

/// The digest of the manifest that a tag names.
pub(super) async fn resolve(host: &str, repository: &str, tag: &str) -> Result<Digest, CtlError> {
    let shown = format!("{host}/{repository}:{tag}");
    let protocol = if is_loopback(host) { ClientProtocol::Http } else { ClientProtocol::Https };
    let config = ClientConfig {
        protocol,
        connect_timeout: Some(TIMEOUT),
        read_timeout: Some(TIMEOUT),
        ..ClientConfig::default()
    };
    let reference = Reference::with_tag(host.to_owned(), repository.to_owned(), tag.to_owned());
    let (manifest, _said) = Client::new(config)
        .pull_manifest_raw(&reference, &RegistryAuth::Anonymous, &MANIFEST_TYPES)
        .await
        .map_err(|source| CtlError::Registry { image: shown.clone(), source: Box::new(source) })?;
    if manifest.len() > MANIFEST_BYTES_MAX {
        return Err(problem(&shown, "its manifest is longer than 4 MiB"));
    }
    Ok(Digest::of(&manifest))
}

/// Plain HTTP is for this machine only.
fn is_loopback(host: &str) -> bool {
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    let address = name.parse::<std::net::Ipv4Addr>();
    name == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::is_loopback;

    #[test]
    fn only_this_machine_is_asked_without_tls() {
        assert!(
            is_loopback("127.0.0.1:5000") && is_loopback("localhost") && is_loopback("127.9.9.9")
        );
        for other in ["10.0.0.1:5000", "127.0.0.1.evil.example", "localhost.evil.example:80"] {
            assert!(!is_loopback(other), "{other}");
        }
    }
}

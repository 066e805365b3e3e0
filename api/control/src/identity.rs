//! Who a peer is: the one SPIFFE id in its certificate, and nothing else about it.
//!
//! The certificate's chain, validity and purpose have been checked by the TLS layer before this
//! reads it. A certificate with no, two or foreign SPIFFE ids has no identity here.

use std::sync::Arc;

use nimbus_api::Digest;
use nimbus_api::clock::UnixSeconds;
use nimbus_api::id::{NodeId, OrgId, TrustDomain};
use x509_parser::prelude::{FromDer as _, GeneralName, ParsedExtension, X509Certificate};

/// Who may do what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Identity {
    /// Sees and does everything that people may.
    Admin(String),
    /// Sees one org.
    User(OrgId, String),
    /// A node.
    Node(NodeId),
}

/// The other end of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Peer {
    /// Who.
    pub(crate) identity: Identity,
    /// SubjectPublicKeyInfo of the certificate.
    pub(crate) spki: Arc<[u8]>,
    /// End of the certificate.
    pub(crate) not_after: UnixSeconds,
}

/// Why a certificate is nobody's.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum IdentityError {
    #[error("certificate cannot be read")]
    Unreadable,
    #[error("expected exactly one URI in the certificate, found {found}")]
    Count { found: usize },
    #[error("{found:?} is not the id of a person or node of {domain}")]
    Unknown { found: String, domain: TrustDomain },
}

impl Peer {
    /// SHA-256 of the public key: what leases call a node.
    pub(crate) fn thumbprint(&self) -> Digest {
        Digest::of(&self.spki)
    }

    /// Reads a certificate that has been verified.
    pub(crate) fn from_certificate(
        der: &[u8],
        domain: &TrustDomain,
    ) -> Result<Self, IdentityError> {
        let (_rest, certificate) =
            X509Certificate::from_der(der).map_err(|_error| IdentityError::Unreadable)?;
        let uri = one_uri(&certificate)?;
        let identity = Identity::parse(uri, domain).ok_or_else(|| IdentityError::Unknown {
            found: uri.chars().take(200).collect(),
            domain: domain.clone(),
        })?;
        Ok(Self {
            identity,
            spki: certificate.public_key().raw.into(),
            not_after: UnixSeconds(certificate.validity().not_after.timestamp()),
        })
    }
}

impl Peer {
    /// The trust domain that a certificate of ours is of.
    pub(crate) fn domain_of(der: &[u8]) -> Option<TrustDomain> {
        let (_rest, certificate) = X509Certificate::from_der(der).ok()?;
        let uri = one_uri(&certificate).ok()?;
        let (domain, _path) = uri.strip_prefix("spiffe://")?.split_once('/')?;
        domain.parse().ok()
    }
}

fn one_uri<'a>(certificate: &'a X509Certificate<'_>) -> Result<&'a str, IdentityError> {
    let mut uris = Vec::new();
    for extension in certificate.extensions() {
        if let ParsedExtension::SubjectAlternativeName(names) = extension.parsed_extension() {
            for name in &names.general_names {
                if let GeneralName::URI(uri) = name {
                    uris.push(*uri);
                }
            }
        }
    }
    match uris.as_slice() {
        [uri] => Ok(uri),
        other => Err(IdentityError::Count { found: other.len() }),
    }
}

impl Identity {
    fn parse(uri: &str, domain: &TrustDomain) -> Option<Self> {
        let path =
            uri.strip_prefix("spiffe://")?.strip_prefix(domain.as_str())?.strip_prefix('/')?;
        let parts: Vec<_> = path.split('/').collect();
        match parts.as_slice() {
            ["admin", name] => Some(Self::Admin(name.parse::<OrgId>().ok()?.to_string())),
            ["org", org, "user", name] => {
                Some(Self::User(org.parse().ok()?, name.parse::<OrgId>().ok()?.to_string()))
            }
            ["node", node] => Some(Self::Node(node.parse().ok()?)),
            _other => None,
        }
    }

    /// The SPIFFE id.
    pub(crate) fn uri(&self, domain: &TrustDomain) -> String {
        match self {
            Self::Admin(name) => format!("spiffe://{domain}/admin/{name}"),
            Self::User(org, name) => format!("spiffe://{domain}/org/{org}/user/{name}"),
            Self::Node(node) => format!("spiffe://{domain}/node/{node}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_ids_of_this_domain_are_somebody() {
        let domain: TrustDomain = "nimbus.test".parse().unwrap();
        for good in [
            Identity::Admin("first".to_owned()),
            Identity::User("acme".parse().unwrap(), "ann".to_owned()),
            Identity::Node("n1".parse().unwrap()),
        ] {
            assert_eq!(Identity::parse(&good.uri(&domain), &domain), Some(good));
        }
        for bad in [
            "spiffe://nimbus.test.evil/admin/a",
            "spiffe://other/admin/a",
            "spiffe://nimbus.test/admin/",
            "spiffe://nimbus.test/admin/a/b",
            "spiffe://nimbus.test/org/a/user/../b",
            "spiffe://nimbus.test/org//user/b",
            "spiffe://nimbus.test/control",
            "https://nimbus.test/admin/a",
            "",
        ] {
            assert_eq!(Identity::parse(bad, &domain), None, "{bad}");
        }
    }
}

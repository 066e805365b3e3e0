//! TLS to control, in the two ways there are: by the CA's key hash (joining, before anything else
//! is known) and by the CA itself with our own certificate (everything after).
//!
//! Control is recognised by its SPIFFE id, not by a DNS name: the chain must end in the trusted CA
//! and the leaf must be `spiffe://DOMAIN/control`. There is no plain-text mode and no way to skip a
//! check.

use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use nimbus_api::Digest;
use nimbus_api::id::TrustDomain;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms};
use rustls::server::ParsedCertificate;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error as TlsError, RootCertStore,
    SignatureScheme,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint};
use x509_parser::extensions::GeneralName;

use crate::identity::{self, Identity, IdentityError};

/// Longest wait for a connection.
pub const CONNECT_SECONDS_MAX: u64 = 10;
/// How often an idle connection is asked for life, and how long it may take to answer.
pub const KEEPALIVE_SECONDS: u64 = 10;
/// Most certificates of a presented chain.
pub const CHAIN_CERTIFICATES_MAX: usize = 8;

/// By what control is believed.
#[derive(Debug, Clone)]
pub enum Anchor {
    /// A CA of the presented chain must have this SubjectPublicKeyInfo hash.
    CaKey(Digest),
    /// This CA, and this trust domain.
    Ca(CertificateDer<'static>, TrustDomain),
}

/// Why no secured connection could be prepared or made.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// Our own certificates.
    #[error("cannot use the node's certificates")]
    Identity(#[source] IdentityError),
    /// rustls refused the configuration.
    #[error("cannot set up TLS")]
    Tls(#[source] TlsError),
    /// The address is not HOST:PORT.
    #[error("expected HOST:PORT, found {found:?}")]
    Address {
        /// What was found.
        found: String,
    },
    /// No connection, or control is not who it should be.
    #[error("cannot connect to control at {address}")]
    Connect {
        /// Where it was tried.
        address: String,
        /// Why.
        #[source]
        source: tonic::transport::Error,
    },
}

/// A connection to the join listener.
pub async fn connect_to_join(address: &str, ca_key: Digest) -> Result<Channel, LinkError> {
    let config = builder(Anchor::CaKey(ca_key))?.with_no_client_auth();
    connect(address, config).await
}

/// A connection to the API, by our own certificate.
pub async fn connect_to_api(identity: &Identity) -> Result<Channel, LinkError> {
    let record = &identity.record;
    let ca = identity::certificates(&record.ca_pem).map_err(LinkError::Identity)?;
    let no_ca = || LinkError::Identity(IdentityError::Certificate("no CA".to_owned()));
    let ca = ca.into_iter().next().ok_or_else(no_ca)?;
    let chain = identity::certificates(&record.chain_pem).map_err(LinkError::Identity)?;
    let key = PrivateKeyDer::Pkcs8(identity::pkcs8_der(&identity.key));
    let config = builder(Anchor::Ca(ca, record.trust_domain.clone()))?
        .with_client_auth_cert(chain, key)
        .map_err(LinkError::Tls)?;
    connect(&record.api_address, config).await
}

type Builder = rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert>;

fn builder(anchor: Anchor) -> Result<Builder, LinkError> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = Arc::new(ControlVerifier::new(anchor, &provider));
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(LinkError::Tls)?;
    Ok(builder.dangerous().with_custom_certificate_verifier(verifier))
}

async fn connect(address: &str, mut config: ClientConfig) -> Result<Channel, LinkError> {
    let bad = || LinkError::Address { found: address.chars().take(100).collect() };
    let (host, port) = address.rsplit_once(':').ok_or_else(bad)?;
    if host.is_empty() || port.parse::<u16>().is_err() {
        return Err(bad());
    }
    let bare = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    let name = ServerName::try_from(bare).map_err(|_not_a_name| bad())?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.enable_sni = false;
    let connector = TlsConnector::from(Arc::new(config));
    let target = address.to_owned();
    let open = tower::service_fn(move |_uri: tonic::transport::Uri| {
        let (connector, target, name) = (connector.clone(), target.clone(), name.clone());
        async move {
            let stream = TcpStream::connect(target).await?;
            stream.set_nodelay(true)?;
            Ok::<_, std::io::Error>(TokioIo::new(connector.connect(name, stream).await?))
        }
    });
    // The scheme is for tonic alone: TLS is made by the connector.
    Endpoint::from_static("http://control.nimbus")
        .connect_timeout(Duration::from_secs(CONNECT_SECONDS_MAX))
        .http2_keep_alive_interval(Duration::from_secs(KEEPALIVE_SECONDS))
        .keep_alive_timeout(Duration::from_secs(KEEPALIVE_SECONDS))
        .keep_alive_while_idle(true)
        .connect_with_connector(open)
        .await
        .map_err(|source| LinkError::Connect { address: address.to_owned(), source })
}

/// Believes control, nobody else.
#[derive(Debug)]
struct ControlVerifier {
    anchor: Anchor,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ControlVerifier {
    fn new(anchor: Anchor, provider: &CryptoProvider) -> Self {
        Self { anchor, algorithms: provider.signature_verification_algorithms }
    }

    /// The CA that the chain must end in.
    fn root<'a>(&'a self, presented: &'a [CertificateDer<'_>]) -> Result<RootCertStore, TlsError> {
        let mut store = RootCertStore::empty();
        let ca = match &self.anchor {
            Anchor::Ca(ca, _) => Some(ca.clone()),
            Anchor::CaKey(wanted) => presented
                .iter()
                .take(CHAIN_CERTIFICATES_MAX)
                .find(|certificate| spki_digest(certificate).as_ref() == Some(wanted))
                .map(|certificate| certificate.clone().into_owned()),
        };
        store.add(ca.ok_or(TlsError::InvalidCertificate(CertificateError::UnknownIssuer))?)?;
        Ok(store)
    }
}

impl ServerCertVerifier for ControlVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        if intermediates.len() > CHAIN_CERTIFICATES_MAX {
            return Err(TlsError::InvalidCertificate(CertificateError::BadEncoding));
        }
        let roots = self.root(intermediates)?;
        let parsed = ParsedCertificate::try_from(leaf)?;
        verify_server_cert_signed_by_trust_anchor(
            &parsed,
            &roots,
            intermediates,
            now,
            self.algorithms.all,
        )?;
        let domain = match &self.anchor {
            Anchor::Ca(_, domain) => Some(domain),
            Anchor::CaKey(_) => None,
        };
        if is_control(leaf, domain) {
            return Ok(ServerCertVerified::assertion());
        }
        Err(TlsError::InvalidCertificate(CertificateError::NotValidForName))
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _leaf: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        Err(TlsError::General("only TLS 1.3 is spoken".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        rustls::crypto::verify_tls13_signature(message, leaf, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// SHA-256 of a certificate's SubjectPublicKeyInfo.
pub fn spki_digest(certificate: &CertificateDer<'_>) -> Option<Digest> {
    let (_rest, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    Some(Digest::of(parsed.public_key().raw))
}

/// Whether the one URI of a certificate is control's SPIFFE id, in this domain if one is known.
fn is_control(leaf: &CertificateDer<'_>, domain: Option<&TrustDomain>) -> bool {
    let Ok((_rest, parsed)) = x509_parser::parse_x509_certificate(leaf) else { return false };
    let Ok(Some(names)) = parsed.subject_alternative_name() else { return false };
    let uris: Vec<_> = names
        .value
        .general_names
        .iter()
        .filter_map(|name| if let GeneralName::URI(uri) = name { Some(*uri) } else { None })
        .collect();
    let [uri] = uris.as_slice() else { return false };
    let Some(found) = uri.strip_prefix("spiffe://").and_then(|rest| rest.strip_suffix("/control"))
    else {
        return false;
    };
    domain.map_or_else(|| found.parse::<TrustDomain>().is_ok(), |domain| domain.as_str() == found)
}

#[cfg(test)]
mod tests;

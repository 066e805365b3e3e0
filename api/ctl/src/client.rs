//! The connection to the control service: gRPC over mutually authenticated TLS, nothing else.

use std::time::Duration;

use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

use crate::credentials::Credentials;
use crate::error::CtlError;

/// Longest wait for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How often an idle stream is asked whether it lives.
const KEEP_ALIVE: Duration = Duration::from_secs(20);
/// Longest answer: a job with its bundles.
pub(crate) const ANSWER_BYTES_MAX: usize = 16 << 20;
/// Longest wait for an answer that is not a stream.
pub(crate) const CALL_TIMEOUT: Duration = Duration::from_mins(1);

/// A connection.
pub(crate) async fn connect(credentials: &Credentials) -> Result<Channel, CtlError> {
    let failed = |source| CtlError::Connect { endpoint: credentials.endpoint.clone(), source };
    let tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(&credentials.ca_pem))
        .identity(Identity::from_pem(&credentials.cert_pem, &credentials.key_pem));
    let endpoint = Endpoint::from_shared(format!("https://{}", credentials.endpoint))
        .map_err(failed)?
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .tls_config(tls)
        .map_err(failed)?;
    endpoint.connect().await.map_err(failed)
}

/// A request that waits no longer than [`CALL_TIMEOUT`].
pub(crate) fn timely<T>(message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.set_timeout(CALL_TIMEOUT);
    request
}

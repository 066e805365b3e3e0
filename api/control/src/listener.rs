//! Accepting connections: a bounded number, TLS 1.3 with a deadline, and a peer that is somebody.
//!
//! On the API listener a client certificate of our CA is asked for in the handshake and the
//! connection carries its [`Peer`] from then on; a certificate that is nobody's ends it. The join
//! listener asks for none and its connections carry no peer.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use nimbus_api::id::TrustDomain;
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;

use crate::identity::Peer;
use crate::limits::HANDSHAKE_MAX;
use crate::pki::{Ca, PkiError, ServerIdentity};

/// A connection after its handshake.
pub(crate) struct Connection {
    stream: TlsStream<TcpStream>,
    peer: Option<Peer>,
    _permit: OwnedSemaphorePermit,
}

impl Connected for Connection {
    type ConnectInfo = Option<Peer>;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, data)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

fn config(ca: Option<&Ca>, identity: Arc<ServerIdentity>) -> Result<Arc<ServerConfig>, PkiError> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(PkiError::Tls)?;
    let builder = match ca {
        Some(ca) => {
            let mut roots = RootCertStore::empty();
            roots.add(ca.der().clone()).map_err(PkiError::Tls)?;
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                .build()
                .map_err(|_error| PkiError::File { file: "ca.pem", what: "usable CA" })?;
            builder.with_client_cert_verifier(verifier)
        }
        None => builder.with_no_client_auth(),
    };
    let mut config = builder.with_cert_resolver(identity);
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config))
}

/// What a listener asks of its clients.
pub(crate) struct Listener {
    socket: TcpListener,
    acceptor: TlsAcceptor,
    domain: Option<TrustDomain>,
    permits: Arc<Semaphore>,
}

impl Listener {
    /// Mutual TLS.
    pub(crate) fn mutual(
        listener: TcpListener,
        ca: &Ca,
        identity: Arc<ServerIdentity>,
        connections_max: usize,
    ) -> Result<Self, PkiError> {
        let acceptor = TlsAcceptor::from(config(Some(ca), identity)?);
        let permits = Arc::new(Semaphore::new(connections_max));
        Ok(Self { socket: listener, acceptor, domain: Some(ca.domain().clone()), permits })
    }

    /// Only the server proves itself.
    pub(crate) fn server_only(
        listener: TcpListener,
        identity: Arc<ServerIdentity>,
        connections_max: usize,
    ) -> Result<Self, PkiError> {
        let acceptor = TlsAcceptor::from(config(None, identity)?);
        let permits = Arc::new(Semaphore::new(connections_max));
        Ok(Self { socket: listener, acceptor, domain: None, permits })
    }

    /// Connections, each after its handshake, until the receiver is dropped.
    pub(crate) fn connections(self) -> ReceiverStream<io::Result<Connection>> {
        let (sender, receiver) = mpsc::channel(16);
        tokio::spawn(async move {
            let accepting = async {
                loop {
                    self.accept_one(&sender).await;
                }
            };
            tokio::select! {
                () = accepting => {}
                () = sender.closed() => {}
            }
        });
        ReceiverStream::new(receiver)
    }

    async fn accept_one(&self, sender: &mpsc::Sender<io::Result<Connection>>) {
        let Ok(permit) = Arc::clone(&self.permits).acquire_owned().await else { return };
        let (stream, from) = match self.socket.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, mostly: waiting is all there is to do.
                tracing::warn!(%error, "cannot accept");
                return tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            }
        };
        let (acceptor, domain, sender) =
            (self.acceptor.clone(), self.domain.clone(), sender.clone());
        tokio::spawn(async move {
            match handshake(stream, &acceptor, domain.as_ref()).await {
                Ok((stream, peer)) => {
                    drop(sender.send(Ok(Connection { stream, peer, _permit: permit })).await);
                }
                Err(problem) => tracing::info!(%from, problem, "refused a connection"),
            }
        });
    }
}

async fn handshake(
    stream: TcpStream,
    acceptor: &TlsAcceptor,
    domain: Option<&TrustDomain>,
) -> Result<(TlsStream<TcpStream>, Option<Peer>), String> {
    stream.set_nodelay(true).map_err(|error| error.to_string())?;
    let stream = tokio::time::timeout(HANDSHAKE_MAX, acceptor.accept(stream))
        .await
        .map_err(|_late| "the handshake took too long".to_owned())?
        .map_err(|error| error.to_string())?;
    let Some(domain) = domain else { return Ok((stream, None)) };
    let certificates = stream.get_ref().1.peer_certificates().unwrap_or_default();
    let leaf = certificates.first().ok_or_else(|| "no certificate".to_owned())?;
    let peer = Peer::from_certificate(leaf, domain).map_err(|error| error.to_string())?;
    Ok((stream, Some(peer)))
}

/// Binds an address.
pub(crate) async fn bind(address: SocketAddr) -> io::Result<(TcpListener, SocketAddr)> {
    let listener = TcpListener::bind(address).await?;
    let bound = listener.local_addr()?;
    Ok((listener, bound))
}

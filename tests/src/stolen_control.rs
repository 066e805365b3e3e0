//! Control in the attacker's hands: a service at control's address, with a certificate of control's
//! own CA, in session with the node and saying whatever its owner wants.
//!
//! Intent: rule 11 is about exactly this program. It holds all that control holds (CA, root and hot
//! keys, the node's trust) and none of what control never holds (the policy key, attestations).
//! It acknowledges the node's events so that a test can wait for them.
//!
//! Deliberately absent: everything that control does for people. Once events have been acknowledged
//! here, the real control cannot take the node's session again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nimbus_api::id::LeaseId;
use nimbus_api::lease::LeaseToken;
use nimbus_api::proto::control::v1::JobSpec;
use nimbus_api::proto::node::v1::control_message::Kind as ToNode;
use nimbus_api::proto::node::v1::node_message::Kind as FromNode;
use nimbus_api::proto::node::v1::sessions_server::{Sessions, SessionsServer};
use nimbus_api::proto::node::v1::{
    Certificate, ControlMessage, EventAck, Finished, Grant, LogAck, NodeMessage,
    RenewCertificateRequest, Welcome, event,
};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::transport::{Identity, Server, ServerTlsConfig};
use tonic::{Request, Response, Status, Streaming};

use crate::failure::During as _;
use crate::wait::until;
use crate::{Failure, Lab, Outcome};

/// Milliseconds between heartbeats: a young nonce is always at hand.
const HEARTBEAT_MS: u32 = 500;
/// Messages that may wait for the node.
const OUTGOING_MAX: usize = 64;
/// Longest message from the node.
const MESSAGE_BYTES_MAX: usize = 8 << 20;

/// The service; it ends when it is dropped.
#[derive(Debug)]
pub struct StolenControl {
    heard: Arc<Heard>,
    _runtime: Runtime,
}

/// What the node has said, and the way to it.
#[derive(Debug, Default)]
struct Heard(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    nonce: Option<Vec<u8>>,
    to_node: Option<mpsc::Sender<Result<ControlMessage, Status>>>,
    started: BTreeSet<String>,
    finished: BTreeMap<String, Finished>,
}

impl Lab {
    /// Kills control, takes its place at the same address and waits until the node has come.
    pub fn steal_control(&mut self) -> Result<StolenControl, Failure> {
        let (chain, key) = self.server_certificate()?;
        self.kill_control()?;
        let stolen = StolenControl::serve(self.api(), &chain, &key)?;
        until("the node to come to the stolen control", || {
            Ok(stolen.heard.inner().to_node.is_some().then_some(()))
        })?;
        Ok(stolen)
    }
}

impl StolenControl {
    fn serve(address: &str, chain_pem: &str, key_pem: &str) -> Result<Self, Failure> {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let listener = runtime.block_on(TcpListener::bind(address)).during("control's address")?;
        let heard = Arc::new(Heard::default());
        let service = SessionsServer::from_arc(Arc::new(Service(Arc::clone(&heard))))
            .max_decoding_message_size(MESSAGE_BYTES_MAX);
        let tls = ServerTlsConfig::new().identity(Identity::from_pem(chain_pem, key_pem));
        let server = Server::builder().tls_config(tls)?.add_service(service);
        runtime.spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        Ok(Self { heard, _runtime: runtime })
    }

    /// Hex of the nonce that the node sent last.
    pub fn nonce(&self) -> Result<String, Failure> {
        let inner = self.heard.inner();
        let nonce = inner.nonce.as_ref().ok_or_else(|| Failure::new("no heartbeat came"))?;
        Ok(hex::encode(nonce))
    }

    /// Says anything.
    pub fn say(&self, kind: ToNode) -> Outcome {
        let inner = self.heard.inner();
        let to_node = inner.to_node.as_ref().ok_or_else(|| Failure::new("the node has left"))?;
        to_node.try_send(Ok(ControlMessage { kind: Some(kind) })).during("the node does not listen")
    }

    /// Grants a lease.
    pub fn grant(&self, token: &LeaseToken, spec: JobSpec) -> Outcome {
        self.say(ToNode::Grant(Grant { lease: token.as_str().to_owned(), spec: Some(spec) }))
    }

    /// Waits until the node says that a lease is no longer used.
    pub fn finished(&self, lease: &LeaseId) -> Result<Finished, Failure> {
        until("the node to report the end of the lease", || {
            Ok(self.heard.inner().finished.get(lease.as_str()).cloned())
        })
    }

    /// Whether the node has said that something was started under a lease.
    pub fn has_started(&self, lease: &LeaseId) -> bool {
        self.heard.inner().started.contains(lease.as_str())
    }
}

impl Heard {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers what the node said; gives what it is waiting to hear.
    fn hear(&self, message: NodeMessage) -> Option<ToNode> {
        let mut inner = self.inner();
        match message.kind? {
            FromNode::Hello(hello) => inner.nonce = Some(hello.nonce),
            FromNode::Heartbeat(heartbeat) => inner.nonce = Some(heartbeat.nonce),
            FromNode::Event(event) => {
                let lease = event.lease_id;
                match event.kind? {
                    event::Kind::Started(_receipt) => drop(inner.started.insert(lease)),
                    event::Kind::Finished(end) => drop(inner.finished.insert(lease, end)),
                }
                return Some(ToNode::EventAck(EventAck { seq: event.seq }));
            }
            FromNode::Claim(_) => {}
            FromNode::Log(log) => {
                let bytes = u64::try_from(log.data.len()).unwrap_or(u64::MAX);
                return Some(ToNode::LogAck(LogAck {
                    job: log.job,
                    attempt: log.attempt,
                    stream: log.stream,
                    next_offset: log.offset.saturating_add(bytes),
                    eof: log.eof,
                }));
            }
        }
        None
    }
}

#[derive(Debug)]
struct Service(Arc<Heard>);

#[tonic::async_trait]
impl Sessions for Service {
    type SessionStream = ReceiverStream<Result<ControlMessage, Status>>;

    async fn session(
        &self,
        request: Request<Streaming<NodeMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let (send, outgoing) = mpsc::channel(OUTGOING_MAX);
        let mut incoming = request.into_inner();
        let heard = Arc::clone(&self.0);
        tokio::spawn(async move {
            let welcome = Welcome { heartbeat_interval_ms: HEARTBEAT_MS, version: String::new() };
            let mut answer = Some(ToNode::Welcome(welcome));
            while let Ok(Some(message)) = incoming.message().await {
                let next = heard.hear(message);
                for kind in answer.take().into_iter().chain(next) {
                    if send.send(Ok(ControlMessage { kind: Some(kind) })).await.is_err() {
                        return;
                    }
                }
                // Nothing may be said to a node before it was welcomed.
                heard.inner().to_node.get_or_insert_with(|| send.clone());
            }
            heard.inner().to_node = None;
        });
        Ok(Response::new(ReceiverStream::new(outgoing)))
    }

    async fn renew_certificate(
        &self,
        _request: Request<RenewCertificateRequest>,
    ) -> Result<Response<Certificate>, Status> {
        Err(Status::unimplemented("a stolen control gives no certificates"))
    }
}

//! `nimbus.node.v1.Sessions`.

use std::sync::Arc;

use nimbus_api::RefusalCode;
use nimbus_api::proto::node::v1::sessions_server::Sessions;
use nimbus_api::proto::node::v1::{
    Certificate, ControlMessage, NodeMessage, RenewCertificateRequest,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::run;
use crate::api::NodePeer;
use crate::app::App;
use crate::identity::Identity;
use crate::limits::SESSION_OUTBOX;
use crate::pki::{Issued, NODE_SECONDS, ProvenKey};
use crate::status;

/// The service that nodes call.
#[derive(Debug, Clone)]
pub(crate) struct SessionService(pub(crate) Arc<App>);

impl SessionService {
    /// The node that calls, if it is one that has joined with this very key.
    async fn caller<T>(&self, request: &Request<T>) -> Result<NodePeer, Status> {
        let unknown = || status::code(RefusalCode::RequestUnauthenticated);
        let caller = request.extensions().get::<NodePeer>().cloned().ok_or_else(unknown)?;
        let row = self.0.store.node(caller.node.to_string()).await.map_err(status::store)?;
        row.filter(|row| row.spki.as_slice() == caller.peer.spki.as_ref()).ok_or_else(unknown)?;
        Ok(caller)
    }
}

/// A certificate as it travels.
pub(crate) fn certificate(app: &App, issued: Issued) -> Certificate {
    Certificate {
        chain_pem: issued.cert_pem,
        ca_pem: app.ca.pem().to_owned(),
        not_after_ms: issued.not_after.0.saturating_mul(1000),
    }
}

#[tonic::async_trait]
impl Sessions for SessionService {
    type SessionStream = ReceiverStream<Result<ControlMessage, Status>>;

    async fn session(
        &self,
        request: Request<Streaming<NodeMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let caller = self.caller(&request).await?;
        let (sender, receiver) = mpsc::channel(SESSION_OUTBOX);
        let who = (caller.node.to_string(), caller.peer);
        tokio::spawn(run::run(Arc::clone(&self.0), who, request.into_inner(), sender));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn renew_certificate(
        &self,
        request: Request<RenewCertificateRequest>,
    ) -> Result<Response<Certificate>, Status> {
        let caller = self.caller(&request).await?;
        let key = ProvenKey::from_request(&request.into_inner().csr)
            .map_err(|error| status::invalid("csr", error))?;
        if key.spki() != caller.peer.spki.as_ref() {
            return Err(status::code(RefusalCode::RequestForbidden));
        }
        let issued = self
            .0
            .ca
            .issue(&Identity::Node(caller.node), &key, NODE_SECONDS, self.0.clock.unix())
            .map_err(|_error| status::code(RefusalCode::ControlUnavailable))?;
        Ok(Response::new(certificate(&self.0, issued)))
    }
}

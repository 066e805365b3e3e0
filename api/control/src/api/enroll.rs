//! `nimbus.node.v1.Enrollment`, on the listener that asks for no client certificate.

use std::sync::Arc;

use nimbus_api::error::Chain;
use nimbus_api::proto::node::v1::enrollment_server::Enrollment;
use nimbus_api::proto::node::v1::{JoinRequest, JoinResponse};
use nimbus_api::{Digest, RefusalCode};
use tonic::{Request, Response, Status};

use crate::app::App;
use crate::identity::Identity;
use crate::limits::NAME_BYTES_MAX;
use crate::pki::{NODE_SECONDS, ProvenKey};
use crate::session::certificate;
use crate::status;
use crate::store::JoinNode;

/// The service.
#[derive(Debug, Clone)]
pub(crate) struct EnrollmentService(pub(crate) Arc<App>);

#[tonic::async_trait]
impl Enrollment for EnrollmentService {
    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinResponse>, Status> {
        let asked = request.into_inner();
        if asked.secret.is_empty() || asked.secret.len() > NAME_BYTES_MAX {
            return Err(status::code(RefusalCode::JoinTokenInvalid));
        }
        // The proof first: a request that fails does not use up the token.
        let key =
            ProvenKey::from_request(&asked.csr).map_err(|error| status::invalid("csr", error))?;
        let join = JoinNode { secret: Digest::of(asked.secret.as_bytes()), spki: key.spki() };
        let (app, now_ms) = (&self.0, self.0.clock.unix_millis());
        let node = app.store.join(join, now_ms).await.map_err(status::store)?;
        tracing::info!(node, "a node has joined");
        let failed = |error: &dyn std::error::Error| {
            tracing::error!(error = %Chain(error), "cannot make a certificate");
            status::code(RefusalCode::ControlUnavailable)
        };
        let id = node.parse().map_err(|error: nimbus_api::id::IdError| failed(&error))?;
        let issued = app
            .ca
            .issue(&Identity::Node(id), &key, NODE_SECONDS, app.clock.unix())
            .map_err(|error| failed(&error))?;
        Ok(Response::new(JoinResponse {
            certificate: Some(certificate(app, issued)),
            key_set: app.keys.envelope().to_vec(),
            root_key: app.keys.root().as_bytes().to_vec(),
            trust_domain: app.ca.domain().to_string(),
            api_address: app.api_address.clone(),
            node,
        }))
    }
}

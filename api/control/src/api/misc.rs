//! `nimbus.control.v1.{Nodes, Quotas, Policies, Keys}`.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use nimbus_api::dsse::SigningKey;
use nimbus_api::id::{NodeId, OrgId};
use nimbus_api::proto::control::v1::keys_server::Keys;
use nimbus_api::proto::control::v1::nodes_server::Nodes;
use nimbus_api::proto::control::v1::policies_server::Policies;
use nimbus_api::proto::control::v1::quotas_server::Quotas;
use nimbus_api::proto::control::v1::{
    ApplyPolicyRequest, CreateJoinTokenRequest, GetKeySetRequest, GetPolicyRequest,
    GetQuotaRequest, JoinToken, KeySet, ListNodesRequest, ListNodesResponse, Node, Policy, Quota,
    UpdateQuotaRequest,
};
use nimbus_api::{Digest, RefusalCode};
use tonic::{Request, Response, Status};

use super::{Person, page};
use crate::app::App;
use crate::limits::{NODE_NAME_BYTES_MAX, TOKEN_SECONDS_DEFAULT, TOKEN_SECONDS_MAX};
use crate::status;
use crate::store::{NodeRow, PolicyRow, QuotaRow};

/// The service.
#[derive(Debug, Clone)]
pub(crate) struct NodesService(pub(crate) Arc<App>);

/// 32 random bytes, from the generator that makes keys.
pub(super) fn secret() -> String {
    BASE64.encode(SigningKey::generate().seed())
}

#[tonic::async_trait]
impl Nodes for NodesService {
    async fn create_join_token(
        &self,
        request: Request<CreateJoinTokenRequest>,
    ) -> Result<Response<JoinToken>, Status> {
        Person::admin(&request)?;
        let asked = request.into_inner();
        let plain = asked.node.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'));
        if !plain || asked.node.len() > NODE_NAME_BYTES_MAX || asked.node.parse::<NodeId>().is_err()
        {
            return Err(status::invalid("node", "expected 1 to 63 of [a-z0-9-]"));
        }
        let seconds = match asked.ttl_seconds {
            0 => TOKEN_SECONDS_DEFAULT,
            1..=TOKEN_SECONDS_MAX => asked.ttl_seconds,
            _more => return Err(status::invalid("ttl_seconds", "at most 86400 are allowed")),
        };
        let secret = secret();
        let hash = Digest::of(secret.as_bytes());
        let now_ms = self.0.clock.unix_millis();
        let expires_at_ms = now_ms.saturating_add(i64::from(seconds).saturating_mul(1000));
        let added = self.0.store.add_token(hash, asked.node, expires_at_ms, now_ms);
        added.await.map_err(status::store)?;
        let token = format!("nj1.{secret}.{}", self.0.ca.pin());
        Ok(Response::new(JoinToken { token, expires_at_ms }))
    }

    async fn list_nodes(
        &self,
        request: Request<ListNodesRequest>,
    ) -> Result<Response<ListNodesResponse>, Status> {
        Person::admin(&request)?;
        let asked = request.into_inner();
        let size = page::size(asked.page_size)?;
        let after = page::last("nodes", &asked.page_token)?.unwrap_or_default();
        let found = self.0.store.nodes(after, size.saturating_add(1)).await;
        let mut rows = found.map_err(status::store)?;
        let size = usize::try_from(size).unwrap_or(usize::MAX);
        let more = rows.len() > size;
        rows.truncate(size);
        let last = rows.last().filter(|_row| more).map(|row| page::token("nodes", &row.node));
        let next_page_token = last.unwrap_or_default();
        let nodes = rows.into_iter().map(|row| self.node(row)).collect();
        Ok(Response::new(ListNodesResponse { nodes, next_page_token }))
    }
}

impl NodesService {
    fn node(&self, row: NodeRow) -> Node {
        let seen = self.0.registry.last_seen_ms(&row.node);
        Node {
            name: format!("nodes/{}", row.node),
            thumbprint: row.thumbprint.hex(),
            connected: seen.is_some(),
            last_seen_ms: seen.unwrap_or(row.last_seen_ms),
            version: row.version,
            policy_serial: row.policy_serial,
            running_jobs: row.running,
            capacity: Some(row.capacity),
            max_jobs: row.max_jobs,
        }
    }
}

/// The service.
#[derive(Debug, Clone)]
pub(crate) struct QuotasService(pub(crate) Arc<App>);

fn quota_name(name: &str) -> Result<OrgId, Status> {
    let org = name.strip_prefix("orgs/").and_then(|rest| rest.strip_suffix("/quota"));
    org.and_then(|org| org.parse().ok())
        .ok_or_else(|| status::invalid("name", "expected orgs/ORG/quota"))
}

fn quota(org: &OrgId, row: QuotaRow) -> Quota {
    Quota {
        name: format!("orgs/{org}/quota"),
        max_running_jobs: row.max_running,
        max_queued_jobs: row.max_queued,
        running_jobs: row.running,
        queued_jobs: row.queued,
        etag: row.version.to_string(),
    }
}

#[tonic::async_trait]
impl Quotas for QuotasService {
    async fn get_quota(
        &self,
        request: Request<GetQuotaRequest>,
    ) -> Result<Response<Quota>, Status> {
        let person = Person::of(&request)?;
        let org = quota_name(&request.into_inner().name)?;
        if !person.sees(&org) {
            return Err(status::code(RefusalCode::RequestForbidden));
        }
        let row = self.0.store.quota(org.to_string()).await.map_err(status::store)?;
        Ok(Response::new(quota(&org, row)))
    }

    async fn update_quota(
        &self,
        request: Request<UpdateQuotaRequest>,
    ) -> Result<Response<Quota>, Status> {
        Person::admin(&request)?;
        let asked = request.into_inner().quota;
        let asked = asked.ok_or_else(|| status::invalid("quota", "must be set"))?;
        let org = quota_name(&asked.name)?;
        let version = match asked.etag.as_str() {
            "" => None,
            etag => {
                Some(etag.parse().map_err(|_error| status::invalid("quota.etag", "is not one"))?)
            }
        };
        let max = (asked.max_running_jobs, asked.max_queued_jobs);
        let now_ms = self.0.clock.unix_millis();
        let set = self.0.store.set_quota(org.to_string(), max, version, now_ms).await;
        let row = set.map_err(status::store)?;
        self.0.dispatch.notify_one();
        Ok(Response::new(quota(&org, row)))
    }
}

/// The service.
#[derive(Debug, Clone)]
pub(crate) struct PoliciesService(pub(crate) Arc<App>);

fn policy(row: PolicyRow) -> Policy {
    let PolicyRow { serial, id, not_after_ms, envelope, document: _ } = row;
    Policy { envelope, id, serial, not_after_ms }
}

#[tonic::async_trait]
impl Policies for PoliciesService {
    async fn apply_policy(
        &self,
        request: Request<ApplyPolicyRequest>,
    ) -> Result<Response<Policy>, Status> {
        Person::admin(&request)?;
        let (row, document) = crate::policy::read(request.into_inner().envelope)
            .map_err(|error| status::of(&error))?;
        if i64::try_from(row.serial).is_err() {
            return Err(status::invalid("envelope", "the serial is out of range"));
        }
        let now_ms = self.0.clock.unix_millis();
        self.0.store.apply_policy(row.clone(), now_ms).await.map_err(status::store)?;
        self.0.set_policy(&row, document);
        tracing::info!(serial = row.serial, id = row.id, "policy applied");
        Ok(Response::new(policy(row)))
    }

    async fn get_policy(
        &self,
        request: Request<GetPolicyRequest>,
    ) -> Result<Response<Policy>, Status> {
        Person::of(&request)?;
        let row = self.0.store.policy().await.map_err(status::store)?;
        let row = row.ok_or_else(|| status::code(RefusalCode::PolicyMissing))?;
        Ok(Response::new(policy(row)))
    }
}

/// The service.
#[derive(Debug, Clone)]
pub(crate) struct KeysService(pub(crate) Arc<App>);

#[tonic::async_trait]
impl Keys for KeysService {
    async fn get_key_set(
        &self,
        request: Request<GetKeySetRequest>,
    ) -> Result<Response<KeySet>, Status> {
        Person::of(&request)?;
        let envelope = self.0.keys.envelope().to_vec();
        let root_key = self.0.keys.root().as_bytes().to_vec();
        Ok(Response::new(KeySet { envelope, root_key }))
    }
}

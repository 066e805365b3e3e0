//! The gRPC services, and who may call which.
//!
//! The doors are two interceptors: [`people`] before everything of `nimbus.control.v1`, [`nodes`]
//! before `nimbus.node.v1.Sessions`. A certificate that has expired since the handshake is refused at
//! each call. Another org's resource and an absent one are the same NOT_FOUND.

mod enroll;
mod jobs;
mod logs;
mod misc;
mod page;
mod tickets;

use std::sync::Arc;

use nimbus_api::RefusalCode;
use nimbus_api::clock::Clock;
use nimbus_api::id::{JobId, NodeId, OrgId};
use tonic::{Request, Status};

pub(crate) use enroll::EnrollmentService;
pub(crate) use jobs::JobsService;
pub(crate) use logs::LogsService;
pub(crate) use misc::{KeysService, NodesService, PoliciesService, QuotasService};
pub(crate) use tickets::TicketsService;

use crate::identity::{Identity, Peer};
use crate::status;

/// A person, as the certificate says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Person {
    /// Sees all orgs.
    Admin,
    /// Sees one.
    User(OrgId),
}

/// A node, as the certificate says.
#[derive(Debug, Clone)]
pub(crate) struct NodePeer {
    pub(crate) node: NodeId,
    pub(crate) peer: Peer,
}

fn peer(request: &Request<()>, clock: &dyn Clock) -> Result<Peer, Status> {
    let unknown = || status::code(RefusalCode::RequestUnauthenticated);
    let peer = request.extensions().get::<Option<Peer>>().cloned().flatten().ok_or_else(unknown)?;
    if peer.not_after <= clock.unix() { Err(unknown()) } else { Ok(peer) }
}

/// Lets people in.
pub(crate) fn people(
    mut request: Request<()>,
    clock: &Arc<dyn Clock>,
) -> Result<Request<()>, Status> {
    let person = match peer(&request, clock.as_ref())?.identity {
        Identity::Admin(_) => Person::Admin,
        Identity::User(org, _) => Person::User(org),
        Identity::Node(_) => return Err(status::code(RefusalCode::RequestForbidden)),
    };
    request.extensions_mut().insert(person);
    Ok(request)
}

/// Lets nodes in.
pub(crate) fn nodes(
    mut request: Request<()>,
    clock: &Arc<dyn Clock>,
) -> Result<Request<()>, Status> {
    let peer = peer(&request, clock.as_ref())?;
    let Identity::Node(node) = peer.identity.clone() else {
        return Err(status::code(RefusalCode::RequestForbidden));
    };
    request.extensions_mut().insert(NodePeer { node, peer });
    Ok(request)
}

/// Lets everybody in who has a certificate.
pub(crate) fn anybody(request: Request<()>, clock: &Arc<dyn Clock>) -> Result<Request<()>, Status> {
    peer(&request, clock.as_ref()).map(|_peer| request)
}

impl Person {
    /// The person that calls.
    fn of<T>(request: &Request<T>) -> Result<Self, Status> {
        let person = request.extensions().get::<Self>().cloned();
        person.ok_or_else(|| status::code(RefusalCode::RequestUnauthenticated))
    }

    /// Only an admin goes on.
    fn admin<T>(request: &Request<T>) -> Result<(), Status> {
        match Self::of(request)? {
            Self::Admin => Ok(()),
            Self::User(_) => Err(status::code(RefusalCode::RequestForbidden)),
        }
    }

    /// Whether this person may see that org.
    fn sees(&self, org: &OrgId) -> bool {
        match self {
            Self::Admin => true,
            Self::User(own) => own == org,
        }
    }
}

/// Reads "orgs/ORG/jobs/JOB".
fn job_name(name: &str) -> Result<(OrgId, JobId), Status> {
    let parts: Vec<_> = name.split('/').collect();
    if let ["orgs", org, "jobs", job] = parts.as_slice()
        && let (Ok(org), Ok(job)) = (org.parse(), job.parse())
    {
        return Ok((org, job));
    }
    Err(status::invalid("name", "expected orgs/ORG/jobs/JOB"))
}

/// Reads "orgs/ORG".
fn org_name(field: &'static str, name: &str) -> Result<OrgId, Status> {
    let org = name.strip_prefix("orgs/").and_then(|org| org.parse().ok());
    org.ok_or_else(|| status::invalid(field, "expected orgs/ORG"))
}

/// A stream that one task fills for one caller.
type Filled<T> = tokio_stream::wrappers::ReceiverStream<Result<T, Status>>;

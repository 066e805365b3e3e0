//! Leasing what a node claims: a job and its only attempt, in one transaction, never queued.
//!
//! Idempotent by node and container for as long as the lease is held: asked again, the same lease gets
//! a new beginning. A ticket is redeemed in the same transaction, so that what is refused in the end
//! has used none.

use nimbus_api::Digest;
use nimbus_api::id::{ContainerKey, OrgId};
use nimbus_api::lease::{LeaseClaims, LeasedClaim, LeasedEgress, LeasedImage, LeasedPolicy};
use nimbus_api::proto::control::v1::{Claimed, JobSpec};
use nimbus_api::{Refusal, RefusalCode};
use prost::Message as _;
use rusqlite::{Connection, OptionalExtension as _, named_params};

use super::leases::{self, Candidate, Fate, LeaseTerms, Offer};
use super::tickets::{self, Redeemed};
use super::{Store, StoreError, jobs, rows, small};

/// A claim that the policy has given something.
#[derive(Debug, Clone)]
pub(crate) struct NewClaim {
    /// Id that the job gets unless the claim is known.
    pub(crate) job: String,
    /// Whose it is; none is whose ticket it shows.
    pub(crate) org: Option<OrgId>,
    pub(crate) claim: LeasedClaim,
    pub(crate) spec: JobSpec,
    /// Digest of what it wants to run.
    pub(crate) process: Digest,
    pub(crate) egress: LeasedEgress,
    pub(crate) capabilities: Vec<String>,
    /// Hash of the ticket that the pod shows.
    pub(crate) ticket: Option<Digest>,
}

/// Times, and the policy that it was decided by.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ClaimTerms {
    pub(crate) ttl_seconds: u32,
    pub(crate) policy: LeasedPolicy,
    pub(crate) now_ms: i64,
}

/// A lease that was claimed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Leased {
    pub(crate) claims: LeaseClaims,
    /// It was made now, so no node has it yet.
    pub(crate) is_new: bool,
}

/// What becomes of the answer to a claim.
#[derive(Debug, Clone)]
pub(crate) enum Answerable {
    /// It is sent, with this specification.
    Live(Box<JobSpec>),
    /// The lease was revoked before, with this code.
    Revoked(RefusalCode),
    /// The lease has ended before.
    Ended,
}

impl Store {
    /// Leases a container to the node that claims it, once for as long as the lease is held.
    pub(crate) async fn claim(
        &self,
        new: NewClaim,
        offer: Offer,
        terms: ClaimTerms,
    ) -> Result<Leased, StoreError> {
        self.write(terms.now_ms, move |connection| claim(connection, &new, &offer, &terms)).await
    }

    /// What goes with the answer to a claim, with bundles.
    pub(crate) async fn answerable(
        &self,
        lease_id: String,
        job: String,
    ) -> Result<Answerable, StoreError> {
        self.read(move |connection| {
            let found: Option<(i64, String)> = connection
                .prepare_cached("SELECT ended_ms, revoked FROM attempts WHERE lease_id = ?1")?
                .query_row([&lease_id], |row| Ok((row.get(0)?, row.get(1)?)))
                .optional()?;
            match found {
                Some((0, revoked)) if revoked.is_empty() => {}
                Some((0, revoked)) => return Ok(Answerable::Revoked(code_of(&revoked))),
                Some(_) | None => return Ok(Answerable::Ended),
            }
            let Some(mut spec) = leases::read_spec(connection, &job)? else {
                return Ok(Answerable::Ended);
            };
            rows::add_bundles(connection, &job, &mut spec)?;
            Ok(Answerable::Live(Box::new(spec)))
        })
        .await
    }
}

fn code_of(revoked: &str) -> RefusalCode {
    revoked.parse().unwrap_or(RefusalCode::LeaseRevoked)
}

pub(super) fn claim(
    connection: &Connection,
    new: &NewClaim,
    offer: &Offer,
    terms: &ClaimTerms,
) -> Result<Leased, StoreError> {
    if let Some(held) = held(connection, &offer.node, &new.claim.container)? {
        return again(connection, new, held, offer, terms);
    }
    let redeemed = redeem(connection, new, &offer.node, terms.now_ms)?;
    let org = org_of(new, redeemed.as_ref())?;
    check_quota(connection, &org)?;
    let candidate = Candidate {
        job: new.job.clone(),
        org: org.to_string(),
        spec: new.spec.clone(),
        attempt: 1,
    };
    let lease_terms = LeaseTerms {
        ttl_seconds: terms.ttl_seconds,
        policy: Some(terms.policy),
        cursor: String::new(),
        now_ms: terms.now_ms,
    };
    let generation = rows::meta(connection, "generation")?;
    let mut claims = leases::claims_for(&candidate, offer, &lease_terms, generation)?;
    claims.process_sha256 = new.process;
    claims.egress = new.egress.clone();
    claims.capabilities.clone_from(&new.capabilities);
    claims.claim = Some(new.claim.clone());
    // Queued and leased in one transaction: nobody sees it wait.
    jobs::insert(connection, (&candidate.job, &candidate.org), &candidate.spec, terms.now_ms)?;
    rows::count(connection, &candidate.org, 1, 0)?;
    record(connection, new, &offer.node, redeemed.as_ref())?;
    leases::record(connection, &candidate, &offer.node, &claims, &lease_terms)?;
    Ok(Leased { claims, is_new: true })
}

fn redeem(
    connection: &Connection,
    new: &NewClaim,
    node: &str,
    now_ms: i64,
) -> Result<Option<Redeemed>, StoreError> {
    let Some(ticket) = &new.ticket else { return Ok(None) };
    // That only pods show tickets was checked where the claim was read.
    let Some(pod) = &new.claim.pod else { return Err(RefusalCode::ClaimMalformed.into()) };
    tickets::redeem(connection, ticket, (node, pod.sandbox.as_str()), now_ms).map(Some)
}

fn org_of(new: &NewClaim, redeemed: Option<&Redeemed>) -> Result<OrgId, StoreError> {
    let invalid =
        |found: &str| StoreError::Refused(Refusal::with(RefusalCode::ClaimTicketInvalid, found));
    match (&new.org, redeemed) {
        (Some(org), Some(redeemed)) if redeemed.org != org.as_str() => {
            Err(invalid("it is of another org than the policy gives the pod to"))
        }
        (Some(org), _) => Ok(org.clone()),
        (None, Some(redeemed)) => {
            redeemed.org.parse().map_err(|_error| StoreError::Corrupt(redeemed.org.clone()))
        }
        (None, None) => Err(invalid("the pod shows none")),
    }
}

fn check_quota(connection: &Connection, org: &OrgId) -> Result<(), StoreError> {
    rows::ensure_org(connection, org.as_str())?;
    let (running, max): (i64, i64) = connection
        .prepare_cached("SELECT running, max_running FROM orgs WHERE org = ?1")?
        .query_row([org.as_str()], |row| Ok((row.get(0)?, row.get(1)?)))?;
    if running < max {
        return Ok(());
    }
    let found = format!("{running} jobs of {org} run, at most {max} may");
    Err(StoreError::Refused(Refusal::with(RefusalCode::QuotaRunning, found)))
}

fn record(
    connection: &Connection,
    new: &NewClaim,
    node: &str,
    redeemed: Option<&Redeemed>,
) -> Result<(), StoreError> {
    let ContainerKey { namespace, id } = &new.claim.container;
    let ticket = redeemed.map_or("", |redeemed| redeemed.ticket.as_str());
    connection
        .prepare_cached(
            "INSERT INTO claimed (job, node, namespace, container, ticket, shown)
             VALUES (:job, :node, :namespace, :container, :ticket, :shown)",
        )?
        .execute(named_params! {
            ":job": new.job, ":node": node, ":namespace": namespace.as_str(),
            ":container": id.as_str(), ":ticket": ticket,
            ":shown": shown(&new.claim, redeemed).encode_to_vec(),
        })?;
    Ok(())
}

/// What people are shown of it.
fn shown(claim: &LeasedClaim, redeemed: Option<&Redeemed>) -> Claimed {
    let mut shown = Claimed {
        namespace: claim.container.namespace.to_string(),
        container: claim.container.id.to_string(),
        ticket: redeemed.map(Redeemed::name).unwrap_or_default(),
        ..Claimed::default()
    };
    if let Some(pod) = &claim.pod {
        shown.pod_namespace.clone_from(&pod.namespace);
        shown.pod_name.clone_from(&pod.name);
        shown.pod_uid.clone_from(&pod.uid);
        shown.sandbox = pod.sandbox.to_string();
        shown.pod_container = pod.container.clone().unwrap_or_default();
        shown.restart = pod.restart;
    }
    shown
}

struct Held {
    claims: LeaseClaims,
    started: bool,
    revoked: String,
}

/// The lease that a container of a node has now.
fn held(
    connection: &Connection,
    node: &str,
    container: &ContainerKey,
) -> Result<Option<Held>, StoreError> {
    let found: Option<(String, i64, String)> = connection
        .prepare_cached(
            "SELECT attempts.claims, attempts.started_ms, attempts.revoked
             FROM claimed JOIN attempts USING (job)
             WHERE claimed.node = ?1 AND claimed.namespace = ?2 AND claimed.container = ?3
                AND attempts.ended_ms = 0",
        )?
        .query_row((node, container.namespace.as_str(), container.id.as_str()), |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?))
        })
        .optional()?;
    let Some((claims, started_ms, revoked)) = found else { return Ok(None) };
    let claims = leases::read_claims(&claims)?;
    Ok(Some(Held { claims, started: small(started_ms.signum()) != 0, revoked }))
}

/// The lease that is held, with a new beginning; what has started keeps its latest start.
fn again(
    connection: &Connection,
    new: &NewClaim,
    held: Held,
    offer: &Offer,
    terms: &ClaimTerms,
) -> Result<Leased, StoreError> {
    let Held { mut claims, started, revoked } = held;
    if !revoked.is_empty() {
        return Err(code_of(&revoked).into());
    }
    if let Some(other) = difference(new, &claims) {
        let container = &new.claim.container;
        let found = format!("the lease that {container} has names another {other}");
        let code = RefusalCode::LeaseWrongContainer;
        return Err(StoreError::Refused(Refusal::with(code, found)));
    }
    let fate = if started { Fate::GoesOn } else { Fate::Begins };
    leases::renew(connection, &mut claims, fate, (&offer.nonce, terms.ttl_seconds), terms.now_ms)?;
    Ok(Leased { claims, is_new: false })
}

fn difference(new: &NewClaim, claims: &LeaseClaims) -> Option<&'static str> {
    let image = new.spec.image.clone().unwrap_or_default();
    let same_image = |leased: &LeasedImage| {
        leased.name == image.name
            && leased.digest.to_string() == image.digest
            && leased.platform == image.platform
    };
    if !matches!(claims.images.as_slice(), [leased] if same_image(leased)) {
        return Some("image");
    }
    if claims.process_sha256 != new.process {
        return Some("process");
    }
    (claims.claim.as_ref() != Some(&new.claim)).then_some("pod")
}

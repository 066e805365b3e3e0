//! Making, extending, re-issuing and ending leases.
//!
//! A lease is durable here before anybody signs it (rule 8). Fair between orgs by going round them,
//! first come first served within an org; a job that fits no node now does not hold up those behind
//! it. What a node has left is counted from its live attempts inside of the transaction.

use std::collections::BTreeMap;

use nimbus_api::clock::UnixSeconds;
use nimbus_api::id::LeaseId;
use nimbus_api::lease::{
    GpuMode, LEASE_VERSION, LeaseClaims, LeasedEgress, LeasedGpu, LeasedImage, LeasedPolicy,
    LeasedResources, LeasedSeccomp, NONCE_BYTES, SECCOMP_DEFAULT, ScratchMedium,
};
use nimbus_api::process::ProcessIdentity;
use nimbus_api::proto::control::v1::{self as proto, JobSpec, JobState, Resources};
use nimbus_api::{Digest, RefusalCode};
use rusqlite::{Connection, OptionalExtension as _, Row, named_params};

use super::rows::{self, Move};
use super::{Store, StoreError, signed, small, unsigned};
use crate::limits::{LEASE_BATCH, SCAN_ORGS, SCAN_PER_ORG, START_SECONDS_MAX};

/// A node that can take leases.
#[derive(Debug, Clone)]
pub(crate) struct Offer {
    pub(crate) node: String,
    pub(crate) thumbprint: Digest,
    pub(crate) platform: String,
    /// All that it has; what its live leases use is subtracted here.
    pub(crate) capacity: Resources,
    pub(crate) max_jobs: u32,
    /// The newest heartbeat nonce.
    pub(crate) nonce: [u8; NONCE_BYTES],
}

/// What all leases of one round have in common.
#[derive(Debug, Clone)]
pub(crate) struct LeaseTerms {
    pub(crate) ttl_seconds: u32,
    pub(crate) policy: Option<LeasedPolicy>,
    /// The last org that was served.
    pub(crate) cursor: String,
    pub(crate) now_ms: i64,
}

/// What one round of leasing gave.
#[derive(Debug, Clone, Default)]
pub(crate) struct LeaseBatch {
    /// Node name and claims.
    pub(crate) leased: Vec<(String, LeaseClaims)>,
    /// The last org that was served.
    pub(crate) cursor: String,
    /// There may be more to lease at once.
    pub(crate) more: bool,
    /// When the next job that waits for a new attempt is ready.
    pub(crate) next_ms: Option<i64>,
}

/// A lease that has not ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LiveLease {
    pub(crate) lease_id: String,
    pub(crate) job: String,
    pub(crate) attempt: u32,
    pub(crate) started: bool,
    /// Empty when it was not revoked.
    pub(crate) revoked: String,
    /// The latest start of one that was claimed: it is never granted unasked. None for others.
    pub(crate) claimed_until: Option<UnixSeconds>,
}

/// What a heartbeat brought a node's leases.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tended {
    /// Extended leases.
    pub(crate) extended: Vec<LeaseClaims>,
    /// Leases that ran too long, and their jobs.
    pub(crate) overdue: Vec<(String, String)>,
}

pub(super) struct Candidate {
    pub(super) job: String,
    pub(super) org: String,
    pub(super) spec: JobSpec,
    pub(super) attempt: u32,
}

/// What a lease is given new times for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// It has not started: its latest start moves, too.
    Begins,
    /// It has started.
    GoesOn,
}

impl Store {
    /// Makes as many leases as fit, up to the batch's limit.
    pub(crate) async fn lease(
        &self,
        offers: Vec<Offer>,
        terms: LeaseTerms,
    ) -> Result<LeaseBatch, StoreError> {
        self.write(terms.now_ms, move |connection| lease(connection, offers, &terms)).await
    }

    /// Whether there is anything to lease, and when the next retry is ready: asked before
    /// [`Store::lease`], so that an idle service writes nothing.
    pub(crate) async fn waiting(&self, now_ms: i64) -> Result<(bool, Option<i64>), StoreError> {
        self.read(move |connection| {
            let waits = "SELECT EXISTS (SELECT 1 FROM orgs WHERE queued > 0)";
            let waits: bool = connection.prepare_cached(waits)?.query_row([], |row| row.get(0))?;
            Ok((waits, next_retry(connection, now_ms)?))
        })
        .await
    }

    /// The live leases of a node.
    pub(crate) async fn live_leases(&self, node: String) -> Result<Vec<LiveLease>, StoreError> {
        self.read(move |connection| {
            let mut statement = connection.prepare_cached(
                "SELECT lease_id, job, number, started_ms, revoked,
                    CASE WHEN EXISTS (SELECT 1 FROM claimed WHERE claimed.job = attempts.job)
                        THEN json_extract(claims, '$.start_by') END
                 FROM attempts WHERE node = ?1 AND ended_ms = 0",
            )?;
            let rows = statement.query_map([node], |row| {
                let (started_ms, until): (i64, Option<i64>) = (row.get(3)?, row.get(5)?);
                Ok(LiveLease {
                    lease_id: row.get(0)?,
                    job: row.get(1)?,
                    attempt: small(row.get(2)?),
                    started: started_ms != 0,
                    revoked: row.get(4)?,
                    claimed_until: until.map(UnixSeconds),
                })
            })?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
        .await
    }

    /// Whether [`Store::tend`] would do anything.
    pub(crate) async fn needs_tending(
        &self,
        node: String,
        extension_seconds: u32,
        now_ms: i64,
    ) -> Result<bool, StoreError> {
        self.read(move |connection| {
            let mut statement =
                connection.prepare_cached(&format!("SELECT EXISTS (SELECT 1 {DUE_OR_OVERDUE})"))?;
            let due = statement.query_row(
                named_params! {":node": node, ":now": now_ms, ":every": every_ms(extension_seconds)},
                |row| row.get(0),
            )?;
            Ok(due)
        })
        .await
    }

    /// Extends what is due for it and revokes what has run too long.
    pub(crate) async fn tend(
        &self,
        node: String,
        nonce: [u8; NONCE_BYTES],
        (ttl_seconds, extension_seconds): (u32, u32),
        now_ms: i64,
    ) -> Result<Tended, StoreError> {
        self.write(now_ms, move |connection| {
            tend(connection, &node, &nonce, (ttl_seconds, extension_seconds), now_ms)
        })
        .await
    }

    /// Gives a lease that its node never got a new beginning; none when it is no longer live.
    pub(crate) async fn reissue(
        &self,
        lease_id: String,
        nonce: [u8; NONCE_BYTES],
        ttl_seconds: u32,
        now_ms: i64,
    ) -> Result<Option<LeaseClaims>, StoreError> {
        self.write(now_ms, move |connection| {
            let Some(mut claims) = live_claims(connection, &lease_id)? else { return Ok(None) };
            renew(connection, &mut claims, Fate::Begins, (&nonce, ttl_seconds), now_ms)?;
            Ok(Some(claims))
        })
        .await
    }

    /// The specification that goes with a grant, with bundles.
    pub(crate) async fn spec(&self, job: String) -> Result<Option<JobSpec>, StoreError> {
        self.read(move |connection| {
            let Some(mut spec) = read_spec(connection, &job)? else { return Ok(None) };
            rows::add_bundles(connection, &job, &mut spec)?;
            Ok(Some(spec))
        })
        .await
    }

    /// Output that an attempt of a job may have, if that attempt was leased to this node.
    pub(crate) async fn log_limit(
        &self,
        node: String,
        job: String,
        attempt: u32,
    ) -> Result<Option<u64>, StoreError> {
        self.read(move |connection| {
            let found: Option<i64> = connection
                .prepare_cached(
                    "SELECT log_bytes FROM attempts WHERE job = ?1 AND number = ?2 AND node = ?3",
                )?
                .query_row((job, attempt, node), |row| row.get(0))
                .optional()?;
            Ok(found.map(unsigned))
        })
        .await
    }
}

fn next_retry(connection: &Connection, now_ms: i64) -> Result<Option<i64>, StoreError> {
    let next = connection
        .prepare_cached(
            "SELECT min(not_before_ms) FROM jobs WHERE state = 1 AND not_before_ms > ?1",
        )?
        .query_row([now_ms], |row| row.get(0))?;
    Ok(next)
}

pub(super) fn lease(
    connection: &Connection,
    mut offers: Vec<Offer>,
    terms: &LeaseTerms,
) -> Result<LeaseBatch, StoreError> {
    for offer in &mut offers {
        subtract_used(connection, offer)?;
    }
    let mut batch = LeaseBatch { cursor: terms.cursor.clone(), ..LeaseBatch::default() };
    offers.retain(|offer| offer.max_jobs > 0 && offer.capacity.cpu_millis > 0);
    if offers.is_empty() {
        batch.next_ms = next_retry(connection, terms.now_ms)?;
        return Ok(batch);
    }
    let orgs = orgs_in_turn(connection, &terms.cursor)?;
    let generation = rows::meta(connection, "generation")?;
    let roomiest = roomiest(&offers);
    let mut waiting = BTreeMap::new();
    for (org, room) in &orgs {
        let jobs = candidates(connection, org, *room, &roomiest, terms.now_ms)?;
        waiting.insert(org.as_str(), (jobs.into_iter(), *room));
    }
    let mut progress = true;
    while progress && batch.leased.len() < LEASE_BATCH {
        progress = false;
        for (org, _room) in &orgs {
            let Some((jobs, room)) = waiting.get_mut(org.as_str()) else { continue };
            if *room == 0 || batch.leased.len() >= LEASE_BATCH {
                continue;
            }
            let Some((job, offer)) = first_fit(jobs, &mut offers) else { continue };
            let claims = claims_for(&job, offer, terms, generation)?;
            record(connection, &job, &offer.node, &claims, terms)?;
            take(offer, job.spec.resources.unwrap_or_default());
            batch.leased.push((offer.node.clone(), claims));
            batch.cursor.clone_from(org);
            *room -= 1;
            progress = true;
        }
    }
    batch.more = batch.leased.len() >= LEASE_BATCH;
    batch.next_ms = next_retry(connection, terms.now_ms)?;
    Ok(batch)
}

/// Orgs with waiting jobs and how many more they may run, the one after the cursor first.
fn orgs_in_turn(connection: &Connection, cursor: &str) -> Result<Vec<(String, u32)>, StoreError> {
    let mut statement = connection.prepare_cached(
        "SELECT org, max_running - running FROM orgs WHERE queued > 0 AND running < max_running
         ORDER BY org <= ?1, org LIMIT ?2",
    )?;
    let limit = i64::try_from(SCAN_ORGS).unwrap_or(i64::MAX);
    let rows = statement.query_map((cursor, limit), |row| Ok((row.get(0)?, small(row.get(1)?))))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// For each platform the most of everything that any node has free: what needs more fits nowhere now.
fn roomiest(offers: &[Offer]) -> BTreeMap<String, Resources> {
    let mut found: BTreeMap<String, Resources> = BTreeMap::new();
    for offer in offers.iter().filter(|offer| offer.max_jobs > 0) {
        let most = found.entry(offer.platform.clone()).or_default();
        most.cpu_millis = most.cpu_millis.max(offer.capacity.cpu_millis);
        most.memory_bytes = most.memory_bytes.max(offer.capacity.memory_bytes);
        most.pids = most.pids.max(offer.capacity.pids);
    }
    found
}

/// The oldest jobs of an org that may fit somewhere: those that cannot do not hold up the others.
fn candidates(
    connection: &Connection,
    org: &str,
    room: u32,
    roomiest: &BTreeMap<String, Resources>,
    now_ms: i64,
) -> Result<Vec<Candidate>, StoreError> {
    let mut found = Vec::new();
    if room == 0 {
        return Ok(found);
    }
    for (platform, most) in roomiest {
        of_platform(connection, org, (platform, most), now_ms, &mut found)?;
    }
    found.sort_by(|one: &Candidate, other| one.job.cmp(&other.job));
    Ok(found)
}

fn of_platform(
    connection: &Connection,
    org: &str,
    (platform, most): (&str, &Resources),
    now_ms: i64,
    found: &mut Vec<Candidate>,
) -> Result<(), StoreError> {
    let mut statement = connection.prepare_cached(
        "SELECT job, spec, attempt FROM jobs WHERE org = :org AND state = 1
            AND not_before_ms <= :now AND platform = :platform AND cpu_millis <= :cpu
            AND memory_bytes <= :memory AND pids <= :pids
         ORDER BY job LIMIT :limit",
    )?;
    let mut rows = statement.query(named_params! {
        ":org": org, ":now": now_ms, ":platform": platform, ":cpu": most.cpu_millis,
        ":memory": signed(most.memory_bytes), ":pids": most.pids,
        ":limit": i64::try_from(SCAN_PER_ORG).unwrap_or(i64::MAX),
    })?;
    while let Some(row) = rows.next()? {
        let spec: Vec<u8> = row.get(1)?;
        found.push(Candidate {
            job: row.get(0)?,
            org: org.to_owned(),
            spec: rows::spec_of(&spec)?,
            attempt: small(row.get(2)?).saturating_add(1),
        });
    }
    Ok(())
}

fn subtract_used(connection: &Connection, offer: &mut Offer) -> Result<(), StoreError> {
    let read = |row: &Row<'_>| -> rusqlite::Result<(i64, i64, i64, i64)> {
        Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))
    };
    let (jobs, cpu, memory, pids) = connection
        .prepare_cached(
            "SELECT count(*), coalesce(sum(cpu_millis), 0), coalesce(sum(memory_bytes), 0),
                coalesce(sum(pids), 0) FROM attempts WHERE node = ?1 AND ended_ms = 0",
        )?
        .query_row([&offer.node], read)?;
    offer.max_jobs = offer.max_jobs.saturating_sub(small(jobs));
    let capacity = &mut offer.capacity;
    capacity.cpu_millis = capacity.cpu_millis.saturating_sub(small(cpu));
    capacity.memory_bytes = capacity.memory_bytes.saturating_sub(unsigned(memory));
    capacity.pids = capacity.pids.saturating_sub(small(pids));
    Ok(())
}

fn take(offer: &mut Offer, wanted: Resources) {
    offer.max_jobs = offer.max_jobs.saturating_sub(1);
    let capacity = &mut offer.capacity;
    capacity.cpu_millis = capacity.cpu_millis.saturating_sub(wanted.cpu_millis);
    capacity.memory_bytes = capacity.memory_bytes.saturating_sub(wanted.memory_bytes);
    capacity.pids = capacity.pids.saturating_sub(wanted.pids);
}

fn fits(offer: &Offer, spec: &JobSpec) -> bool {
    let wanted = spec.resources.unwrap_or_default();
    let platform = spec.image.as_ref().map_or("", |image| image.platform.as_str());
    offer.max_jobs > 0
        && offer.platform == platform
        && wanted.cpu_millis <= offer.capacity.cpu_millis
        && wanted.memory_bytes <= offer.capacity.memory_bytes
        && wanted.pids <= offer.capacity.pids
}

/// The first of an org's jobs that fits a node, and of the nodes that it fits the emptiest.
fn first_fit<'a>(
    jobs: &mut impl Iterator<Item = Candidate>,
    offers: &'a mut [Offer],
) -> Option<(Candidate, &'a mut Offer)> {
    let (job, node) = jobs.find_map(|job| {
        let fitting = offers.iter().filter(|offer| fits(offer, &job.spec));
        let node = fitting.max_by_key(|offer| offer.capacity.memory_bytes)?.node.clone();
        Some((job, node))
    })?;
    let offer = offers.iter_mut().find(|offer| offer.node == node)?;
    Some((job, offer))
}

pub(super) fn claims_for(
    job: &Candidate,
    offer: &Offer,
    terms: &LeaseTerms,
    generation: u64,
) -> Result<LeaseClaims, StoreError> {
    let corrupt =
        |what: &dyn std::fmt::Display| StoreError::Corrupt(format!("{}: {what}", job.job));
    let image = job.spec.image.clone().unwrap_or_default();
    let resources = job.spec.resources.unwrap_or_default();
    let egress = crate::spec::egress(&job.spec.egress).map_err(|error| corrupt(&error))?;
    let lease_id: LeaseId = crate::spec::new_id('l').parse().map_err(|error| corrupt(&error))?;
    let mut claims = LeaseClaims {
        ver: LEASE_VERSION,
        lease_id,
        job: job.job.parse().map_err(|error| corrupt(&error))?,
        attempt: job.attempt,
        org: job.org.parse().map_err(|error| corrupt(&error))?,
        node: offer.thumbprint,
        images: vec![LeasedImage {
            name: image.name,
            digest: image.digest.parse().map_err(|error| corrupt(&error))?,
            platform: image.platform,
        }],
        process_sha256: ProcessIdentity::from(&job.spec).digest(),
        resources: LeasedResources {
            cpu_millis: resources.cpu_millis,
            memory_bytes: resources.memory_bytes,
            pids: resources.pids,
            scratch_bytes: resources.scratch_bytes,
            scratch: scratch(resources.scratch),
            log_bytes: resources.log_bytes,
        },
        gpu: LeasedGpu { mode: GpuMode::None },
        seccomp: LeasedSeccomp { profile: seccomp_profile(&job.spec), sha256: None },
        egress: egress.map_or(LeasedEgress::None, LeasedEgress::Allow),
        capabilities: Vec::new(),
        policy: terms.policy,
        claim: None,
        generation,
        nonce: String::new(),
        iat: UnixSeconds(0),
        nbf: UnixSeconds(0),
        start_by: UnixSeconds(0),
        exp: UnixSeconds(0),
    };
    set_times(&mut claims, &offer.nonce, terms.ttl_seconds, terms.now_ms);
    claims.start_by = start_by(&claims, terms.ttl_seconds);
    Ok(claims)
}

/// A job of an earlier version's store names none.
fn scratch(asked: i32) -> ScratchMedium {
    match proto::ScratchMedium::try_from(asked) {
        Ok(proto::ScratchMedium::Memory) => ScratchMedium::Memory,
        Ok(proto::ScratchMedium::Unspecified | proto::ScratchMedium::Disk) | Err(_) => {
            ScratchMedium::Disk
        }
    }
}

/// A job of an earlier version's store names none.
fn seccomp_profile(spec: &JobSpec) -> String {
    let named = spec.seccomp_profile.as_str();
    if named.is_empty() { SECCOMP_DEFAULT.to_owned() } else { named.to_owned() }
}

fn set_times(claims: &mut LeaseClaims, nonce: &[u8; NONCE_BYTES], ttl_seconds: u32, now_ms: i64) {
    let now = now_ms.div_euclid(1000);
    claims.nonce = hex::encode(nonce);
    (claims.iat, claims.nbf) = (UnixSeconds(now), UnixSeconds(now));
    claims.exp = UnixSeconds(now.saturating_add(i64::from(ttl_seconds)));
}

fn start_by(claims: &LeaseClaims, ttl_seconds: u32) -> UnixSeconds {
    let wait = i64::from(ttl_seconds / 2).min(START_SECONDS_MAX);
    UnixSeconds(claims.iat.0.saturating_add(wait))
}

/// Gives a live lease new times, durably.
pub(super) fn renew(
    connection: &Connection,
    claims: &mut LeaseClaims,
    fate: Fate,
    (nonce, ttl_seconds): (&[u8; NONCE_BYTES], u32),
    now_ms: i64,
) -> Result<(), StoreError> {
    set_times(claims, nonce, ttl_seconds, now_ms);
    if fate == Fate::Begins {
        claims.start_by = start_by(claims, ttl_seconds);
    }
    save_claims(connection, claims, now_ms)
}

fn json(claims: &LeaseClaims) -> Result<String, StoreError> {
    serde_json::to_string(claims).map_err(|error| StoreError::Corrupt(error.to_string()))
}

pub(super) fn record(
    connection: &Connection,
    job: &Candidate,
    node: &str,
    claims: &LeaseClaims,
    terms: &LeaseTerms,
) -> Result<(), StoreError> {
    let resources = claims.resources;
    connection
        .prepare_cached(
            "INSERT INTO attempts (job, number, lease_id, node, claims, issued_ms, lease_until_ms,
                leased_ms, cpu_millis, memory_bytes, pids, log_bytes)
             VALUES (:job, :number, :lease, :node, :claims, :now, :until, :now, :cpu, :memory, :pids,
                :log)",
        )?
        .execute(named_params! {
            ":job": job.job, ":number": job.attempt, ":lease": claims.lease_id.as_str(),
            ":node": node, ":claims": json(claims)?, ":now": terms.now_ms,
            ":until": claims.exp.0.saturating_mul(1000), ":cpu": resources.cpu_millis,
            ":memory": signed(resources.memory_bytes), ":pids": resources.pids,
            ":log": signed(resources.log_bytes),
        })?;
    let head = rows::head(connection, &job.job)?
        .ok_or_else(|| StoreError::Corrupt(format!("{} has gone", job.job)))?;
    let change = Move { to: JobState::Leased, attempt: Some(job.attempt), ..Move::default() };
    rows::move_job(connection, &job.job, &head, &change, terms.now_ms)
}

fn every_ms(extension_seconds: u32) -> i64 {
    i64::from(extension_seconds).saturating_mul(1000)
}

/// When a started attempt has run too long; never where its job may run for ever.
const RUNS_UNTIL: &str = "CASE runtime_seconds_max WHEN 0 THEN 9223372036854775807
    ELSE started_ms + runtime_seconds_max * 1000 END";

/// Started leases of a node that were not revoked and are due for extension or have run too long.
const DUE_OR_OVERDUE: &str = "FROM attempts JOIN jobs USING (job)
    WHERE attempts.node = :node AND attempts.ended_ms = 0 AND started_ms > 0 AND revoked = ''
    AND (issued_ms + :every <= :now OR (runtime_seconds_max > 0
        AND started_ms + runtime_seconds_max * 1000 <= :now))";

pub(super) fn tend(
    connection: &Connection,
    node: &str,
    nonce: &[u8; NONCE_BYTES],
    (ttl_seconds, extension_seconds): (u32, u32),
    now_ms: i64,
) -> Result<Tended, StoreError> {
    let mut statement = connection
        .prepare_cached(&format!("SELECT lease_id, job, claims, {RUNS_UNTIL} {DUE_OR_OVERDUE}"))?;
    let every = every_ms(extension_seconds);
    let due: Vec<(String, String, String, i64)> = statement
        .query_map(named_params! {":node": node, ":now": now_ms, ":every": every}, |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))
        })?
        .collect::<Result<_, _>>()?;
    let mut tended = Tended::default();
    for (lease_id, job, claims, runs_until_ms) in due {
        if runs_until_ms <= now_ms {
            revoke(connection, &lease_id, RefusalCode::JobRuntime)?;
            tended.overdue.push((lease_id, job));
            continue;
        }
        let mut claims = read_claims(&claims)?;
        renew(connection, &mut claims, Fate::GoesOn, (nonce, ttl_seconds), now_ms)?;
        tended.extended.push(claims);
    }
    Ok(tended)
}

/// Marks a live lease as revoked.
pub(super) fn revoke(
    connection: &Connection,
    lease_id: &str,
    code: RefusalCode,
) -> Result<(), StoreError> {
    connection
        .prepare_cached("UPDATE attempts SET revoked = ?2 WHERE lease_id = ?1 AND ended_ms = 0")?
        .execute((lease_id, code.as_str()))?;
    Ok(())
}

pub(super) fn read_claims(text: &str) -> Result<LeaseClaims, StoreError> {
    serde_json::from_str(text).map_err(|error| StoreError::Corrupt(error.to_string()))
}

fn live_claims(connection: &Connection, lease_id: &str) -> Result<Option<LeaseClaims>, StoreError> {
    let found: Option<String> = connection
        .prepare_cached(
            "SELECT claims FROM attempts WHERE lease_id = ?1 AND ended_ms = 0 AND revoked = ''",
        )?
        .query_row([lease_id], |row| row.get(0))
        .optional()?;
    found.map(|text| read_claims(&text)).transpose()
}

fn save_claims(
    connection: &Connection,
    claims: &LeaseClaims,
    now_ms: i64,
) -> Result<(), StoreError> {
    connection
        .prepare_cached(
            "UPDATE attempts SET claims = ?2, issued_ms = ?3, lease_until_ms = ?4 WHERE lease_id = ?1",
        )?
        .execute((
            claims.lease_id.as_str(),
            json(claims)?,
            now_ms,
            claims.exp.0.saturating_mul(1000),
        ))?;
    Ok(())
}

pub(super) fn read_spec(connection: &Connection, job: &str) -> Result<Option<JobSpec>, StoreError> {
    let found: Option<Vec<u8>> = connection
        .prepare_cached("SELECT spec FROM jobs WHERE job = ?1")?
        .query_row([job], |row| row.get(0))
        .optional()?;
    found.map(|spec| rows::spec_of(&spec)).transpose()
}

//! The store's promises: any sequence of requests keeps the invariants of the module's head.

use nimbus_api::id::ContainerKey;
use nimbus_api::lease::{LeasedClaim, LeasedEgress, LeasedPod, LeasedPolicy};
use nimbus_api::proto::control::v1::{Image, JobSpec, JobState, Resources};
use nimbus_api::{Digest, Refusal, RefusalCode};
use proptest::prelude::*;
use rusqlite::Connection;

use super::claims::{self as store_claims, ClaimTerms, Leased, NewClaim};
use super::events::{self, Event, EventKind};
use super::jobs::{self, Cancelled, Enqueued, NewJob};
use super::leases::{self, LeaseTerms, Offer};
use super::nodes::{self, JoinNode};
use super::tickets::{self, NewTicket};
use super::{ClockRecord, Store, StoreError, rows, schema};

mod claims;

const START_MS: i64 = 1_800_000_000_000;

struct Scene {
    connection: Connection,
    _folder: tempfile::TempDir,
}

fn scene() -> Scene {
    let folder = tempfile::tempdir().unwrap();
    let connection = schema::open(&folder.path().join("control.db"), START_MS).unwrap();
    connection.pragma_update(None, "synchronous", "OFF").unwrap();
    for node in ["n1", "n2"] {
        let add = "INSERT INTO nodes (node, thumbprint, spki, joined_ms) VALUES (?1, ?2, ?2, 1)";
        connection.execute(add, (node, &Digest::of(node.as_bytes()).as_bytes()[..])).unwrap();
    }
    Scene { connection, _folder: folder }
}

fn new_job(org: &str, number: u32, body: u8) -> NewJob {
    let image = Image {
        name: "127.0.0.1:5000/a".to_owned(),
        digest: Digest::of(b"i").to_string(),
        platform: String::new(),
    };
    let spec = JobSpec {
        image: Some(image),
        args: vec!["a".to_owned()],
        max_attempts: 2,
        resources: Some(Resources { memory_bytes: 100 << 20, ..Resources::default() }),
        ..JobSpec::default()
    };
    NewJob {
        job: crate::spec::new_id('j'),
        org: org.to_owned(),
        spec: crate::spec::check(spec).unwrap(),
        request_id: format!("r{number}"),
        body: Digest::of(&[body]),
    }
}

fn offer(node: &str) -> Offer {
    Offer {
        node: node.to_owned(),
        thumbprint: Digest::of(node.as_bytes()),
        platform: "linux/amd64".to_owned(),
        capacity: Resources {
            cpu_millis: 4000,
            memory_bytes: 400 << 20,
            pids: 4096,
            ..Resources::default()
        },
        max_jobs: 3,
        nonce: [7; 16],
    }
}

fn terms(now_ms: i64) -> LeaseTerms {
    LeaseTerms { ttl_seconds: 900, policy: None, cursor: String::new(), now_ms }
}

fn new_claim(org: &str, container: &str) -> NewClaim {
    let container: ContainerKey =
        ContainerKey { namespace: "k8s.io".parse().unwrap(), id: container.parse().unwrap() };
    let pod = LeasedPod {
        sandbox: format!("sandbox-{}", container.id).parse().unwrap(),
        namespace: "ci".to_owned(),
        name: "pod".to_owned(),
        uid: "u".to_owned(),
        container: Some("app".to_owned()),
        restart: 0,
    };
    let mut spec = new_job(org, 0, 0).spec;
    (spec.max_attempts, spec.max_runtime_seconds) = (1, 0);
    NewClaim {
        job: crate::spec::new_id('j'),
        org: Some(org.parse().unwrap()),
        claim: LeasedClaim { container, pod: Some(pod) },
        spec,
        process: Digest::of(b"process"),
        egress: LeasedEgress::Pod,
        capabilities: vec!["CAP_KILL".to_owned()],
        ticket: None,
    }
}

fn claim_terms(now_ms: i64) -> ClaimTerms {
    let policy = LeasedPolicy { serial: 1, sha256: Digest::of(b"policy") };
    ClaimTerms { ttl_seconds: 900, policy, now_ms }
}

fn new_ticket(org: &str, secret: &[u8], max_uses: u32) -> NewTicket {
    NewTicket {
        ticket: crate::spec::new_id('t'),
        org: org.to_owned(),
        secret: Digest::of(secret),
        node: String::new(),
        max_uses,
        bundles: vec![b"{}".to_vec()],
        expires_ms: START_MS + 3_600_000,
    }
}

fn count(connection: &Connection, sql: &str) -> i64 {
    connection.query_row(sql, [], |row| row.get(0)).unwrap()
}

fn check_invariants(connection: &Connection) {
    let nothing = [
        // Counters are counts.
        "SELECT count(*) FROM orgs WHERE queued <> (SELECT count(*) FROM jobs
            WHERE jobs.org = orgs.org AND state = 1)",
        "SELECT count(*) FROM orgs WHERE running <> (SELECT count(*) FROM jobs
            WHERE jobs.org = orgs.org AND state IN (2, 3))",
        // No more run than may.
        "SELECT count(*) FROM orgs WHERE running > max_running",
        // A leased or running job has exactly one live attempt, its newest; every other has none.
        "SELECT count(*) FROM jobs WHERE (state IN (2, 3)) <> (SELECT count(*) FROM attempts
            WHERE attempts.job = jobs.job AND ended_ms = 0)",
        "SELECT count(*) FROM jobs JOIN attempts USING (job)
            WHERE attempts.ended_ms = 0 AND number <> attempt",
        // Attempts are 1, 2, 3 … and no more than allowed.
        "SELECT count(*) FROM jobs WHERE attempt <> (SELECT count(*) FROM attempts
            WHERE attempts.job = jobs.job)",
        "SELECT count(*) FROM jobs WHERE attempt > attempts_max",
        // One known state; ended exactly when final; dead and cancelled say why.
        "SELECT count(*) FROM jobs WHERE state NOT BETWEEN 1 AND 6",
        "SELECT count(*) FROM jobs WHERE (state >= 4) <> (ended_ms > 0)",
        "SELECT count(*) FROM jobs WHERE (state IN (5, 6)) <> (reason <> '')",
        // No node is given more than it has; what is claimed, its client has placed.
        "SELECT count(*) FROM (SELECT sum(memory_bytes) AS used, count(*) AS held FROM attempts
            WHERE ended_ms = 0 AND job NOT IN (SELECT job FROM claimed) GROUP BY node)
            WHERE used > 400 << 20 OR held > 3",
        // What was claimed never waits, and no container has two live leases.
        "SELECT count(*) FROM claimed JOIN jobs USING (job) WHERE state = 1",
        "SELECT count(*) FROM (SELECT count(*) AS live FROM claimed JOIN attempts USING (job)
            WHERE ended_ms = 0 GROUP BY claimed.node, namespace, container) WHERE live > 1",
        // Uses are redemptions, and no more than allowed.
        "SELECT count(*) FROM tickets WHERE uses > uses_max OR uses <> (SELECT count(*)
            FROM redemptions WHERE redemptions.ticket = tickets.ticket)",
    ];
    for sql in nothing {
        assert_eq!(count(connection, sql), 0, "{sql}");
    }
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Submit { org: u8, request: u8, body: u8 },
    Lease,
    Started(u8),
    Finished(u8, u8),
    Claim { org: u8, container: u8, ticket: bool },
    Replay(u8),
    Cancel(u8),
    Lose(u8),
    Pass(u16),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0_u8..3, 0_u8..40, 0_u8..2).prop_map(|(org, request, body)| Step::Submit { org, request, body }),
        4 => Just(Step::Lease),
        3 => any::<u8>().prop_map(Step::Started),
        4 => (any::<u8>(), 0_u8..5).prop_map(|(at, how)| Step::Finished(at, how)),
        4 => (0_u8..3, 0_u8..6, any::<bool>())
            .prop_map(|(org, container, ticket)| Step::Claim { org, container, ticket }),
        1 => any::<u8>().prop_map(Step::Replay),
        1 => any::<u8>().prop_map(Step::Cancel),
        1 => any::<u8>().prop_map(Step::Lose),
        2 => (0_u16..5000).prop_map(Step::Pass),
    ]
}

struct Known {
    lease_id: String,
    node: String,
    job: String,
    attempt: u32,
}

struct Model {
    scene: Scene,
    now_ms: i64,
    leases: Vec<Known>,
    jobs: Vec<String>,
    sent: Vec<Event>,
}

impl Model {
    fn event(&mut self, at: u8, kind: EventKind) {
        if self.leases.is_empty() {
            return;
        }
        let lease = &self.leases[usize::from(at) % self.leases.len()];
        let connection = &self.scene.connection;
        let read = "SELECT event_seq FROM nodes WHERE node = ?1";
        let seq: i64 = connection.query_row(read, [&lease.node], |row| row.get(0)).unwrap();
        let event = Event {
            node: lease.node.clone(),
            seq: u64::try_from(seq).unwrap() + 1,
            lease_id: lease.lease_id.clone(),
            job: lease.job.clone(),
            attempt: lease.attempt,
            at_ms: self.now_ms,
            kind,
        };
        events::apply(connection, &event, self.now_ms).unwrap();
        self.sent.push(event);
    }

    fn claim(&mut self, org: u8, container: u8, ticket: bool) {
        let org = ["a", "b", "c"][usize::from(org)];
        let mut new = new_claim(org, &format!("c{container}"));
        new.ticket = ticket.then(|| Digest::of(b"secret"));
        match store_claims::claim(
            &self.scene.connection,
            &new,
            &offer("n1"),
            &claim_terms(self.now_ms),
        ) {
            Ok(leased) => {
                let lease_id = leased.claims.lease_id.to_string();
                let job = leased.claims.job.to_string();
                let known = self.leases.iter().any(|known| known.lease_id == lease_id);
                assert_eq!(known, !leased.is_new);
                if leased.is_new {
                    self.jobs.push(job.clone());
                    self.leases.push(Known { lease_id, node: "n1".to_owned(), job, attempt: 1 });
                }
            }
            Err(StoreError::Refused(_refusal)) => {}
            Err(error) => panic!("{error}"),
        }
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::Submit { org, request, body } => {
                let new = new_job(["a", "b", "c"][usize::from(org)], request.into(), body);
                match jobs::enqueue(&self.scene.connection, &new, self.now_ms) {
                    Ok(Enqueued::New(job)) => self.jobs.push(job),
                    Ok(Enqueued::Known(job)) => assert!(self.jobs.contains(&job)),
                    Err(StoreError::Refused(refusal)) => {
                        assert_eq!(refusal.code, RefusalCode::RequestConflict);
                    }
                    Err(error) => panic!("{error}"),
                }
            }
            Step::Lease => {
                let offers = vec![offer("n1"), offer("n2")];
                let batch =
                    leases::lease(&self.scene.connection, offers, &terms(self.now_ms)).unwrap();
                self.leases.extend(batch.leased.into_iter().map(|(node, claims)| Known {
                    lease_id: claims.lease_id.to_string(),
                    node,
                    job: claims.job.to_string(),
                    attempt: claims.attempt,
                }));
            }
            Step::Claim { org, container, ticket } => self.claim(org, container, ticket),
            Step::Started(at) => self.event(at, EventKind::Started(Some(vec![1]))),
            Step::Finished(at, how) => {
                let (exit_code, reason) = match how {
                    0 => (Some(0), ""),
                    1 => (Some(1), ""),
                    2 => (None, "image.unattested"),
                    3 => (None, "node.internal"),
                    _other => (None, "job.cancelled"),
                };
                let (reason, message) = (reason.to_owned(), String::new());
                self.event(
                    at,
                    EventKind::Finished { exit_code, reason, message, oom_killed: false },
                );
            }
            Step::Replay(at) if !self.sent.is_empty() => {
                let event = &self.sent[usize::from(at) % self.sent.len()];
                let applied = events::apply(&self.scene.connection, event, self.now_ms).unwrap();
                assert_eq!((applied.job, applied.revoke), (None, None), "a replay changes nothing");
            }
            Step::Cancel(at) if !self.jobs.is_empty() => {
                let job = &self.jobs[usize::from(at) % self.jobs.len()];
                jobs::cancel(&self.scene.connection, job, self.now_ms).unwrap();
            }
            Step::Lose(at) if !self.leases.is_empty() => {
                let lease = &self.leases[usize::from(at) % self.leases.len()];
                events::lose(&self.scene.connection, &lease.lease_id, self.now_ms).unwrap();
            }
            Step::Pass(ms) => self.now_ms += i64::from(ms),
            Step::Replay(_) | Step::Cancel(_) | Step::Lose(_) => {}
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn any_sequence_of_requests_keeps_the_invariants(steps in prop::collection::vec(step(), 1..60)) {
        let mut model = Model {
            scene: scene(), now_ms: START_MS, leases: vec![], jobs: vec![], sent: vec![],
        };
        tickets::add(&model.scene.connection, &new_ticket("a", b"secret", 2), START_MS).unwrap();
        for step in steps {
            let ended = "SELECT group_concat(job || state || version) FROM
                (SELECT * FROM jobs WHERE state >= 4 ORDER BY job)";
            let before: Option<String> =
                model.scene.connection.query_row(ended, [], |row| row.get(0)).unwrap();
            model.take(step);
            check_invariants(&model.scene.connection);
            let final_jobs: Vec<String> = before.iter().flat_map(|all| all.split(',').map(str::to_owned)).collect();
            let after: Option<String> =
                model.scene.connection.query_row(ended, [], |row| row.get(0)).unwrap();
            let after = after.unwrap_or_default();
            prop_assert!(final_jobs.iter().all(|job| after.split(',').any(|found| found == job)));
        }
    }
}

#[test]
fn the_same_request_is_one_job_and_another_body_is_a_conflict() {
    let scene = scene();
    let first = new_job("a", 1, 1);
    let made = jobs::enqueue(&scene.connection, &first, START_MS).unwrap();
    let again = NewJob { job: "jother".to_owned(), ..first.clone() };
    let known = jobs::enqueue(&scene.connection, &again, START_MS + 1000).unwrap();
    assert_eq!(known, Enqueued::Known(made.job().to_owned()));
    let other = NewJob { body: Digest::of(b"other"), ..again.clone() };
    let refused = jobs::enqueue(&scene.connection, &other, START_MS).unwrap_err().into_refusal();
    assert_eq!(refused.code, RefusalCode::RequestConflict);
    let elsewhere = NewJob { org: "b".to_owned(), job: "j2".to_owned(), ..other };
    assert!(matches!(jobs::enqueue(&scene.connection, &elsewhere, START_MS), Ok(Enqueued::New(_))));
    let next_day = START_MS + 24 * 3600 * 1000 + 1;
    assert!(matches!(jobs::enqueue(&scene.connection, &again, next_day), Ok(Enqueued::New(_))));
}

#[test]
fn a_quota_delays_leases_and_bounds_the_queue() {
    let scene = scene();
    for number in 0..3 {
        jobs::enqueue(&scene.connection, &new_job("a", number, 0), START_MS).unwrap();
    }
    scene.connection.execute("UPDATE orgs SET max_running = 1, max_queued = 3", []).unwrap();
    let refused = jobs::enqueue(&scene.connection, &new_job("a", 9, 0), START_MS).unwrap_err();
    assert_eq!(refused.into_refusal().code, RefusalCode::QuotaQueued);
    let lease = || leases::lease(&scene.connection, vec![offer("n1")], &terms(START_MS)).unwrap();
    assert_eq!(lease().leased.len(), 1);
    assert_eq!(lease().leased.len(), 0);
    scene.connection.execute("UPDATE orgs SET max_running = 9", []).unwrap();
    assert_eq!(lease().leased.len(), 2);
}

#[test]
fn orgs_take_turns() {
    let scene = scene();
    for number in 0..6 {
        jobs::enqueue(&scene.connection, &new_job("a", number, 0), START_MS).unwrap();
    }
    jobs::enqueue(&scene.connection, &new_job("b", 0, 0), START_MS).unwrap();
    let batch = leases::lease(&scene.connection, vec![offer("n1")], &terms(START_MS)).unwrap();
    let orgs: Vec<_> = batch.leased.iter().map(|(_, claims)| claims.org.to_string()).collect();
    assert_eq!(orgs, ["a", "b", "a"]);
}

#[test]
fn a_cancelled_running_job_is_revoked_and_ends_when_the_node_says_so() {
    let scene = scene();
    let made = jobs::enqueue(&scene.connection, &new_job("a", 1, 1), START_MS).unwrap();
    let batch = leases::lease(&scene.connection, vec![offer("n1")], &terms(START_MS)).unwrap();
    let lease_id = batch.leased[0].1.lease_id.to_string();
    let cancelled = jobs::cancel(&scene.connection, made.job(), START_MS).unwrap();
    assert!(matches!(cancelled, Cancelled::Revoked { .. }));
    assert_eq!(jobs::cancel(&scene.connection, made.job(), START_MS).unwrap(), Cancelled::Already);
    assert_eq!(
        events::lose(&scene.connection, &lease_id, START_MS).unwrap().as_deref(),
        Some(made.job())
    );
    let head = rows::head(&scene.connection, made.job()).unwrap().unwrap();
    assert_eq!(head.state, JobState::Cancelled);
}

#[test]
fn a_running_lease_is_extended_when_due_and_revoked_when_the_job_ran_too_long() {
    let scene = scene();
    jobs::enqueue(&scene.connection, &new_job("a", 1, 1), START_MS).unwrap();
    let batch = leases::lease(&scene.connection, vec![offer("n1")], &terms(START_MS)).unwrap();
    let granted = batch.leased[0].1.clone();
    let tend =
        |now_ms| leases::tend(&scene.connection, "n1", &[9; 16], (900, 300), now_ms).unwrap();
    assert!(tend(START_MS + 400_000).extended.is_empty(), "it has not started");
    let event = Event {
        node: "n1".to_owned(),
        seq: 1,
        lease_id: granted.lease_id.to_string(),
        job: granted.job.to_string(),
        attempt: 1,
        at_ms: START_MS + 1000,
        kind: EventKind::Started(Some(vec![1])),
    };
    events::apply(&scene.connection, &event, START_MS + 1000).unwrap();
    assert!(tend(START_MS + 200_000).extended.is_empty());
    let extended = tend(START_MS + 400_000).extended;
    assert!(granted.is_extended_by(&extended[0]));
    assert_eq!(extended[0].nonce, "09".repeat(16));
    assert_eq!(extended[0].exp.0, granted.exp.0 + 400);
    let until = "SELECT lease_until_ms FROM attempts";
    assert_eq!(count(&scene.connection, until), extended[0].exp.0 * 1000, "durable first");
    let late = tend(START_MS + 3_700_000);
    assert_eq!((late.extended.len(), late.overdue.len()), (0, 1));
    assert!(tend(START_MS + 3_800_000).overdue.is_empty());
}

#[test]
fn a_lease_without_a_word_is_lost_after_its_end_and_a_late_word_changes_nothing() {
    let scene = scene();
    let made = jobs::enqueue(&scene.connection, &new_job("a", 1, 1), START_MS).unwrap();
    let state = || rows::head(&scene.connection, made.job()).unwrap().unwrap().state;
    for attempt in 1..=2 {
        let now_ms = START_MS + attempt * 10_000_000;
        let batch = leases::lease(&scene.connection, vec![offer("n1")], &terms(now_ms)).unwrap();
        assert_eq!(i64::from(batch.leased[0].1.attempt), attempt);
        assert!(events::expire_due(&scene.connection, now_ms, now_ms).unwrap().is_empty());
        let end_ms = now_ms + 900_001;
        assert_eq!(events::expire_due(&scene.connection, end_ms, end_ms).unwrap().len(), 1);
        let late = Event {
            node: "n1".to_owned(),
            seq: u64::try_from(attempt).unwrap(),
            lease_id: batch.leased[0].1.lease_id.to_string(),
            job: made.job().to_owned(),
            attempt: batch.leased[0].1.attempt,
            at_ms: end_ms,
            kind: EventKind::Finished {
                exit_code: Some(0),
                reason: String::new(),
                message: String::new(),
                oom_killed: false,
            },
        };
        let applied = events::apply(&scene.connection, &late, end_ms).unwrap();
        assert_eq!((applied.seq, applied.job), (late.seq, None));
    }
    assert_eq!(state(), JobState::Dead);
    let reason: String =
        scene.connection.query_row("SELECT reason FROM jobs", [], |row| row.get(0)).unwrap();
    assert_eq!(reason, "job.attempts");
}

#[test]
fn events_come_in_order_without_gaps() {
    let scene = scene();
    let event = Event {
        node: "n1".to_owned(),
        seq: 2,
        lease_id: "l".to_owned(),
        job: "j".to_owned(),
        attempt: 1,
        at_ms: 0,
        kind: EventKind::Unknown,
    };
    let gap = events::apply(&scene.connection, &event, START_MS);
    assert!(matches!(gap, Err(StoreError::Gap { expected: 1, found: 2 })));
    let first = Event { seq: 1, ..event.clone() };
    assert_eq!(events::apply(&scene.connection, &first, START_MS).unwrap().seq, 1);
    assert_eq!(events::apply(&scene.connection, &event, START_MS).unwrap().seq, 2);
    assert_eq!(events::apply(&scene.connection, &first, START_MS).unwrap().seq, 2);
}

#[test]
fn a_join_token_is_good_once_and_a_name_belongs_to_one_key() {
    let scene = scene();
    let add = |secret: &[u8], node: &str| {
        let text = "INSERT INTO tokens (secret_sha256, node, expires_ms) VALUES (?1, ?2, ?3)";
        let hash = Digest::of(secret);
        scene.connection.execute(text, (&hash.as_bytes()[..], node, START_MS + 1000)).unwrap();
    };
    let join = |secret: &[u8], spki: &[u8], now_ms| {
        let join = JoinNode { secret: Digest::of(secret), spki: spki.to_vec() };
        nodes::take_token(&scene.connection, &join, now_ms).map_err(StoreError::into_refusal)
    };
    let refused = |answer: Result<String, Refusal>| answer.unwrap_err().code;
    add(b"one", "n3");
    assert_eq!(refused(join(b"one", b"key", START_MS + 1000)), RefusalCode::JoinTokenInvalid);
    assert_eq!(join(b"one", b"key", START_MS).unwrap(), "n3");
    assert_eq!(refused(join(b"one", b"key", START_MS)), RefusalCode::JoinTokenInvalid);
    add(b"two", "n3");
    assert_eq!(refused(join(b"two", b"other", START_MS)), RefusalCode::RequestForbidden);
    assert_eq!(join(b"two", b"key", START_MS).unwrap(), "n3", "the same key may come again");
    add(b"three", "n4");
    assert_eq!(refused(join(b"three", b"key", START_MS)), RefusalCode::RequestForbidden);
}

#[test]
fn the_database_is_set_up_to_survive_a_power_cut() {
    let folder = tempfile::tempdir().unwrap();
    let connection = schema::open(&folder.path().join("control.db"), START_MS).unwrap();
    let mode: String = connection.query_row("PRAGMA journal_mode", [], |row| row.get(0)).unwrap();
    assert_eq!(mode, "wal");
    assert_eq!(count(&connection, "PRAGMA synchronous"), 2, "FULL");
    assert_eq!(count(&connection, "PRAGMA journal_size_limit"), -1);
    assert_eq!(count(&connection, "PRAGMA wal_autocheckpoint"), 4000);
}

#[tokio::test]
async fn a_newer_schema_or_a_clock_set_back_stops_the_start_and_one_refusal_spoils_no_batch() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("control.db");
    let store = Store::open(&path, START_MS).unwrap();
    let other = store.clone();
    let good =
        tokio::spawn(async move { other.enqueue(new_job("a", 1, 1), START_MS + 60_000).await });
    let bad: Result<(), StoreError> = store
        .write(START_MS, |connection| {
            connection.execute("DELETE FROM meta", [])?;
            Err(RefusalCode::RequestInvalid.into())
        })
        .await;
    assert!(matches!(bad, Err(StoreError::Refused(_))));
    good.await.unwrap().unwrap();
    assert_eq!(store.key_state().await.unwrap(), (1, 0));
    store.close().await;
    assert!(matches!(store.enqueue(new_job("a", 2, 1), START_MS).await, Err(StoreError::Closed)));
    assert!(Store::open(&path, START_MS + 31_000).is_ok());
    let back = Store::open(&path, START_MS + 29_000);
    assert!(matches!(back, Err(super::OpenError::ClockBack { behind_ms: 31_000 })));
    Connection::open(&path).unwrap().pragma_update(None, "user_version", 99).unwrap();
    let newer = Store::open(&path, START_MS + 60_000);
    assert!(matches!(newer, Err(super::OpenError::SchemaNewer { found: 99, known: 3 })));
}

#[tokio::test]
async fn what_was_seen_of_the_clocks_survives_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("control.db");
    let store = Store::open(&path, START_MS).unwrap();
    assert_eq!(store.clock().await.unwrap(), None);
    let seen = |offset_ms| ClockRecord {
        boot_id: "b".to_owned(),
        offset_ms,
        not_before: nimbus_api::clock::BootNanos(7),
    };
    store.note_clock(seen(1), START_MS).await.unwrap();
    store.note_clock(seen(-2), START_MS).await.unwrap();
    store.close().await;
    let store = Store::open(&path, START_MS).unwrap();
    assert_eq!(store.clock().await.unwrap(), Some(seen(-2)));
}

#[test]
fn jobs_that_fit_nowhere_do_not_hold_up_those_behind_them() {
    let scene = scene();
    let many = u32::try_from(crate::limits::SCAN_PER_ORG).unwrap() + 5;
    for number in 0..many {
        let mut job = new_job("a", number, 0);
        if number % 2 == 0 {
            job.spec.image.as_mut().unwrap().platform = "linux/arm64".to_owned();
        } else {
            job.spec.resources.as_mut().unwrap().cpu_millis = 1_000_000;
        }
        jobs::enqueue(&scene.connection, &job, START_MS).unwrap();
    }
    let small = jobs::enqueue(&scene.connection, &new_job("a", many, 0), START_MS).unwrap();
    let batch = leases::lease(&scene.connection, vec![offer("n1")], &terms(START_MS)).unwrap();
    let leased: Vec<_> = batch.leased.iter().map(|(_, claims)| claims.job.as_str()).collect();
    assert_eq!(leased, [small.job()]);
}

#[test]
fn bundles_go_when_the_job_has_ended() {
    let scene = scene();
    let mut job = new_job("a", 1, 0);
    job.spec.bundles = vec![b"{}".to_vec()];
    let made = jobs::enqueue(&scene.connection, &job, START_MS).unwrap();
    assert_eq!(count(&scene.connection, "SELECT count(*) FROM bundles"), 1);
    jobs::cancel(&scene.connection, made.job(), START_MS).unwrap();
    assert_eq!(count(&scene.connection, "SELECT count(*) FROM bundles"), 0);
}

#[test]
fn a_list_that_would_be_too_long_is_cut_and_says_so() {
    let scene = scene();
    let word = 100 << 10;
    let fit = u32::try_from(crate::limits::LIST_BYTES_MAX / word).unwrap();
    for number in 0..fit + 5 {
        let mut job = new_job("a", number, 0);
        job.spec.args = vec!["x".repeat(word)];
        jobs::enqueue(&scene.connection, &job, START_MS).unwrap();
    }
    let list = |before: Option<String>| {
        let key = before.unwrap_or_else(|| "z".to_owned());
        rows::jobs_where(&scene.connection, "job < ?1 ORDER BY job DESC", &[key.into()]).unwrap()
    };
    let first = list(None);
    assert!(first.cut && first.jobs.len() <= usize::try_from(fit).unwrap());
    let last = first.jobs.last().unwrap().name.rsplit('/').next().unwrap().to_owned();
    let second = list(Some(last));
    assert!(!second.cut);
    assert_eq!(first.jobs.len() + second.jobs.len(), usize::try_from(fit).unwrap() + 5);
}

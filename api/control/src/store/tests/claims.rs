//! The store's promises about what nodes claim, and about tickets.

use super::*;
use nimbus_api::dsse::SigningKey;
use nimbus_api::lease::LeaseToken;

fn claim(scene: &Scene, new: &NewClaim, now_ms: i64) -> Result<Leased, RefusalCode> {
    let leased = store_claims::claim(&scene.connection, new, &offer("n1"), &claim_terms(now_ms));
    leased.map_err(|error| error.into_refusal().code)
}

fn started(leased: &Leased, at_ms: i64) -> Event {
    Event {
        node: "n1".to_owned(),
        seq: 1,
        lease_id: leased.claims.lease_id.to_string(),
        job: leased.claims.job.to_string(),
        attempt: 1,
        at_ms,
        kind: EventKind::Started(Some(vec![1])),
    }
}

#[test]
fn a_claim_is_leased_at_once_and_the_same_lease_for_as_long_as_it_is_held() {
    let scene = scene();
    let new = new_claim("a", "c1");
    let first = claim(&scene, &new, START_MS).unwrap();
    let claims = &first.claims;
    assert_eq!((claims.claim.as_ref(), claims.process_sha256), (Some(&new.claim), new.process));
    assert_eq!((&claims.egress, claims.attempt), (&LeasedEgress::Pod, 1));
    assert_eq!(claims.capabilities, ["CAP_KILL"]);
    let head = rows::head(&scene.connection, &new.job).unwrap().unwrap();
    assert_eq!((head.state, head.attempts_max), (JobState::Leased, None));

    let asked_again = NewClaim { job: crate::spec::new_id('j'), ..new.clone() };
    let again = claim(&scene, &asked_again, START_MS + 60_000).unwrap();
    assert!(!again.is_new && claims.is_extended_by(&again.claims));
    assert_eq!(again.claims.start_by.0, claims.start_by.0 + 60, "it begins anew");
    events::apply(&scene.connection, &started(&first, START_MS), START_MS + 70_000).unwrap();
    let running = claim(&scene, &asked_again, START_MS + 120_000).unwrap();
    assert_eq!(running.claims.start_by, again.claims.start_by, "it has begun");

    let mut other = asked_again.clone();
    other.process = Digest::of(b"other");
    assert_eq!(claim(&scene, &other, START_MS).unwrap_err(), RefusalCode::LeaseWrongContainer);
    let mut other = asked_again.clone();
    other.spec.image.as_mut().unwrap().digest = Digest::of(b"other").to_string();
    assert_eq!(claim(&scene, &other, START_MS).unwrap_err(), RefusalCode::LeaseWrongContainer);
    let mut other = asked_again.clone();
    other.claim.pod.as_mut().unwrap().uid = "other".to_owned();
    assert_eq!(claim(&scene, &other, START_MS).unwrap_err(), RefusalCode::LeaseWrongContainer);

    jobs::cancel(&scene.connection, &new.job, START_MS).unwrap();
    assert_eq!(claim(&scene, &asked_again, START_MS).unwrap_err(), RefusalCode::JobCancelled);
    events::lose(&scene.connection, claims.lease_id.as_str(), START_MS).unwrap();
    let next = claim(&scene, &asked_again, START_MS).unwrap();
    assert!(next.is_new && next.claims.lease_id != claims.lease_id);
    check_invariants(&scene.connection);
}

#[test]
fn a_claimed_job_runs_without_an_end_unless_the_policy_names_one_and_is_never_tried_again() {
    let scene = scene();
    let (new, mut short) = (new_claim("a", "c1"), new_claim("a", "c2"));
    short.spec.max_runtime_seconds = 3600;
    let leased = claim(&scene, &new, START_MS).unwrap();
    events::apply(&scene.connection, &started(&leased, START_MS), START_MS).unwrap();
    let other = claim(&scene, &short, START_MS).unwrap();
    let event = Event { seq: 2, ..started(&other, START_MS) };
    events::apply(&scene.connection, &event, START_MS).unwrap();
    let year_ms = START_MS + 365 * 24 * 3_600_000;
    let tended = leases::tend(&scene.connection, "n1", &[9; 16], (900, 300), year_ms).unwrap();
    let extended: Vec<_> = tended.extended.iter().map(|claims| &claims.lease_id).collect();
    assert_eq!(extended, [&leased.claims.lease_id]);
    assert_eq!(tended.overdue[0].1, short.job);
    let end_ms = year_ms + 900_001;
    events::expire_due(&scene.connection, end_ms, end_ms).unwrap();
    let reasons =
        "SELECT group_concat(state || ' ' || reason) FROM (SELECT * FROM jobs ORDER BY reason)";
    let reasons: String = scene.connection.query_row(reasons, [], |row| row.get(0)).unwrap();
    assert_eq!(reasons, "5 job.max_runtime,5 node.lost");
}

#[test]
fn a_claim_beyond_the_quota_is_refused_and_uses_nothing() {
    let scene = scene();
    tickets::add(&scene.connection, &new_ticket("a", b"s", 9), START_MS).unwrap();
    claim(&scene, &new_claim("a", "c1"), START_MS).unwrap();
    scene.connection.execute("UPDATE orgs SET max_running = 1", []).unwrap();
    let mut second = new_claim("a", "c2");
    second.ticket = Some(Digest::of(b"s"));
    scene.connection.execute_batch("SAVEPOINT request").unwrap();
    assert_eq!(claim(&scene, &second, START_MS).unwrap_err(), RefusalCode::QuotaRunning);
    scene.connection.execute_batch("ROLLBACK TO request; RELEASE request").unwrap();
    assert_eq!(count(&scene.connection, "SELECT uses FROM tickets"), 0);
    scene.connection.execute("UPDATE orgs SET max_running = 2", []).unwrap();
    claim(&scene, &second, START_MS).unwrap();
    assert_eq!(count(&scene.connection, "SELECT uses FROM tickets"), 1);
}

#[test]
fn a_ticket_is_good_for_its_pods_its_node_its_org_and_its_time() {
    let scene = scene();
    let shown = |container: &str, secret: &[u8]| {
        let mut new = new_claim("a", container);
        (new.org, new.ticket) = (None, Some(Digest::of(secret)));
        new
    };
    let invalid = RefusalCode::ClaimTicketInvalid;
    tickets::add(&scene.connection, &new_ticket("acme", b"s", 1), START_MS).unwrap();
    assert_eq!(claim(&scene, &shown("c1", b"guess"), START_MS).unwrap_err(), invalid);
    let late_ms = START_MS + 3_600_000;
    assert_eq!(claim(&scene, &shown("c1", b"s"), late_ms).unwrap_err(), invalid);
    let mut of_rule = shown("c1", b"s");
    of_rule.org = Some("tools".parse().unwrap());
    scene.connection.execute_batch("SAVEPOINT request").unwrap();
    assert_eq!(claim(&scene, &of_rule, START_MS).unwrap_err(), invalid);
    scene.connection.execute_batch("ROLLBACK TO request; RELEASE request").unwrap();

    let leased = claim(&scene, &shown("c1", b"s"), START_MS).unwrap();
    assert_eq!(leased.claims.org.as_str(), "acme");
    let mut sidecar = shown("c2", b"s");
    let same = leased.claims.claim.clone().unwrap().pod.unwrap().sandbox;
    sidecar.claim.pod.as_mut().unwrap().sandbox = same;
    claim(&scene, &sidecar, late_ms).unwrap();
    assert_eq!(count(&scene.connection, "SELECT uses FROM tickets"), 1, "one pod");
    assert_eq!(claim(&scene, &shown("c3", b"s"), START_MS).unwrap_err(), invalid, "used up");

    let elsewhere = NewTicket { node: "n2".to_owned(), ..new_ticket("acme", b"n2", 1) };
    tickets::add(&scene.connection, &elsewhere, START_MS).unwrap();
    assert_eq!(claim(&scene, &shown("c4", b"n2"), START_MS).unwrap_err(), invalid);
    let revoked = new_ticket("acme", b"r", 1);
    tickets::add(&scene.connection, &revoked, START_MS).unwrap();
    tickets::revoke(&scene.connection, "acme", &revoked.ticket, START_MS).unwrap();
    assert_eq!(claim(&scene, &shown("c5", b"r"), START_MS).unwrap_err(), invalid);
    let foreign = tickets::revoke(&scene.connection, "tools", &revoked.ticket, START_MS);
    assert_eq!(foreign.unwrap_err().into_refusal().code, RefusalCode::TicketNotFound);
    check_invariants(&scene.connection);
}

#[test]
fn a_ticket_is_remembered_while_its_pod_runs_and_an_org_has_only_so_many() {
    let scene = scene();
    let ticket = new_ticket("a", b"s", 1);
    tickets::add(&scene.connection, &ticket, START_MS).unwrap();
    let mut sandbox = new_claim("a", "c1");
    sandbox.ticket = Some(Digest::of(b"s"));
    let pod = sandbox.claim.pod.as_mut().unwrap();
    (pod.sandbox, pod.container) = (sandbox.claim.container.id.clone(), None);
    let leased = claim(&scene, &sandbox, START_MS).unwrap();
    let bundles = |job: &str| {
        let mut spec = JobSpec::default();
        rows::add_bundles(&scene.connection, job, &mut spec).unwrap();
        spec.bundles
    };
    assert_eq!(bundles(&sandbox.job), [b"{}".to_vec()]);
    let later_ms = ticket.expires_ms + crate::limits::TICKET_KEPT_MS + 1;
    assert_eq!(tickets::forget(&scene.connection, later_ms).unwrap(), 0);
    events::lose(&scene.connection, leased.claims.lease_id.as_str(), START_MS).unwrap();
    assert!(bundles(&sandbox.job).is_empty(), "they were for the node");
    assert_eq!(tickets::forget(&scene.connection, later_ms - 1).unwrap(), 0);
    assert_eq!(tickets::forget(&scene.connection, later_ms).unwrap(), 1);
    assert_eq!(count(&scene.connection, "SELECT count(*) FROM redemptions"), 0);
    for number in 0..crate::limits::TICKETS_PER_ORG_MAX {
        let ticket = new_ticket("a", &number.to_le_bytes(), 1);
        tickets::add(&scene.connection, &ticket, START_MS).unwrap();
    }
    let refused = tickets::add(&scene.connection, &new_ticket("a", b"more", 1), START_MS);
    assert_eq!(refused.unwrap_err().into_refusal().code, RefusalCode::QuotaTickets);
    tickets::add(&scene.connection, &new_ticket("b", b"more", 1), START_MS).unwrap();
}

#[test]
fn the_longest_claim_fits_a_token() {
    let scene = scene();
    let mut new = new_claim(&"o".repeat(76), "c1");
    new.claim.container.id = "c".repeat(76).parse().unwrap();
    let pod = new.claim.pod.as_mut().unwrap();
    pod.sandbox = "s".repeat(76).parse().unwrap();
    (pod.namespace, pod.name, pod.uid) = ("n".repeat(63), "p".repeat(253), "u".repeat(64));
    (pod.container, pod.restart) = (Some("c".repeat(63)), u32::MAX);
    let names = 6 + 76 + 76 + 63 + 253 + 64 + 63;
    let image = new.spec.image.as_mut().unwrap();
    image.name = format!("h/{}", "i".repeat(crate::limits::LEASE_TEXT_BYTES_MAX - names - 2));
    new.spec.resources = Some(Resources {
        cpu_millis: u32::MAX,
        memory_bytes: 1 << 62,
        pids: u32::MAX,
        scratch_bytes: 1 << 62,
        log_bytes: 1 << 62,
        scratch: 1,
    });
    new.capabilities = nimbus_api::lease::DEFAULT_CAPABILITIES.map(str::to_owned).to_vec();
    let leased = claim(&scene, &new, START_MS).unwrap();
    let key = SigningKey::generate();
    LeaseToken::sign(&leased.claims, &key, &"t".repeat(76).parse().unwrap()).unwrap();
}

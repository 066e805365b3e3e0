//! What the module above promises.

use super::*;
use crate::testing;
use nimbus_api::Digest;
use nimbus_api::clock::BootNanos;

fn usage() -> Usage {
    Usage {
        container: testing::container("c1"),
        config_sha256: Digest::of(b"c"),
        plan_sha256: Digest::of(b"p"),
        plan: "{}".to_owned(),
        deadline: BootNanos(7),
        boot_id: "b".to_owned(),
    }
}

fn end() -> End {
    End { exit_status: Some(0), oom_killed: false, reason: None, message: String::new() }
}

#[test]
fn entries_survive_a_restart_and_a_grant_is_idempotent() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = Ledger::open(dir.path()).unwrap();
    let claims = testing::claims();
    assert!(ledger.grant(claims.clone()).unwrap());
    assert!(!ledger.grant(claims.clone()).unwrap());
    let used = ledger.step(&claims.lease_id, Step::Use(Box::new(usage()))).unwrap();
    std::fs::write(dir.path().join("x.json.tmp"), b"half").unwrap();
    let again = Ledger::open(dir.path()).unwrap();
    assert_eq!(again.get(&claims.lease_id), Some(used));
    assert_eq!(again.live(), 1);
    assert!(again.by_container(&testing::container("c1")).is_some());
    assert!(!dir.path().join("x.json.tmp").exists());
}

#[test]
fn a_newer_attempt_fences_the_older() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = Ledger::open(dir.path()).unwrap();
    let first = testing::claims();
    let mut second = testing::claims();
    second.lease_id = "l2".parse().unwrap();
    second.attempt = 2;
    ledger.grant(first.clone()).unwrap();
    ledger.grant(second.clone()).unwrap();
    assert_eq!(ledger.use_of(&first), LeaseUse::Superseded { attempt: 2 });
    assert_eq!(ledger.use_of(&second), LeaseUse::Unused);
}

#[test]
fn a_damaged_entry_makes_its_lease_unusable() {
    let dir = tempfile::tempdir().unwrap();
    let claims = testing::claims();
    Ledger::open(dir.path()).unwrap().grant(claims.clone()).unwrap();
    let path = dir.path().join(format!("{}.json", claims.lease_id));
    let text = std::fs::read_to_string(&path).unwrap();
    for bad in [String::new(), text.replace("granted", "gone"), text.replacen('{', "{\"x\":1,", 1)]
    {
        std::fs::write(&path, &bad).unwrap();
        let ledger = Ledger::open(dir.path()).unwrap();
        assert!(matches!(ledger.use_of(&claims), LeaseUse::Unreadable(_)), "{bad}");
        assert!(!ledger.grant(claims.clone()).unwrap());
    }
}

#[test]
fn a_step_that_cannot_be_written_did_not_happen() {
    let dir = tempfile::tempdir().unwrap();
    let place = dir.path().join("ledger");
    let ledger = Ledger::open(&place).unwrap();
    let claims = testing::claims();
    ledger.grant(claims.clone()).unwrap();
    std::fs::remove_dir_all(&place).unwrap();
    let refusal = ledger.step(&claims.lease_id, Step::Use(Box::new(usage()))).unwrap_err();
    assert_eq!(refusal.code, RefusalCode::NodeLedgerFailed);
    assert_eq!(ledger.use_of(&claims), LeaseUse::Unused);
}

#[test]
fn a_lease_is_forgotten_only_when_over_reported_and_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = Ledger::open(dir.path()).unwrap();
    let claims = testing::claims();
    let id = claims.lease_id.clone();
    let late = UnixSeconds(claims.exp.0 + KEEP_SECONDS + 1);
    ledger.grant(claims).unwrap();
    assert!(ledger.forget_old(late, |_| false).unwrap().is_empty());
    ledger.step(&id, Step::End(end())).unwrap();
    ledger.step(&id, Step::Report).unwrap();
    assert!(ledger.forget_old(late, |_| true).unwrap().is_empty());
    assert!(ledger.forget_old(UnixSeconds(late.0 - 2), |_| false).unwrap().is_empty());
    assert_eq!(ledger.forget_old(late, |_| false).unwrap().len(), 1);
    assert!(Ledger::open(dir.path()).unwrap().all().is_empty());
}

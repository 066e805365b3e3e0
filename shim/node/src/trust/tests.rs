//! What the module above promises.

use super::*;
use crate::testing::policy_document;
use nimbus_api::dsse::SigningKey;
use nimbus_api::policy;

const ROOT: [u8; 32] = [1; 32];
const POLICY: [u8; 32] = [2; 32];

fn document(serial: u64, note: &str) -> Vec<u8> {
    let text = String::from_utf8(policy_document(serial)).unwrap();
    text.replace("id = \"test\"", &format!("id = \"test{note}\"")).into_bytes()
}

fn signed(serial: u64, note: &str, key: [u8; 32]) -> Vec<u8> {
    policy::sign(&document(serial, note), &SigningKey::from_seed(key)).unwrap().to_json()
}

fn key_set(serial: u64, domain: &str, root: [u8; 32]) -> Vec<u8> {
    let set = KeySet {
        version: 1,
        trust_domain: domain.parse().unwrap(),
        serial,
        generation: 1,
        issued_at: UnixSeconds(0),
        keys: vec![],
    };
    set.sign(&SigningKey::from_seed(root)).to_json()
}

struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let key = SigningKey::from_seed(POLICY).verifying_key().hex();
        std::fs::write(dir.path().join("policy.pub"), key).unwrap();
        Self { dir }
    }

    fn open(&self) -> TrustStore {
        let root = SigningKey::from_seed(ROOT).verifying_key();
        let domain = "nimbus.test".parse().unwrap();
        let path = self.dir.path();
        TrustStore::open(&path.join("trust"), &path.join("policy.pub"), Some((root, domain)))
            .unwrap()
    }
}

#[test]
fn a_policy_never_goes_back_not_even_by_a_restart() {
    let place = Place::new();
    let mut store = place.open();
    assert!(matches!(store.policy(), PolicyFact::Missing));
    assert_eq!(store.take_policy(&signed(5, "", POLICY)).unwrap(), 5);
    let older = store.take_policy(&signed(4, "", POLICY)).unwrap_err();
    assert_eq!(older.code, RefusalCode::PolicyRolledBack);
    let same_serial = store.take_policy(&signed(5, "x", POLICY)).unwrap_err();
    assert_eq!(same_serial.code, RefusalCode::PolicyRolledBack);
    assert_eq!(store.policy_serial(), 5, "the good one stays");
    // Somebody puts an older one into the file.
    std::fs::write(store.policy_path(), signed(4, "", POLICY)).unwrap();
    let PolicyFact::Refused(refusal) = place.open().policy() else { panic!("expected a refusal") };
    assert_eq!(refusal.code, RefusalCode::PolicyRolledBack);
}

#[test]
fn only_the_pinned_keys_policy_is_used() {
    let place = Place::new();
    let mut store = place.open();
    let stranger = store.take_policy(&signed(1, "", [9; 32])).unwrap_err();
    assert_eq!(stranger.code, RefusalCode::PolicyBadSignature);
    assert!(matches!(store.policy(), PolicyFact::Refused(_)));
    store.take_policy(&signed(1, "", POLICY)).unwrap();
    assert_eq!(place.open().policy_serial(), 1, "it is there after a restart");
    std::fs::remove_file(place.dir.path().join("policy.pub")).unwrap();
    assert!(matches!(place.open().policy(), PolicyFact::Missing));
}

#[test]
fn key_sets_of_strangers_other_domains_and_lower_serials_are_refused() {
    let place = Place::new();
    let mut store = place.open();
    assert_eq!(store.keys().unwrap_err().code, RefusalCode::KeysMissing);
    store.take_key_set(&key_set(3, "nimbus.test", ROOT)).unwrap();
    for bad in [
        key_set(4, "nimbus.test", [8; 32]),
        key_set(4, "other.test", ROOT),
        key_set(2, "nimbus.test", ROOT),
        b"{}".to_vec(),
    ] {
        assert_eq!(store.take_key_set(&bad).unwrap_err().code, RefusalCode::KeysInvalid);
    }
    assert_eq!(place.open().keys().unwrap().serial, 3);
}

#[test]
fn the_floor_only_rises_and_survives() {
    let place = Place::new();
    let mut store = place.open();
    store.raise_floor(UnixSeconds(100)).unwrap();
    store.raise_floor(UnixSeconds(50)).unwrap();
    assert_eq!(place.open().floor(), UnixSeconds(100));
    store.reset_floor(UnixSeconds(10)).unwrap();
    assert_eq!(place.open().floor(), UnixSeconds(10));
}

#[test]
fn a_damaged_state_stops_the_agent() {
    let place = Place::new();
    place.open().raise_floor(UnixSeconds(1)).unwrap();
    let path = place.dir.path();
    std::fs::write(path.join("trust/state.json"), b"{\"version\":1}").unwrap();
    assert!(TrustStore::open(&path.join("trust"), &path.join("policy.pub"), None).is_err());
}

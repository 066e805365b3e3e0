//! The set of bundles in `testdata`, and mutations of it.
#![forbid(unsafe_code)]
#![allow(
    clippy::tests_outside_test_module,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::allow_attributes,
    reason = "the whole file is tests"
)]

use std::fs;
use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use nimbus_api::clock::UnixSeconds;
use nimbus_api::policy::TlogRule;
use nimbus_api::verify::{
    BundleOutcome, Signer, SignerKind, VERIFY_VERSION, VerifiedAttestation, VerifyReply,
    VerifyRequest,
};
use nimbus_api::{Digest, Refusal, RefusalCode};
use nimbus_verify::verify;
use proptest::prelude::*;
use serde_json::Value;

const SIGNED_AT: UnixSeconds = UnixSeconds(1_768_039_200);
const NOW: UnixSeconds = UnixSeconds(1_770_000_000);
const PROVENANCE: &str = "https://slsa.dev/provenance/v1";

fn dir() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("testdata")
}

fn text(name: &str) -> String {
    fs::read_to_string(dir().join(name)).unwrap()
}

fn bundle(name: &str) -> Vec<u8> {
    fs::read(dir().join(format!("{name}.json"))).unwrap()
}

fn image() -> Digest {
    format!("sha256:{}", "aa".repeat(32)).parse().unwrap()
}

fn key(tlog: TlogRule) -> SignerKind {
    SignerKind::Key {
        key: text("key.pub"),
        tlog,
        trusted_root: Some(text("trusted_root.json")),
        not_before: None,
        not_after: None,
    }
}

fn keyless(root: &str) -> SignerKind {
    SignerKind::Keyless {
        trusted_root: text(root),
        identity: "https://ci.invalid/acme/app/release.yml@refs/heads/main".to_owned(),
        issuer: "https://token.ci.invalid".to_owned(),
    }
}

fn signer_of(name: &str) -> SignerKind {
    if name.contains("-keyless") {
        keyless("trusted_root.json")
    } else if name.contains("-logged") {
        key(TlogRule::Require)
    } else {
        key(TlogRule::Off)
    }
}

fn request(bundles: &[&[u8]], signers: Vec<SignerKind>) -> VerifyRequest {
    let signer = |(index, how)| Signer {
        need: format!("n{index}"),
        predicate_types: vec![PROVENANCE.to_owned()],
        how,
    };
    VerifyRequest {
        version: VERIFY_VERSION,
        subjects: vec![image()],
        bundles: bundles.iter().map(|bundle| BASE64.encode(bundle)).collect(),
        signers: signers.into_iter().enumerate().map(signer).collect(),
        bundle_bytes_max: 1 << 20,
        now: NOW,
    }
}

fn outcomes(request: &VerifyRequest) -> Vec<BundleOutcome> {
    match verify(request) {
        VerifyReply::Outcomes(outcomes) => outcomes,
        VerifyReply::Refused(refusal) => panic!("{refusal}"),
    }
}

fn one(request: &VerifyRequest) -> Result<VerifiedAttestation, Refusal> {
    match outcomes(request).remove(0) {
        BundleOutcome::Verified(attestation) => Ok(attestation),
        BundleOutcome::Rejected { refusal, .. } => Err(refusal),
    }
}

fn refusal_of(request: &VerifyRequest) -> RefusalCode {
    match verify(request) {
        VerifyReply::Refused(refusal) => refusal.code,
        VerifyReply::Outcomes(outcomes) => panic!("{outcomes:?}"),
    }
}

#[test]
fn every_bundle_is_judged_as_its_name_says() {
    let mut count = 0;
    for entry in fs::read_dir(dir()).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        let Some((expected, _case)) = name.split_once('-') else { continue };
        let found = one(&request(&[&bundle(&name)], vec![signer_of(&name)]));
        let code = found.as_ref().err().map_or("ok", |refusal| refusal.code.as_str());
        assert_eq!(code.trim_start_matches("image."), expected, "{name}: {found:?}");
        count += 1;
    }
    assert!(count >= 24);
}

#[test]
fn a_verified_bundle_says_image_kind_needs_and_the_time_that_the_log_vouches_for() {
    for (name, time) in
        [("ok-key", None), ("ok-logged", Some(SIGNED_AT)), ("ok-keyless", Some(SIGNED_AT))]
    {
        let bytes = bundle(name);
        let found = one(&request(&[&bytes], vec![signer_of(name)])).unwrap();
        assert_eq!(found.bundle, Digest::of(&bytes));
        assert_eq!(found.subject, image());
        assert_eq!(found.predicate_type, PROVENANCE);
        assert_eq!(found.needs, ["n0"]);
        assert_eq!(found.signed_at, time, "{name}");
    }
}

#[test]
fn each_bundle_is_tried_with_each_signer_and_junk_does_not_spoil_the_good_one() {
    let all = vec![key(TlogRule::Off), keyless("trusted_root.json"), key(TlogRule::Require)];
    let bundles = [b"junk".to_vec(), bundle("ok-keyless"), bundle("ok-logged"), bundle("ok-key")];
    let slices: Vec<&[u8]> = bundles.iter().map(Vec::as_slice).collect();
    let found = outcomes(&request(&slices, all));
    let needs: Vec<Vec<String>> = found
        .iter()
        .map(|outcome| match outcome {
            BundleOutcome::Verified(found) => found.needs.clone(),
            BundleOutcome::Rejected { .. } => Vec::new(),
        })
        .collect();
    assert_eq!(needs, [vec![], vec!["n1"], vec!["n0", "n2"], vec!["n0"]]);
    match &found[2] {
        BundleOutcome::Verified(found) => assert_eq!(found.signed_at, Some(SIGNED_AT)),
        BundleOutcome::Rejected { refusal, .. } => panic!("{refusal}"),
    }
}

#[test]
fn the_refusal_is_that_of_the_signer_it_got_furthest_with() {
    let signers = vec![keyless("trusted_root.json"), key(TlogRule::Off)];
    for (name, code) in [
        ("wrong_subject-other-image", RefusalCode::ImageWrongSubject),
        ("wrong_predicate-spdx", RefusalCode::ImageWrongPredicate),
        ("bundle_invalid-tampered", RefusalCode::ImageBundleInvalid),
        ("untrusted_signer-stranger", RefusalCode::ImageUntrustedSigner),
    ] {
        let found = one(&request(&[&bundle(name)], signers.clone())).unwrap_err();
        assert_eq!(found.code, code, "{name}: {found}");
    }
}

#[test]
fn an_authority_that_did_not_exist_yet_vouches_for_nothing() {
    let found = one(&request(&[&bundle("ok-keyless")], vec![keyless("trusted_root_late_ca.json")]));
    assert_eq!(found.unwrap_err().code, RefusalCode::ImageUntrustedSigner);
}

#[test]
fn a_managed_key_counts_only_within_its_window() {
    let with = |name: &str, tlog, window: (Option<i64>, Option<i64>)| {
        let how = SignerKind::Key {
            key: text("key.pub"),
            tlog,
            trusted_root: Some(text("trusted_root.json")),
            not_before: window.0.map(UnixSeconds),
            not_after: window.1.map(UnixSeconds),
        };
        one(&request(&[&bundle(name)], vec![how]))
    };
    let (at, now) = (SIGNED_AT.0, NOW.0);
    // With a verified time, that time counts; without one, now does.
    for (name, tlog, time) in [("ok-logged", TlogRule::Require, at), ("ok-key", TlogRule::Off, now)]
    {
        assert!(with(name, tlog, (Some(time), Some(time))).is_ok(), "{name}");
        for window in [(Some(time + 1), None), (None, Some(time - 1))] {
            let refusal = with(name, tlog, window).unwrap_err();
            assert_eq!(refusal.code, RefusalCode::ImageUntrustedSigner, "{name} {window:?}");
        }
    }
}

#[test]
fn a_log_entry_that_is_asked_for_must_be_there() {
    let found = one(&request(&[&bundle("ok-key")], vec![key(TlogRule::Require)]));
    assert_eq!(found.unwrap_err().code, RefusalCode::ImageBundleInvalid);
}

#[test]
fn a_time_of_signing_in_the_future_is_not_believed() {
    for name in ["ok-logged", "ok-keyless"] {
        let mut early = request(&[&bundle(name)], vec![signer_of(name)]);
        early.now = UnixSeconds(SIGNED_AT.0 - 3600);
        assert_eq!(one(&early).unwrap_err().code, RefusalCode::ImageBundleInvalid, "{name}");
    }
}

#[test]
fn a_bundle_longer_than_allowed_is_rejected_and_too_many_are_refused() {
    let good = bundle("ok-key");
    let mut tight = request(&[&good], vec![key(TlogRule::Off)]);
    tight.bundle_bytes_max = u64::try_from(good.len()).unwrap();
    assert!(one(&tight).is_ok());
    tight.bundle_bytes_max -= 1;
    assert_eq!(one(&tight).unwrap_err().code, RefusalCode::ImageBundleInvalid);
    let many = request(&vec![good.as_slice(); 257], vec![key(TlogRule::Off)]);
    assert_eq!(refusal_of(&many), RefusalCode::VerifyTooLarge);
}

#[test]
fn an_empty_list_never_means_anything_goes() {
    let good = || request(&[&bundle("ok-key")], vec![key(TlogRule::Off)]);
    let mut none = good();
    none.signers.clear();
    assert_eq!(refusal_of(&none), RefusalCode::PolicyInvalid);
    let mut none = good();
    none.subjects.clear();
    assert_eq!(refusal_of(&none), RefusalCode::RequestInvalid);
    let mut none = good();
    none.signers[0].predicate_types.clear();
    assert_eq!(refusal_of(&none), RefusalCode::PolicyInvalid);
    for field in ["identity", "issuer"] {
        let mut how = serde_json::to_value(keyless("trusted_root.json")).unwrap();
        how["keyless"][field] = Value::from("");
        let none = request(&[&bundle("ok-keyless")], vec![serde_json::from_value(how).unwrap()]);
        assert_eq!(refusal_of(&none), RefusalCode::PolicyInvalid, "{field}");
    }
}

#[test]
fn a_trust_root_or_key_that_cannot_be_read_refuses_the_whole_request() {
    let root = text("trusted_root.json");
    for bad in [
        String::new(),
        "{}".to_owned(),
        root.replacen("\"tlogs\":", "\"tlogs\": [], \"tlogs\":", 1),
        root.replacen("2020-01-01", "yesterday", 1),
    ] {
        let how = SignerKind::Keyless {
            trusted_root: bad.clone(),
            identity: "i".to_owned(),
            issuer: "i".to_owned(),
        };
        assert_eq!(refusal_of(&request(&[], vec![how])), RefusalCode::PolicyInvalid, "{bad}");
    }
    let how = SignerKind::Key {
        key: "not a key".to_owned(),
        tlog: TlogRule::Off,
        trusted_root: None,
        not_before: None,
        not_after: None,
    };
    assert_eq!(refusal_of(&request(&[], vec![how])), RefusalCode::PolicyInvalid);
}

fn payload(bundle: &[u8]) -> Option<Vec<u8>> {
    let value: Value = serde_json::from_slice(bundle).ok()?;
    BASE64.decode(value.pointer("/dsseEnvelope/payload")?.as_str()?).ok()
}

/// A change of a text at some place.
#[derive(Debug, Clone)]
enum Change {
    Set(usize, u8),
    Insert(usize, u8),
    Remove(usize, usize),
    Repeat(usize, usize),
    Cut(usize),
}

fn change() -> impl Strategy<Value = Change> {
    let at = 0..1_usize << 16;
    let letter = prop_oneof![any::<u8>(), proptest::sample::select(b"{}[]\",:=0A".to_vec())];
    prop_oneof![
        (at.clone(), letter.clone()).prop_map(|(at, byte)| Change::Set(at, byte)),
        (at.clone(), letter).prop_map(|(at, byte)| Change::Insert(at, byte)),
        (at.clone(), 1..200_usize).prop_map(|(at, length)| Change::Remove(at, length)),
        (at.clone(), 1..200_usize).prop_map(|(at, length)| Change::Repeat(at, length)),
        at.prop_map(Change::Cut),
    ]
}

fn changed(bytes: &[u8], change: &Change) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let place = |at: usize| at % bytes.len();
    match *change {
        Change::Set(at, byte) => {
            let at = place(at);
            bytes[at] = byte;
        }
        Change::Insert(at, byte) => bytes.insert(place(at), byte),
        Change::Remove(at, length) => {
            let at = place(at);
            let end = (at + length).min(bytes.len());
            bytes.drain(at..end);
        }
        Change::Repeat(at, length) => {
            let at = place(at);
            let end = (at + length).min(bytes.len());
            let again = bytes[at..end].to_vec();
            bytes.splice(end..end, again);
        }
        Change::Cut(at) => bytes.truncate(place(at)),
    }
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_changed_good_bundle_is_accepted_only_if_it_still_says_the_same(
        name in proptest::sample::select(vec!["ok-key", "ok-logged", "ok-keyless"]),
        change in change(),
    ) {
        let good = bundle(name);
        let bad = changed(&good, &change);
        if let Ok(found) = one(&request(&[&bad], vec![signer_of(name)])) {
            prop_assert_eq!(payload(&bad), payload(&good));
            prop_assert_eq!(found.bundle, Digest::of(&bad));
            prop_assert_eq!(found.signed_at, one(&request(&[&good], vec![signer_of(name)])).unwrap().signed_at);
        }
    }

    #[test]
    fn no_one_change_makes_a_bad_bundle_good(
        name in proptest::sample::select(vec![
            "bundle_invalid-two-signatures",
            "bundle_invalid-both-contents",
            "bundle_invalid-unknown-field",
            "bundle_invalid-logged-downgrade",
            "untrusted_signer-keyless-logged-after-expiry",
            "wrong_subject-other-image",
            "wrong_predicate-spdx",
            "untrusted_signer-stranger",
            "untrusted_signer-keyless-identity",
        ]),
        change in change(),
    ) {
        let bad = changed(&bundle(name), &change);
        let found = one(&request(&[&bad], vec![signer_of(name)]));
        prop_assert!(found.is_err(), "{:?}", found);
    }

    #[test]
    fn no_bytes_panic_the_parser(bytes: Vec<u8>) {
        prop_assert!(one(&request(&[&bytes], vec![key(TlogRule::Off)])).is_err());
    }
}

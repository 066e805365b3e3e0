//! Vectors that this project did not write: sigstore's conformance suite and 40 attestations made
//! with another implementation. They live outside the repository; without them these tests say so
//! on stderr and pass, and `testdata.rs` still tests the set that the repository holds.
#![forbid(unsafe_code)]
#![allow(
    clippy::print_stderr,
    clippy::tests_outside_test_module,
    clippy::unwrap_used,
    clippy::allow_attributes,
    reason = "the whole file is tests, and a skip must be seen"
)]

use std::fs;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use nimbus_api::Digest;
use nimbus_api::clock::{Clock as _, SystemClock};
use nimbus_api::policy::TlogRule;
use nimbus_api::verify::{
    BundleOutcome, Signer, SignerKind, VERIFY_VERSION, VerifyReply, VerifyRequest,
};
use nimbus_verify::bundle::Profile;
use nimbus_verify::conformance::{Expected, Root, Signed, verify_bundle};

const IDENTITY: &str = "https://github.com/sigstore-conformance/extremely-dangerous-public-oidc-beacon/.github/workflows/extremely-dangerous-oidc-beacon.yml@refs/heads/main";
const ISSUER: &str = "https://token.actions.githubusercontent.com";
const ACME: &str = "https://github.com/acme/app/.github/workflows/release.yml@refs/heads/main";

/// The vectors' folder, or none with a word about it.
fn vectors(test: &str, name: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/vectors").join(name);
    if path.is_dir() {
        return Some(path);
    }
    eprintln!("SKIPPED: {test}: no {}", path.display());
    None
}

fn text(dir: &Path, name: &str) -> Option<String> {
    fs::read_to_string(dir.join(name)).ok().map(|text| text.trim().to_owned())
}

fn case(dir: &Path, by_digest: bool, profile: Profile) -> bool {
    let bundle = fs::read(dir.join("bundle.sigstore.json")).unwrap();
    let artifact =
        fs::read(dir.join("artifact")).or_else(|_none| fs::read(dir.join("../../a.txt"))).unwrap();
    let identity = text(dir, "identity").unwrap_or_else(|| IDENTITY.to_owned());
    let issuer = text(dir, "issuer").unwrap_or_else(|| ISSUER.to_owned());
    let key = text(dir, "key.pub");
    let root = text(dir, "trusted_root.json");
    let expected = match &key {
        Some(key) => Expected::Key(key),
        None => Expected::Identity { identity: &identity, issuer: &issuer },
    };
    let root = root.as_deref().map_or(Root::Production, Root::Json);
    let signed =
        if by_digest { Signed::Digest(Digest::of(&artifact)) } else { Signed::Bytes(&artifact) };
    verify_bundle(&bundle, profile, expected, root, signed).is_ok()
}

#[test]
fn every_case_of_the_sigstore_conformance_suite_is_judged_as_its_name_says() {
    let Some(suite) = vectors("sigstore conformance", "sigstore-conformance/bundle-verify") else {
        return;
    };
    let (mut accepted, mut refused, mut strict, mut wrong) = (0, 0, 0, Vec::new());
    for entry in fs::read_dir(&suite).unwrap() {
        let dir = entry.unwrap().path();
        if !dir.is_dir() {
            continue;
        }
        let name = dir.file_name().unwrap().to_string_lossy().into_owned();
        for by_digest in [false, true] {
            let good = case(&dir, by_digest, Profile::Legacy);
            if good == name.ends_with("_fail") {
                wrong.push(format!("{name} by {}", if by_digest { "digest" } else { "path" }));
            }
            if good {
                accepted += 1;
            } else {
                refused += 1;
            }
            strict += i32::from(case(&dir, by_digest, Profile::Strict));
        }
    }
    eprintln!(
        "sigstore conformance: {accepted} accepted, {refused} refused, {strict} accepted without \
         the legacy profile, {} wrong",
        wrong.len()
    );
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(accepted > 0 && refused > 0);
}

/// What must come of a vector under each of three signers.
fn expected(name: &str) -> [bool; 3] {
    match name {
        "ok_v1" | "ok_other" | "multi_subject" => [true, false, false],
        "pk_ok_tlog" => [false, true, true],
        "pk_ok_notlog" | "pk_tsa_notlog" => [false, false, true],
        // `upper_digest`: we take lower case only. `ok_v1_tsa`: see below.
        _ => [false, false, false],
    }
}

#[test]
fn every_attestation_vector_is_judged_as_the_readme_says() {
    let Some(dir) = vectors("attestation vectors", "attestations") else { return };
    let root = fs::read_to_string(dir.join("trusted_root.json")).unwrap();
    let key = fs::read_to_string(dir.join("key.pub")).unwrap();
    let managed = |tlog, trusted_root| SignerKind::Key {
        key: key.clone(),
        tlog,
        trusted_root,
        not_before: None,
        not_after: None,
    };
    let hows = [
        SignerKind::Keyless {
            trusted_root: root.clone(),
            identity: ACME.to_owned(),
            issuer: ISSUER.to_owned(),
        },
        managed(TlogRule::Require, Some(root.clone())),
        managed(TlogRule::Off, None),
    ];
    let mut count = 0;
    for entry in fs::read_dir(&dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        if path.extension().is_none_or(|kind| kind != "json") || name == "trusted_root" {
            continue;
        }
        count += 1;
        let bundle = base64::engine::general_purpose::STANDARD.encode(fs::read(&path).unwrap());
        for (how, good) in hows.iter().zip(expected(&name)) {
            let request = VerifyRequest {
                version: VERIFY_VERSION,
                subjects: vec![format!("sha256:{}", "aa".repeat(32)).parse().unwrap()],
                bundles: vec![bundle.clone()],
                signers: vec![Signer {
                    need: "n".to_owned(),
                    predicate_types: vec![
                        "https://slsa.dev/provenance/v1".to_owned(),
                        "https://spdx.dev/Document/v2.3".to_owned(),
                    ],
                    how: how.clone(),
                }],
                bundle_bytes_max: 1 << 20,
                now: SystemClock.unix(),
            };
            let VerifyReply::Outcomes(outcomes) = nimbus_verify::verify(&request) else {
                panic!("{name}: the request was refused");
            };
            let found = matches!(outcomes.as_slice(), [BundleOutcome::Verified(_)]);
            assert_eq!(found, good, "{name}: {outcomes:?}");
            if name == "ok_v1_tsa" && matches!(how, SignerKind::Keyless { .. }) {
                // The one exception to its name: its maker's timestamp authority got a certificate
                // ten months younger than the timestamp, and sigstore-verify itself refuses that.
                // Accepting it would take a weaker check of authorities for all bundles.
                assert!(format!("{outcomes:?}").contains("CertNotValidYet"), "{outcomes:?}");
                eprintln!("EXCEPTION: ok_v1_tsa: its TSA certificate begins after its timestamp");
            }
        }
    }
    eprintln!("attestation vectors: {count} bundles, three signers each");
    assert!(count > 30);
}

//! The sandbox, tried out from inside through the program itself.
#![forbid(unsafe_code)]
#![allow(
    clippy::tests_outside_test_module,
    clippy::unwrap_used,
    clippy::panic,
    clippy::allow_attributes,
    reason = "the whole file is tests"
)]

use std::io::Write as _;
use std::process::{Command, Output, Stdio};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use nimbus_api::clock::{Clock as _, SystemClock};
use nimbus_api::verify::{
    BundleOutcome, Signer, SignerKind, VERIFY_VERSION, VerifyReply, VerifyRequest,
};
use nimbus_api::{Refusal, RefusalCode};
use serde_json::Value;

const IMAGE: &str = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
const IDENTITY: &str = "https://ci.invalid/acme/app/release.yml@refs/heads/main";
const ISSUER: &str = "https://token.ci.invalid";

fn program(args: &[&str], input: &[u8]) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_nimbus-verify"))
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    // The program may end before it has read everything.
    drop(stdin.write_all(input));
    drop(stdin);
    child.wait_with_output().unwrap()
}

#[test]
fn files_sockets_threads_and_programs_are_denied_by_the_layers_and_by_the_filter() {
    let output = program(&["sandbox-report"], b"");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let tries = |half: &str| report.get(half).and_then(Value::as_object).unwrap().clone();
    for half in ["without_filter", "with_filter"] {
        // Without root the host decides whether there are namespaces; the filter is always there.
        if half == "without_filter" && !nix::unistd::Uid::effective().is_root() {
            continue;
        }
        for (what, came) in tries(half) {
            assert!(came.as_str().unwrap().starts_with("denied"), "{half}: {what} {came}");
        }
    }
    assert!(tries("with_filter").len() == 8);
    for (what, came) in tries("with_filter") {
        let came = came.as_str().unwrap();
        assert!(came.contains("EPERM") || came.contains("os error 1)"), "{what} {came}");
    }
    if nix::unistd::Uid::effective().is_root() {
        for layer in ["own_user", "namespaces", "empty_root"] {
            assert_eq!(report.pointer(&format!("/layers/{layer}")), Some(&Value::Bool(true)));
        }
    }
}

fn refused(input: &[u8]) -> Refusal {
    let output = program(&["verify"], input);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    match serde_json::from_slice(&output.stdout).unwrap() {
        VerifyReply::Refused(refusal) => refusal,
        VerifyReply::Outcomes(outcomes) => panic!("{outcomes:?}"),
    }
}

#[test]
fn what_is_no_request_is_answered_with_a_refusal() {
    for bad in [
        b"".as_slice(),
        b"{}",
        b"null",
        b"[]",
        b"\xff",
        br#"{"version":1,"version":1}"#,
        br#"{"version":1,"subjects":[],"bundles":[],"signers":[],"bundle_bytes_max":1,"now":1,"x":1}"#,
        br#"{"version":1,"subjects":[],"bundles":[],"signers":[],"bundle_bytes_max":1,"now":1}"#,
        br#"{"version":2,"subjects":[],"bundles":[],"signers":[],"bundle_bytes_max":1,"now":1}"#,
    ] {
        assert_eq!(refused(bad).code, RefusalCode::RequestInvalid, "{bad:?}");
    }
}

#[test]
fn an_unknown_verb_is_a_usage_error() {
    assert_eq!(program(&["verify", "--no-sandbox"], b"").status.code(), Some(2));
    assert_eq!(program(&[], b"").status.code(), Some(2));
}

fn testdata(name: &str) -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata").join(name)
}

/// The filter must leave verification what it needs, the costliest kind included.
#[test]
fn a_good_bundle_verifies_inside_and_a_tampered_one_does_not() {
    let bundle = |name: &str| BASE64.encode(std::fs::read(testdata(name)).unwrap());
    let request = VerifyRequest {
        version: VERIFY_VERSION,
        subjects: vec![IMAGE.parse().unwrap()],
        bundles: vec![bundle("ok-keyless.json"), bundle("bundle_invalid-keyless-tampered.json")],
        signers: vec![Signer {
            need: "prov".to_owned(),
            predicate_types: vec!["https://slsa.dev/provenance/v1".to_owned()],
            how: SignerKind::Keyless {
                trusted_root: std::fs::read_to_string(testdata("trusted_root.json")).unwrap(),
                identity: IDENTITY.to_owned(),
                issuer: ISSUER.to_owned(),
            },
        }],
        bundle_bytes_max: 1 << 20,
        now: SystemClock.unix(),
    };
    let output = program(&["verify"], &serde_json::to_vec(&request).unwrap());
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    let reply: VerifyReply = serde_json::from_slice(&output.stdout).unwrap();
    let VerifyReply::Outcomes(outcomes) = reply else { panic!("{reply:?}") };
    assert!(
        matches!(
            outcomes.as_slice(),
            [BundleOutcome::Verified(_), BundleOutcome::Rejected { refusal, .. }]
                if refusal.code == RefusalCode::ImageBundleInvalid
        ),
        "{outcomes:?}"
    );
}

#[test]
fn the_conformance_command_line_accepts_a_good_bundle_and_refuses_others() {
    let root = testdata("trusted_root.json");
    let run = |bundle: &str, identity: &str, digest: &str| {
        let bundle = testdata(bundle);
        let args = [
            "verify-bundle",
            "--bundle",
            bundle.to_str().unwrap(),
            "--certificate-identity",
            identity,
            "--certificate-oidc-issuer",
            ISSUER,
            "--trusted-root",
            root.to_str().unwrap(),
            digest,
        ];
        program(&args, b"").status.code()
    };
    let other = IMAGE.replace('a', "b").replace("shb", "sha");
    assert_eq!(run("ok-keyless.json", IDENTITY, IMAGE), Some(0));
    assert_eq!(run("ok-keyless.json", "somebody", IMAGE), Some(1));
    assert_eq!(run("ok-keyless.json", IDENTITY, &other), Some(1));
    assert_eq!(run("bundle_invalid-keyless-tampered.json", IDENTITY, IMAGE), Some(1));
    assert_eq!(run("ok-keyless.json", IDENTITY, "no such file"), Some(4));
}

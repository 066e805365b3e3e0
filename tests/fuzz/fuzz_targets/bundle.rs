//! No bundle that the release key did not sign verifies, whatever it looks like.
#![no_main]

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use libfuzzer_sys::fuzz_target;
use nimbus_api::Digest;
use nimbus_api::clock::UnixSeconds;
use nimbus_api::policy::TlogRule;
use nimbus_api::verify::{
    BundleOutcome, Signer, SignerKind, VERIFY_VERSION, VerifyReply, VerifyRequest,
};

/// The public half of a key whose private half was thrown away.
const KEY: &str = "-----BEGIN PUBLIC KEY-----
MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEn5G2KT4GDADyqRfBDMEwlv52lDhn
ucRUtij6aJvr+YeA7H5eu5miEyFSoXgq03ncSv5LzCrFTU+cmMu/+pBaQw==
-----END PUBLIC KEY-----
";

fuzz_target!(|data: &[u8]| {
    let request = VerifyRequest {
        version: VERIFY_VERSION,
        subjects: vec![Digest::of(b"image")],
        bundles: vec![STANDARD.encode(data)],
        signers: vec![Signer {
            need: "provenance".to_owned(),
            predicate_types: vec!["https://slsa.dev/provenance/v1".to_owned()],
            how: SignerKind::Key {
                key: KEY.to_owned(),
                tlog: TlogRule::Off,
                trusted_root: None,
                not_before: None,
                not_after: None,
            },
        }],
        bundle_bytes_max: 1 << 20,
        now: UnixSeconds(1_900_000_000),
    };
    let VerifyReply::Outcomes(outcomes) = nimbus_verify::verify(&request) else {
        panic!("the request was refused");
    };
    assert!(matches!(outcomes.as_slice(), [BundleOutcome::Rejected { .. }]), "found {outcomes:?}");
});

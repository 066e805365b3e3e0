//! What somebody must have signed: leases, keys, policies, bundles; and the token of a join.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use nimbus_api::clock::UnixSeconds;
use nimbus_api::dsse::{Envelope, SigningKey};
use nimbus_api::policy::TlogRule;
use nimbus_api::verify::{
    BundleOutcome, Signer, SignerKind, VERIFY_VERSION, VerifyReply, VerifyRequest,
};
use nimbus_api::{Digest, RefusalCode};

/// The public half of a key whose private half was thrown away.
const KEY: &str = "-----BEGIN PUBLIC KEY-----
MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEn5G2KT4GDADyqRfBDMEwlv52lDhn
ucRUtij6aJvr+YeA7H5eu5miEyFSoXgq03ncSv5LzCrFTU+cmMu/+pBaQw==
-----END PUBLIC KEY-----
";

/// No bytes that nobody signed are a lease.
pub fn lease_token(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data) {
        let token = nimbus_api::lease::LeaseToken::unchecked(text.to_owned());
        assert!(token.verify(crate::key_set()).is_err(), "a token that nobody signed verified");
    }
}

/// Claims that control signed, whatever they are, end in a lease that is written back the same or in
/// a refusal: a control service of another version, or one that was stolen.
pub fn lease_claims(data: &[u8]) {
    let Some(token) = crate::signed(data) else { return };
    if let Ok(lease) = token.verify(crate::key_set()) {
        let text = serde_json::to_vec(&lease.claims).expect("claims are JSON");
        let again = crate::signed(&text).expect("any payload can be signed");
        match again.verify(crate::key_set()) {
            Ok(again) => assert_eq!(again.claims, lease.claims),
            // Claims that were left out are written as null.
            Err(refusal) => assert_eq!(refusal.code, RefusalCode::LeaseTooLarge, "{refusal}"),
        }
    }
}

/// No bytes that the root did not sign are a key set.
pub fn key_set(data: &[u8]) {
    let root = nimbus_api::dsse::SigningKey::from_seed([9; 32]).verifying_key();
    assert!(nimbus_api::keys::KeySet::verify(data, &root).is_err(), "an unsigned key set verified");
}

/// A policy that is read has rules, and each rule a need.
pub fn policy(data: &[u8]) {
    if let Ok(policy) = nimbus_api::policy::Policy::parse(data) {
        assert!(!policy.rule.is_empty() && policy.rule.iter().all(|rule| !rule.require.is_empty()));
        let _rule = policy.rule_for("registry.example/a/b", &[]);
    }
}

/// An envelope that is read is written back the same, and one that nobody signed verifies for nobody.
pub fn envelope(data: &[u8]) {
    if let Ok(envelope) = Envelope::parse(data) {
        let again = Envelope::parse(&envelope.to_json()).expect("our own JSON");
        assert_eq!(again.to_json(), envelope.to_json());
        let key = SigningKey::from_seed([7; 32]).verifying_key();
        assert!(envelope.verify("application/x", &key).is_err(), "nobody signed it");
    }
}

/// Any text is a join token or is none.
pub fn join_token(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data) {
        let _token = text.parse::<nimbus_node::join::JoinToken>();
    }
}

/// No bundle that the release key did not sign verifies, whatever it looks like.
pub fn bundle(data: &[u8]) {
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
}

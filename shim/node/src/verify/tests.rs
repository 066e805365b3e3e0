//! What the module above promises.

use super::*;
use crate::testing::{BUNDLE, OneBundle, World, measured, policy_document};
use nimbus_api::dsse::SigningKey;
use nimbus_api::policy;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::atomic::Ordering;

fn signed(serial: u64) -> SignedPolicy {
    let key = SigningKey::from_seed([1; 32]);
    let envelope = policy::sign(&policy_document(serial), &key).unwrap().to_json();
    SignedPolicy::verify(&envelope, &key.verifying_key()).unwrap()
}

fn bundles(list: &[&[u8]]) -> Arc<Bundles> {
    let dir = tempfile::tempdir().unwrap();
    let store = crate::bundles::BundleStore::open(dir.path()).unwrap();
    let id = "l1".parse().unwrap();
    store.keep(&id, list.iter().map(|bundle| bundle.to_vec()).collect()).unwrap();
    store.of(&id).unwrap()
}

#[test]
fn a_good_answer_is_kept_under_everything_it_depends_on() {
    let world = World::new();
    let verifier = OneBundle::default();
    let asked = || verifier.0.load(Ordering::SeqCst);
    let clock: Arc<dyn Clock> = Arc::<nimbus_api::clock::ManualClock>::clone(&world.clock);
    let attestations = Attestations::new(Box::new(verifier.clone()), clock);
    let good = bundles(&[BUNDLE]);
    for _ in 0..3 {
        let AttestationFact::Outcomes(outcomes) = attestations.fact(&signed(1), &measured(), &good)
        else {
            panic!("expected outcomes")
        };
        assert!(matches!(outcomes.as_slice(), [BundleOutcome::Verified(_)]));
    }
    assert_eq!(asked(), 1);
    attestations.fact(&signed(2), &measured(), &good);
    assert_eq!(asked(), 2, "another policy is another question");
    let mut other = measured();
    other.manifest = Digest::of(b"other");
    attestations.fact(&signed(1), &other, &good);
    assert_eq!(asked(), 3, "another image is another question");
    attestations.fact(&signed(1), &measured(), &bundles(&[BUNDLE, b"x"]));
    assert_eq!(asked(), 4, "other bundles are another question");
}

#[test]
fn a_bad_answer_is_asked_for_again_and_no_bundle_is_no_question() {
    let world = World::new();
    let verifier = OneBundle::default();
    let clock: Arc<dyn Clock> = Arc::<nimbus_api::clock::ManualClock>::clone(&world.clock);
    let attestations = Attestations::new(Box::new(verifier.clone()), clock);
    for _ in 0..2 {
        attestations.fact(&signed(1), &measured(), &bundles(&[b"forged"]));
    }
    assert_eq!(verifier.0.load(Ordering::SeqCst), 2);
    let none = attestations.fact(&signed(1), &measured(), &Bundles::default());
    assert!(matches!(none, AttestationFact::Outcomes(outcomes) if outcomes.is_empty()));
    assert_eq!(verifier.0.load(Ordering::SeqCst), 2);
}

/// A verifier that is this shell script.
fn ask(script: &str, budget: Duration) -> Result<VerifyReply, Refusal> {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("verify");
    std::fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o700)).unwrap();
    let process = VerifierProcess { program, runtime: runtime.handle().clone() };
    let policy = signed(1).policy;
    let request = VerifyRequest::for_rule(
        &policy,
        &["n".to_owned()],
        vec![],
        vec![],
        nimbus_api::clock::UnixSeconds(0),
    )
    .unwrap();
    process.ask(&request, budget)
}

#[test]
fn a_verifier_that_is_absent_silent_slow_or_babbling_is_a_refusal_of_its_own() {
    let patient = Duration::from_secs(30);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let gone = VerifierProcess {
        program: PathBuf::from("/nonexistent/verify"),
        runtime: runtime.handle().clone(),
    };
    let policy = signed(1).policy;
    let request =
        VerifyRequest::for_rule(&policy, &[], vec![], vec![], nimbus_api::clock::UnixSeconds(0))
            .unwrap();
    assert_eq!(gone.ask(&request, patient).unwrap_err().code, RefusalCode::VerifyDown);
    let code = |script: &str, budget| ask(script, budget).unwrap_err().code;
    assert_eq!(code("exit 3", patient), RefusalCode::VerifyFailed);
    assert_eq!(code("echo hello", patient), RefusalCode::VerifyFailed);
    assert_eq!(code("exec /bin/cat /dev/zero", patient), RefusalCode::VerifyFailed);
    assert_eq!(code("exec /bin/sleep 600", Duration::from_millis(200)), RefusalCode::VerifyTimeout);
    let answer = "/bin/cat >/dev/null; echo '{\"outcomes\":[]}'";
    assert_eq!(code(&format!("{answer}; exit 4"), patient), RefusalCode::VerifyFailed);
    assert_eq!(code(&format!("{answer}; kill -9 $$"), patient), RefusalCode::VerifyFailed);
    let reply = ask(answer, patient).unwrap();
    assert_eq!(reply, VerifyReply::Outcomes(vec![]));
}

//! What the module above promises.

use super::*;
use crate::keys::HotKey;
use proptest::prelude::*;

fn claims() -> LeaseClaims {
    LeaseClaims {
        ver: LEASE_VERSION,
        lease_id: "l1".parse().unwrap(),
        job: "j1".parse().unwrap(),
        attempt: 1,
        org: "acme".parse().unwrap(),
        node: Digest::of(b"node"),
        images: vec![LeasedImage {
            name: "127.0.0.1:5000/a/b".to_owned(),
            digest: Digest::of(b"image"),
            platform: "linux/amd64".to_owned(),
        }],
        process_sha256: Digest::of(b"process"),
        resources: LeasedResources {
            cpu_millis: 1000,
            memory_bytes: 64 << 20,
            pids: 64,
            scratch_bytes: 1 << 20,
            scratch: ScratchMedium::Memory,
            log_bytes: 1 << 20,
        },
        gpu: LeasedGpu { mode: GpuMode::None },
        seccomp: LeasedSeccomp { profile: "default".to_owned(), sha256: None },
        egress: LeasedEgress::None,
        capabilities: vec![],
        policy: None,
        claim: None,
        generation: 1,
        nonce: "00".repeat(NONCE_BYTES),
        iat: UnixSeconds(100),
        nbf: UnixSeconds(100),
        start_by: UnixSeconds(200),
        exp: UnixSeconds(1000),
    }
}

fn domain() -> TrustDomain {
    "nimbus.test".parse().unwrap()
}

fn key_set(key: &SigningKey) -> KeySet {
    let public = key.verifying_key();
    KeySet {
        version: 1,
        trust_domain: domain(),
        serial: 1,
        generation: 1,
        issued_at: UnixSeconds(0),
        keys: vec![HotKey {
            kid: public.key_id().parse().unwrap(),
            key: public,
            purpose: KeyPurpose::Lease,
            nbf: UnixSeconds(0),
            exp: UnixSeconds(3600),
            generation: 1,
        }],
    }
}

fn refused(token: &LeaseToken, keys: &KeySet) -> RefusalCode {
    token.verify(keys).unwrap_err().code
}

/// Signs any JSON as a lease, as an attacker with the hot key could.
fn sign_raw(payload: &str, key: &SigningKey) -> LeaseToken {
    let secret = AsymmetricSecretKey::<V4>::from(&key.secret_bytes()).unwrap();
    let footer = key.verifying_key().key_id();
    let text = PublicToken::sign(
        &secret,
        payload.as_bytes(),
        Some(footer.as_bytes()),
        Some(&assertion(&domain())),
    )
    .unwrap();
    LeaseToken::unchecked(text)
}

#[test]
fn a_signed_lease_reads_back() {
    let key = SigningKey::generate();
    let token = LeaseToken::sign(&claims(), &key, &domain()).unwrap();
    assert_eq!(token.verify(&key_set(&key)).unwrap().claims, claims());
}

#[test]
fn another_domains_and_another_keys_tokens_are_refused() {
    let key = SigningKey::generate();
    let other = LeaseToken::sign(&claims(), &key, &"other.test".parse().unwrap()).unwrap();
    assert_eq!(refused(&other, &key_set(&key)), RefusalCode::LeaseBadSignature);
    let stranger = LeaseToken::sign(&claims(), &SigningKey::generate(), &domain()).unwrap();
    assert_eq!(refused(&stranger, &key_set(&key)), RefusalCode::LeaseUnknownKey);
}

#[test]
fn unknown_claims_duplicate_keys_and_other_versions_are_refused() {
    let key = SigningKey::generate();
    let keys = key_set(&key);
    let good = serde_json::to_string(&claims()).unwrap();
    let extra = good.replacen('{', r#"{"root":true,"#, 1);
    assert_eq!(refused(&sign_raw(&extra, &key), &keys), RefusalCode::LeaseMalformed);
    let twice = good.replacen('{', r#"{"attempt":9,"#, 1);
    assert_eq!(refused(&sign_raw(&twice, &key), &keys), RefusalCode::LeaseMalformed);
    let future = good.replacen(r#""ver":1"#, r#""ver":2"#, 1);
    assert_eq!(refused(&sign_raw(&future, &key), &keys), RefusalCode::LeaseVersion);
    let long = LeaseToken::unchecked("v4.public.".to_owned() + &"A".repeat(TOKEN_BYTES_MAX));
    assert_eq!(refused(&long, &keys), RefusalCode::LeaseTooLarge);
}

#[test]
fn the_longest_allow_list_fits_a_token() {
    let key = SigningKey::generate();
    let mut claims = claims();
    // As control bounds them: 1536 bytes of both.
    let rule = |n: usize| {
        format!("[ffff:ffff:ffff:ffff:ffff:ffff:ffff:{:x}/128]:10000-65535/udp", 0xf000 + n)
    };
    let rules: Vec<_> = (0..16).map(|n| rule(n).parse().unwrap()).collect();
    let bytes: usize = (0..16).map(|n| rule(n).len()).sum();
    claims.egress = LeasedEgress::Allow(EgressRules::sorted(rules).unwrap());
    claims.images[0].name = "x".repeat(1536 - bytes);
    claims.policy = Some(LeasedPolicy { serial: u64::MAX, sha256: Digest::of(b"p") });
    claims.generation = u64::MAX;
    let long = "f".repeat(32);
    (claims.job, claims.lease_id) =
        (format!("j{long}").parse().unwrap(), format!("l{long}").parse().unwrap());
    (claims.resources.memory_bytes, claims.resources.scratch_bytes) = (1 << 50, 1 << 50);
    let token = LeaseToken::sign(&claims, &key, &domain()).unwrap();
    assert_eq!(token.verify(&key_set(&key)).unwrap().claims, claims);
}

#[test]
fn an_expired_hot_key_and_an_old_generation_are_refused() {
    let key = SigningKey::generate();
    let token = LeaseToken::sign(&claims(), &key, &domain()).unwrap();
    let mut expired = key_set(&key);
    expired.keys[0].exp = UnixSeconds(99);
    assert_eq!(refused(&token, &expired), RefusalCode::LeaseUnknownKey);
    let mut restored = key_set(&key);
    restored.generation = 2;
    assert_eq!(refused(&token, &restored), RefusalCode::LeaseStale);
}

#[test]
fn an_extension_may_change_nothing_but_nonce_and_times() {
    let old = claims();
    let mut newer = claims();
    newer.nonce = "11".repeat(NONCE_BYTES);
    newer.iat = UnixSeconds(400);
    newer.exp = UnixSeconds(1300);
    assert!(old.is_extended_by(&newer));
    newer.resources.memory_bytes += 1;
    assert!(!old.is_extended_by(&newer));
}

proptest! {
    #[test]
    fn a_cut_or_changed_token_never_verifies(cut in 0_usize..400, at in 10_usize..400, c in "[A-Za-z0-9_.-]") {
        let key = SigningKey::from_seed([3; 32]);
        let keys = key_set(&key);
        let good = LeaseToken::sign(&claims(), &key, &domain()).unwrap();
        let text = good.as_str();
        prop_assert!(LeaseToken::unchecked(text[..text.len().min(cut)].to_owned()).verify(&keys).is_err());
        let mut changed = text.to_owned();
        changed.replace_range(at..=at, &c);
        if changed != text {
            prop_assert!(LeaseToken::unchecked(changed).verify(&keys).is_err());
        }
    }
}

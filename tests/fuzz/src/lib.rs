//! What several fuzz targets share. Each target promises of a parser that it never panics, on any
//! bytes, and whatever else its first line says.

pub mod image;
pub mod targets;

use std::sync::OnceLock;

use nimbus_api::clock::UnixSeconds;
use nimbus_api::dsse::SigningKey;
use nimbus_api::keys::{HotKey, KeyPurpose, KeySet};
use nimbus_api::lease::LeaseToken;
use pasetors::keys::AsymmetricSecretKey;
use pasetors::version4::{PublicToken, V4};

/// Of the one key in [`key_set`].
const SEED: [u8; 32] = [5; 32];
/// Trust domain of [`key_set`].
const DOMAIN: &str = "nimbus.test";

/// A key set of one key.
pub fn key_set() -> &'static KeySet {
    static SET: OnceLock<KeySet> = OnceLock::new();
    SET.get_or_init(|| {
        let key = SigningKey::from_seed(SEED).verifying_key();
        KeySet {
            version: 1,
            trust_domain: DOMAIN.parse().expect("a constant id"),
            serial: 1,
            generation: 1,
            issued_at: UnixSeconds(0),
            keys: vec![HotKey {
                kid: key.key_id().parse().expect("hex digits are an id"),
                key,
                purpose: KeyPurpose::Lease,
                nbf: UnixSeconds(0),
                exp: UnixSeconds(i64::MAX),
                generation: 1,
            }],
        }
    })
}

/// Any payload as a token of the key in [`key_set`]; none when it cannot be one.
pub fn signed(payload: &[u8]) -> Option<LeaseToken> {
    let key = SigningKey::from_seed(SEED);
    let secret = AsymmetricSecretKey::<V4>::from(&key.secret_bytes()).ok()?;
    let footer = key.verifying_key().key_id();
    let assertion = format!("nimbus-lease-v1 {DOMAIN}");
    let (footer, assertion) = (Some(footer.as_bytes()), Some(assertion.as_bytes()));
    let token = PublicToken::sign(&secret, payload, footer, assertion).ok()?;
    Some(LeaseToken::unchecked(token))
}

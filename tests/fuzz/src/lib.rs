//! What several fuzz targets share. Each target promises two things of a parser: it never panics on
//! any bytes, and what it accepts it reads back the same.

pub mod image;

use std::sync::OnceLock;

use nimbus_api::clock::UnixSeconds;
use nimbus_api::dsse::SigningKey;
use nimbus_api::keys::{HotKey, KeyPurpose, KeySet};

/// A key set whose private keys no target uses.
pub fn key_set() -> &'static KeySet {
    static SET: OnceLock<KeySet> = OnceLock::new();
    SET.get_or_init(|| {
        let key = SigningKey::from_seed([5; 32]).verifying_key();
        KeySet {
            version: 1,
            trust_domain: "nimbus.test".parse().expect("a constant id"),
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

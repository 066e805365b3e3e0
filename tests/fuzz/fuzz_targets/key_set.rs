//! No bytes that the root did not sign are a key set.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let root = nimbus_api::dsse::SigningKey::from_seed([9; 32]).verifying_key();
    assert!(nimbus_api::keys::KeySet::verify(data, &root).is_err(), "an unsigned key set verified");
});

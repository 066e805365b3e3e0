//! What the strict parser accepts, serde_json reads the same.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let limits = nimbus_api::strict_json::Limits::bytes(64 << 10);
    if let Ok(value) = nimbus_api::strict_json::value(data, limits) {
        assert_eq!(serde_json::from_slice::<serde_json::Value>(data).expect("accepted"), value);
    }
});

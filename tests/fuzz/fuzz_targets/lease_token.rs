//! No bytes that nobody signed are a lease.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(text) = std::str::from_utf8(data) {
        let token = nimbus_api::lease::LeaseToken::unchecked(text.to_owned());
        assert!(
            token.verify(nimbus_fuzz::key_set()).is_err(),
            "a token that nobody signed verified"
        );
    }
});

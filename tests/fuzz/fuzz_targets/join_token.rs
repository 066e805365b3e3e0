//! Any text is a join token or is none.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(text) = std::str::from_utf8(data) {
        let _token = text.parse::<nimbus_node::join::JoinToken>();
    }
});

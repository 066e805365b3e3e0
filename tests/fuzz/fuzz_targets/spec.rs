//! Any `config.json` ends in what it runs or in a refusal, and what it runs has one digest.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(process) = nimbus_hooks::process_identity(data) {
        let again = nimbus_hooks::process_identity(data).expect("it was read before");
        assert_eq!(process.digest(), again.digest());
    }
});

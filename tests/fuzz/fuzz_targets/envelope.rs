//! An envelope that is read is written back the same, and one that nobody signed verifies for nobody.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nimbus_api::dsse::{Envelope, SigningKey};

fuzz_target!(|data: &[u8]| {
    if let Ok(envelope) = Envelope::parse(data) {
        let again = Envelope::parse(&envelope.to_json()).expect("our own JSON");
        assert_eq!(again.to_json(), envelope.to_json());
        let key = SigningKey::from_seed([7; 32]).verifying_key();
        assert!(envelope.verify("application/x", &key).is_err(), "nobody signed it");
    }
});

//! Claims that control signed, whatever they are, end in a lease that is written back the same or in
//! a refusal: a control service of another version, or one that was stolen.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nimbus_api::RefusalCode;

fuzz_target!(|data: &[u8]| {
    let Some(token) = nimbus_fuzz::signed(data) else { return };
    if let Ok(lease) = token.verify(nimbus_fuzz::key_set()) {
        let text = serde_json::to_vec(&lease.claims).expect("claims are JSON");
        let again = nimbus_fuzz::signed(&text).expect("any payload can be signed");
        match again.verify(nimbus_fuzz::key_set()) {
            Ok(again) => assert_eq!(again.claims, lease.claims),
            // Claims that were left out are written as null.
            Err(refusal) => assert_eq!(refusal.code, RefusalCode::LeaseTooLarge, "{refusal}"),
        }
    }
});

//! A plan that is read is written back the same.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(plan) = nimbus_api::plan::Plan::parse(data) {
        assert_eq!(nimbus_api::plan::Plan::parse(&plan.to_json()).expect("our own JSON"), plan);
    }
});

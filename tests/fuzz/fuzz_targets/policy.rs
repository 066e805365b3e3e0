//! A policy that is read can be written and read again.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(policy) = nimbus_api::policy::Policy::parse(data) {
        assert!(!policy.rule.is_empty() && policy.rule.iter().all(|rule| !rule.require.is_empty()));
        let _rule = policy.rule_for("registry.example/a/b");
    }
});

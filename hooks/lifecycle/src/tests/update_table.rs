//! Which limits a client may set on a container that runs.

use nimbus_api::plan::Plan;
use nimbus_api::{Refusal, RefusalCode as Code};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::fixtures::*;
use crate::{admit, update};

fn plan() -> Plan {
    admit(&good()).unwrap()
}

fn judged(resources: &Value) -> Result<Value, Refusal> {
    update(&plan(), resources.to_string().as_bytes())
}

#[test]
fn limits_within_the_lease_are_set_and_what_is_left_out_stays() {
    let memory = 32 << 20;
    for (given, wanted) in [
        (json!({}), json!({})),
        (json!({"memory": {}, "cpu": {}, "devices": []}), json!({})),
        (
            json!({"memory": {"limit": memory, "reservation": 4096}}),
            json!({"memory": {"limit": memory, "swap": memory, "reservation": 4096}}),
        ),
        (
            json!({"memory": {"limit": memory, "swap": 64 << 20}}),
            json!({"memory": {"limit": memory, "swap": memory}}),
        ),
        (
            json!({"cpu": {"quota": 20_000, "period": 50_000, "shares": 100}}),
            json!({"cpu": {"quota": 20_000, "period": 50_000, "shares": 100}}),
        ),
        (json!({"cpu": {"quota": 25_000}}), json!({"cpu": {"quota": 25_000, "period": 100_000}})),
        (
            json!({"cpu": {"cpus": "0-1,3", "mems": "0"}}),
            json!({"cpu": {"cpus": "0-1,3", "mems": "0"}}),
        ),
        (json!({"pids": {"limit": 10}}), json!({"pids": {"limit": 10}})),
        // Written by habit where there is to be no limit: the lease's then.
        (json!({"pids": {"limit": -1}}), json!({"pids": {"limit": 64}})),
        (
            json!({"cpu": {"quota": -1, "period": 10_000, "shares": 99_999}}),
            json!({"cpu": {"quota": 50_000, "period": 100_000, "shares": 512}}),
        ),
    ] {
        assert_eq!(judged(&given), Ok(wanted), "{given}");
    }
}

#[test]
fn more_than_the_lease_gives_is_refused() {
    for (code, given) in [
        (Code::SpecResourcesForbidden, json!({"memory": {"limit": (64 << 20) + 1}})),
        (Code::SpecResourcesForbidden, json!({"memory": {"limit": -1}})),
        (Code::SpecResourcesForbidden, json!({"memory": {"swap": -1}})),
        (Code::SpecResourcesForbidden, json!({"cpu": {"quota": 50_001, "period": 100_000}})),
        (Code::SpecResourcesForbidden, json!({"cpu": {"quota": 50_001}})),
        (Code::SpecResourcesForbidden, json!({"cpu": {"burst": 1}})),
        (Code::SpecPrivilegeForbidden, json!({"cpu": {"realtimeRuntime": 1}})),
        (Code::SpecPrivilegeForbidden, json!({"memory": {"disableOOMKiller": true}})),
        (Code::SpecResourcesForbidden, json!({"pids": {"limit": 65}})),
        (Code::SpecResourcesForbidden, json!({"unified": {"memory.max": "max"}})),
        (Code::SpecResourcesForbidden, json!({"blockIO": {"weight": 10}})),
        (
            Code::SpecResourcesForbidden,
            json!({"hugepageLimits": [{"pageSize": "2MB", "limit": 1}]}),
        ),
        (Code::DeviceNotLeased, json!({"devices": [{"allow": true, "type": "c", "major": 195}]})),
        (Code::SpecMalformed, json!({"cpu": {"cpus": "0\n"}})),
        (Code::SpecUnknownField, json!({"gpu": 1})),
    ] {
        assert_eq!(judged(&given).unwrap_err().code, code, "{given}");
    }
    assert_eq!(update(&plan(), b"[]").unwrap_err().code, Code::SpecMalformed);
}

proptest! {
    #[test]
    fn no_update_ends_above_the_lease(
        limit: Option<i64>,
        quota in prop::option::of(-1_i64..200_000),
        period in prop::option::of(0_u64..200_000),
        shares: Option<u64>,
        pids in prop::option::of(-2_i64..200),
    ) {
        let given = json!({
            "memory": {"limit": limit},
            "cpu": {"quota": quota, "period": period, "shares": shares},
            "pids": {"limit": pids},
        });
        if let Ok(wanted) = judged(&given) {
            let number = |pointer: &str| wanted.pointer(pointer).and_then(Value::as_i64);
            prop_assert!(number("/memory/limit").is_none_or(|limit| (1..=64 << 20).contains(&limit)));
            prop_assert_eq!(number("/memory/limit"), number("/memory/swap"));
            prop_assert!(number("/pids/limit").is_none_or(|pids| (1..=64).contains(&pids)));
            prop_assert!(number("/cpu/shares").is_none_or(|shares| (1..=512).contains(&shares)));
            if let Some(quota) = number("/cpu/quota") {
                prop_assert!(quota > 0 && quota * 2 <= number("/cpu/period").unwrap());
            }
        }
    }
}

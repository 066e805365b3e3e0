//! What one more process may ask for, and what it gets.

use nimbus_api::plan::Plan;
use nimbus_api::runtime::{OpenFiles, TerminalSize};
use nimbus_api::{Refusal, RefusalCode as Code};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::fixtures::*;
use super::spec_table::set;
use crate::{admit, exec};

fn plan() -> Plan {
    admit(&good()).unwrap()
}

/// As kubelet and `ctr` send it: the container's own process with another command.
fn process() -> Value {
    let mut process = config()["process"].clone();
    process["args"] = json!(["/bin/ls", "-l"]);
    process
}

fn judged(process: &Value) -> Result<nimbus_api::runtime::ExecProcess, Refusal> {
    exec(&plan(), process.to_string().as_bytes(), false)
}

#[test]
fn the_containers_own_process_with_another_command_is_granted() {
    let granted = judged(&process()).unwrap();
    assert_eq!(granted.args, ["/bin/ls", "-l"]);
    assert_eq!(granted.capabilities, plan().exec.capabilities);
    assert_eq!((granted.uid, granted.umask, granted.oom_score_adj), (0, 0o022, 0));
    assert_eq!(granted.terminal, None);
}

#[test]
fn a_demand_for_more_is_refused_as_it_is_at_create() {
    for (code, pointer, value) in [
        (Code::SpecCapabilityForbidden, "/capabilities/bounding", json!(["CAP_SYS_ADMIN"])),
        (Code::SpecCapabilityForbidden, "/capabilities/ambient", json!(["CAP_SYS_PTRACE"])),
        (Code::SpecUserForbidden, "/user/uid", json!(1_u32 << 31)),
        (Code::SpecUserForbidden, "/user/additionalGids", json!([u32::MAX])),
        (Code::SpecUserForbidden, "/user/username", json!("root")),
        (Code::SpecPrivilegeForbidden, "/scheduler", json!({"policy": "SCHED_FIFO"})),
        (Code::SpecPrivilegeForbidden, "/ioPriority", json!({"class": "IOPRIO_CLASS_RT"})),
        (Code::SpecPrivilegeForbidden, "/oomScoreAdj", json!(-1000)),
        (Code::SpecPrivilegeForbidden, "/cwd", json!("/proc/self/fd/7")),
        (Code::SpecMalformed, "/cwd", json!("/a/../../b")),
        (Code::SpecMalformed, "/args", json!([])),
        (Code::SpecMalformed, "/args", json!(["a\0b"])),
        (Code::SpecMalformed, "/env", json!(["=x"])),
        (Code::SpecUnknownField, "/landlock", json!({})),
    ] {
        let mut process = process();
        set(&mut process, pointer, value);
        assert_eq!(judged(&process).unwrap_err().code, code, "{pointer}");
    }
    let twice = br#"{"cwd":"/","cwd":"/","args":["a"],"user":{}}"#;
    assert_eq!(exec(&plan(), twice, false).unwrap_err().code, Code::SpecDuplicateKey);
    assert_eq!(exec(&plan(), b"", false).unwrap_err().code, Code::SpecMalformed);
}

#[test]
fn what_the_lease_does_not_give_is_cut_and_what_is_the_containers_own_is_kept() {
    let mut plan = plan();
    plan.exec.capabilities = vec!["CAP_KILL".to_owned()];
    plan.spec["process"]["oomScoreAdj"] = json!(500);
    plan.spec["process"]["user"]["umask"] = json!(0o077);
    let mut process = process();
    for set in ["bounding", "permitted", "effective", "inheritable", "ambient"] {
        process["capabilities"][set] = json!(["CAP_KILL", "CAP_CHOWN"]);
    }
    process["noNewPrivileges"] = json!(false);
    process["oomScoreAdj"] = json!(7);
    process["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "soft": 99, "hard": 1_u64 << 40}]);
    let granted = exec(&plan, process.to_string().as_bytes(), false).unwrap();
    assert_eq!(granted.capabilities, ["CAP_KILL"]);
    assert_eq!((granted.oom_score_adj, granted.umask), (500, 0o077));
    assert_eq!(granted.nofile, OpenFiles { soft: 99, hard: 65_536 });
}

#[test]
fn a_terminal_is_the_clients_word_and_an_impossible_size_is_no_size() {
    let mut process = process();
    let terminal = |process: &Value, attached| {
        exec(&plan(), process.to_string().as_bytes(), attached).unwrap().terminal
    };
    process["terminal"] = json!(true);
    assert_eq!(terminal(&process, false), None);
    assert_eq!(terminal(&process, true), Some(TerminalSize::default()));
    process["consoleSize"] = json!({"height": 24, "width": 80});
    assert_eq!(terminal(&process, true), Some(TerminalSize { rows: 24, columns: 80 }));
    process["consoleSize"] = json!({"height": 1 << 16, "width": 80});
    assert_eq!(terminal(&process, true), Some(TerminalSize::default()));
}

proptest! {
    #[test]
    fn no_process_has_more_than_the_plan_allows(
        allowed in prop::collection::vec(prop::sample::select(&crate::DEFAULT_CAPABILITIES[..]), 0..6),
        asked in prop::collection::vec(prop::sample::select(&crate::DEFAULT_CAPABILITIES[..]), 0..6),
    ) {
        let mut plan = plan();
        plan.exec.capabilities = allowed.iter().map(|&name| name.to_owned()).collect();
        let mut process = process();
        for set in ["bounding", "permitted", "effective"] {
            process["capabilities"][set] = json!(asked);
        }
        let granted = exec(&plan, process.to_string().as_bytes(), true).unwrap();
        for name in &granted.capabilities {
            prop_assert!(allowed.contains(&name.as_str()) && asked.contains(&name.as_str()));
        }
    }

    #[test]
    fn no_bytes_panic_the_reader(bytes: Vec<u8>, terminal: bool) {
        prop_assert!(exec(&plan(), &bytes, terminal).is_err());
    }
}

//! The seccomp profile of a bundle as a BPF program, for `nimbus-oci`, which takes filters compiled.
//!
//! The peers compile the same profile in every start; ours is compiled once by the node agent and
//! handed over, which is what is measured. What is left out of the translation (a second errno, other
//! architectures) makes our program no shorter than that of the peers by more than a few
//! instructions.

use std::collections::BTreeMap;

use seccompiler::{TargetArch, compile_from_json};
use serde_json::{Value, json};

use crate::Failure;
use crate::failure::During as _;

/// Name of the one filter in the compiler's input.
const FILTER: &str = "job";
/// EPERM.
const EPERM: u32 = 1;

/// `sock_filter` structs, native endian.
pub(super) fn compile(profile: &Value) -> Result<Vec<u8>, Failure> {
    let mut rules = Vec::new();
    for group in list(profile, "syscalls") {
        if group.get("action").and_then(Value::as_str) != Some("SCMP_ACT_ALLOW") {
            continue;
        }
        for name in list(group, "names") {
            let rule = rule(name, list(group, "args"))?;
            // Names of other architectures are in the profile too.
            if build(&[&rule]).is_ok() {
                rules.push(rule);
            }
        }
    }
    build(&rules.iter().collect::<Vec<_>>())
}

fn rule(name: &Value, args: &[Value]) -> Result<Value, Failure> {
    if args.is_empty() {
        return Ok(json!({"syscall": name}));
    }
    let conditions: Result<Vec<_>, Failure> = args.iter().map(condition).collect();
    Ok(json!({"syscall": name, "args": conditions?}))
}

fn condition(arg: &Value) -> Result<Value, Failure> {
    let number = |name: &str| arg.get(name).and_then(Value::as_u64).unwrap_or(0);
    let (operator, value) = match arg.get("op").and_then(Value::as_str) {
        Some("SCMP_CMP_EQ") => (json!("eq"), number("value")),
        Some("SCMP_CMP_NE") => (json!("ne"), number("value")),
        Some("SCMP_CMP_MASKED_EQ") => (json!({"masked_eq": number("value")}), number("valueTwo")),
        other => return Err(Failure::new(format!("operator {other:?} in the profile"))),
    };
    Ok(json!({"index": number("index"), "type": "qword", "op": operator, "val": value}))
}

fn build(rules: &[&Value]) -> Result<Vec<u8>, Failure> {
    let input = json!({FILTER: {
        "mismatch_action": {"errno": EPERM},
        "match_action": "allow",
        "filter": rules,
    }});
    let arch = if cfg!(target_arch = "aarch64") { TargetArch::aarch64 } else { TargetArch::x86_64 };
    let programs: BTreeMap<_, _> = compile_from_json(input.to_string().as_bytes(), arch)
        .during("compile")?
        .into_iter()
        .collect();
    let program = programs.get(FILTER).map(Vec::as_slice).unwrap_or_default();
    let bytes = program.iter().flat_map(|instruction| {
        let [low, high] = instruction.code.to_ne_bytes();
        let k = instruction.k.to_ne_bytes();
        [low, high, instruction.jt, instruction.jf].into_iter().chain(k)
    });
    Ok(bytes.collect())
}

fn list<'a>(value: &'a Value, name: &str) -> &'a [Value] {
    value.get(name).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_becomes_a_program_and_unknown_names_are_left_out() {
        let profile = |names: Value| {
            json!({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [
                {"names": names, "action": "SCMP_ACT_ALLOW"},
                {"names": ["clone"], "action": "SCMP_ACT_ALLOW",
                 "args": [{"index": 0, "value": 2_114_060_288_u64, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}]},
            ]})
        };
        let program = compile(&profile(json!(["read", "write", "no_such_call"]))).unwrap();
        assert!(!program.is_empty() && program.len().is_multiple_of(8));
        assert_eq!(compile(&profile(json!(["read", "write"]))).unwrap(), program);
    }
}

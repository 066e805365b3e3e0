//! Proof, from outside and before Start, that the init process is contained as the plan says.
//!
//! Input: `/proc/<pid>/status` and `/proc/<pid>/cgroup` of the host, never anything that the container
//! can write. A field that is missing proves nothing, so it refuses.
#![forbid(unsafe_code)]

use std::fs;
use std::path::Path;

use caps::Capability;
use nimbus_api::runtime::CgroupPaths;
use serde_json::Value;

use crate::cgroup::guard::find;
use crate::cgroup::hierarchy::Hierarchies;
use crate::error::{Doing as _, RuntimeError};

/// Capability sets by their field in `status` and their name in a specification.
const SETS: [(&str, &str); 5] = [
    ("CapBnd", "bounding"),
    ("CapPrm", "permitted"),
    ("CapEff", "effective"),
    ("CapInh", "inheritable"),
    ("CapAmb", "ambient"),
];
const SECCOMP_FILTER: u64 = 2;

/// Numbers of a `status` file.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Status(String);

impl Status {
    fn field(&self, name: &str, radix: u32) -> Result<u64, RuntimeError> {
        let line = self.0.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        let parsed = line.and_then(|text| u64::from_str_radix(text.trim(), radix).ok());
        parsed.ok_or_else(|| RuntimeError::unproven(format!("the kernel does not tell {name}")))
    }

    fn number(&self, name: &str) -> Result<u64, RuntimeError> {
        self.field(name, 10)
    }
}

/// Checks capabilities, no_new_privs and, when `filtered`, that there is one filter more than this
/// process is under itself.
pub(crate) fn process(pid: i32, spec: &Value, filtered: bool) -> Result<(), RuntimeError> {
    let read = |pid: &str| fs::read_to_string(format!("/proc/{pid}/status"));
    let own = Status(read("self").doing("read our own status")?);
    let init = Status(read(&pid.to_string()).doing("read the init process's status")?);
    check(&init, &own, spec, filtered)
}

fn check(init: &Status, own: &Status, spec: &Value, filtered: bool) -> Result<(), RuntimeError> {
    if init.number("NoNewPrivs")? != 1 {
        return Err(RuntimeError::unproven("NoNewPrivs is not 1"));
    }
    if filtered {
        let (mode, filters) = (init.number("Seccomp")?, init.number("Seccomp_filters")?);
        let wanted = own.number("Seccomp_filters")? + 1;
        if mode != SECCOMP_FILTER || filters != wanted {
            let detail =
                format!("Seccomp is {mode} with {filters} filters, expected 2 with {wanted}");
            return Err(RuntimeError::unproven(detail));
        }
    }
    for (field, set) in SETS {
        let allowed = allowed(spec, set)?;
        let found = init.field(field, 16)?;
        if found & !allowed != 0 {
            let detail = format!("{field} is {found:x}, allowed are {allowed:x}");
            return Err(RuntimeError::unproven(detail));
        }
    }
    Ok(())
}

fn allowed(spec: &Value, set: &str) -> Result<u64, RuntimeError> {
    let names = spec.pointer("/process/capabilities").and_then(|sets| sets.get(set));
    let mut mask = 0;
    for name in names.and_then(Value::as_array).into_iter().flatten() {
        let name = name.as_str().unwrap_or_default();
        let capability: Capability = name
            .parse()
            .map_err(|_unknown| RuntimeError::unproven(format!("unknown capability {name:?}")))?;
        mask |= capability.bitmask();
    }
    Ok(mask)
}

/// Checks that the process is in each of the container's cgroups.
pub(crate) fn membership(
    pid: i32,
    hosts: &Hierarchies,
    paths: &CgroupPaths,
) -> Result<(), RuntimeError> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup"))
        .doing("read the init process's cgroups")?;
    let wanted =
        paths.v1.iter().filter_map(|(name, dir)| Some((name.as_str(), hosts.v1.get(name)?, dir)));
    let unified = paths.unified.iter().zip(&hosts.unified).map(|(dir, root)| ("", root, dir));
    for (name, root, dir) in wanted.chain(unified) {
        let found = find(&text, name).map(|path| root.join(path));
        if found.as_deref() != Some(Path::new(dir)) {
            let detail = format!("the init process is in {found:?}, not in {}", dir.display());
            return Err(RuntimeError::unproven(detail));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const INIT: &str = "NoNewPrivs:\t1\nSeccomp:\t2\nSeccomp_filters:\t1\nCapInh:\t0\nCapPrm:\t21\nCapEff:\t21\nCapBnd:\t21\nCapAmb:\t0\n";
    const OWN: &str = "Seccomp_filters:\t0\n";

    fn proven(init: &str, own: &str) -> bool {
        let caps = json!(["CAP_CHOWN", "CAP_KILL"]);
        let spec = json!({"process": {"capabilities":
            {"bounding": caps, "permitted": caps, "effective": caps}}});
        check(&Status(init.to_owned()), &Status(own.to_owned()), &spec, true).is_ok()
    }

    #[test]
    fn each_part_that_is_missing_or_weaker_refuses() {
        assert!(proven(INIT, OWN));
        for (part, weaker) in [
            ("NoNewPrivs:\t1", "NoNewPrivs:\t0"),
            ("Seccomp:\t2", "Seccomp:\t0"),
            ("Seccomp:\t2", "Seccomp:\t1"),
            ("Seccomp_filters:\t1", "Seccomp_filters:\t0"),
            ("CapInh:\t0", "CapInh:\t1"),
            ("CapPrm:\t21", "CapPrm:\t23"),
            ("CapEff:\t21", "CapEff:\t61"),
            ("CapBnd:\t21", "CapBnd:\t1ffffffffff"),
            ("CapAmb:\t0", "CapAmb:\t20"),
        ] {
            assert!(!proven(&INIT.replace(part, weaker), OWN), "{weaker}");
            assert!(!proven(&INIT.replace(part, ""), OWN), "without {part}");
        }
        assert!(!proven(INIT, "Seccomp_filters:\t1\n"));
    }
}

//! Whether the limits of a lease are really set, by reading them back from the kernel.
//!
//! A limit holds when it is there and no higher than leased; the kernel may round down. What cannot
//! be read does not hold.
#![forbid(unsafe_code)]

use std::fs;
use std::path::Path;

use nimbus_api::lease::LeasedResources;
use nimbus_api::runtime::CgroupPaths;

use crate::error::RuntimeError;

/// Thousandths of a core in one.
const MILLIS: u64 = 1000;

/// Checks cpu, memory, swap and pids of a container's cgroups.
pub(crate) fn check(paths: &CgroupPaths, leased: &LeasedResources) -> Result<(), RuntimeError> {
    if let Some(dir) = &paths.unified {
        return check_unified(dir, leased);
    }
    let dir = |name: &str| {
        let found = paths.v1.get(name).map(std::path::PathBuf::as_path);
        found.ok_or_else(|| RuntimeError::unproven(format!("this host has no {name} controller")))
    };
    let memory = dir("memory")?;
    at_most(
        "memory.limit_in_bytes",
        number(memory, "memory.limit_in_bytes")?,
        leased.memory_bytes,
    )?;
    if memory.join("memory.memsw.limit_in_bytes").exists() {
        let both = number(memory, "memory.memsw.limit_in_bytes")?;
        at_most("memory.memsw.limit_in_bytes", both, leased.memory_bytes)?;
    } else if has_swap() {
        return Err(RuntimeError::unproven("this host swaps and does not count swap"));
    }
    at_most("pids.max", number(dir("pids")?, "pids.max")?, u64::from(leased.pids))?;
    let cpu = dir("cpu")?;
    let quota = number(cpu, "cpu.cfs_quota_us")?;
    check_cpu(quota, number(cpu, "cpu.cfs_period_us")?, leased)
}

fn check_unified(dir: &Path, leased: &LeasedResources) -> Result<(), RuntimeError> {
    at_most("memory.max", number(dir, "memory.max")?, leased.memory_bytes)?;
    if dir.join("memory.swap.max").exists() {
        at_most("memory.swap.max", number(dir, "memory.swap.max")?, 0)?;
    } else if has_swap() {
        return Err(RuntimeError::unproven("this host swaps and does not count swap"));
    }
    at_most("pids.max", number(dir, "pids.max")?, u64::from(leased.pids))?;
    let text = read(dir, "cpu.max")?;
    let mut words = text.split_ascii_whitespace().map(str::parse::<u64>);
    match (words.next(), words.next()) {
        (Some(Ok(quota)), Some(Ok(period))) => check_cpu(quota, period, leased),
        _ => Err(RuntimeError::unproven(format!("cpu.max is {:?}", text.trim()))),
    }
}

fn check_cpu(quota: u64, period: u64, leased: &LeasedResources) -> Result<(), RuntimeError> {
    let leased = u64::from(leased.cpu_millis).saturating_mul(period);
    at_most("cpu quota by period", quota.saturating_mul(MILLIS), leased)
}

fn at_most(what: &str, found: u64, leased: u64) -> Result<(), RuntimeError> {
    if found <= leased {
        return Ok(());
    }
    Err(RuntimeError::unproven(format!("{what} is {found}, leased are {leased}")))
}

fn number(dir: &Path, file: &str) -> Result<u64, RuntimeError> {
    let text = read(dir, file)?;
    // "max" and -1 mean no limit.
    let parsed = text.trim().parse();
    parsed.map_err(|_no_limit| RuntimeError::unproven(format!("{file} is {:?}", text.trim())))
}

fn read(dir: &Path, file: &str) -> Result<String, RuntimeError> {
    let text = fs::read_to_string(dir.join(file));
    text.map_err(|error| RuntimeError::unproven(format!("{file} cannot be read: {error}")))
}

/// Unreadable counts as swapping.
fn has_swap() -> bool {
    fs::read_to_string("/proc/swaps").map_or(true, |text| text.lines().count() > 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nimbus_api::lease::ScratchMedium;

    fn leased() -> LeasedResources {
        LeasedResources {
            cpu_millis: 500,
            memory_bytes: 1 << 20,
            pids: 10,
            scratch_bytes: 0,
            scratch: ScratchMedium::Memory,
            log_bytes: 0,
        }
    }

    fn unified(memory: &str, pids: &str, cpu: &str) -> Result<(), RuntimeError> {
        let dir = tempfile::tempdir().unwrap();
        for (file, text) in
            [("memory.max", memory), ("memory.swap.max", "0"), ("pids.max", pids), ("cpu.max", cpu)]
        {
            fs::write(dir.path().join(file), text).unwrap();
        }
        check(
            &CgroupPaths { unified: Some(dir.path().to_owned()), ..CgroupPaths::default() },
            &leased(),
        )
    }

    #[test]
    fn limits_up_to_the_lease_hold_and_anything_else_does_not() {
        assert!(unified("1048576\n", "10\n", "50000 100000\n").is_ok());
        assert!(unified("4096\n", "1\n", "1000 100000\n").is_ok());
        assert!(unified("max\n", "10\n", "50000 100000\n").is_err());
        assert!(unified("1048577\n", "10\n", "50000 100000\n").is_err());
        assert!(unified("1048576\n", "11\n", "50000 100000\n").is_err());
        assert!(unified("1048576\n", "max\n", "50000 100000\n").is_err());
        assert!(unified("1048576\n", "10\n", "50001 100000\n").is_err());
        assert!(unified("1048576\n", "10\n", "max 100000\n").is_err());
        assert!(unified("1048576\n", "10\n", "").is_err());
    }

    #[test]
    fn a_controller_that_is_not_there_does_not_hold() {
        assert!(check(&CgroupPaths::default(), &leased()).is_err());
    }
}

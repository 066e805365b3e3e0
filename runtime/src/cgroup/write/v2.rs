//! Version 2: one tree, in which a parent enables controllers for its children.
#![forbid(unsafe_code)]

use std::fs;
use std::path::Path;

use nimbus_api::RefusalCode;

use super::{make_one, or_max, set, steps, unsupported};
use crate::error::{Doing as _, RuntimeError};
use crate::spec::model::{BlockIo, Cpu, Hugepages, Memory, Pids, Resources, Throttle};

/// Controllers that containers are limited by, as far as the host has them.
const CONTROLLERS: [&str; 6] = ["cpu", "cpuset", "hugetlb", "io", "memory", "pids"];
const NO_LIMIT: &str = "max";
/// What `cpu.max` has when nobody has said otherwise.
const PERIOD_USEC: &str = "100000";

/// Ranges of v1's numbers and v2's for the same share of something.
const SHARES: (u64, u64) = (2, 262_144);
const WEIGHT: (u64, u64) = (1, 10_000);
const BLKIO_WEIGHT: (u64, u64) = (10, 1000);

/// Makes the directory, with every controller enabled in those above it.
pub(super) fn make(root: &Path, dir: &Path) -> Result<(), RuntimeError> {
    let mut before = root.to_owned();
    for step in steps(root, dir)? {
        enable(&before)?;
        make_one(&step)?;
        before = step;
    }
    Ok(())
}

fn enable(dir: &Path) -> Result<(), RuntimeError> {
    let read = |file: &str| fs::read_to_string(dir.join(file)).doing(format_args!("read {file}"));
    let (has, given) = (read("cgroup.controllers")?, read("cgroup.subtree_control")?);
    let lists = |list: &str, name: &str| list.split_ascii_whitespace().any(|one| one == name);
    for name in CONTROLLERS {
        if lists(&has, name) && !lists(&given, name) {
            // Each by itself: one that cannot be had (cpu beside real-time tasks) is missed when a
            // limit needs it, and then said.
            set(dir, "cgroup.subtree_control", &format!("+{name}")).unwrap_or_default();
        }
    }
    Ok(())
}

/// Sets limits.
pub(super) fn apply(dir: &Path, limits: &Resources) -> Result<(), RuntimeError> {
    memory(dir, &limits.memory)?;
    cpu(dir, &limits.cpu)?;
    pids(dir, &limits.pids)?;
    block_io(dir, &limits.block_io)?;
    hugepages(dir, &limits.hugepage_limits)?;
    if limits.network.class_id.is_some() || limits.network.priorities.is_some() {
        return Err(unsupported("network classes in the unified hierarchy"));
    }
    for (file, text) in &limits.unified {
        let name = file.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
        if !name || !file.contains('.') || file.starts_with("cgroup.") {
            let detail = format!("{file:?} is no file of a limit");
            return Err(RuntimeError::refused(RefusalCode::RuntimeFailed, detail));
        }
        set(dir, file, text)?;
    }
    Ok(())
}

fn memory(dir: &Path, wanted: &Memory) -> Result<(), RuntimeError> {
    // Before memory when it shrinks to nothing, after when it grows: they do not depend on each other
    // here, but a job must not swap for a moment what it may not at the end.
    if let Some(swap) = swap(wanted)? {
        let counts = dir.join("memory.swap.max").exists();
        // Whether this host swaps without counting it is looked at when limits are read back.
        if counts || swap > 0 {
            set(dir, "memory.swap.max", &or_max(swap, NO_LIMIT))?;
        }
    }
    if let Some(limit) = wanted.limit {
        set(dir, "memory.max", &or_max(limit, NO_LIMIT))?;
    }
    if let Some(reservation) = wanted.reservation {
        set(dir, "memory.low", &or_max(reservation, NO_LIMIT))?;
    }
    if wanted.disable_oom_killer == Some(true) {
        return Err(unsupported("out-of-memory kills in the unified hierarchy"));
    }
    Ok(())
}

/// Specifications count memory and swap together; this hierarchy counts swap alone.
fn swap(wanted: &Memory) -> Result<Option<i64>, RuntimeError> {
    match (wanted.swap, wanted.limit) {
        (None, _) => Ok(None),
        (Some(both), _) if both < 0 => Ok(Some(-1)),
        (Some(both), Some(limit)) if limit >= 0 && both >= limit => Ok(Some(both - limit)),
        (Some(both), _) => {
            let detail = format!("memory and swap together are {both}, less than memory, or alone");
            Err(RuntimeError::refused(RefusalCode::RuntimeFailed, detail))
        }
    }
}

fn cpu(dir: &Path, wanted: &Cpu) -> Result<(), RuntimeError> {
    if let Some(shares) = wanted.shares.filter(|shares| *shares != 0) {
        set(dir, "cpu.weight", &scale(shares, SHARES, WEIGHT).to_string())?;
    }
    if wanted.quota.is_some() || wanted.period.is_some() {
        let now = fs::read_to_string(dir.join("cpu.max")).unwrap_or_default();
        let mut now = now.split_ascii_whitespace().map(str::to_owned);
        let (quota, period) = (now.next(), now.next());
        let quota = match wanted.quota {
            // Zero has always meant none.
            Some(quota) => or_max(if quota == 0 { -1 } else { quota }, NO_LIMIT),
            None => quota.unwrap_or_else(|| NO_LIMIT.to_owned()),
        };
        let period = wanted.period.map(|period| period.to_string()).or(period);
        let period = period.unwrap_or_else(|| PERIOD_USEC.to_owned());
        set(dir, "cpu.max", &format!("{quota} {period}"))?;
    }
    let text = |value: &dyn std::fmt::Display| value.to_string();
    let others = [
        ("cpu.max.burst", wanted.burst.map(|burst| text(&burst))),
        ("cpu.idle", wanted.idle.map(|idle| text(&idle))),
        ("cpuset.cpus", wanted.cpus.clone().filter(|cpus| !cpus.is_empty())),
        ("cpuset.mems", wanted.mems.clone().filter(|mems| !mems.is_empty())),
    ];
    for (file, value) in others {
        if let Some(value) = value {
            set(dir, file, &value)?;
        }
    }
    Ok(())
}

/// The place in one range that is as far along as a number is in another.
fn scale(value: u64, from: (u64, u64), to: (u64, u64)) -> u64 {
    let value = value.clamp(from.0, from.1) - from.0;
    to.0 + value * (to.1 - to.0) / (from.1 - from.0)
}

fn pids(dir: &Path, wanted: &Pids) -> Result<(), RuntimeError> {
    let Some(limit) = wanted.limit else { return Ok(()) };
    set(dir, "pids.max", &or_max(if limit > 0 { limit } else { -1 }, NO_LIMIT))
}

fn block_io(dir: &Path, wanted: &BlockIo) -> Result<(), RuntimeError> {
    if let Some(weight) = wanted.weight.filter(|weight| *weight != 0) {
        let bfq = dir.join("io.bfq.weight").exists();
        if bfq {
            set(dir, "io.bfq.weight", &format!("default {weight}"))?;
        } else {
            let weight = scale(u64::from(weight), BLKIO_WEIGHT, WEIGHT);
            set(dir, "io.weight", &format!("default {weight}"))?;
        }
    }
    let throttles: [(&str, &Option<Vec<Throttle>>); 4] = [
        ("rbps", &wanted.throttle_read_bps_device),
        ("wbps", &wanted.throttle_write_bps_device),
        ("riops", &wanted.throttle_read_iops_device),
        ("wiops", &wanted.throttle_write_iops_device),
    ];
    for (what, all) in throttles {
        for one in all.iter().flatten() {
            let text = format!("{}:{} {what}={}", one.major, one.minor, one.rate);
            set(dir, "io.max", &text)?;
        }
    }
    Ok(())
}

fn hugepages(dir: &Path, wanted: &[Hugepages]) -> Result<(), RuntimeError> {
    for one in wanted {
        if !one.page_size.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            let detail = format!("{:?} is no size of pages", one.page_size);
            return Err(RuntimeError::refused(RefusalCode::RuntimeFailed, detail));
        }
        set(dir, &format!("hugetlb.{}.max", one.page_size), &one.limit.to_string())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_and_weights_keep_their_ends() {
        assert_eq!(scale(2, SHARES, WEIGHT), 1);
        assert_eq!(scale(262_144, SHARES, WEIGHT), 10_000);
        assert_eq!(scale(1024, SHARES, WEIGHT), 39);
        assert_eq!(scale(u64::MAX, SHARES, WEIGHT), 10_000);
        assert_eq!(scale(10, BLKIO_WEIGHT, WEIGHT), 1);
    }

    #[test]
    fn memory_and_swap_together_become_swap_alone() {
        let of = |limit, swap| swap_of(limit, swap).map_err(|_refused| ());
        assert_eq!(of(Some(8), Some(8)), Ok(Some(0)));
        assert_eq!(of(Some(8), Some(12)), Ok(Some(4)));
        assert_eq!(of(Some(8), Some(-1)), Ok(Some(-1)));
        assert_eq!(of(Some(8), None), Ok(None));
        assert_eq!(of(Some(8), Some(4)), Err(()));
        assert_eq!(of(None, Some(4)), Err(()));
    }

    fn swap_of(limit: Option<i64>, swap: Option<i64>) -> Result<Option<i64>, RuntimeError> {
        super::swap(&Memory { limit, swap, ..Memory::default() })
    }

    /// Files of the kernel's are replaced by plain ones: this host has no controllers to try.
    #[test]
    fn limits_are_written_as_the_unified_hierarchy_spells_them() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path();
        for file in ["memory.max", "memory.swap.max", "pids.max", "cpu.weight", "cpu.max", "io.max"]
        {
            fs::write(path.join(file), "").unwrap();
        }
        fs::write(path.join("cpu.max"), "max 50000").unwrap();
        let limits: Resources = serde_json::from_value(serde_json::json!({
            "memory": {"limit": 4096, "swap": 4096},
            "cpu": {"shares": 1024, "quota": 20000},
            "pids": {"limit": 9},
            "blockIO": {"throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 7}]}
        }))
        .unwrap();
        apply(path, &limits).unwrap();
        let read = |file: &str| fs::read_to_string(path.join(file)).unwrap();
        assert_eq!((read("memory.max"), read("memory.swap.max")), ("4096".into(), "0".into()));
        assert_eq!(read("cpu.weight"), "39");
        assert!(read("cpu.max").starts_with("20000 50000"), "{}", read("cpu.max"));
        assert_eq!((read("pids.max"), read("io.max")), ("9".into(), "8:0 rbps=7".into()));
        let unified = [("../x.y".to_owned(), "1".to_owned())].into();
        assert!(apply(path, &Resources { unified, ..Resources::default() }).is_err());
        let unified = [("cgroup.procs".to_owned(), "0".to_owned())].into();
        assert!(apply(path, &Resources { unified, ..Resources::default() }).is_err());
    }
}

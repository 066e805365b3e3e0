//! Version 1: one tree a controller (or a few that are mounted together).
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use nimbus_api::RefusalCode;
use nimbus_api::runtime::CgroupPaths;

use super::{make_one, or_max, set, steps, unsupported};
use crate::cgroup::hierarchy::Hierarchies;
use crate::error::{Doing as _, RuntimeError};
use crate::spec::model::{BlockIo, Cpu, Hugepages, Memory, Network, Pids, Resources, Throttle};

/// Must be set in a cpuset before a process can enter it.
const CPUSET_FILES: [&str; 2] = ["cpuset.cpus", "cpuset.mems"];
const NO_LIMIT: &str = "-1";

/// Makes the directory in every hierarchy.
pub(super) fn make(hosts: &Hierarchies, paths: &CgroupPaths) -> Result<(), RuntimeError> {
    let mut made: BTreeMap<&Path, bool> = BTreeMap::new();
    for (controller, dir) in &paths.v1 {
        let root = hosts.v1.get(controller).ok_or_else(|| unsupported(controller))?;
        let cpuset = controller == "cpuset";
        if made.get(dir.as_path()) == Some(&true) || (made.contains_key(dir.as_path()) && !cpuset) {
            continue;
        }
        let mut before = root.clone();
        for step in steps(root, dir)? {
            make_one(&step)?;
            if cpuset {
                inherit(&before, &step)?;
            }
            before = step;
        }
        made.insert(dir, cpuset);
    }
    Ok(())
}

/// A new cpuset is empty, and nothing can enter one that is: it takes over its parent's.
fn inherit(parent: &Path, child: &Path) -> Result<(), RuntimeError> {
    for file in CPUSET_FILES {
        let read = |dir: &Path| fs::read_to_string(dir.join(file));
        if read(child).doing(format_args!("read {file}"))?.trim().is_empty() {
            let given = read(parent).doing(format_args!("read {file}"))?;
            set(child, file, given.trim())?;
        }
    }
    Ok(())
}

/// Sets limits.
pub(super) fn apply(paths: &CgroupPaths, limits: &Resources) -> Result<(), RuntimeError> {
    let dirs = Dirs(paths);
    if !limits.unified.is_empty() {
        return Err(unsupported("by files of the unified hierarchy"));
    }
    memory(dirs, &limits.memory)?;
    cpu(dirs, &limits.cpu)?;
    pids(dirs, &limits.pids)?;
    block_io(dirs, &limits.block_io)?;
    hugepages(dirs, &limits.hugepage_limits)?;
    network(dirs, &limits.network)
}

#[derive(Debug, Clone, Copy)]
struct Dirs<'a>(&'a CgroupPaths);

impl<'a> Dirs<'a> {
    fn of(self, controller: &str) -> Result<&'a Path, RuntimeError> {
        let found = self.0.v1.get(controller).map(PathBuf::as_path);
        found.ok_or_else(|| unsupported(controller))
    }
}

/// The kernel keeps memory ≤ memory and swap together at every moment, so that which of the two is
/// written first depends on whether they grow.
fn memory(dirs: Dirs<'_>, wanted: &Memory) -> Result<(), RuntimeError> {
    const LIMIT: &str = "memory.limit_in_bytes";
    const BOTH: &str = "memory.memsw.limit_in_bytes";
    if *wanted == Memory::default() {
        return Ok(());
    }
    let dir = dirs.of("memory")?;
    let counts_swap = dir.join(BOTH).exists();
    // Whether this host swaps without counting it is looked at when limits are read back.
    let both = wanted.swap.filter(|_both| counts_swap);
    let write = |file: &str, value: Option<i64>| {
        value.map_or(Ok(()), |value| set(dir, file, &or_max(value, NO_LIMIT)))
    };
    if both.is_some_and(|both| grows(dir, BOTH, both)) {
        write(BOTH, both)?;
        write(LIMIT, wanted.limit)?;
    } else {
        write(LIMIT, wanted.limit)?;
        write(BOTH, both)?;
    }
    write("memory.soft_limit_in_bytes", wanted.reservation)?;
    if let Some(swappiness) = wanted.swappiness {
        set(dir, "memory.swappiness", &swappiness.to_string())?;
    }
    if wanted.disable_oom_killer == Some(true) {
        set(dir, "memory.oom_control", "1")?;
    }
    Ok(())
}

fn grows(dir: &Path, file: &str, to: i64) -> bool {
    let now = fs::read_to_string(dir.join(file)).ok();
    let now = now.and_then(|text| text.trim().parse::<u64>().ok());
    match (now, u64::try_from(to)) {
        (Some(now), Ok(to)) => to > now,
        // Less than zero: no limit at all, which is more than any.
        (_, Err(_no_limit)) => true,
        (None, Ok(_)) => false,
    }
}

fn cpu(dirs: Dirs<'_>, wanted: &Cpu) -> Result<(), RuntimeError> {
    let text = |value: Option<u64>| value.map(|value| value.to_string());
    let (shares, period, burst) = (text(wanted.shares), text(wanted.period), text(wanted.burst));
    let quota = wanted.quota.map(|quota| or_max(quota, NO_LIMIT));
    let idle = wanted.idle.map(|idle| idle.to_string());
    let files = [("cpu.shares", &shares), ("cpu.cfs_burst_us", &burst), ("cpu.idle", &idle)];
    if files.iter().any(|(_, value)| value.is_some()) || period.is_some() || quota.is_some() {
        let dir = dirs.of("cpu")?;
        // In the order in which what is between is no more than what was or what is to be: a longer
        // period first, a shorter one last.
        let write_period = || period.iter().try_for_each(|one| set(dir, "cpu.cfs_period_us", one));
        let longer = wanted.period.and_then(|one| i64::try_from(one).ok());
        let longer = longer.is_some_and(|period| grows(dir, "cpu.cfs_period_us", period));
        if longer {
            write_period()?;
        }
        if let Some(quota) = &quota {
            set(dir, "cpu.cfs_quota_us", quota)?;
        }
        if !longer {
            write_period()?;
        }
        for (file, value) in files {
            if let Some(value) = value {
                set(dir, file, value)?;
            }
        }
    }
    for (file, value) in CPUSET_FILES.iter().zip([&wanted.cpus, &wanted.mems]) {
        if let Some(value) = value.as_deref().filter(|value| !value.is_empty()) {
            set(dirs.of("cpuset")?, file, value)?;
        }
    }
    Ok(())
}

fn pids(dirs: Dirs<'_>, wanted: &Pids) -> Result<(), RuntimeError> {
    let Some(limit) = wanted.limit else { return Ok(()) };
    let text = if limit > 0 { limit.to_string() } else { "max".to_owned() };
    set(dirs.of("pids")?, "pids.max", &text)
}

fn block_io(dirs: Dirs<'_>, wanted: &BlockIo) -> Result<(), RuntimeError> {
    if let Some(weight) = wanted.weight.filter(|weight| *weight != 0) {
        let dir = dirs.of("blkio")?;
        let file = ["blkio.weight", "blkio.bfq.weight"];
        let file = file.into_iter().find(|file| dir.join(file).exists());
        set(dir, file.ok_or_else(|| unsupported("the weight of io"))?, &weight.to_string())?;
    }
    let throttles: [(&str, &Option<Vec<Throttle>>); 4] = [
        ("blkio.throttle.read_bps_device", &wanted.throttle_read_bps_device),
        ("blkio.throttle.write_bps_device", &wanted.throttle_write_bps_device),
        ("blkio.throttle.read_iops_device", &wanted.throttle_read_iops_device),
        ("blkio.throttle.write_iops_device", &wanted.throttle_write_iops_device),
    ];
    for (file, all) in throttles {
        for one in all.iter().flatten() {
            let text = format!("{}:{} {}", one.major, one.minor, one.rate);
            set(dirs.of("blkio")?, file, &text)?;
        }
    }
    Ok(())
}

fn hugepages(dirs: Dirs<'_>, wanted: &[Hugepages]) -> Result<(), RuntimeError> {
    for one in wanted {
        if !one.page_size.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            let detail = format!("{:?} is no size of pages", one.page_size);
            return Err(RuntimeError::refused(RefusalCode::RuntimeFailed, detail));
        }
        let file = format!("hugetlb.{}.limit_in_bytes", one.page_size);
        set(dirs.of("hugetlb")?, &file, &one.limit.to_string())?;
    }
    Ok(())
}

fn network(dirs: Dirs<'_>, wanted: &Network) -> Result<(), RuntimeError> {
    if let Some(class) = wanted.class_id {
        set(dirs.of("net_cls")?, "net_cls.classid", &class.to_string())?;
    }
    for one in wanted.priorities.iter().flatten() {
        let text = format!("{} {}", one.name, one.priority);
        set(dirs.of("net_prio")?, "net_prio.ifpriomap", &text)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory that the kernel makes a cgroup of; removed at the end.
    struct Cgroup(CgroupPaths);

    impl Cgroup {
        /// None where there is nothing but the unified hierarchy.
        fn new(name: &str) -> Option<Self> {
            let hosts = Hierarchies::of_this_host().unwrap();
            if hosts.v1.is_empty() {
                return None;
            }
            let path = format!("nimbus-test-{name}-{}/inner", std::process::id());
            let v1 = hosts.v1.iter().map(|(name, root)| (name.clone(), root.join(&path)));
            let paths = CgroupPaths { unified: None, v1: v1.collect() };
            make(&hosts, &paths).unwrap();
            Some(Self(paths))
        }

        fn read(&self, controller: &str, file: &str) -> String {
            fs::read_to_string(self.0.v1[controller].join(file)).unwrap().trim().to_owned()
        }
    }

    impl Drop for Cgroup {
        fn drop(&mut self) {
            for dir in self.0.v1.values() {
                fs::remove_dir(dir).unwrap_or_default();
                fs::remove_dir(dir.parent().unwrap()).unwrap_or_default();
            }
        }
    }

    fn memory_of(limit: i64, swap: i64) -> Resources {
        let memory = Memory { limit: Some(limit), swap: Some(swap), ..Memory::default() };
        Resources { memory, ..Resources::default() }
    }

    #[test]
    fn memory_and_swap_grow_and_shrink_in_the_order_that_the_kernel_takes() {
        let Some(cgroup) = Cgroup::new("memory") else { return };
        for bytes in [64 << 20, 128 << 20, 32 << 20, -1, 64 << 20] {
            apply(&cgroup.0, &memory_of(bytes, bytes)).unwrap();
            for file in ["memory.limit_in_bytes", "memory.memsw.limit_in_bytes"] {
                if bytes > 0 {
                    assert_eq!(cgroup.read("memory", file), bytes.to_string(), "{file}");
                }
            }
        }
        // What is not mentioned stays.
        apply(&cgroup.0, &Resources::default()).unwrap();
        assert_eq!(cgroup.read("memory", "memory.limit_in_bytes"), (64 << 20).to_string());
    }

    #[test]
    fn cpu_pids_and_cpusets_are_what_was_asked_and_a_new_cpuset_can_be_entered() {
        let Some(cgroup) = Cgroup::new("cpu") else { return };
        assert!(!cgroup.read("cpuset", "cpuset.cpus").is_empty());
        assert!(!cgroup.read("cpuset", "cpuset.mems").is_empty());
        let ask = |quota, period| {
            let cpu = Cpu { quota: Some(quota), period: Some(period), ..Cpu::default() };
            let pids = Pids { limit: Some(7) };
            apply(&cgroup.0, &Resources { cpu, pids, ..Resources::default() }).unwrap();
            assert_eq!(cgroup.read("cpu", "cpu.cfs_quota_us"), quota.to_string());
            assert_eq!(cgroup.read("cpu", "cpu.cfs_period_us"), period.to_string());
            assert_eq!(cgroup.read("pids", "pids.max"), "7");
        };
        for (quota, period) in [(50_000, 100_000), (1_000, 1_000), (-1, 100_000), (10_000, 50_000)]
        {
            ask(quota, period);
        }
    }

    #[test]
    fn a_limit_without_its_controller_is_refused() {
        let none = CgroupPaths::default();
        assert!(apply(&none, &memory_of(1 << 20, 1 << 20)).is_err());
        let pids = Pids { limit: Some(1) };
        assert!(apply(&none, &Resources { pids, ..Resources::default() }).is_err());
        let unified = [("memory.high".to_owned(), "1".to_owned())].into();
        assert!(apply(&none, &Resources { unified, ..Resources::default() }).is_err());
    }
}

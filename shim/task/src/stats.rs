//! `Stats`: the main figures of a cgroup as containerd's metrics messages.
//!
//! `io.containerd.cgroups.v1.Metrics` on v1, `io.containerd.cgroups.v2.Metrics` on v2; both with
//! memory, cpu, pids and OOM kills. Absent: blkio, hugetlb, rdma, network, pressure. A file that
//! cannot be read counts as zero; a limit of `max` as the largest number.

use std::fs;
use std::path::Path;

use containerd_shim_protos::cgroups::metrics as v1;
use containerd_shim_protos::cgroups_v2::metrics as v2;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{self, Message as _};

use crate::cgroup::{Cgroup, field};

const V1_TYPE: &str = "io.containerd.cgroups.v1.Metrics";
const V2_TYPE: &str = "io.containerd.cgroups.v2.Metrics";
/// cpuacct.stat counts in these.
const NANOS_PER_TICK: u64 = 10_000_000;

/// The figures now.
pub(crate) fn collect(cgroup: &Cgroup) -> Result<Any, protobuf::Error> {
    let (type_url, value) = match cgroup.unified() {
        Some(dir) => (V2_TYPE, unified(dir).write_to_bytes()?),
        None => (V1_TYPE, controllers(cgroup).write_to_bytes()?),
    };
    Ok(Any { type_url: type_url.to_owned(), value, ..Any::default() })
}

fn unified(dir: &Path) -> v2::Metrics {
    let cpu = text(dir, "cpu.stat");
    let memory = text(dir, "memory.stat");
    let events = text(dir, "memory.events");
    let get = |text: &str, name| field(text, name).unwrap_or(0);
    v2::Metrics {
        pids: Some(v2::PidsStat {
            current: number(dir, "pids.current"),
            limit: number(dir, "pids.max"),
            ..Default::default()
        })
        .into(),
        cpu: Some(v2::CPUStat {
            usage_usec: get(&cpu, "usage_usec"),
            user_usec: get(&cpu, "user_usec"),
            system_usec: get(&cpu, "system_usec"),
            nr_periods: get(&cpu, "nr_periods"),
            nr_throttled: get(&cpu, "nr_throttled"),
            throttled_usec: get(&cpu, "throttled_usec"),
            ..Default::default()
        })
        .into(),
        memory: Some(v2::MemoryStat {
            anon: get(&memory, "anon"),
            file: get(&memory, "file"),
            inactive_file: get(&memory, "inactive_file"),
            active_file: get(&memory, "active_file"),
            inactive_anon: get(&memory, "inactive_anon"),
            active_anon: get(&memory, "active_anon"),
            pgfault: get(&memory, "pgfault"),
            pgmajfault: get(&memory, "pgmajfault"),
            usage: number(dir, "memory.current"),
            usage_limit: number(dir, "memory.max"),
            max_usage: number(dir, "memory.peak"),
            swap_usage: number(dir, "memory.swap.current"),
            swap_limit: number(dir, "memory.swap.max"),
            ..Default::default()
        })
        .into(),
        memory_events: Some(v2::MemoryEvents {
            high: get(&events, "high"),
            max: get(&events, "max"),
            oom: get(&events, "oom"),
            oom_kill: get(&events, "oom_kill"),
            ..Default::default()
        })
        .into(),
        ..Default::default()
    }
}

fn controllers(cgroup: &Cgroup) -> v1::Metrics {
    v1::Metrics {
        pids: cgroup.controller("pids").map(pids).into(),
        cpu: Some(cpu(cgroup)).into(),
        memory: cgroup.controller("memory").map(memory).into(),
        memory_oom_control: Some(v1::MemoryOomControl {
            oom_kill: cgroup.oom_kills(),
            ..Default::default()
        })
        .into(),
        ..Default::default()
    }
}

fn pids(dir: &Path) -> v1::PidsStat {
    v1::PidsStat {
        current: number(dir, "pids.current"),
        limit: number(dir, "pids.max"),
        ..Default::default()
    }
}

fn cpu(cgroup: &Cgroup) -> v1::CPUStat {
    let ticks = cgroup.controller("cpuacct").map(|dir| text(dir, "cpuacct.stat"));
    let ticks = ticks.unwrap_or_default();
    let nanos = |name| field(&ticks, name).unwrap_or(0).saturating_mul(NANOS_PER_TICK);
    let throttle = cgroup.controller("cpu").map(|dir| text(dir, "cpu.stat")).unwrap_or_default();
    let get = |name| field(&throttle, name).unwrap_or(0);
    v1::CPUStat {
        usage: Some(v1::CPUUsage {
            total: cgroup.controller("cpuacct").map_or(0, |dir| number(dir, "cpuacct.usage")),
            user: nanos("user"),
            kernel: nanos("system"),
            ..Default::default()
        })
        .into(),
        throttling: Some(v1::Throttle {
            periods: get("nr_periods"),
            throttled_periods: get("nr_throttled"),
            throttled_time: get("throttled_time"),
            ..Default::default()
        })
        .into(),
        ..Default::default()
    }
}

fn memory(dir: &Path) -> v1::MemoryStat {
    let stat = text(dir, "memory.stat");
    let get = |name| field(&stat, name).unwrap_or(0);
    v1::MemoryStat {
        cache: get("cache"),
        rss: get("rss"),
        mapped_file: get("mapped_file"),
        inactive_file: get("inactive_file"),
        active_file: get("active_file"),
        total_cache: get("total_cache"),
        total_rss: get("total_rss"),
        total_inactive_file: get("total_inactive_file"),
        total_active_file: get("total_active_file"),
        hierarchical_memory_limit: get("hierarchical_memory_limit"),
        usage: Some(v1::MemoryEntry {
            usage: number(dir, "memory.usage_in_bytes"),
            limit: number(dir, "memory.limit_in_bytes"),
            max: number(dir, "memory.max_usage_in_bytes"),
            failcnt: number(dir, "memory.failcnt"),
            ..Default::default()
        })
        .into(),
        ..Default::default()
    }
}

fn text(dir: &Path, name: &str) -> String {
    fs::read_to_string(dir.join(name)).unwrap_or_default()
}

fn number(dir: &Path, name: &str) -> u64 {
    match text(dir, name).trim() {
        "max" => u64::MAX,
        text => text.parse().unwrap_or(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nimbus_api::runtime::CgroupPaths;

    #[test]
    fn a_v2_group_gives_v2_metrics() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("memory.current"), "4096\n").unwrap();
        fs::write(dir.path().join("pids.max"), "max\n").unwrap();
        fs::write(dir.path().join("cpu.stat"), "usage_usec 17\n").unwrap();
        let paths = CgroupPaths { unified: Some(dir.path().to_owned()), ..CgroupPaths::default() };
        let any = collect(&Cgroup::new(paths)).unwrap();
        assert_eq!(any.type_url, V2_TYPE);
        let metrics = v2::Metrics::parse_from_bytes(&any.value).unwrap();
        assert_eq!(metrics.memory.usage, 4096);
        assert_eq!(metrics.pids.limit, u64::MAX);
        assert_eq!(metrics.cpu.usage_usec, 17);
    }

    #[test]
    fn v1_controllers_give_v1_metrics() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("memory.usage_in_bytes"), "4096\n").unwrap();
        fs::write(dir.path().join("memory.limit_in_bytes"), "8192\n").unwrap();
        fs::write(dir.path().join("cpuacct.usage"), "99\n").unwrap();
        fs::write(dir.path().join("pids.current"), "3\n").unwrap();
        let mut paths = CgroupPaths::default();
        for name in ["memory", "cpuacct", "pids"] {
            paths.v1.insert(name.to_owned(), dir.path().to_owned());
        }
        let any = collect(&Cgroup::new(paths)).unwrap();
        assert_eq!(any.type_url, V1_TYPE);
        let metrics = v1::Metrics::parse_from_bytes(&any.value).unwrap();
        assert_eq!((metrics.memory.usage.usage, metrics.memory.usage.limit), (4096, 8192));
        assert_eq!((metrics.cpu.usage.total, metrics.pids.current), (99, 3));
    }
}

//! The figures of v1 controllers.

use std::path::Path;

use containerd_shim_protos::cgroups::metrics::{
    BlkIOEntry, BlkIOStat, CPUStat, CPUUsage, HugetlbStat, MemoryEntry, MemoryOomControl,
    MemoryStat, Metrics, NetworkStat, PidsStat, RdmaEntry, RdmaStat, Throttle,
};

use super::parse::{self, Flat, number, text};
use crate::cgroup::Cgroup;

/// `cpuacct.stat` counts in these.
const NANOS_PER_TICK: u64 = 10_000_000;

pub(super) fn metrics(cgroup: &Cgroup, net_dev: &str) -> Metrics {
    Metrics {
        hugetlb: cgroup.controller("hugetlb").map(hugetlb).unwrap_or_default(),
        pids: cgroup.controller("pids").map(pids).into(),
        cpu: Some(cpu(cgroup)).into(),
        memory: cgroup.controller("memory").map(memory).into(),
        blkio: cgroup.controller("blkio").map(blkio).into(),
        rdma: cgroup.controller("rdma").map(rdma).into(),
        network: network(net_dev),
        memory_oom_control: cgroup.controller("memory").map(oom).into(),
        ..Default::default()
    }
}

fn pids(dir: &Path) -> PidsStat {
    PidsStat {
        current: number(dir, "pids.current"),
        // As containerd's library: zero is no limit here, other than on v2.
        limit: text(dir, "pids.max").trim().parse().unwrap_or(0),
        ..Default::default()
    }
}

fn cpu(cgroup: &Cgroup) -> CPUStat {
    let accounts = cgroup.controller("cpuacct");
    let ticks = Flat::read(accounts, "cpuacct.stat");
    let throttle = Flat::read(cgroup.controller("cpu"), "cpu.stat");
    let per_cpu = accounts.map(|dir| text(dir, "cpuacct.usage_percpu")).unwrap_or_default();
    CPUStat {
        usage: Some(CPUUsage {
            total: accounts.map_or(0, |dir| number(dir, "cpuacct.usage")),
            user: ticks.get("user").saturating_mul(NANOS_PER_TICK),
            kernel: ticks.get("system").saturating_mul(NANOS_PER_TICK),
            per_cpu: per_cpu
                .split_ascii_whitespace()
                .filter_map(|word| word.parse().ok())
                .collect(),
            ..Default::default()
        })
        .into(),
        throttling: Some(Throttle {
            periods: throttle.get("nr_periods"),
            throttled_periods: throttle.get("nr_throttled"),
            throttled_time: throttle.get("throttled_time"),
            ..Default::default()
        })
        .into(),
        ..Default::default()
    }
}

fn memory(dir: &Path) -> MemoryStat {
    let stat = Flat::read(Some(dir), "memory.stat");
    let get = |name| stat.get(name);
    let entry = |kind| Some(entry(dir, kind)).into();
    MemoryStat {
        cache: get("cache"),
        rss: get("rss"),
        rss_huge: get("rss_huge"),
        mapped_file: get("mapped_file"),
        dirty: get("dirty"),
        writeback: get("writeback"),
        pg_pg_in: get("pgpgin"),
        pg_pg_out: get("pgpgout"),
        pg_fault: get("pgfault"),
        pg_maj_fault: get("pgmajfault"),
        inactive_anon: get("inactive_anon"),
        active_anon: get("active_anon"),
        inactive_file: get("inactive_file"),
        active_file: get("active_file"),
        unevictable: get("unevictable"),
        hierarchical_memory_limit: get("hierarchical_memory_limit"),
        hierarchical_swap_limit: get("hierarchical_memsw_limit"),
        total_cache: get("total_cache"),
        total_rss: get("total_rss"),
        total_rss_huge: get("total_rss_huge"),
        total_mapped_file: get("total_mapped_file"),
        total_dirty: get("total_dirty"),
        total_writeback: get("total_writeback"),
        total_pg_pg_in: get("total_pgpgin"),
        total_pg_pg_out: get("total_pgpgout"),
        total_pg_fault: get("total_pgfault"),
        total_pg_maj_fault: get("total_pgmajfault"),
        total_inactive_anon: get("total_inactive_anon"),
        total_active_anon: get("total_active_anon"),
        total_inactive_file: get("total_inactive_file"),
        total_active_file: get("total_active_file"),
        total_unevictable: get("total_unevictable"),
        usage: entry(""),
        swap: entry("memsw."),
        kernel: entry("kmem."),
        kernel_tcp: entry("kmem.tcp."),
        ..Default::default()
    }
}

/// The four files of one of the memory controller's counters.
fn entry(dir: &Path, kind: &str) -> MemoryEntry {
    let get = |what| number(dir, &format!("memory.{kind}{what}"));
    MemoryEntry {
        limit: get("limit_in_bytes"),
        usage: get("usage_in_bytes"),
        max: get("max_usage_in_bytes"),
        failcnt: get("failcnt"),
        ..Default::default()
    }
}

fn oom(dir: &Path) -> MemoryOomControl {
    let control = Flat::read(Some(dir), "memory.oom_control");
    MemoryOomControl {
        oom_kill_disable: control.get("oom_kill_disable"),
        under_oom: control.get("under_oom"),
        oom_kill: control.get("oom_kill"),
        ..Default::default()
    }
}

fn blkio(dir: &Path) -> BlkIOStat {
    let entries = |name| blkio_entries(dir, name);
    BlkIOStat {
        io_service_bytes_recursive: entries("io_service_bytes_recursive"),
        io_serviced_recursive: entries("io_serviced_recursive"),
        io_queued_recursive: entries("io_queued_recursive"),
        io_service_time_recursive: entries("io_service_time_recursive"),
        io_wait_time_recursive: entries("io_wait_time_recursive"),
        io_merged_recursive: entries("io_merged_recursive"),
        io_time_recursive: entries("time_recursive"),
        sectors_recursive: entries("sectors_recursive"),
        ..Default::default()
    }
}

/// From whoever counts: the scheduler that is in use, else the throttling layer, which on old kernels
/// does not count what is below.
fn blkio_entries(dir: &Path, name: &str) -> Vec<BlkIOEntry> {
    let flat = name.strip_suffix("_recursive").unwrap_or(name);
    let files = [
        format!("blkio.{name}"),
        format!("blkio.bfq.{name}"),
        format!("blkio.throttle.{name}"),
        format!("blkio.throttle.{flat}"),
    ];
    let texts = files.map(|file| text(dir, &file));
    let found = texts.iter().find(|text| parse::blkio(text).next().is_some());
    let entry = |one: parse::Blkio<'_>| BlkIOEntry {
        op: one.op.to_owned(),
        device: device_name(one.device),
        major: one.device.0,
        minor: one.device.1,
        value: one.value,
        ..Default::default()
    };
    found.map(|text| parse::blkio(text).map(entry).collect()).unwrap_or_default()
}

/// `/dev/sda`; empty for a device that has gone.
fn device_name((major, minor): (u64, u64)) -> String {
    let uevent = text(Path::new("/sys/dev/block"), &format!("{major}:{minor}/uevent"));
    let name = uevent.lines().find_map(|line| line.strip_prefix("DEVNAME="));
    name.map(|name| format!("/dev/{name}")).unwrap_or_default()
}

fn hugetlb(dir: &Path) -> Vec<HugetlbStat> {
    let stat = |pagesize: String| HugetlbStat {
        usage: number(dir, &format!("hugetlb.{pagesize}.usage_in_bytes")),
        max: number(dir, &format!("hugetlb.{pagesize}.max_usage_in_bytes")),
        failcnt: number(dir, &format!("hugetlb.{pagesize}.failcnt")),
        pagesize,
        ..Default::default()
    };
    parse::page_sizes(dir, "usage_in_bytes").into_iter().map(stat).collect()
}

super::same_in_both!();

//! The figures of the unified hierarchy.

use std::path::Path;

use containerd_shim_protos::cgroups_v2::metrics::{
    CPUStat, HugeTlbStat, IOEntry, IOStat, MemoryEvents, MemoryStat, Metrics, NetworkStat, PSIData,
    PSIStats, PidsStat, RdmaEntry, RdmaStat,
};
use containerd_shim_protos::protobuf::MessageField;

use super::parse::{self, Flat, number, text};

pub(super) fn metrics(dir: &Path, net_dev: &str) -> Metrics {
    Metrics {
        pids: Some(pids(dir)).into(),
        cpu: Some(cpu(dir)).into(),
        memory: Some(memory(dir)).into(),
        rdma: Some(rdma(dir)).into(),
        io: Some(io(dir)).into(),
        hugetlb: hugetlb(dir),
        memory_events: Some(memory_events(dir)).into(),
        network: network(net_dev),
        ..Default::default()
    }
}

fn pids(dir: &Path) -> PidsStat {
    PidsStat {
        current: number(dir, "pids.current"),
        limit: number(dir, "pids.max"),
        ..Default::default()
    }
}

fn cpu(dir: &Path) -> CPUStat {
    let stat = Flat::read(Some(dir), "cpu.stat");
    CPUStat {
        usage_usec: stat.get("usage_usec"),
        user_usec: stat.get("user_usec"),
        system_usec: stat.get("system_usec"),
        nr_periods: stat.get("nr_periods"),
        nr_throttled: stat.get("nr_throttled"),
        throttled_usec: stat.get("throttled_usec"),
        psi: pressure(dir, "cpu.pressure"),
        nr_bursts: stat.get("nr_bursts"),
        burst_usec: stat.get("burst_usec"),
        ..Default::default()
    }
}

fn memory(dir: &Path) -> MemoryStat {
    let stat = Flat::read(Some(dir), "memory.stat");
    let get = |name| stat.get(name);
    // One count became two with Linux 5.9.
    let both = |name: &str| {
        let parts = ["anon", "file"].map(|part| stat.get(&format!("{name}_{part}")));
        stat.find(name).unwrap_or_else(|| parts.into_iter().fold(0, u64::saturating_add))
    };
    MemoryStat {
        anon: get("anon"),
        file: get("file"),
        kernel_stack: get("kernel_stack"),
        slab: get("slab"),
        sock: get("sock"),
        shmem: get("shmem"),
        file_mapped: get("file_mapped"),
        file_dirty: get("file_dirty"),
        file_writeback: get("file_writeback"),
        anon_thp: get("anon_thp"),
        inactive_anon: get("inactive_anon"),
        active_anon: get("active_anon"),
        inactive_file: get("inactive_file"),
        active_file: get("active_file"),
        unevictable: get("unevictable"),
        slab_reclaimable: get("slab_reclaimable"),
        slab_unreclaimable: get("slab_unreclaimable"),
        pgfault: get("pgfault"),
        pgmajfault: get("pgmajfault"),
        workingset_refault: both("workingset_refault"),
        workingset_activate: both("workingset_activate"),
        workingset_nodereclaim: get("workingset_nodereclaim"),
        pgrefill: get("pgrefill"),
        pgscan: get("pgscan"),
        pgsteal: get("pgsteal"),
        pgactivate: get("pgactivate"),
        pgdeactivate: get("pgdeactivate"),
        pglazyfree: get("pglazyfree"),
        pglazyfreed: get("pglazyfreed"),
        thp_fault_alloc: get("thp_fault_alloc"),
        thp_collapse_alloc: get("thp_collapse_alloc"),
        usage: number(dir, "memory.current"),
        usage_limit: number(dir, "memory.max"),
        swap_usage: number(dir, "memory.swap.current"),
        swap_limit: number(dir, "memory.swap.max"),
        max_usage: number(dir, "memory.peak"),
        swap_max_usage: number(dir, "memory.swap.peak"),
        psi: pressure(dir, "memory.pressure"),
        ..Default::default()
    }
}

fn memory_events(dir: &Path) -> MemoryEvents {
    let events = Flat::read(Some(dir), "memory.events");
    MemoryEvents {
        low: events.get("low"),
        high: events.get("high"),
        max: events.get("max"),
        oom: events.get("oom"),
        oom_kill: events.get("oom_kill"),
        oom_group_kill: events.get("oom_group_kill"),
        ..Default::default()
    }
}

/// None on a kernel that does not count pressure.
fn pressure(dir: &Path, name: &str) -> MessageField<PSIStats> {
    let text = text(dir, name);
    let data = |kind| {
        let found = parse::nested(&text).find(|(name, _)| *name == kind);
        let data = found.map(|(_, keyed)| PSIData {
            avg10: keyed.float("avg10"),
            avg60: keyed.float("avg60"),
            avg300: keyed.float("avg300"),
            total: keyed.get("total"),
            ..Default::default()
        });
        data.into()
    };
    if text.is_empty() {
        return MessageField::none();
    }
    MessageField::some(PSIStats { some: data("some"), full: data("full"), ..Default::default() })
}

fn io(dir: &Path) -> IOStat {
    let text = text(dir, "io.stat");
    let entry = |(name, keyed): (&str, parse::Keyed<'_>)| {
        let (major, minor) = parse::device_of(name)?;
        Some(IOEntry {
            major,
            minor,
            rbytes: keyed.get("rbytes"),
            wbytes: keyed.get("wbytes"),
            rios: keyed.get("rios"),
            wios: keyed.get("wios"),
            ..Default::default()
        })
    };
    IOStat {
        usage: parse::nested(&text).filter_map(entry).collect(),
        psi: pressure(dir, "io.pressure"),
        ..Default::default()
    }
}

fn hugetlb(dir: &Path) -> Vec<HugeTlbStat> {
    let stat = |pagesize: String| HugeTlbStat {
        current: number(dir, &format!("hugetlb.{pagesize}.current")),
        max: number(dir, &format!("hugetlb.{pagesize}.max")),
        failcnt: Flat::read(Some(dir), &format!("hugetlb.{pagesize}.events")).get("max"),
        pagesize,
        ..Default::default()
    };
    parse::page_sizes(dir, "current").into_iter().map(stat).collect()
}

super::same_in_both!();

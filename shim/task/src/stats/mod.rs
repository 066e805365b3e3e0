//! `Stats`: what the kernel counts of a container, as containerd's metrics messages.
//!
//! `io.containerd.cgroups.v1.Metrics` on v1 ([`v1`]), `io.containerd.cgroups.v2.Metrics` on v2
//! ([`v2`]), every field of them that the kernel offers. Inputs: the container's cgroup directories
//! and, for its network, `/proc` of its init. A file that is not there counts as zero, as with the
//! cgroup library of containerd; a limit of `max` is the largest number.
//!
//! Absent: `cgroup_stats` of v1, which are not in files but asked for by netlink.

mod parse;
mod v1;
mod v2;

use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{self, Message as _};

use crate::cgroup::Cgroup;

/// The messages that are the same in both packages, field by field, and yet two types each: what reads
/// them is written once and has the types of the module that it is expanded in.
macro_rules! same_in_both {
    () => {
        fn rdma(dir: &Path) -> RdmaStat {
            let entries = |name| {
                let text = text(dir, name);
                let small = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
                let entry = |(device, keyed): (&str, parse::Keyed<'_>)| RdmaEntry {
                    device: device.to_owned(),
                    hca_handles: small(keyed.get("hca_handle")),
                    hca_objects: small(keyed.get("hca_object")),
                    ..Default::default()
                };
                parse::nested(&text).map(entry).collect()
            };
            RdmaStat {
                current: entries("rdma.current"),
                limit: entries("rdma.max"),
                ..Default::default()
            }
        }

        fn network(net_dev: &str) -> Vec<NetworkStat> {
            let stat = |one: parse::Interface<'_>| {
                let [rx_bytes, rx_packets, rx_errors, rx_dropped] = one.received;
                let [tx_bytes, tx_packets, tx_errors, tx_dropped] = one.sent;
                NetworkStat {
                    name: one.name.to_owned(),
                    rx_bytes,
                    rx_packets,
                    rx_errors,
                    rx_dropped,
                    tx_bytes,
                    tx_packets,
                    tx_errors,
                    tx_dropped,
                    ..Default::default()
                }
            };
            parse::interfaces(net_dev).map(stat).collect()
        }
    };
}
use same_in_both;

const V1_TYPE: &str = "io.containerd.cgroups.v1.Metrics";
const V2_TYPE: &str = "io.containerd.cgroups.v2.Metrics";

/// The figures now. `net_dev` is the text of `/proc/<init>/net/dev`, empty when there is no init.
pub(crate) fn collect(cgroup: &Cgroup, net_dev: &str) -> Result<Any, protobuf::Error> {
    let (type_url, value) = match cgroup.unified() {
        Some(dir) => (V2_TYPE, v2::metrics(dir, net_dev).write_to_bytes()?),
        None => (V1_TYPE, v1::metrics(cgroup, net_dev).write_to_bytes()?),
    };
    Ok(Any { type_url: type_url.to_owned(), value, ..Any::default() })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use containerd_shim_protos::cgroups::metrics as v1;
    use containerd_shim_protos::cgroups_v2::metrics as v2;
    use nimbus_api::runtime::CgroupPaths;

    use super::*;

    const NET_DEV: &str = "Inter-|   Receive                                                |  Transmit\n \
        face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop\n    \
        lo: 100 2 3 4 0 0 0 0 500 6 7 8 0 0 0 0\n  eth0:9 1 0 0 0 0 0 0 8 1 0 0 0 0 0 0\n";

    fn write(dir: &Path, files: &[(&str, &str)]) {
        for (name, text) in files {
            fs::write(dir.join(name), text).unwrap();
        }
    }

    #[test]
    fn a_v2_group_gives_v2_metrics() {
        let dir = tempfile::tempdir().unwrap();
        write(
            dir.path(),
            &[
                ("memory.current", "4096\n"),
                ("memory.max", "max\n"),
                ("memory.stat", "anon 1\nworkingset_refault_anon 2\nworkingset_refault_file 3\n"),
                ("memory.events", "low 1\nhigh 2\nmax 3\noom 4\noom_kill 5\noom_group_kill 6\n"),
                ("memory.pressure", "some avg10=1.50 avg60=0.25 avg300=0.00 total=77\n"),
                ("pids.current", "3\n"),
                ("pids.max", "max\n"),
                ("cpu.stat", "usage_usec 17\nnr_bursts 4\n"),
                ("io.stat", "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6\nnonsense\n"),
                ("rdma.current", "mlx4_0 hca_handle=2 hca_object=2000\n"),
                ("rdma.max", "mlx4_0 hca_handle=max hca_object=7\n"),
                ("hugetlb.2MB.current", "2097152\n"),
                ("hugetlb.2MB.max", "max\n"),
                ("hugetlb.2MB.events", "max 9\n"),
            ],
        );
        let paths = CgroupPaths { unified: Some(dir.path().to_owned()), ..CgroupPaths::default() };
        let any = collect(&Cgroup::new(paths), NET_DEV).unwrap();
        assert_eq!(any.type_url, V2_TYPE);
        let found = v2::Metrics::parse_from_bytes(&any.value).unwrap();
        assert_eq!((found.memory.usage, found.memory.usage_limit), (4096, u64::MAX));
        assert_eq!((found.memory.anon, found.memory.workingset_refault), (1, 5));
        assert_eq!(found.memory.psi.some.avg10.to_bits(), 1.5_f64.to_bits());
        assert_eq!((found.memory.psi.some.total, found.memory.psi.full.total), (77, 0));
        assert_eq!((found.memory_events.low, found.memory_events.oom_group_kill), (1, 6));
        assert_eq!((found.pids.current, found.pids.limit), (3, u64::MAX));
        assert_eq!((found.cpu.usage_usec, found.cpu.nr_bursts), (17, 4));
        let [io] = found.io.usage.as_slice() else { panic!("{:?}", found.io) };
        assert_eq!((io.major, io.minor), (8, 0));
        assert_eq!((io.rbytes, io.wbytes, io.rios, io.wios), (1, 2, 3, 4));
        assert_eq!(found.rdma.current[0].hca_objects, 2000);
        assert_eq!(found.rdma.limit[0].hca_handles, u32::MAX);
        let huge = &found.hugetlb[0];
        assert_eq!((huge.current, huge.max, huge.failcnt), (2_097_152, u64::MAX, 9));
        assert_eq!(huge.pagesize, "2MB");
        assert_eq!(found.network.len(), 2);
    }

    #[test]
    fn counts_that_overflow_together_stay_the_largest_number() {
        let dir = tempfile::tempdir().unwrap();
        let text = format!("workingset_refault_anon {}\nworkingset_refault_file 1\n", u64::MAX);
        write(dir.path(), &[("memory.stat", &text)]);
        let paths = CgroupPaths { unified: Some(dir.path().to_owned()), ..CgroupPaths::default() };
        let any = collect(&Cgroup::new(paths), "").unwrap();
        let found = v2::Metrics::parse_from_bytes(&any.value).unwrap();
        assert_eq!(found.memory.workingset_refault, u64::MAX);
    }

    #[test]
    fn v1_controllers_give_v1_metrics() {
        let dir = tempfile::tempdir().unwrap();
        write(
            dir.path(),
            &[
                ("memory.usage_in_bytes", "4096\n"),
                ("memory.limit_in_bytes", "8192\n"),
                ("memory.memsw.usage_in_bytes", "5000\n"),
                ("memory.kmem.tcp.failcnt", "6\n"),
                ("memory.stat", "pgpgin 7\ntotal_pgpgin 8\nhierarchical_memsw_limit 9\n"),
                ("memory.oom_control", "oom_kill_disable 1\nunder_oom 0\noom_kill 3\n"),
                ("cpuacct.usage", "99\n"),
                ("cpuacct.usage_percpu", "40 59 \n"),
                ("cpuacct.stat", "user 2\nsystem 1\n"),
                ("pids.current", "3\n"),
                ("pids.max", "max\n"),
                ("blkio.throttle.io_serviced_recursive", "8:0 Read 1\n8:0 Total 2\nTotal 2\n"),
                ("blkio.bfq.io_service_bytes_recursive", "8:16 Write 512\n"),
                ("blkio.throttle.io_service_bytes_recursive", "8:16 Write 1\n"),
                ("hugetlb.1GB.usage_in_bytes", "1\n"),
                ("hugetlb.1GB.max_usage_in_bytes", "2\n"),
                ("hugetlb.1GB.failcnt", "3\n"),
            ],
        );
        let mut paths = CgroupPaths::default();
        for name in ["memory", "cpuacct", "pids", "blkio", "hugetlb"] {
            paths.v1.insert(name.to_owned(), dir.path().to_owned());
        }
        let any = collect(&Cgroup::new(paths), NET_DEV).unwrap();
        assert_eq!(any.type_url, V1_TYPE);
        let found = v1::Metrics::parse_from_bytes(&any.value).unwrap();
        assert_eq!((found.memory.usage.usage, found.memory.usage.limit), (4096, 8192));
        assert_eq!((found.memory.swap.usage, found.memory.kernel_tcp.failcnt), (5000, 6));
        assert_eq!((found.memory.pg_pg_in, found.memory.total_pg_pg_in), (7, 8));
        assert_eq!(found.memory.hierarchical_swap_limit, 9);
        let oom = &found.memory_oom_control;
        assert_eq!((oom.oom_kill_disable, oom.under_oom, oom.oom_kill), (1, 0, 3));
        assert_eq!(
            (found.cpu.usage.total, found.cpu.usage.per_cpu.as_slice()),
            (99, &[40, 59][..])
        );
        assert_eq!((found.cpu.usage.user, found.cpu.usage.kernel), (20_000_000, 10_000_000));
        assert_eq!((found.pids.current, found.pids.limit), (3, 0));
        let serviced = &found.blkio.io_serviced_recursive;
        let serviced: Vec<_> = serviced.iter().map(|one| (one.op.as_str(), one.value)).collect();
        assert_eq!(serviced, [("Read", 1), ("Total", 2)], "the sum of all devices is no device's");
        let [bytes] = found.blkio.io_service_bytes_recursive.as_slice() else { panic!("one") };
        assert_eq!((bytes.major, bytes.minor, bytes.value), (8, 16, 512));
        let huge = &found.hugetlb[0];
        assert_eq!((huge.usage, huge.max, huge.failcnt), (1, 2, 3));
        assert_eq!(huge.pagesize, "1GB");
        let lo = &found.network[0];
        assert_eq!(lo.name, "lo");
        assert_eq!((lo.rx_bytes, lo.rx_packets, lo.rx_errors, lo.rx_dropped), (100, 2, 3, 4));
        assert_eq!((lo.tx_bytes, lo.tx_packets, lo.tx_errors, lo.tx_dropped), (500, 6, 7, 8));
        assert_eq!((found.network[1].name.as_str(), found.network[1].rx_bytes), ("eth0", 9));
    }
}

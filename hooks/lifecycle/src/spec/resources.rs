//! Resources: the plan's come from the lease; the specification's may only be smaller or absent.

use nimbus_api::lease::LeasedResources;
use nimbus_api::{Refusal, RefusalCode};

use super::Tightened;
use super::raw::{Cpu, DeviceRule, Memory, Resources};

/// The kernel's usual CPU period, microseconds: what a quota without a period counts in.
const CPU_PERIOD_USEC: u64 = 100_000;
/// Nodes that containerd allows by default, `c MAJOR:MINOR`; no minor is any.
const DEFAULT_NODES: [(i64, Option<i64>); 9] = [
    (1, Some(3)), // null
    (1, Some(5)), // zero
    (1, Some(7)), // full
    (1, Some(8)), // random
    (1, Some(9)), // urandom
    (5, Some(0)), // tty
    (5, Some(1)), // console
    (5, Some(2)), // ptmx
    (136, None),  // pts
];

/// Control files of the unified hierarchy that kubelet sets, with the values that give nothing: no swap,
/// and whether an OOM kill takes one process or all.
const UNIFIED: [(&str, &[&str]); 2] =
    [("memory.oom.group", &["0", "1"]), ("memory.swap.max", &["0"])];

/// Refuses what is more than leased.
pub(crate) fn judge(
    given: Option<&Resources>,
    leased: &LeasedResources,
    tightened: &mut Tightened,
) -> Result<(), Refusal> {
    let none = Resources::default();
    let given = given.unwrap_or(&none);
    for rule in &given.devices {
        check_device(rule)?;
    }
    tightened.note_if(
        given.devices.iter().any(|rule| rule.allow) || given.devices.is_empty(),
        "linux.resources.devices: the lease's",
    );
    check_memory(given.memory.as_ref(), leased, tightened)?;
    check_cpu(given.cpu.as_ref(), leased, tightened)?;
    let pids = given.pids.as_ref().and_then(|pids| pids.limit).unwrap_or(0);
    if exceeds(pids, leased.pids.into()) {
        return Err(beyond("pids.limit", pids));
    }
    tightened
        .note_if(pids <= 0 || below(pids, leased.pids.into()), "linux.resources.pids: the lease's");
    // Raw control files and fabrics that no lease names.
    let files = given.unified.iter().flatten();
    let harmless = |file: &str, value: &str| {
        UNIFIED.iter().any(|(known, values)| *known == file && values.contains(&value))
    };
    if let Some((file, value)) = files.clone().find(|(file, value)| !harmless(file, value)) {
        let found = format!("unified {file:?} is {value:?}");
        return Err(Refusal::with(RefusalCode::SpecResourcesForbidden, found));
    }
    tightened.note_if(files.count() > 0, "linux.resources.unified: not applied, the lease's");
    for (name, present) in [("rdma", given.rdma.is_some()), ("network", given.network.is_some())] {
        if present {
            return Err(Refusal::with(RefusalCode::SpecResourcesForbidden, name));
        }
    }
    let other = given.block_io.is_some() || given.hugepage_limits.is_some();
    tightened.note_if(other, "linux.resources: blockIO and hugepageLimits not applied");
    Ok(())
}

fn check_device(rule: &DeviceRule) -> Result<(), Refusal> {
    let node = |major: i64, minor: Option<i64>| {
        DEFAULT_NODES
            .iter()
            .any(|(known, any)| *known == major && any.is_none_or(|known| minor == Some(known)))
    };
    let known = rule.kind == "c" && rule.major.is_some_and(|major| node(major, rule.minor));
    if !rule.allow || known {
        return Ok(());
    }
    let number = |part: Option<i64>| part.map_or_else(|| "*".to_owned(), |part| part.to_string());
    let found = format!("rule {:?} {}:{}", rule.kind, number(rule.major), number(rule.minor));
    Err(Refusal::with(RefusalCode::DeviceNotLeased, found))
}

fn check_memory(
    given: Option<&Memory>,
    leased: &LeasedResources,
    tightened: &mut Tightened,
) -> Result<(), Refusal> {
    let none = Memory::default();
    let given = given.unwrap_or(&none);
    if given.disable_oom_killer == Some(true) {
        return Err(Refusal::with(RefusalCode::SpecPrivilegeForbidden, "memory.disableOOMKiller"));
    }
    for (name, value) in [
        ("memory.limit", given.limit),
        ("memory.swap", given.swap),
        ("memory.reservation", given.reservation),
    ] {
        let value = value.unwrap_or(0);
        // Below zero is "without a limit", in so many words.
        if value < 0 || exceeds(value, leased.memory_bytes) {
            return Err(beyond(name, value));
        }
    }
    let limit = given.limit.unwrap_or(0);
    tightened.note_if(
        limit == 0 || below(limit, leased.memory_bytes) || given.swappiness.is_some(),
        "linux.resources.memory: the lease's, no swap",
    );
    Ok(())
}

fn check_cpu(
    given: Option<&Cpu>,
    leased: &LeasedResources,
    tightened: &mut Tightened,
) -> Result<(), Refusal> {
    let none = Cpu::default();
    let given = given.unwrap_or(&none);
    let realtime = given.realtime_runtime.is_some_and(|time| time != 0)
        || given.realtime_period.is_some_and(|time| time != 0);
    if realtime {
        return Err(Refusal::with(RefusalCode::SpecPrivilegeForbidden, "cpu.realtimeRuntime"));
    }
    let quota = u128::from(u64::try_from(given.quota.unwrap_or(0)).unwrap_or(0));
    let period = given.period.filter(|period| *period > 0).unwrap_or(CPU_PERIOD_USEC);
    if quota * 1000 > u128::from(leased.cpu_millis) * u128::from(period) {
        let found = format!("cpu.quota {quota} of {period} is more than the lease's");
        return Err(Refusal::with(RefusalCode::SpecResourcesForbidden, found));
    }
    if given.burst.is_some_and(|burst| burst > 0) {
        return Err(Refusal::with(RefusalCode::SpecResourcesForbidden, "cpu.burst"));
    }
    let unset = quota == 0;
    let others = given.shares.is_some()
        || given.idle.is_some()
        || [&given.cpus, &given.mems]
            .iter()
            .any(|set| set.as_ref().is_some_and(|set| !set.is_empty()));
    tightened.note_if(unset || others, "linux.resources.cpu: the lease's");
    Ok(())
}

fn exceeds(value: i64, most: u64) -> bool {
    u64::try_from(value).is_ok_and(|value| value > most)
}

fn below(value: i64, most: u64) -> bool {
    u64::try_from(value).is_ok_and(|value| value < most)
}

fn beyond(name: &str, value: i64) -> Refusal {
    Refusal::with(RefusalCode::SpecResourcesForbidden, format!("{name} is {value}"))
}

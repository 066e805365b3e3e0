//! `update`: other limits for a container that runs, judged by the plan that it was admitted by (rule 2).
//!
//! Input: the plan and the client's OCI LinuxResources as JSON. Output: the resources that the runtime is
//! to set, made field by field, or a refusal. Within the lease a client may move limits up and down; what
//! would be more than the lease gives is refused, what it leaves out stays as it is, and what it sets to
//! "no limit" in a field where clients do so by habit is set to the lease's.
//!
//! Deliberately absent: devices, which no update changes, and raw control files.

use nimbus_api::plan::Plan;
use nimbus_api::{Refusal, RefusalCode};
use serde_json::{Map, Value, json};

use crate::project::{CpuLimits, cpu_limits};
use crate::spec::{Tightened, parse, raw, resources};

/// What a list of processors or memory nodes is written with.
const SET_CHARACTERS: &str = "0123456789,-";
/// Longest such list.
const SET_BYTES_MAX: usize = 4096;

/// Decides about one `Task.Update`. The same plan and resources give the same answer.
pub fn update(plan: &Plan, resources_json: &[u8]) -> Result<Value, Refusal> {
    let given: raw::Resources = parse(resources_json)?;
    resources::judge(Some(&given), &plan.resources, &mut Tightened::default())?;
    let unsupported = [
        ("blockIO", given.block_io.is_some()),
        // The CRI plugin repeats all that it said at Create, where they were not applied either.
        (
            "hugepageLimits",
            plan.pod.is_none() && given.hugepage_limits.is_some_and(|limits| limits != json!([])),
        ),
    ];
    if let Some((name, _)) = unsupported.into_iter().find(|(_, present)| *present) {
        return Err(Refusal::with(RefusalCode::SpecResourcesForbidden, name));
    }
    let leased = cpu_limits(&plan.resources);
    let mut wanted = Map::new();
    let mut put = |name: &str, part: Map<String, Value>| {
        if !part.is_empty() {
            wanted.insert(name.to_owned(), part.into());
        }
    };
    put("memory", given.memory.as_ref().map(memory).unwrap_or_default());
    put("cpu", given.cpu.map_or_else(|| Ok(Map::new()), |wish| cpu(&wish, leased))?);
    if let Some(limit) = given.pids.and_then(|pids| pids.limit) {
        let limit = if limit > 0 { limit.into() } else { plan.resources.pids.into() };
        put("pids", Map::from_iter([("limit".to_owned(), limit)]));
    }
    Ok(wanted.into())
}

/// The judge has let nothing below zero and nothing above the lease pass.
fn memory(given: &raw::Memory) -> Map<String, Value> {
    let mut wanted = Map::new();
    if let Some(limit) = given.limit.filter(|limit| *limit > 0) {
        wanted.insert("limit".to_owned(), limit.into());
        // Memory and swap together: the same number is no swap.
        wanted.insert("swap".to_owned(), limit.into());
    }
    if let Some(reservation) = given.reservation.filter(|reservation| *reservation > 0) {
        wanted.insert("reservation".to_owned(), reservation.into());
    }
    wanted
}

fn cpu(given: &raw::Cpu, leased: CpuLimits) -> Result<Map<String, Value>, Refusal> {
    let mut wanted = Map::new();
    let mut put = |name: &str, value: Value| wanted.insert(name.to_owned(), value);
    let period = given.period.filter(|period| *period > 0);
    if let Some(quota) = given.quota.filter(|quota| *quota > 0) {
        put("quota", quota.into());
        // The judge has counted a quota without a period in the usual one.
        put("period", period.unwrap_or(leased.period).into());
    } else if given.quota.is_some() || period.is_some() {
        put("quota", leased.quota.into());
        put("period", leased.period.into());
    }
    if let Some(shares) = given.shares.filter(|shares| *shares > 0) {
        put("shares", shares.min(leased.shares).into());
    }
    for (name, set) in [("cpus", &given.cpus), ("mems", &given.mems)] {
        if let Some(set) = set.as_ref().filter(|set| !set.is_empty()) {
            let plain =
                set.len() <= SET_BYTES_MAX && set.chars().all(|c| SET_CHARACTERS.contains(c));
            if !plain {
                let found = format!("cpu.{name} is {set:?}");
                return Err(Refusal::with(RefusalCode::SpecMalformed, found));
            }
            put(name, set.clone().into());
        }
    }
    Ok(wanted)
}

//! `asked`: what a container wants to run, and with how much, as its `config.json` says.
//!
//! For whoever claims a lease for it. Reads strictly, judges nothing: [`crate::admit`] compares the
//! specification with the lease that came of it.

use nimbus_api::Refusal;
use nimbus_api::process::ProcessIdentity;

use crate::CPU_MILLIS_MIN;
use crate::spec::{malformed, parse, process, raw};

/// The period of a quota that names none, microseconds.
const PERIOD_USEC: u64 = 100_000;

/// What a container wants. Zero is "as much as there is".
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// What it wants to run.
    pub process: ProcessIdentity,
    /// Thousandths of a core, rounded up.
    pub cpu_millis: u32,
    /// Bytes.
    pub memory_bytes: u64,
    /// Tasks.
    pub pids: u32,
}

/// Reads it.
pub fn asked(config_json: &[u8]) -> Result<Asked, Refusal> {
    let spec: raw::Spec = parse(config_json)?;
    let process = spec.process.ok_or_else(|| malformed("process is missing"))?;
    let resources = spec.linux.and_then(|linux| linux.resources).unwrap_or_default();
    let positive =
        |value: Option<i64>| value.and_then(|value| u64::try_from(value).ok()).unwrap_or(0);
    let cpu = resources.cpu.unwrap_or_default();
    let period = cpu.period.filter(|period| *period > 0).unwrap_or(PERIOD_USEC);
    let millis = u128::from(positive(cpu.quota)).saturating_mul(1000).div_ceil(period.into());
    let millis = u32::try_from(millis).unwrap_or(u32::MAX);
    let pids = positive(resources.pids.and_then(|pids| pids.limit));
    Ok(Asked {
        process: process::identity(&process, &spec.mounts),
        cpu_millis: if millis == 0 { 0 } else { millis.max(CPU_MILLIS_MIN) },
        memory_bytes: positive(resources.memory.and_then(|memory| memory.limit)),
        pids: u32::try_from(pids).unwrap_or(u32::MAX),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(resources: &str) -> Asked {
        let text = format!(
            r#"{{"ociVersion":"1.0.2","process":{{"user":{{"uid":7,"gid":8}},"args":["a"],"cwd":"/"}},
            "linux":{{"resources":{resources}}}}}"#
        );
        asked(text.as_bytes()).unwrap()
    }

    #[test]
    fn what_is_asked_for_is_counted_up_and_what_is_not_is_zero() {
        let some = of(
            r#"{"cpu":{"quota":12345,"period":100000},"memory":{"limit":1048576},"pids":{"limit":9}}"#,
        );
        assert_eq!((some.cpu_millis, some.memory_bytes, some.pids), (124, 1_048_576, 9));
        assert_eq!((some.process.uid, some.process.args.concat().as_str()), (7, "a"));
        let little = of(r#"{"cpu":{"quota":1}}"#);
        assert_eq!(little.cpu_millis, CPU_MILLIS_MIN);
        for none in ["{}", r#"{"cpu":{"quota":-1},"memory":{"limit":-1},"pids":{"limit":0}}"#] {
            let none = of(none);
            assert_eq!((none.cpu_millis, none.memory_bytes, none.pids), (0, 0, 0));
        }
    }
}

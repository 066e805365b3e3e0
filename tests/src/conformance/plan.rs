//! The plan that the stand-in agent makes of a client's specification.

use nimbus_api::Digest;
use nimbus_api::clock::{Clock as _, SystemClock};
use nimbus_api::id::ContainerKey;
use nimbus_api::lease::{LeasedEgress, LeasedResources, ScratchMedium};
use nimbus_api::plan::{
    DeviceKind, DeviceRule, ExecClause, PLAN_VERSION, Plan, PlanImage, PlanLease, PlanSeccomp,
    RootfsRecipe,
};
use nimbus_api::proto::admit::v1::Admit;
use serde_json::Value;

use super::spec::CAPABILITIES;
use crate::Failure;

const MEBI: u64 = 1 << 20;
/// Longer than the lane runs.
const LIFETIME_SECONDS: u64 = 3600;
/// More than any scenario prints: runc keeps all output, and here that is compared.
const LOG_BYTES: u64 = 1 << 30;
const SCRATCH_BYTES: u64 = 64 * MEBI;
/// Terminals that a container may open.
const PTYS: u32 = 16;

/// A filter that allows everything, as the peer has none: `ld nr; ret allow`, native endian.
pub(super) fn filter() -> Vec<u8> {
    let instruction = |code: u16, k: u32| {
        let mut bytes = code.to_ne_bytes().to_vec();
        bytes.extend([0, 0]);
        bytes.extend(k.to_ne_bytes());
        bytes
    };
    [instruction(0x20, 0), instruction(0x06, 0x7fff_0000)].concat()
}

/// Grants what was asked for.
pub(super) fn of(admit: &Admit) -> Result<Plan, Failure> {
    let config: Value = serde_json::from_slice(&admit.config_json)?;
    let (digest, resources) = (Digest::of(&admit.config_json), resources(&config));
    Ok(Plan {
        version: PLAN_VERSION,
        container: ContainerKey { namespace: admit.namespace.parse()?, id: admit.id.parse()? },
        lease: PlanLease {
            lease_id: "l1".parse()?,
            job: "j1".parse()?,
            attempt: 1,
            org: "org".parse()?,
            token_sha256: digest,
        },
        image: PlanImage {
            name: "busybox".to_owned(),
            digest,
            manifest: digest,
            platform: "linux/amd64".to_owned(),
            attestations: Vec::new(),
        },
        rootfs: RootfsRecipe {
            layers: vec![digest],
            digest,
            scratch_bytes: SCRATCH_BYTES,
            scratch: ScratchMedium::Memory,
            read_only: config.pointer("/root/readonly").and_then(Value::as_bool).unwrap_or(false),
        },
        spec: config,
        seccomp: PlanSeccomp {
            profile: "none".to_owned(),
            program_sha256: Digest::of(&filter()),
            instructions: 2,
        },
        devices: devices(),
        resources,
        egress: LeasedEgress::None,
        binds: Vec::new(),
        joins: Vec::new(),
        pod: None,
        exec: ExecClause { capabilities: CAPABILITIES.map(str::to_owned).to_vec() },
        deadline: SystemClock.boottime().plus_seconds(LIFETIME_SECONDS),
        policy_serial: 1,
        tightened: Vec::new(),
    })
}

fn resources(config: &Value) -> LeasedResources {
    let number = |at: &str| config.pointer(at).and_then(Value::as_u64).unwrap_or(0);
    LeasedResources {
        cpu_millis: 1000,
        memory_bytes: number("/linux/resources/memory/limit"),
        pids: u32::try_from(number("/linux/resources/pids/limit")).unwrap_or(u32::MAX),
        scratch_bytes: SCRATCH_BYTES,
        scratch: ScratchMedium::Memory,
        log_bytes: LOG_BYTES,
    }
}

fn devices() -> Vec<DeviceRule> {
    let character = |path: String, major, minor, mode| DeviceRule {
        path,
        kind: DeviceKind::Character,
        major,
        minor,
        writable: true,
        mode,
    };
    let nodes =
        [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9)];
    let nodes = nodes
        .into_iter()
        .chain([("tty", 5, 0)])
        .map(|(name, major, minor)| character(format!("/dev/{name}"), major, minor, Some(0o666)));
    let ptmx = character("/dev/ptmx".to_owned(), 5, 2, None);
    let ptys = (0..PTYS).map(|n| character(format!("/dev/pts/{n}"), 136, n, None));
    nodes.chain([ptmx]).chain(ptys).collect()
}

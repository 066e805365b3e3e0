//! The OCI specification of a job's container: what containerd's own client would make by default,
//! with the job's process and the lease in it. No host path, hook, device or option of ours: what is
//! enforced comes from the plan, not from here.

use nimbus_api::lease::{LEASE_ANNOTATION, LeaseClaims, LeaseToken};
use nimbus_api::process::ProcessIdentity;
use serde_json::{Value, json};

use crate::agent::NAMESPACE;

/// Type URL under which containerd stores a specification.
pub const SPEC_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/Spec";

/// `config.json` for a job under a lease.
pub fn config(
    id: &str,
    process: &ProcessIdentity,
    claims: &LeaseClaims,
    token: &LeaseToken,
) -> Vec<u8> {
    let config = json!({
        "ociVersion": "1.0.2-dev",
        "process": process_part(process, &claims.capabilities),
        "root": {"path": "rootfs"},
        "hostname": id,
        "mounts": mounts(),
        "annotations": {LEASE_ANNOTATION: token.as_str()},
        "linux": {
            "resources": {"devices": [{"allow": false, "access": "rwm"}]},
            "cgroupsPath": format!("/{NAMESPACE}/{id}"),
            "namespaces": (["pid", "ipc", "uts", "mount", "network", "cgroup"]
                .map(|kind| json!({"type": kind}))),
            "maskedPaths": [
                "/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
                "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/sys/firmware",
                "/proc/scsi",
            ],
            "readonlyPaths": [
                "/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger",
            ],
        },
    });
    serde_json::to_vec(&config).unwrap_or_default()
}

fn process_part(process: &ProcessIdentity, capabilities: &[String]) -> Value {
    json!({
        "user": {
            "uid": process.uid,
            "gid": process.gid,
            "additionalGids": process.additional_gids,
        },
        "args": process.args,
        "env": process.env,
        "cwd": process.cwd,
        "capabilities": {
            "bounding": capabilities,
            "effective": capabilities,
            "permitted": capabilities,
        },
        "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
        "noNewPrivileges": true,
    })
}

fn mounts() -> Value {
    let mount = |destination: &str, kind: &str, source: &str, options: &[&str]| json!({"destination": destination, "type": kind, "source": source, "options": options});
    json!([
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]
        ),
        mount(
            "/dev/shm",
            "tmpfs",
            "shm",
            &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]
        ),
        mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
        mount("/run", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;
    use nimbus_api::proto::control::v1::JobSpec;

    #[test]
    fn the_specification_carries_exactly_the_leased_process_and_the_lease() {
        let spec = JobSpec {
            args: vec!["/bin/echo".to_owned(), "a b".to_owned()],
            env: vec!["X=1".to_owned()],
            uid: 7,
            ..JobSpec::default()
        };
        let identity = ProcessIdentity::from(&spec);
        let token = LeaseToken::unchecked("t".to_owned());
        let config = config("j-1", &identity, &testing::claims(), &token);
        assert_eq!(nimbus_hooks::process_identity(&config).unwrap().digest(), identity.digest());
        let found = crate::admit::gather::lease_annotation(&config).unwrap().unwrap();
        assert_eq!(found.as_str(), "t");
    }
}

//! `linux`: propagation, devices, filter, kernel parameters, masks.

use nimbus_api::id::ContainerKey;
use nimbus_api::plan::JoinedNamespace;
use nimbus_api::{Refusal, RefusalCode};

use super::raw::{Linux, Seccomp};
use super::{Bounds, Tightened, is_clean, malformed, namespaces};
use crate::project::masks;

/// Kernel parameters of a namespace of the job's own that nothing outside can feel: kubelet's safe
/// set.
const SYSCTLS: [&str; 10] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    RESERVED_PORTS,
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ping_group_range",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_syncookies",
];
/// The one whose value is a list of ranges.
const RESERVED_PORTS: &str = "net.ipv4.ip_local_reserved_ports";
/// Longest value of one.
const SYSCTL_BYTES_MAX: usize = 32;
/// Most masked or read-only paths that a specification may add.
const PATHS_MAX: usize = 64;

/// What of `linux` is kept besides its plain lists.
#[derive(Debug)]
pub(super) struct Kernel {
    pub(super) cgroups_path: String,
    pub(super) joins: Vec<JoinedNamespace>,
}

pub(super) fn judge(
    linux: &Linux,
    bounds: &Bounds<'_>,
    tightened: &mut Tightened,
) -> Result<Kernel, Refusal> {
    check_privileges(linux)?;
    let joins = namespaces::judge(&linux.namespaces, bounds, tightened)?;
    match linux.rootfs_propagation.as_deref() {
        None | Some("" | "private" | "rprivate" | "unbindable" | "runbindable") => {}
        Some(other) => {
            let found = format!("linux.rootfsPropagation is {other:?}");
            return Err(Refusal::with(RefusalCode::SpecPropagationForbidden, found));
        }
    }
    if let Some(device) = linux.devices.first() {
        let path = device.get("path").and_then(|path| path.as_str()).unwrap_or("without a path");
        return Err(Refusal::with(RefusalCode::DeviceNotLeased, format!("device {path:?}")));
    }
    check_seccomp(linux.seccomp.as_ref(), tightened)?;
    check_sysctls(linux)?;
    check_paths("linux.maskedPaths", &linux.masked_paths, &masks::MASKED, tightened)?;
    check_paths("linux.readonlyPaths", &linux.readonly_paths, &masks::READ_ONLY, tightened)?;
    let labelled = linux.mount_label.as_ref().is_some_and(|label| !label.is_empty());
    tightened.note_if(labelled, "linux.mountLabel: not applied, the lease's containment is");
    let cgroups_path = cgroups_path(linux.cgroups_path.as_deref(), bounds.container, tightened)?;
    Ok(Kernel { cgroups_path, joins })
}

fn check_privileges(linux: &Linux) -> Result<(), Refusal> {
    let present = [
        ("linux.intelRdt", linux.intel_rdt.is_some()),
        ("linux.personality", linux.personality.is_some()),
        ("linux.timeOffsets", linux.time_offsets.is_some()),
        ("linux.netDevices", linux.net_devices.is_some()),
        ("linux.memoryPolicy", linux.memory_policy.is_some()),
        ("linux.uidMappings", !linux.uid_mappings.is_empty()),
        ("linux.gidMappings", !linux.gid_mappings.is_empty()),
    ];
    match present.iter().find(|(_, present)| *present) {
        Some((name, _)) => Err(Refusal::with(RefusalCode::SpecPrivilegeForbidden, name)),
        None => Ok(()),
    }
}

/// Any filter is replaced by the lease's. A listener, or a filter that filters nothing, is a wish
/// to be unconfined.
fn check_seccomp(given: Option<&Seccomp>, tightened: &mut Tightened) -> Result<(), Refusal> {
    let Some(seccomp) = given else {
        tightened.note("linux.seccomp: the lease's profile");
        return Ok(());
    };
    let refuse = |found: &str| Err(Refusal::with(RefusalCode::SpecSeccompForbidden, found));
    let actions = || {
        let rules = seccomp.syscalls.iter().map(|rule| rule.action.as_str());
        rules.chain([seccomp.default_action.as_str()])
    };
    let listener = [&seccomp.listener_path, &seccomp.listener_metadata];
    if listener.iter().any(|text| text.as_ref().is_some_and(|text| !text.is_empty())) {
        return refuse("a listener");
    }
    if actions().any(|action| action == "SCMP_ACT_NOTIFY") {
        return refuse("SCMP_ACT_NOTIFY");
    }
    let permits =
        |action: &str| matches!(action, "SCMP_ACT_ALLOW" | "SCMP_ACT_LOG" | "SCMP_ACT_TRACE");
    if actions().all(permits) {
        return refuse("a filter that denies nothing");
    }
    tightened.note("linux.seccomp: replaced by the lease's profile");
    Ok(())
}

fn check_sysctls(linux: &Linux) -> Result<(), Refusal> {
    for (name, value) in &linux.sysctl {
        let ranges = name == RESERVED_PORTS;
        let plain = |b: u8| {
            b.is_ascii_digit() || matches!(b, b' ' | b'\t') || (ranges && matches!(b, b',' | b'-'))
        };
        let valued =
            !value.is_empty() && value.len() <= SYSCTL_BYTES_MAX && value.bytes().all(plain);
        if !SYSCTLS.contains(&name.as_str()) || !valued {
            let found = format!("{name:?} to {value:?}");
            return Err(Refusal::with(RefusalCode::SpecSysctlForbidden, found));
        }
    }
    Ok(())
}

/// Added paths are kept, when they are the kernel's: one inside the image would be the image's to
/// redirect.
fn check_paths(
    field: &str,
    given: &[String],
    ours: &[&str],
    tightened: &mut Tightened,
) -> Result<(), Refusal> {
    let of_kernel =
        |path: &String| is_clean(path) && (path.starts_with("/proc/") || path.starts_with("/sys/"));
    if let Some(bad) = given.iter().find(|path| !of_kernel(path)) {
        let found = format!("{field} has {bad:?}");
        return Err(Refusal::with(RefusalCode::SpecMountForbidden, found));
    }
    if given.len() > PATHS_MAX {
        let found = format!("{field} has more than {PATHS_MAX} paths");
        return Err(Refusal::with(RefusalCode::SpecMountForbidden, found));
    }
    let complete = ours.iter().all(|path| given.iter().any(|given| given == path));
    tightened.note_if(!complete, &format!("{field}: completed"));
    Ok(())
}

/// The given path when it is this container's own, else one made from its key. A path that ends in
/// another id would put two containers in one cgroup, and killing one would kill both.
fn cgroups_path(
    given: Option<&str>,
    container: &ContainerKey,
    tightened: &mut Tightened,
) -> Result<String, Refusal> {
    let given = given.unwrap_or_default();
    if given.split('/').any(|part| part == "..") || given.contains('\0') {
        return Err(malformed(&format!("linux.cgroupsPath {given:?}")));
    }
    let id = container.id.as_str();
    let parent = given.strip_suffix(id).and_then(|parent| parent.strip_suffix('/'));
    if is_clean(given) && parent.is_some_and(|parent| !parent.is_empty()) {
        return Ok(given.to_owned());
    }
    tightened.note("linux.cgroupsPath: of the container's own");
    // '@' is in no id, so no two keys share a path.
    Ok(format!("/nimbus/{}@{id}", container.namespace))
}

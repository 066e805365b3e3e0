//! Mounts: the given file systems are only judged; those of the projection are of [`STANDARD_MOUNTS`].
//! Binds ([`super::binds`]) are kept beside the projection.

use nimbus_api::plan::{BINDS_MAX, PlanBind};
use nimbus_api::{Refusal, RefusalCode};

use super::raw::Mount;
use super::{Bounds, Tightened, binds};

/// One mount that every job has.
#[derive(Debug)]
pub(crate) struct StandardMount {
    pub(crate) destination: &'static str,
    pub(crate) kind: &'static str,
    pub(crate) source: &'static str,
    pub(crate) options: &'static [&'static str],
}

/// The mounts of every job, in order. `/sys/fs/cgroup` is not among them: no job needs it to run.
pub(crate) const STANDARD_MOUNTS: [StandardMount; 7] = [
    StandardMount {
        destination: "/proc",
        kind: "proc",
        source: "proc",
        options: &["nosuid", "noexec", "nodev"],
    },
    // The only one without nodev: the leased nodes are made in it.
    StandardMount {
        destination: "/dev",
        kind: "tmpfs",
        source: "tmpfs",
        options: &["nosuid", "strictatime", "mode=755", "size=65536k"],
    },
    StandardMount {
        destination: "/dev/pts",
        kind: "devpts",
        source: "devpts",
        options: &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
    },
    StandardMount {
        destination: "/dev/shm",
        kind: "tmpfs",
        source: "shm",
        options: &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"],
    },
    StandardMount {
        destination: "/dev/mqueue",
        kind: "mqueue",
        source: "mqueue",
        options: &["nosuid", "noexec", "nodev"],
    },
    StandardMount {
        destination: "/sys",
        kind: "sysfs",
        source: "sysfs",
        options: &["nosuid", "noexec", "nodev", "ro"],
    },
    StandardMount {
        destination: "/run",
        kind: "tmpfs",
        source: "tmpfs",
        options: &["nosuid", "nodev", "strictatime", "mode=755", "size=65536k"],
    },
];

/// Given by kubelet, allowed, not projected.
const CGROUP: (&str, [&str; 2]) = ("/sys/fs/cgroup", ["cgroup", "cgroup2"]);

/// What containerd copies of the host's where there is no cgroup namespace.
const CGROUP_OPTIONS: [&str; 2] = ["nsdelegate", "memory_recursiveprot"];
/// Options that tighten or say nothing. `rw` is judged by place.
const PLAIN_OPTIONS: [&str; 15] = [
    "nosuid",
    "noexec",
    "nodev",
    "ro",
    "strictatime",
    "relatime",
    "noatime",
    "nodiratime",
    "sync",
    "newinstance",
    "private",
    "rprivate",
    "unbindable",
    "runbindable",
    "defaults",
];
/// `name=value` options of tmpfs and devpts.
const VALUE_OPTIONS: [&str; 7] =
    ["mode", "size", "gid", "uid", "ptmxmode", "nr_inodes", "nr_blocks"];
const PROPAGATING: [&str; 4] = ["shared", "rshared", "slave", "rslave"];

/// Standard mounts that something else may stand in the place of, in a pod.
const REPLACEABLE: [&str; 2] = [SHARED_MEMORY, RUN];
const SHARED_MEMORY: &str = "/dev/shm";
/// The CRI plugin leaves it out: an image's own `/run` is to be seen.
const RUN: &str = "/run";

/// What of the mounts is kept.
#[derive(Debug)]
pub(super) struct Mounted {
    pub(super) standard: Vec<&'static StandardMount>,
    /// In the order that they were given in.
    pub(super) binds: Vec<PlanBind>,
}

pub(super) fn judge(
    mounts: &[Mount],
    bounds: &Bounds<'_>,
    tightened: &mut Tightened,
) -> Result<Mounted, Refusal> {
    let mut seen: Vec<&str> = Vec::new();
    let mut binds: Vec<PlanBind> = Vec::new();
    for mount in mounts {
        check_all(mount)?;
        let bound = |at: &str| binds.iter().any(|bind| bind.destination == at);
        if binds::is_bind(mount) {
            let Some(bind) = binds::judge(mount, bounds, tightened)? else { continue };
            let in_place = REPLACEABLE.contains(&bind.destination.as_str());
            let taken = seen.contains(&bind.destination.as_str()) && !in_place;
            if taken || bound(&bind.destination) {
                return Err(forbidden(mount, "it is there twice"));
            }
            binds.push(bind);
            continue;
        }
        judge_one(mount)?;
        if seen.contains(&mount.destination.as_str()) || bound(&mount.destination) {
            return Err(forbidden(mount, "it is there twice"));
        }
        seen.push(&mount.destination);
    }
    if binds.len() > BINDS_MAX {
        let found = format!("{} binds, at most {BINDS_MAX} are made", binds.len());
        return Err(Refusal::with(RefusalCode::SpecTooLarge, found));
    }
    let pod = bounds.place.pod().is_some();
    let kept = |standard: &&StandardMount| {
        let at = standard.destination;
        let replaced = binds.iter().any(|bind| bind.destination == at);
        !replaced && (!pod || at != RUN || seen.contains(&at))
    };
    let standard: Vec<_> = STANDARD_MOUNTS.iter().filter(kept).collect();
    for one in &standard {
        let given = seen.contains(&one.destination);
        tightened.note_if(!given, &format!("mounts: {}", one.destination));
    }
    Ok(Mounted { standard, binds })
}

/// What no mount may be.
fn check_all(mount: &Mount) -> Result<(), Refusal> {
    if mount.options.iter().any(|option| PROPAGATING.contains(&option.as_str())) {
        let found = format!("mount {:?}", mount.destination);
        return Err(Refusal::with(RefusalCode::SpecPropagationForbidden, found));
    }
    if mount.uid_mappings.is_some() || mount.gid_mappings.is_some() {
        return Err(forbidden(mount, "it maps ids"));
    }
    Ok(())
}

fn judge_one(mount: &Mount) -> Result<(), Refusal> {
    let standard = STANDARD_MOUNTS
        .iter()
        .any(|known| known.destination == mount.destination && known.kind == mount.kind);
    let cgroup = CGROUP.0 == mount.destination && CGROUP.1.contains(&mount.kind.as_str());
    if !standard && !cgroup {
        return Err(forbidden(mount, &format!("of type {:?}", mount.kind)));
    }
    let in_sys = mount.destination.starts_with("/sys");
    for option in &mount.options {
        let known = PLAIN_OPTIONS.contains(&option.as_str())
            || (option == "rw" && !in_sys)
            || (cgroup && CGROUP_OPTIONS.contains(&option.as_str()))
            || option.split_once('=').is_some_and(|(name, _)| VALUE_OPTIONS.contains(&name));
        if !known {
            return Err(forbidden(mount, &format!("with option {option:?}")));
        }
    }
    Ok(())
}

pub(super) fn forbidden(mount: &Mount, why: &str) -> Refusal {
    let found = format!("at {:?}, {why}", mount.destination);
    Refusal::with(RefusalCode::SpecMountForbidden, found)
}

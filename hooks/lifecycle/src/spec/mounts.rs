//! Mounts: the given ones are only judged; those of the projection are [`STANDARD_MOUNTS`].

use nimbus_api::{Refusal, RefusalCode};

use super::Tightened;
use super::raw::Mount;

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

pub(super) fn judge(mounts: &[Mount], tightened: &mut Tightened) -> Result<(), Refusal> {
    let mut seen: Vec<&str> = Vec::new();
    for mount in mounts {
        judge_one(mount)?;
        if seen.contains(&mount.destination.as_str()) {
            return Err(forbidden(mount, "it is there twice"));
        }
        seen.push(&mount.destination);
    }
    for standard in &STANDARD_MOUNTS {
        let given = seen.contains(&standard.destination);
        tightened.note_if(!given, &format!("mounts: {}", standard.destination));
    }
    Ok(())
}

fn judge_one(mount: &Mount) -> Result<(), Refusal> {
    let has = |names: &[&str]| mount.options.iter().any(|option| names.contains(&option.as_str()));
    if has(&PROPAGATING) {
        let found = format!("mount {:?}", mount.destination);
        return Err(Refusal::with(RefusalCode::SpecPropagationForbidden, found));
    }
    if mount.kind == "bind" || has(&["bind", "rbind"]) {
        let found = format!("at {:?}", mount.destination);
        return Err(Refusal::with(RefusalCode::SpecBindForbidden, found));
    }
    if mount.uid_mappings.is_some() || mount.gid_mappings.is_some() {
        return Err(forbidden(mount, "it maps ids"));
    }
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
            || option.split_once('=').is_some_and(|(name, _)| VALUE_OPTIONS.contains(&name));
        if !known {
            return Err(forbidden(mount, &format!("with option {option:?}")));
        }
    }
    Ok(())
}

fn forbidden(mount: &Mount, why: &str) -> Refusal {
    let found = format!("at {:?}, {why}", mount.destination);
    Refusal::with(RefusalCode::SpecMountForbidden, found)
}

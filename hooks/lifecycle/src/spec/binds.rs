//! Binds: what of the host a container of a pod may see. Nobody else may see anything.
//!
//! A source is one that kubelet or the CRI plugin made for this very pod, by its exact place: the
//! sandbox's files, and the volumes that kubelet fills by itself. A volume that names a path of the host
//! (`hostPath`, and `subPath` of whatever volume, which looks the same) has no such place. That a source
//! is no link to elsewhere is seen to by the agent, which opens it.

use nimbus_api::lease::LeasedPod;
use nimbus_api::plan::PlanBind;
use nimbus_api::{Refusal, RefusalCode};

use super::raw::Mount;
use super::{Bounds, Tightened, is_clean, mounts};
use crate::claim::Place;
use crate::facts::PodRoots;
use crate::project;

/// In the CRI plugin's state directory of a sandbox.
const CRI_STATE: [&str; 1] = ["shm"];
/// In the CRI plugin's root directory of a sandbox.
const CRI_ROOT: [&str; 3] = ["hostname", "hosts", "resolv.conf"];
/// Plugins of kubelet whose volumes hold nothing but what is made for the pod.
const VOLUMES: [&str; 5] = [
    "kubernetes.io~configmap",
    "kubernetes.io~downward-api",
    "kubernetes.io~empty-dir",
    "kubernetes.io~projected",
    "kubernetes.io~secret",
];
/// Nothing is bound over these or below them: they are the kernel's.
const KERNELS: [&str; 4] = ["/proc", "/sys", "/dev/pts", "/dev/mqueue"];
/// Nothing is bound over these: the container stands on them.
const GROUND: [&str; 7] =
    ["/dev", "/dev/console", "/dev/core", "/dev/fd", "/dev/stderr", "/dev/stdin", "/dev/stdout"];
const OPTIONS: [&str; 15] = [
    "bind",
    "defaults",
    "noatime",
    "nodev",
    "nodiratime",
    "nosuid",
    "private",
    "rbind",
    "relatime",
    "ro",
    "rprivate",
    "rro",
    "runbindable",
    "rw",
    "unbindable",
];
const READ_ONLY: [&str; 2] = ["ro", "rro"];
/// How a bind says that it is not to travel.
const PRIVATE: [&str; 4] = ["private", "rprivate", "unbindable", "runbindable"];

/// Who made a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Maker {
    Cri,
    Kubelet,
    /// The CRI plugin, for a volume that the image names: a copy of what the client's snapshot has there,
    /// which nobody has measured. It is not used: the container has the directory of the measured root.
    Image,
}

/// Whether a mount is a bind.
pub(super) fn is_bind(mount: &Mount) -> bool {
    mount.kind == "bind" || has(mount, &["bind", "rbind"])
}

/// Whether a mount says that it cannot be written.
pub(super) fn is_read_only(mount: &Mount) -> bool {
    has(mount, &READ_ONLY)
}

pub(super) fn judge(
    mount: &Mount,
    bounds: &Bounds<'_>,
    tightened: &mut Tightened,
) -> Result<Option<PlanBind>, Refusal> {
    let source = mount.source.as_str();
    let Some(maker) = maker(source, bounds) else {
        let found = format!("{source:?} at {:?}", mount.destination);
        return Err(Refusal::with(RefusalCode::SpecBindForbidden, found));
    };
    // Go writes some of them as `/data/`.
    let given = mount.destination.as_str();
    let destination = given.strip_suffix('/').unwrap_or(given);
    if !may_be_covered(destination) {
        return Err(mounts::forbidden(mount, "which nothing is bound over"));
    }
    // What the CRI plugin makes is not to be executed anyway: a tmpfs that is noexec, and plain files.
    let known =
        |option: &str| OPTIONS.contains(&option) || (option == "noexec" && maker == Maker::Cri);
    if let Some(option) = mount.options.iter().find(|option| !known(option)) {
        return Err(mounts::forbidden(mount, &format!("with option {option:?}")));
    }
    if maker == Maker::Image {
        tightened.note("mounts: the image's volumes are of the root file system");
        return Ok(None);
    }
    let closed = has(mount, &["nosuid"]) && has(mount, &["nodev"]) && has(mount, &PRIVATE);
    tightened.note_if(!closed, "mounts: binds nosuid, nodev, private");
    Ok(Some(PlanBind {
        source: source.to_owned(),
        destination: destination.to_owned(),
        read_only: is_read_only(mount),
        recursive: has(mount, &["rbind"]),
    }))
}

fn has(mount: &Mount, names: &[&str]) -> bool {
    mount.options.iter().any(|option| names.contains(&option.as_str()))
}

fn may_be_covered(destination: &str) -> bool {
    let kernels = KERNELS.iter().any(|one| {
        destination.strip_prefix(one).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    });
    let node = || project::devices().iter().any(|node| node.path == destination);
    is_clean(destination) && !kernels && !GROUND.contains(&destination) && !node()
}

fn maker(source: &str, bounds: &Bounds<'_>) -> Option<Maker> {
    let pod = bounds.place.pod().filter(|_| is_clean(source))?;
    if is_of_sandbox(source, pod, bounds.roots) {
        return Some(Maker::Cri);
    }
    if is_of_image(source, bounds) {
        return Some(Maker::Image);
    }
    is_of_kubelet(source, pod, bounds.roots).then_some(Maker::Kubelet)
}

fn is_of_image(source: &str, bounds: &Bounds<'_>) -> bool {
    let root = &bounds.roots.cri_root;
    let dir = format!("{root}/containers/{}/volumes/", bounds.container.id);
    let name = source.strip_prefix(&dir).filter(|name| !name.contains('/'));
    matches!(bounds.place, Place::InPod(..)) && !root.is_empty() && name.is_some()
}

fn is_of_sandbox(source: &str, pod: &LeasedPod, roots: &PodRoots) -> bool {
    let below = |root: &str, names: &[&str]| {
        let dir = format!("{root}/sandboxes/{}/", pod.sandbox);
        !root.is_empty() && source.strip_prefix(&dir).is_some_and(|name| names.contains(&name))
    };
    below(&roots.cri_state, &CRI_STATE) || below(&roots.cri_root, &CRI_ROOT)
}

/// The sandbox itself has nothing of kubelet's.
fn is_of_kubelet(source: &str, pod: &LeasedPod, roots: &PodRoots) -> bool {
    let Some(name) = pod.container.as_deref().filter(|_| !roots.kubelet.is_empty()) else {
        return false;
    };
    let plain = |part: &str| !part.is_empty() && !part.contains('/');
    let inside = source.strip_prefix(&format!("{}/pods/{}/", roots.kubelet, pod.uid));
    let Some(inside) = inside.filter(|_| plain(&pod.uid) && plain(name)) else { return false };
    match inside.split('/').collect::<Vec<_>>().as_slice() {
        ["etc-hosts"] => true,
        // Where it writes what it ended of.
        ["containers", own, _file] => *own == name,
        ["volumes", plugin, _volume] => VOLUMES.contains(plugin),
        _ => false,
    }
}

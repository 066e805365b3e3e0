//! Namespaces: new ones, and in a pod those of its sandbox.
//!
//! A container in a pod may name the namespaces of the sandbox's process, as this node has recorded it,
//! and a sandbox the network that CNI made. Whoever hands them over opens the same paths and compares what
//! they are. Any other path is the host's or another pod's.

use nimbus_api::lease::LeasedEgress;
use nimbus_api::plan::JoinedNamespace;
use nimbus_api::{Refusal, RefusalCode};

use super::raw::{Namespace, NamespaceKind};
use super::{Bounds, Tightened, is_clean, malformed};
use crate::claim::{Place, mismatch};

/// A list without these shares the host's.
const REQUIRED: [(NamespaceKind, &str); 5] = [
    (NamespaceKind::Pid, "pid"),
    (NamespaceKind::Network, "network"),
    (NamespaceKind::Mount, "mount"),
    (NamespaceKind::Ipc, "ipc"),
    (NamespaceKind::Uts, "uts"),
];
/// What containers of a pod may share, in the order of a plan, and its name in procfs.
const SHARED: [(NamespaceKind, JoinedNamespace, &str); 4] = [
    (NamespaceKind::Network, JoinedNamespace::Network, "net"),
    (NamespaceKind::Ipc, JoinedNamespace::Ipc, "ipc"),
    (NamespaceKind::Uts, JoinedNamespace::Uts, "uts"),
    (NamespaceKind::Pid, JoinedNamespace::Pid, "pid"),
];

/// Those that are joined, in the order of a plan.
pub(super) fn judge(
    given: &[Namespace],
    bounds: &Bounds<'_>,
    tightened: &mut Tightened,
) -> Result<Vec<JoinedNamespace>, Refusal> {
    let mut seen: Vec<NamespaceKind> = Vec::new();
    for namespace in given {
        if seen.contains(&namespace.kind) {
            return Err(malformed(&format!("{:?} namespace is there twice", namespace.kind)));
        }
        // Made by us where it can be, never with a client's mapping or offsets.
        if matches!(namespace.kind, NamespaceKind::User | NamespaceKind::Time) {
            let found = format!("a {:?} namespace", namespace.kind);
            return Err(Refusal::with(RefusalCode::SpecPrivilegeForbidden, found));
        }
        if let Some(path) = path(namespace).filter(|path| !may_join(namespace.kind, path, bounds)) {
            let found = format!("{:?} namespace is to be joined at {path:?}", namespace.kind);
            return Err(Refusal::with(RefusalCode::SpecHostNamespace, found));
        }
        seen.push(namespace.kind);
    }
    if let Some((_, name)) = REQUIRED.iter().find(|(kind, _)| !seen.contains(kind)) {
        let found = format!("no {name} namespace of its own");
        return Err(Refusal::with(RefusalCode::SpecHostNamespace, found));
    }
    tightened.note_if(!seen.contains(&NamespaceKind::Cgroup), "linux.namespaces: cgroup");
    let named = |kind| given.iter().any(|one| one.kind == kind && path(one).is_some());
    let network = network(named(NamespaceKind::Network), bounds, tightened)?;
    let joined = |kind| if kind == NamespaceKind::Network { network } else { named(kind) };
    Ok(SHARED.iter().filter(|(kind, ..)| joined(*kind)).map(|(_, joins, _)| *joins).collect())
}

/// Whether a network namespace is joined, which is the lease's to say and not the specification's.
fn network(named: bool, bounds: &Bounds<'_>, tightened: &mut Tightened) -> Result<bool, Refusal> {
    match (bounds.place, &bounds.claims.egress) {
        // Made by the agent, in place of a new one.
        (Place::Alone, LeasedEgress::Allow(_)) => Ok(true),
        (Place::Alone, LeasedEgress::None | LeasedEgress::Pod) => Ok(false),
        (Place::Sandbox(_), LeasedEgress::Pod) | (Place::InPod(..), _) => {
            if named {
                Ok(true)
            } else {
                Err(mismatch("it does not name the network of its pod"))
            }
        }
        (Place::Sandbox(_), LeasedEgress::None | LeasedEgress::Allow(_)) => {
            tightened
                .note_if(named, "linux.namespaces: a network of the pod's own, with nothing in it");
            Ok(false)
        }
    }
}

fn may_join(kind: NamespaceKind, path: &str, bounds: &Bounds<'_>) -> bool {
    match bounds.place {
        Place::Alone => false,
        Place::Sandbox(_) => {
            kind == NamespaceKind::Network
                && is_clean(path)
                && bounds.roots.netns.iter().any(|root| is_name_in(path, root))
        }
        Place::InPod(_, sandbox) => SHARED.iter().any(|(one, _, name)| {
            *one == kind && path == format!("/proc/{}/ns/{name}", sandbox.pid)
        }),
    }
}

fn is_name_in(path: &str, root: &str) -> bool {
    let name = path.strip_prefix(root).and_then(|rest| rest.strip_prefix('/'));
    !root.is_empty() && name.is_some_and(|name| !name.is_empty() && !name.contains('/'))
}

/// What a namespace is to be joined by.
fn path(namespace: &Namespace) -> Option<&str> {
    namespace.path.as_deref().filter(|path| !path.is_empty())
}

/// The network namespace that a specification names.
pub(super) fn network_path(given: &[Namespace]) -> Option<&str> {
    given.iter().find(|one| one.kind == NamespaceKind::Network).and_then(path)
}

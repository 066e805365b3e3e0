//! Which namespaces a container has: new ones, ones that it joins, and the host's for the rest.
//!
//! Those that are joined are opened once, by the process that makes the container, and entered by that
//! descriptor. The mount namespace is always a new one. A plan's specification never names one to join;
//! whether it may have the host's is decided where it is checked. The network namespace of a plan with an
//! allow-list comes as a descriptor and takes the place of the new one that the specification asks for.
#![forbid(unsafe_code)]

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use nimbus_api::RefusalCode;
use nix::sched::CloneFlags;
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::error::{Doing as _, RuntimeError};
use crate::spec::model::{Namespace, NamespaceKind};
use crate::sysctl::Own;

/// The namespaces of one container.
#[derive(Debug)]
pub(crate) struct Namespaces {
    fresh: Vec<NamespaceKind>,
    joined: Vec<(NamespaceKind, OwnedFd)>,
    /// The network namespace among them came with the plan: nobody has been in it before.
    leased: bool,
}

impl Namespaces {
    /// Opens those that are to be joined. `network` is the one that came with the plan.
    pub(crate) fn open(
        wanted: &[Namespace],
        network: Option<OwnedFd>,
    ) -> Result<Self, RuntimeError> {
        let refused = |detail: String| RuntimeError::refused(RefusalCode::RuntimeFailed, detail);
        let mut found = Self { fresh: Vec::new(), joined: Vec::new(), leased: false };
        for one in wanted {
            let twice = found.fresh.contains(&one.kind)
                || found.joined.iter().any(|(kind, _)| *kind == one.kind);
            if twice {
                return Err(refused(format!("there are two namespaces of kind {:?}", one.kind)));
            }
            if one.path.is_empty() {
                found.fresh.push(one.kind);
                continue;
            }
            let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
            let namespace = openat(CWD, one.path.as_str(), flags, Mode::empty())
                .doing(format_args!("open the namespace {}", one.path))?;
            found.joined.push((one.kind, namespace));
        }
        if !found.has_fresh(NamespaceKind::Mount) {
            return Err(refused("a container has a mount namespace of its own".to_owned()));
        }
        if let Some(network) = network {
            let Some(place) = found.fresh.iter().position(|one| *one == NamespaceKind::Network)
            else {
                let detail = "a network came for a container without a network namespace";
                return Err(refused(detail.to_owned()));
            };
            found.fresh.swap_remove(place);
            found.joined.push((NamespaceKind::Network, network));
            found.leased = true;
        }
        Ok(found)
    }

    /// Whether there is a new one of this kind.
    pub(crate) fn has_fresh(&self, kind: NamespaceKind) -> bool {
        self.fresh.contains(&kind)
    }

    /// Whether its network namespace is its own from the beginning, so that its loopback device is down.
    pub(crate) fn has_new_network(&self) -> bool {
        self.leased || self.has_fresh(NamespaceKind::Network)
    }

    /// The network namespace that came with the plan.
    pub(crate) fn leased_network(&self) -> Option<BorrowedFd<'_>> {
        let mut joined = self.joined.iter().filter(|_| self.leased);
        joined.find(|(kind, _)| *kind == NamespaceKind::Network).map(|(_, fd)| fd.as_fd())
    }

    /// Those whose parameters are not the host's.
    pub(crate) fn own(&self) -> Own {
        let has = |kind| self.has_fresh(kind) || self.joined.iter().any(|(one, _)| *one == kind);
        Own {
            ipc: has(NamespaceKind::Ipc),
            network: has(NamespaceKind::Network),
            uts: has(NamespaceKind::Uts),
        }
    }

    /// The flags of those that a process is born in. The cgroup namespace is not among them: its root
    /// is where the process is when it is made, so that comes after the cgroups.
    pub(crate) fn born_in(&self) -> CloneFlags {
        let flag = |kind: &NamespaceKind| match kind {
            NamespaceKind::Pid => CloneFlags::CLONE_NEWPID,
            NamespaceKind::Network => CloneFlags::CLONE_NEWNET,
            NamespaceKind::Mount => CloneFlags::CLONE_NEWNS,
            NamespaceKind::Ipc => CloneFlags::CLONE_NEWIPC,
            NamespaceKind::Uts => CloneFlags::CLONE_NEWUTS,
            NamespaceKind::Cgroup => CloneFlags::empty(),
        };
        self.fresh.iter().map(flag).collect()
    }

    /// Before the process is made: a pid namespace is entered by children only.
    pub(crate) fn enter_for_children(&self) -> Result<(), RuntimeError> {
        self.enter(|kind| kind == NamespaceKind::Pid)
    }

    /// In the process, once it is in its cgroups.
    pub(crate) fn enter_own(&self) -> Result<(), RuntimeError> {
        self.enter(|kind| kind != NamespaceKind::Pid)?;
        if self.has_fresh(NamespaceKind::Cgroup) {
            nix::sched::unshare(CloneFlags::CLONE_NEWCGROUP).doing("make a cgroup namespace")?;
        }
        Ok(())
    }

    fn enter(&self, which: impl Fn(NamespaceKind) -> bool) -> Result<(), RuntimeError> {
        for (kind, namespace) in self.joined.iter().filter(|(kind, _)| which(*kind)) {
            let wanted = match kind {
                NamespaceKind::Pid => LinkNameSpaceType::ProcessID,
                NamespaceKind::Network => LinkNameSpaceType::Network,
                NamespaceKind::Mount => LinkNameSpaceType::Mount,
                NamespaceKind::Ipc => LinkNameSpaceType::InterProcessCommunication,
                NamespaceKind::Uts => LinkNameSpaceType::HostNameAndNISDomainName,
                NamespaceKind::Cgroup => LinkNameSpaceType::ControlGroup,
            };
            move_into_link_name_space(namespace.as_fd(), Some(wanted))
                .doing(format_args!("enter a namespace of kind {kind:?}"))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(json: &str) -> Result<Namespaces, RuntimeError> {
        Namespaces::open(&serde_json::from_str::<Vec<Namespace>>(json).unwrap(), None)
    }

    #[test]
    fn a_mount_namespace_is_always_new_and_no_kind_is_there_twice() {
        assert!(of(r#"[{"type":"pid"}]"#).is_err());
        assert!(of(r#"[{"type":"mount","path":"/proc/self/ns/mnt"}]"#).is_err());
        assert!(of(r#"[{"type":"mount"},{"type":"mount"}]"#).is_err());
        assert!(of(r#"[{"type":"mount"},{"type":"ipc","path":"/no/such"}]"#).is_err());
        let found =
            of(r#"[{"type":"mount"},{"type":"cgroup"},{"type":"uts","path":"/proc/self/ns/uts"}]"#);
        let found = found.unwrap();
        assert_eq!(found.born_in(), CloneFlags::CLONE_NEWNS);
        assert_eq!(found.own(), Own { uts: true, ..Own::default() });
    }

    #[test]
    fn a_leased_network_takes_the_place_of_a_new_one_and_of_no_other() {
        let with = |json: &str| {
            let network = std::fs::File::open("/proc/self/ns/net").unwrap().into();
            Namespaces::open(&serde_json::from_str::<Vec<Namespace>>(json).unwrap(), Some(network))
        };
        let found = with(r#"[{"type":"mount"},{"type":"network"},{"type":"ipc"}]"#).unwrap();
        assert!(found.leased_network().is_some() && found.has_new_network());
        assert_eq!(found.born_in(), CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWIPC);
        assert!(found.own().network);
        assert!(with(r#"[{"type":"mount"}]"#).is_err());
        let joins = r#"[{"type":"mount"},{"type":"network","path":"/proc/self/ns/net"}]"#;
        assert!(with(joins).is_err());
        assert!(of(joins).unwrap().leased_network().is_none());
    }
}

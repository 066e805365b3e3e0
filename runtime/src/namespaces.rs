//! Which namespaces a container has: new ones, ones that it joins, and the host's for the rest.
//!
//! Those that are joined are opened once, by the process that makes the container, and entered by that
//! descriptor. The mount namespace is always a new one. A plan's specification never names one to join;
//! whether it may have the host's is decided where it is checked. What a plan joins comes as descriptors,
//! which are never the host's and take the place of new ones.
#![forbid(unsafe_code)]

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use nimbus_api::RefusalCode;
use nimbus_api::plan::JoinedNamespace;
use nix::sched::CloneFlags;
use rustix::fs::{CWD, Mode, OFlags, fstat, fstatfs, openat, stat};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::error::{Doing as _, RuntimeError};
use crate::spec::model::{Namespace, NamespaceKind};
use crate::sysctl::Own;

/// The namespaces of one container.
#[derive(Debug)]
pub(crate) struct Namespaces {
    fresh: Vec<NamespaceKind>,
    joined: Vec<(NamespaceKind, OwnedFd)>,
    /// Those of them that came with a plan.
    came: Vec<NamespaceKind>,
    /// The network namespace among them was made for this container: nobody has been in it before.
    new_network: bool,
}

/// Namespaces that came with a plan.
#[derive(Debug, Default)]
pub(crate) struct Joins {
    pub(crate) all: Vec<(JoinedNamespace, OwnedFd)>,
    /// Whether nobody has been in the network namespace among them before.
    pub(crate) new_network: bool,
}

/// Magic number of the file system that namespaces are files of.
const NSFS_MAGIC: u64 = 0x6e73_6673;

impl Namespaces {
    /// Opens those that are to be joined; `joins` have come with the plan.
    pub(crate) fn open(wanted: &[Namespace], joins: Joins) -> Result<Self, RuntimeError> {
        let refused = |detail: String| RuntimeError::refused(RefusalCode::RuntimeFailed, detail);
        let mut found = Self {
            fresh: Vec::new(),
            joined: Vec::new(),
            came: Vec::new(),
            new_network: joins.new_network,
        };
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
        for (kind, namespace) in joins.all {
            let kind = kind_of(kind);
            if found.joined.iter().any(|(one, _)| *one == kind) {
                return Err(refused(format!("two namespaces of kind {kind:?} are to be joined")));
            }
            check_foreign(kind, namespace.as_fd())?;
            found.fresh.retain(|one| *one != kind);
            found.joined.push((kind, namespace));
            found.came.push(kind);
        }
        Ok(found)
    }

    /// Whether there is a new one of this kind.
    pub(crate) fn has_fresh(&self, kind: NamespaceKind) -> bool {
        self.fresh.contains(&kind)
    }

    /// Whether its network namespace is its own from the beginning, so that its loopback device is down.
    pub(crate) fn has_new_network(&self) -> bool {
        self.new_network || self.has_fresh(NamespaceKind::Network)
    }

    /// Whether it has the name of somebody who was there before.
    pub(crate) fn is_named(&self) -> bool {
        self.came.contains(&NamespaceKind::Uts)
    }

    /// Those that came with the plan, and their names in procfs.
    pub(crate) fn came(&self) -> impl Iterator<Item = (&'static str, BorrowedFd<'_>)> {
        let joined = self.joined.iter().filter(|(kind, _)| self.came.contains(kind));
        joined.map(|(kind, namespace)| (name(*kind), namespace.as_fd()))
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

const fn kind_of(joined: JoinedNamespace) -> NamespaceKind {
    match joined {
        JoinedNamespace::Network => NamespaceKind::Network,
        JoinedNamespace::Ipc => NamespaceKind::Ipc,
        JoinedNamespace::Uts => NamespaceKind::Uts,
        JoinedNamespace::Pid => NamespaceKind::Pid,
    }
}

/// Its name in procfs.
const fn name(kind: NamespaceKind) -> &'static str {
    match kind {
        NamespaceKind::Pid => "pid",
        NamespaceKind::Network => "net",
        NamespaceKind::Mount => "mnt",
        NamespaceKind::Ipc => "ipc",
        NamespaceKind::Uts => "uts",
        NamespaceKind::Cgroup => "cgroup",
    }
}

/// Before anything is made: what came is a namespace, and not the one that this process is in. Of which
/// kind it is the kernel compares when it is entered, and once more whoever looks at the init process.
fn check_foreign(kind: NamespaceKind, namespace: BorrowedFd<'_>) -> Result<(), RuntimeError> {
    let magic = fstatfs(namespace).doing("look at a namespace that came")?.f_type;
    if u64::try_from(magic) != Ok(NSFS_MAGIC) {
        return Err(RuntimeError::unproven("what came to be joined is no namespace"));
    }
    let found = fstat(namespace).doing("look at a namespace that came")?;
    let own = stat(format!("/proc/self/ns/{}", name(kind))).doing("look at our own namespaces")?;
    if (found.st_dev, found.st_ino) == (own.st_dev, own.st_ino) {
        return Err(RuntimeError::unproven(format!("the {} namespace is the host's", name(kind))));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(json: &str) -> Result<Namespaces, RuntimeError> {
        with(json, Joins::default())
    }

    fn with(json: &str, joins: Joins) -> Result<Namespaces, RuntimeError> {
        Namespaces::open(&serde_json::from_str::<Vec<Namespace>>(json).unwrap(), joins)
    }

    /// A namespace of somebody who is somewhere else, which holds for any kind until it is entered.
    fn elsewhere() -> OwnedFd {
        let made = std::thread::spawn(|| {
            nix::sched::unshare(CloneFlags::CLONE_NEWUTS).unwrap();
            std::fs::File::open("/proc/thread-self/ns/uts").unwrap()
        });
        made.join().unwrap().into()
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
    fn what_came_takes_the_place_of_a_new_one_and_of_no_other() {
        let network =
            |new_network| Joins { all: vec![(JoinedNamespace::Network, elsewhere())], new_network };
        let mine = r#"[{"type":"mount"},{"type":"network"},{"type":"ipc"}]"#;
        let found = with(mine, network(true)).unwrap();
        assert!(found.came().map(|(name, _)| name).eq(["net"]) && found.has_new_network());
        assert_eq!(found.born_in(), CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWIPC);
        assert!(found.own().network && !found.is_named());
        // Of somebody who has brought up its devices.
        assert!(!with(r#"[{"type":"mount"}]"#, network(false)).unwrap().has_new_network());
        let joins = r#"[{"type":"mount"},{"type":"network","path":"/proc/self/ns/net"}]"#;
        assert!(with(joins, network(true)).is_err());
        assert_eq!(of(joins).unwrap().came().count(), 0);
        let all = [JoinedNamespace::Ipc, JoinedNamespace::Uts, JoinedNamespace::Uts];
        let twice = all.map(|kind| (kind, elsewhere())).into();
        assert!(with(mine, Joins { all: twice, new_network: false }).is_err());
    }

    #[test]
    fn what_is_the_hosts_or_no_namespace_is_not_joined() {
        let all = [
            (JoinedNamespace::Network, "net"),
            (JoinedNamespace::Ipc, "ipc"),
            (JoinedNamespace::Uts, "uts"),
            (JoinedNamespace::Pid, "pid"),
        ];
        for (kind, name) in all {
            let refused = |path: &str| {
                let all = vec![(kind, std::fs::File::open(path).unwrap().into())];
                let found = with(r#"[{"type":"mount"}]"#, Joins { all, new_network: false });
                assert_eq!(found.unwrap_err().refusal().code, RefusalCode::RuntimeUnproven);
            };
            refused(&format!("/proc/self/ns/{name}"));
            refused("/etc/passwd");
            refused("/proc/self/ns");
        }
    }
}

//! A pod's sandbox: what identifies its running process, and its namespaces as descriptors.
//!
//! Recorded when the sandbox starts: its pid, the time the kernel started it, and the inodes of its
//! namespaces. Whoever enters one later gets a descriptor that was opened by that pid and has that
//! inode; a process that took the pid over since is another (rule 6).

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use nimbus_api::plan::JoinedNamespace;
use nimbus_api::{Refusal, RefusalCode};
use rustix::fs::{Mode, OFlags, ResolveFlags, fstat, fstatfs, openat2};
use serde::{Deserialize, Serialize};

/// `NSFS_MAGIC` of the kernel's magic.h.
const NSFS_MAGIC: u64 = 0x6e73_6673;
/// Field of `/proc/PID/stat` with the start time, counted behind the program's name (proc(5): 22 - 2).
const START_FIELD: usize = 19;
/// Where CNI's namespaces are; `/var/run` is a link to `/run`.
pub const NETNS_ROOTS: [&str; 2] = ["/var/run/netns", "/run/netns"];

/// The running process of a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Running {
    /// In the host's pid namespace.
    pub pid: u32,
    /// Clock ticks since boot.
    pub start_ticks: u64,
    /// Inode of its network namespace.
    pub network: u64,
    /// Of its IPC namespace.
    pub ipc: u64,
    /// Of its UTS namespace.
    pub uts: u64,
    /// Of its pid namespace.
    pub pid_namespace: u64,
}

impl Running {
    /// As it is now.
    pub fn look(pid: u32) -> Result<Self, Refusal> {
        let inode = |kind: JoinedNamespace| {
            let path = format!("/proc/{pid}/ns/{}", file(kind));
            fs::metadata(&path).map(|found| found.ino()).map_err(|error| gone(pid, &error))
        };
        Ok(Self {
            pid,
            start_ticks: start_ticks(pid)?,
            network: inode(JoinedNamespace::Network)?,
            ipc: inode(JoinedNamespace::Ipc)?,
            uts: inode(JoinedNamespace::Uts)?,
            pid_namespace: inode(JoinedNamespace::Pid)?,
        })
    }

    /// One of its namespaces, to be entered.
    pub fn open(&self, kind: JoinedNamespace) -> Result<OwnedFd, Refusal> {
        let path = format!("/proc/{}/ns/{}", self.pid, file(kind));
        let failed = |error: rustix::io::Errno| gone(self.pid, &error);
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let opened = rustix::fs::open(&path, flags, Mode::empty()).map_err(failed)?;
        let wanted = match kind {
            JoinedNamespace::Network => self.network,
            JoinedNamespace::Ipc => self.ipc,
            JoinedNamespace::Uts => self.uts,
            JoinedNamespace::Pid => self.pid_namespace,
        };
        let found = fstat(&opened).map_err(failed)?.st_ino;
        if found != wanted || start_ticks(self.pid)? != self.start_ticks {
            let found = format!("{path} is of another process than the sandbox");
            return Err(Refusal::with(RefusalCode::PodSandboxMissing, found));
        }
        Ok(opened)
    }
}

/// The network namespace that CNI made for a sandbox, by the path that the specification names.
pub fn open_netns(path: &str) -> Result<OwnedFd, Refusal> {
    let refuse = |why: &dyn std::fmt::Display| {
        let found = format!("network namespace {path:?}: {why}");
        Refusal::with(RefusalCode::SpecHostNamespace, found)
    };
    let name = NETNS_ROOTS.iter().find_map(|root| path.strip_prefix(root)?.strip_prefix('/'));
    let Some(name) = name.filter(|name| !name.is_empty() && !name.contains('/')) else {
        return Err(refuse(&"not where CNI's are"));
    };
    let failed = |error: rustix::io::Errno| refuse(&error);
    let root_flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(Path::new("/run/netns"), root_flags, Mode::empty());
    let inside = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let opened = openat2(root.map_err(failed)?, name, flags, Mode::empty(), inside);
    let opened = opened.map_err(failed)?;
    if u64::try_from(fstatfs(&opened).map_err(failed)?.f_type) != Ok(NSFS_MAGIC) {
        return Err(refuse(&"not a namespace"));
    }
    let own = fs::metadata("/proc/self/ns/net").map_err(|error| refuse(&error))?;
    if fstat(&opened).map_err(failed)?.st_ino == own.ino() {
        return Err(refuse(&"the host's own"));
    }
    Ok(opened)
}

const fn file(kind: JoinedNamespace) -> &'static str {
    match kind {
        JoinedNamespace::Network => "net",
        JoinedNamespace::Ipc => "ipc",
        JoinedNamespace::Uts => "uts",
        JoinedNamespace::Pid => "pid",
    }
}

fn start_ticks(pid: u32) -> Result<u64, Refusal> {
    let text =
        fs::read_to_string(format!("/proc/{pid}/stat")).map_err(|error| gone(pid, &error))?;
    // The program's name may hold spaces and brackets of its own.
    let fields = text.rsplit_once(')').map(|(_, rest)| rest.split_ascii_whitespace());
    let ticks = fields.and_then(|mut fields| fields.nth(START_FIELD)?.parse().ok());
    ticks.ok_or_else(|| gone(pid, &"its start time is not to be read"))
}

fn gone(pid: u32, why: &dyn std::fmt::Display) -> Refusal {
    Refusal::with(RefusalCode::PodSandboxMissing, format!("process {pid}: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const KINDS: [JoinedNamespace; 4] = [
        JoinedNamespace::Network,
        JoinedNamespace::Ipc,
        JoinedNamespace::Uts,
        JoinedNamespace::Pid,
    ];

    #[test]
    fn a_process_is_known_again_and_another_is_not() {
        let own = Running::look(std::process::id()).unwrap();
        for kind in KINDS {
            let inode = fstat(own.open(kind).unwrap()).unwrap().st_ino;
            let path = format!("/proc/self/ns/{}", file(kind));
            assert_eq!(inode, fs::metadata(path).unwrap().ino());
        }
        let later = Running { start_ticks: own.start_ticks + 1, ..own };
        let elsewhere = Running { network: own.network + 1, ..own };
        for other in [later, elsewhere] {
            let refused = other.open(JoinedNamespace::Network).unwrap_err();
            assert_eq!(refused.code, RefusalCode::PodSandboxMissing);
        }
        assert_eq!(Running::look(u32::MAX).unwrap_err().code, RefusalCode::PodSandboxMissing);
    }

    #[test]
    fn only_a_namespace_of_cnis_is_opened() {
        for bad in [
            "",
            "/proc/1/ns/net",
            "/run/netns",
            "/run/netns/",
            "/run/netns/../../proc/self/ns/net",
            "/run/netns/a/b",
            "/run/netns/no-such-namespace",
            "/var/run/netnsx/a",
        ] {
            let refused = open_netns(bad).unwrap_err();
            assert_eq!(refused.code, RefusalCode::SpecHostNamespace, "{bad}");
        }
    }
}

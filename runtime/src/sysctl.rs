//! Kernel parameters of a container's own namespaces, written through a procfs of ours.
//!
//! A write to a path below the container's `/proc` can be sent elsewhere by whoever mounts there first
//! (CVE-2025-52881); the descriptor of a file system that was just made cannot.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

use nimbus_api::RefusalCode;
use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};

use crate::error::{Doing as _, RuntimeError};

/// Parameters that each ipc namespace has for itself, and whole families of such.
const IPC: [&str; 9] = [
    "kernel.msgmax",
    "kernel.msgmnb",
    "kernel.msgmni",
    "kernel.sem",
    "kernel.shmall",
    "kernel.shmmax",
    "kernel.shmmni",
    "kernel.shm_rmid_forced",
    "kernel.auto_msgmni",
];
const IPC_FAMILY: &str = "fs.mqueue.";
const NETWORK_FAMILY: &str = "net.";
const UTS: [&str; 2] = ["kernel.domainname", "kernel.hostname"];

/// Which namespaces are the container's own.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Own {
    pub(crate) ipc: bool,
    pub(crate) network: bool,
    pub(crate) uts: bool,
}

/// Refuses parameters that are not the container's alone.
pub(crate) fn check(wanted: &BTreeMap<String, String>, own: Own) -> Result<(), RuntimeError> {
    for name in wanted.keys() {
        let dotted = dotted(name);
        let its = (own.ipc && (IPC.contains(&dotted.as_str()) || dotted.starts_with(IPC_FAMILY)))
            || (own.network && dotted.starts_with(NETWORK_FAMILY))
            || (own.uts && UTS.contains(&dotted.as_str()));
        if !its || path(name).is_none() {
            let detail = format!("the parameter {name:?} is not the container's own");
            return Err(RuntimeError::refused(RefusalCode::RuntimeFailed, detail));
        }
    }
    Ok(())
}

/// Both spellings are in use.
fn dotted(name: &str) -> String {
    if name.contains('/') {
        name.replace('.', "\0").replace('/', ".").replace('\0', "/")
    } else {
        name.to_owned()
    }
}

/// The file below `sys`; none when a part of it is no plain name.
fn path(name: &str) -> Option<String> {
    let parts: Vec<String> = dotted(name).split('.').map(|part| part.replace('/', ".")).collect();
    let plain = |part: &String| !part.is_empty() && part != "." && part != "..";
    parts.iter().all(plain).then(|| parts.join("/"))
}

/// Writes them. `procfs` is the root of a procfs of the container's own namespaces.
pub(crate) fn write(
    procfs: &OwnedFd,
    wanted: &BTreeMap<String, String>,
) -> Result<(), RuntimeError> {
    let inside = ResolveFlags::BENEATH
        | ResolveFlags::NO_SYMLINKS
        | ResolveFlags::NO_MAGICLINKS
        | ResolveFlags::NO_XDEV;
    for (name, value) in wanted {
        let file = format!("sys/{}", path(name).unwrap_or_default());
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        let opened = openat2(procfs, file.as_str(), flags, Mode::empty(), inside);
        let written = opened.and_then(|file| rustix::io::write(&file, value.as_bytes()));
        written.doing(format_args!("set the kernel parameter {name}"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(name: &str, own: Own) -> bool {
        check(&[(name.to_owned(), "1".to_owned())].into(), own).is_err()
    }

    #[test]
    fn only_parameters_of_own_namespaces_are_let_through() {
        let all = Own { ipc: true, network: true, uts: true };
        for good in [
            "net.ipv4.ip_forward",
            "net/ipv4/conf/eth0.1/forwarding",
            "kernel.shmmax",
            "fs.mqueue.msg_max",
        ] {
            assert!(!refused(good, all), "{good}");
            assert!(refused(good, Own::default()), "{good}");
        }
        for bad in [
            "kernel.core_pattern",
            "vm.swappiness",
            "net...x",
            "net",
            "",
            "net/../kernel/core_pattern",
            "netx.a",
            "kernel.shmmax.x",
        ] {
            assert!(refused(bad, all), "{bad}");
        }
        assert_eq!(
            path("net/ipv4/conf/eth0.1/forwarding").unwrap(),
            "net/ipv4/conf/eth0.1/forwarding"
        );
        assert_eq!(path("net.ipv4.ip_forward").unwrap(), "net/ipv4/ip_forward");
    }
}

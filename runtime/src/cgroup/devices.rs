//! Device rules: the lease's allow-list and nothing else, set by us and proven by trying.
//!
//! libcontainer leaves rules of its own behind (`m` for every node, consoles, tun; in the unified
//! hierarchy none at all). Once it has made the nodes of the job's `/dev`, its rules are all replaced
//! and the kernel's list is read back, or a program of ours is attached. Then this process enters
//! the cgroup and opens a node that was not leased: only EPERM will do.
//!
//! Deliberately absent: `m`. Nobody in a container makes device nodes.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nimbus_api::plan::{DeviceKind, DeviceRule};
use nimbus_api::runtime::CgroupPaths;
use rustix::fs::{FileType, Mode, OFlags, makedev, mknodat, openat, unlinkat};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount,
    fsopen,
};

use super::guard::{join, own_path};
use super::hierarchy::Hierarchies;
use super::program::program;
use crate::error::{Doing as _, RuntimeError};
use crate::sys::bpf;

/// NVIDIA's major: its nodes tell a denial (EPERM) from a missing driver (ENXIO).
const PROBE_MAJOR: u32 = 195;
/// The minor that is tried first; then those below, until one is not leased.
const PROBE_MINOR: u32 = 254;
/// The node that every lease names and every kernel has.
const NULL: (DeviceKind, u32, u32) = (DeviceKind::Character, 1, 3);

type Node = (char, u32, u32);

/// What the kernel is to list, as it writes it: one entry a device, permissions joined.
fn listed(rules: &[DeviceRule]) -> BTreeSet<String> {
    let mut merged: BTreeMap<Node, bool> = BTreeMap::new();
    for rule in rules {
        let writable = merged.entry((letter(rule.kind), rule.major, rule.minor)).or_default();
        *writable |= rule.writable;
    }
    let line = |((kind, major, minor), writable): (Node, bool)| {
        format!("{kind} {major}:{minor} {}", if writable { "rw" } else { "r" })
    };
    merged.into_iter().map(line).collect()
}

const fn letter(kind: DeviceKind) -> char {
    match kind {
        DeviceKind::Character => 'c',
        DeviceKind::Block => 'b',
    }
}

/// Replaces all rules by the lease's and proves them.
pub(crate) fn enforce(
    hosts: &Hierarchies,
    paths: &CgroupPaths,
    rules: &[DeviceRule],
) -> Result<(), RuntimeError> {
    if let (Some(hierarchy), Some(dir)) = (hosts.v1.get("devices"), paths.v1.get("devices")) {
        replace(dir, rules)?;
        return prove(hierarchy, dir, rules);
    }
    if let (Some(hierarchy), Some(dir)) = (&hosts.unified, &paths.unified) {
        let cgroup = fs::File::open(dir).doing("open the cgroup")?;
        let program = bpf::load_device(&program(rules)).doing("load the device program")?;
        bpf::attach_device(&program, &cgroup).doing("attach the device program")?;
        return prove(hierarchy, dir, rules);
    }
    Err(RuntimeError::unproven("this host cannot limit devices"))
}

fn replace(dir: &Path, rules: &[DeviceRule]) -> Result<(), RuntimeError> {
    let wanted = listed(rules);
    fs::write(dir.join("devices.deny"), "a").doing("deny all devices")?;
    for line in &wanted {
        fs::write(dir.join("devices.allow"), line).doing(format_args!("allow device {line}"))?;
    }
    let found = fs::read_to_string(dir.join("devices.list")).doing("read the device list")?;
    let found: BTreeSet<String> = found.lines().map(str::to_owned).collect();
    if found != wanted {
        let detail = format!("device list is {found:?}, leased are {wanted:?}");
        return Err(RuntimeError::unproven(detail));
    }
    Ok(())
}

/// Enters the cgroup, tries, and goes back. This process is single-threaded and about to end, so
/// that no other process is needed for it.
fn prove(hierarchy: &Path, dir: &Path, rules: &[DeviceRule]) -> Result<(), RuntimeError> {
    let has = |kind: DeviceKind, major: u32, minor: u32| {
        rules.iter().any(|rule| (rule.kind, rule.major, rule.minor) == (kind, major, minor))
    };
    let minor = (0..=PROBE_MINOR).rev().find(|m| !has(DeviceKind::Character, PROBE_MAJOR, *m));
    let Some(minor) = minor else {
        return Err(RuntimeError::unproven("every node that could be tried is leased"));
    };
    let place = node_place().doing("make a place for a device node")?;
    make(&place, "denied", PROBE_MAJOR, minor).doing("make a device node to be denied")?;
    make(&place, "null", NULL.1, NULL.2).doing("make a device node to be allowed")?;
    let before = hierarchy.join(own_path(hierarchy).doing("read our own cgroup")?);
    join(dir).doing("enter the device cgroup")?;
    let denied = open(&place, "denied");
    let null = open(&place, "null");
    join(&before).doing("leave the device cgroup")?;
    if denied != Err(rustix::io::Errno::PERM) {
        let detail = format!("opening device {PROBE_MAJOR}:{minor} gave {denied:?}, not EPERM");
        return Err(RuntimeError::unproven(detail));
    }
    if has(NULL.0, NULL.1, NULL.2) && null.is_err() {
        return Err(RuntimeError::unproven(format!("opening device 1:3 gave {null:?}")));
    }
    Ok(())
}

/// A file system that nobody else sees and in which device nodes work.
fn node_place() -> rustix::io::Result<OwnedFd> {
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(context.as_fd(), "size", "16k")?;
    fsconfig_set_string(context.as_fd(), "mode", "0700")?;
    fsconfig_create(context.as_fd())?;
    fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::MOUNT_ATTR_NOEXEC)
}

fn make(place: &OwnedFd, name: &str, major: u32, minor: u32) -> rustix::io::Result<()> {
    let mode = Mode::RUSR | Mode::WUSR;
    mknodat(place, name, FileType::CharacterDevice, mode, makedev(major, minor))
}

fn open(place: &OwnedFd, name: &str) -> rustix::io::Result<()> {
    let opened = openat(place, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).map(drop);
    unlinkat(place, name, rustix::fs::AtFlags::empty()).unwrap_or_default();
    opened
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(kind: DeviceKind, minor: u32, writable: bool) -> DeviceRule {
        DeviceRule { path: "/dev/x".into(), kind, major: 1, minor, writable, mode: None }
    }

    #[test]
    fn rules_are_listed_once_with_their_permissions_joined_and_never_m() {
        let rules = [
            rule(DeviceKind::Character, 3, false),
            rule(DeviceKind::Character, 3, true),
            rule(DeviceKind::Block, 3, false),
        ];
        let wanted: BTreeSet<String> = ["c 1:3 rw".to_owned(), "b 1:3 r".to_owned()].into();
        assert_eq!(listed(&rules), wanted);
    }

    /// The unified hierarchy, of which this host may have only the mount beside v1 ones: that is
    /// enough for device programs. Moves this process, so there is one such test.
    #[test]
    fn a_program_denies_what_is_not_leased_and_more_than_is() {
        let hosts = Hierarchies::of_this_host().unwrap();
        let root = hosts.unified.clone().unwrap();
        let dir = root.join(format!("nimbus-test-devices-{}", std::process::id()));
        fs::create_dir(&dir).unwrap();
        let only = Hierarchies { v1: BTreeMap::new(), ..hosts };
        let paths = CgroupPaths { unified: Some(dir.clone()), ..CgroupPaths::default() };
        let rules = [rule(DeviceKind::Character, 3, true), rule(DeviceKind::Character, 5, false)];
        let enforced = enforce(&only, &paths, &rules);
        let before = root.join(own_path(&root).unwrap());
        let place = node_place().unwrap();
        make(&place, "zero", 1, 5).unwrap();
        make(&place, "full", 1, 7).unwrap();
        join(&dir).unwrap();
        let write = openat(&place, "zero", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()).err();
        let read = open(&place, "zero");
        let other = open(&place, "full");
        let node = make(&place, "null", 1, 3);
        join(&before).unwrap();
        // The last process leaves the list a moment before the cgroup can go.
        super::super::end::remove(&[&dir]).unwrap();
        enforced.unwrap();
        assert_eq!(write, Some(rustix::io::Errno::PERM));
        assert_eq!(read, Ok(()));
        assert_eq!(other, Err(rustix::io::Errno::PERM));
        assert_eq!(node, Err(rustix::io::Errno::PERM));
    }
}

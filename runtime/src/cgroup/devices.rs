//! Device rules: the lease's allow-list and nothing else, set by us and proven by trying.
//!
//! All rules of a fresh cgroup are replaced and the kernel's list is read back, or a program of ours is
//! attached. Then the process that is to be the container's init, once it is in the cgroup and while
//! it is root still, opens a node that was not leased: only EPERM will do.
//!
//! Deliberately absent: `m`. Nobody in a container makes device nodes. Rules that a specification
//! lists are for the development command line ([`set_listed`]).
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use nimbus_api::plan::{DeviceKind, DeviceRule};
use nimbus_api::runtime::CgroupPaths;

use super::program::{self, Access};
use crate::error::{Doing as _, RuntimeError};
use crate::mounts::kit::{Kit, NULL_DEVICE};
use crate::spec::model::DeviceAccess;
use crate::sys::bpf::{self, Instruction};

/// NVIDIA's major: its nodes tell a denial (EPERM) from a missing driver (ENXIO).
const PROBE_MAJOR: u32 = 195;
/// The minor that is tried first; then those below, until one is not leased.
const PROBE_MINOR: u32 = 254;
/// What every container may use on the development command line, as runc has it: making nodes, the
/// harmless ones, terminals.
const USUAL: [&str; 11] = [
    "c *:* m",
    "b *:* m",
    "c 1:3 rwm",
    "c 1:5 rwm",
    "c 1:7 rwm",
    "c 1:8 rwm",
    "c 1:9 rwm",
    "c 5:0 rwm",
    "c 5:1 rwm",
    "c 5:2 rwm",
    "c 136:* rwm",
];

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

/// A device that was not leased, so that it must be denied.
pub(crate) fn not_leased(rules: &[DeviceRule]) -> Result<(u32, u32), RuntimeError> {
    let has = |minor: u32| has(rules, (PROBE_MAJOR, minor));
    let minor = (0..=PROBE_MINOR).rev().find(|minor| !has(*minor));
    let minor = minor.ok_or_else(|| RuntimeError::unproven("all that could be tried is leased"))?;
    Ok((PROBE_MAJOR, minor))
}

fn has(rules: &[DeviceRule], (major, minor): (u32, u32)) -> bool {
    let same = |rule: &DeviceRule| {
        (rule.kind, rule.major, rule.minor) == (DeviceKind::Character, major, minor)
    };
    rules.iter().any(same)
}

/// Replaces all rules of a cgroup by the lease's.
pub(crate) fn set(paths: &CgroupPaths, rules: &[DeviceRule]) -> Result<(), RuntimeError> {
    if let Some(dir) = paths.v1.get("devices") {
        return replace(dir, rules);
    }
    attach(paths, &program::leased(rules))
}

fn attach(paths: &CgroupPaths, program: &[Instruction]) -> Result<(), RuntimeError> {
    let Some(dir) = &paths.unified else {
        return Err(RuntimeError::unproven("this host cannot limit devices"));
    };
    let cgroup = fs::File::open(dir).doing("open the cgroup")?;
    let program = bpf::load_device(program).doing("load the device program")?;
    bpf::attach_device(&program, &cgroup).doing("attach the device program")
}

/// Adds the rules of a specification, in order, and then those that every container has.
pub(crate) fn set_listed(paths: &CgroupPaths, rules: &[DeviceAccess]) -> Result<(), RuntimeError> {
    let wished = rules.iter().map(|rule| (rule.allow, spell(rule)));
    let usual = USUAL.iter().map(|line| (true, (*line).to_owned()));
    let all: Vec<(bool, String)> = wished.chain(usual).collect();
    if let Some(dir) = paths.v1.get("devices") {
        for (allow, line) in &all {
            let file = if *allow { "devices.allow" } else { "devices.deny" };
            fs::write(dir.join(file), line).doing(format_args!("write {line:?} to {file}"))?;
        }
        return Ok(());
    }
    if rules.is_empty() {
        return Ok(());
    }
    let accesses: Option<Vec<Access>> =
        all.iter().map(|(allow, line)| Access::parse(*allow, line)).collect();
    let accesses = accesses.ok_or_else(|| std::io::Error::other("unexpected form"));
    attach(paths, &program::listed(&accesses.doing("understand a device rule")?))
}

/// As the kernel spells a rule; everything that is left out means all.
fn spell(rule: &DeviceAccess) -> String {
    let number = |value: Option<i64>| match value {
        Some(value) if value >= 0 => value.to_string(),
        _ => "*".to_owned(),
    };
    let kind = rule.kind.as_deref().filter(|kind| !kind.is_empty()).unwrap_or("a");
    let access = rule.access.as_deref().filter(|access| !access.is_empty()).unwrap_or("rwm");
    format!("{kind} {}:{} {access}", number(rule.major), number(rule.minor))
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

/// Tries, in the cgroup and with root's powers.
pub(crate) fn prove(kit: &Kit, rules: &[DeviceRule]) -> Result<(), RuntimeError> {
    let (denied, null) = kit.try_devices();
    if denied != Err(rustix::io::Errno::PERM) {
        let detail = format!("opening a device that is not leased gave {denied:?}, not EPERM");
        return Err(RuntimeError::unproven(detail));
    }
    if has(rules, NULL_DEVICE) && null.is_err() {
        return Err(RuntimeError::unproven(format!("opening the null device gave {null:?}")));
    }
    Ok(())
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

    fn access(allow: bool, kind: &str, major: Option<i64>, access: &str) -> DeviceAccess {
        let text = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
        DeviceAccess { allow, kind: text(kind), major, minor: None, access: text(access) }
    }

    #[test]
    fn what_a_listed_rule_leaves_out_means_all() {
        assert_eq!(spell(&access(false, "", None, "")), "a *:* rwm");
        assert_eq!(spell(&access(true, "c", Some(10), "rw")), "c 10:* rw");
    }

    /// The unified hierarchy, of which this host may have only the mount beside v1 ones: that is
    /// enough for device programs. Moves this process, so there is one such test.
    #[test]
    fn a_program_denies_what_is_not_leased_and_more_than_is() {
        use super::super::guard::{join, own_path};
        use super::super::hierarchy::Hierarchies;
        let root = Hierarchies::of_this_host().unwrap().unified.unwrap();
        let dir = root.join(format!("nimbus-test-devices-{}", std::process::id()));
        let other = root.join(format!("nimbus-test-listed-{}", std::process::id()));
        fs::create_dir(&dir).unwrap();
        fs::create_dir(&other).unwrap();
        let paths =
            |dir: &Path| CgroupPaths { unified: Some(dir.into()), ..CgroupPaths::default() };
        let rules = [rule(DeviceKind::Character, 3, true), rule(DeviceKind::Character, 5, false)];
        let set = set(&paths(&dir), &rules);
        let rules_listed = [access(false, "", None, ""), access(true, "c", Some(1), "w")];
        let listed = set_listed(&paths(&other), &rules_listed);
        let kit = Kit::make(Some(not_leased(&rules).unwrap())).unwrap();
        let before = root.join(own_path(&root).unwrap());
        // Where systemd has mounted it, /dev/shm takes no nodes.
        let place = tempfile::tempdir_in("/dev").unwrap();
        let node = |name: &str, minor: u32| {
            let (kind, device) =
                (rustix::fs::FileType::CharacterDevice, rustix::fs::makedev(1, minor));
            let path = place.path().join(name);
            rustix::fs::mknodat(rustix::fs::CWD, path, kind, 0o600.into(), device)
        };
        let open = |name: &str, write: bool| {
            let mut options = fs::OpenOptions::new();
            let path = place.path().join(name);
            options
                .read(!write)
                .write(write)
                .open(path)
                .err()
                .and_then(|error| error.raw_os_error())
        };
        node("zero", 5).unwrap();
        node("full", 7).unwrap();
        node("port", 4).unwrap();
        join(&dir).unwrap();
        let proven = prove(&kit, &rules);
        let found = [open("zero", true), open("zero", false), open("full", false)];
        let made = node("null", 3);
        join(&other).unwrap();
        let by_list = [open("zero", false), open("port", true), open("port", false)];
        let made_by_list = node("null", 3);
        let not_proven = prove(&Kit::make(Some((1, 5))).unwrap(), &rules);
        join(&before).unwrap();
        // The last process leaves the list a moment before the cgroup can go.
        super::super::end::remove(&[&dir, &other]).unwrap();
        set.unwrap();
        listed.unwrap();
        proven.unwrap();
        assert_eq!(found, [Some(libc::EPERM), None, Some(libc::EPERM)]);
        assert_eq!(made, Err(rustix::io::Errno::PERM));
        // Allowed, where there is no such driver.
        assert_eq!(by_list, [None, Some(libc::ENXIO), Some(libc::EPERM)]);
        assert_eq!(made_by_list, Ok(()));
        assert!(not_proven.is_err(), "a device that is allowed was proven to be denied");
    }
}

//! Proof, from outside and before Start, that the init process is contained as the plan says.
//!
//! Input: `status`, `cgroup`, `ns` and `mountinfo` of `/proc/<pid>` of the host, never anything that the
//! container can write. A field that is missing proves nothing, so it refuses.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read as _};
use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;
use std::path::Path;

use nimbus_api::runtime::CgroupPaths;
use rustix::fs::{Mode, OFlags, openat};
use serde_json::{Value, json};

use crate::cgroup::guard::find;
use crate::cgroup::hierarchy::Hierarchies;
use crate::error::{Doing as _, RuntimeError};
use crate::mounts::handed::Handed;
use crate::process::credentials::mask;

/// Capability sets by their field in `status` and their name in a specification.
const SETS: [(&str, &str); 5] = [
    ("CapBnd", "bounding"),
    ("CapPrm", "permitted"),
    ("CapEff", "effective"),
    ("CapInh", "inheritable"),
    ("CapAmb", "ambient"),
];
const SECCOMP_FILTER: u64 = 2;
/// Longest file of procfs that is read; what is cut off proves nothing.
const PROCFS_BYTES_MAX: u64 = 1 << 20;

/// Numbers of a `status` file.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Status(String);

impl Status {
    fn field(&self, name: &str, radix: u32) -> Result<u64, RuntimeError> {
        let line = self.0.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        let parsed = line.and_then(|text| u64::from_str_radix(text.trim(), radix).ok());
        parsed.ok_or_else(|| RuntimeError::unproven(format!("the kernel does not tell {name}")))
    }

    fn number(&self, name: &str) -> Result<u64, RuntimeError> {
        self.field(name, 10)
    }
}

/// An init process of which everything has been proven. Only [`init`] makes one, and Create returns
/// nothing else, so no container is answered for without its proofs.
#[derive(Debug)]
pub(crate) struct Proven {
    pid: i32,
}

impl Proven {
    /// The init process.
    pub(crate) const fn pid(&self) -> i32 {
        self.pid
    }
}

/// Proves an init process: its cgroups first, then itself.
pub(crate) fn init(
    pid: i32,
    spec: &Value,
    filtered: bool,
    hosts: &Hierarchies,
    cgroup: &CgroupPaths,
) -> Result<Proven, RuntimeError> {
    let view = View::of_this_host()?;
    membership(&view, pid, hosts, cgroup)?;
    process(&view, pid, spec, filtered)?;
    Ok(Proven { pid })
}

/// Proves that the init process is in the namespaces that came with the plan, and that none of them is
/// the host's. `came` has their names in procfs.
pub(crate) fn namespaces<'a>(
    pid: i32,
    came: impl Iterator<Item = (&'static str, BorrowedFd<'a>)>,
) -> Result<(), RuntimeError> {
    for (name, namespace) in came {
        let of = |pid: &str| {
            let found = rustix::fs::stat(format!("/proc/{pid}/ns/{name}"));
            found.map(|found| (found.st_dev, found.st_ino)).doing("look at a namespace")
        };
        let wanted = rustix::fs::fstat(namespace).doing("look at a namespace that came")?;
        let wanted = (wanted.st_dev, wanted.st_ino);
        if wanted == of("self")? {
            return Err(RuntimeError::unproven(format!("the {name} namespace is the host's")));
        }
        if of(&pid.to_string())? != wanted {
            let detail = format!("the init process is in another {name} namespace");
            return Err(RuntimeError::unproven(detail));
        }
    }
    Ok(())
}

/// Proves that what the init process sees of the host's is closed: each mount that came with the plan,
/// and all that is mounted below it.
pub(crate) fn binds(pid: i32, binds: &[Handed]) -> Result<(), RuntimeError> {
    if binds.is_empty() {
        return Ok(());
    }
    let wanted: Vec<_> = binds.iter().map(|bind| (bind.id, bind.wanted.read_only)).collect();
    check_binds(&View::of_this_host()?.read(pid, "mountinfo")?, &wanted)
}

/// One line of a `mountinfo`.
#[derive(Debug, Clone, Copy)]
struct Mounted<'a> {
    id: u64,
    parent: u64,
    options: &'a str,
    travels: bool,
}

impl<'a> Mounted<'a> {
    fn read(line: &'a str) -> Option<Self> {
        let mut fields = line.split(' ');
        let id = fields.next()?.parse().ok()?;
        let parent = fields.next()?.parse().ok()?;
        let options = fields.nth(3)?;
        // Up to a dash: what the mount is a peer or a slave of.
        let mut tags = fields.take_while(|field| *field != "-");
        let travels = tags.any(|tag| tag != "unbindable");
        Some(Self { id, parent, options, travels })
    }

    fn has(&self, option: &str) -> bool {
        self.options.split(',').any(|one| one == option)
    }
}

/// `wanted` are the kernel's numbers of mounts, and whether they must be read-only.
fn check_binds(mountinfo: &str, wanted: &[(u64, bool)]) -> Result<(), RuntimeError> {
    let unproven = |detail: String| Err(RuntimeError::unproven(detail));
    let mut table = BTreeMap::new();
    for line in mountinfo.lines() {
        let Some(mount) = Mounted::read(line) else {
            return unproven(format!("a line of mountinfo is {line:?}"));
        };
        table.insert(mount.id, mount);
    }
    if let Some((id, _)) = wanted.iter().find(|(id, _)| !table.contains_key(id)) {
        return unproven(format!("the init process does not see mount {id}"));
    }
    for mount in table.values() {
        let Some(read_only) = bind_above(&table, mount.id, wanted) else { continue };
        let closed = mount.has("nosuid") && mount.has("nodev") && !mount.travels;
        if !closed || (read_only && !mount.has("ro")) {
            return unproven(format!("mount {} of the host's is {:?}", mount.id, mount.options));
        }
    }
    Ok(())
}

/// Whether the nearest of the wanted mounts, at or above this one, is read-only; none when it is below
/// none of them.
fn bind_above(
    table: &BTreeMap<u64, Mounted<'_>>,
    mut id: u64,
    wanted: &[(u64, bool)],
) -> Option<bool> {
    // As many steps as there are mounts: a table that goes round ends too.
    for _step in 0..=table.len() {
        if let Some((_, read_only)) = wanted.iter().find(|(one, _)| *one == id) {
            return Some(*read_only);
        }
        id = table.get(&id)?.parent;
    }
    None
}

/// Checks capabilities, no_new_privs and, when `filtered`, that there is one filter more than this
/// process is under itself.
fn process(view: &View, pid: i32, spec: &Value, filtered: bool) -> Result<(), RuntimeError> {
    check(&Status(view.read(pid, "status")?), &view.own, spec, filtered)
}

fn check(init: &Status, own: &Status, spec: &Value, filtered: bool) -> Result<(), RuntimeError> {
    if init.number("NoNewPrivs")? != 1 {
        return Err(RuntimeError::unproven("NoNewPrivs is not 1"));
    }
    if filtered {
        let (mode, filters) = (init.number("Seccomp")?, init.number("Seccomp_filters")?);
        let wanted = own.number("Seccomp_filters")? + 1;
        if mode != SECCOMP_FILTER || filters != wanted {
            let detail =
                format!("Seccomp is {mode} with {filters} filters, expected 2 with {wanted}");
            return Err(RuntimeError::unproven(detail));
        }
    }
    for (field, set) in SETS {
        let allowed = allowed(spec, set)?;
        let found = init.field(field, 16)?;
        if found & !allowed != 0 {
            let detail = format!("{field} is {found:x}, allowed are {allowed:x}");
            return Err(RuntimeError::unproven(detail));
        }
    }
    Ok(())
}

/// Whether these two `status` texts prove an init process under a filter.
#[cfg(feature = "fuzzing")]
pub(crate) fn proves(init: &str, own: &str, spec: &Value) -> bool {
    check(&Status(init.to_owned()), &Status(own.to_owned()), spec, true).is_ok()
}

fn allowed(spec: &Value, set: &str) -> Result<u64, RuntimeError> {
    let names = spec.pointer("/process/capabilities").and_then(|sets| sets.get(set));
    let names = names.and_then(Value::as_array).into_iter().flatten();
    mask(names.map(|name| name.as_str().unwrap_or_default()))
}

/// The host's procfs, and what it says of this process, taken while that is what `/proc` means.
#[derive(Debug)]
pub(crate) struct View {
    procfs: OwnedFd,
    own: Status,
}

impl View {
    /// Takes it.
    pub(crate) fn of_this_host() -> Result<Self, RuntimeError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let procfs = rustix::fs::open("/proc", flags, Mode::empty()).doing("open /proc")?;
        let own = fs::read_to_string("/proc/self/status").doing("read our own status")?;
        Ok(Self { procfs, own: Status(own) })
    }

    fn read(&self, pid: i32, file: &str) -> Result<String, RuntimeError> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let opened = openat(&self.procfs, format!("{pid}/{file}"), flags, Mode::empty());
        let read = opened.map_err(io::Error::from).and_then(|file| {
            let mut text = String::new();
            fs::File::from(file).take(PROCFS_BYTES_MAX).read_to_string(&mut text).map(|_| text)
        });
        read.doing(format_args!("read the process's {file}"))
    }
}

/// Proves one more process of a container, which waits to execute its program: likewise.
pub(crate) fn one_more(
    view: &View,
    pid: i32,
    capabilities: &[String],
    filtered: bool,
) -> Result<(), RuntimeError> {
    let sets = json!({
        "bounding": capabilities, "permitted": capabilities, "effective": capabilities,
    });
    process(view, pid, &json!({"process": {"capabilities": sets}}), filtered)
}

/// Checks that the process is in each of the container's cgroups.
pub(crate) fn membership(
    view: &View,
    pid: i32,
    hosts: &Hierarchies,
    paths: &CgroupPaths,
) -> Result<(), RuntimeError> {
    let text = view.read(pid, "cgroup")?;
    let wanted =
        paths.v1.iter().filter_map(|(name, dir)| Some((name.as_str(), hosts.v1.get(name)?, dir)));
    let unified = paths.unified.iter().zip(&hosts.unified).map(|(dir, root)| ("", root, dir));
    for (name, root, dir) in wanted.chain(unified) {
        let found = find(&text, name).map(|path| root.join(path));
        if found.as_deref() != Some(Path::new(dir)) {
            let detail = format!("the init process is in {found:?}, not in {}", dir.display());
            return Err(RuntimeError::unproven(detail));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use nimbus_api::RefusalCode;
    use proptest::prelude::*;

    const INIT: &str = "NoNewPrivs:\t1\nSeccomp:\t2\nSeccomp_filters:\t1\nCapInh:\t0\nCapPrm:\t21\nCapEff:\t21\nCapBnd:\t21\nCapAmb:\t0\n";
    const OWN: &str = "Seccomp_filters:\t0\n";

    fn proven(init: &str, own: &str) -> bool {
        let caps = json!(["CAP_CHOWN", "CAP_KILL"]);
        let spec = json!({"process": {"capabilities":
            {"bounding": caps, "permitted": caps, "effective": caps}}});
        check(&Status(init.to_owned()), &Status(own.to_owned()), &spec, true).is_ok()
    }

    #[test]
    fn each_part_that_is_missing_or_weaker_refuses() {
        assert!(proven(INIT, OWN));
        for (part, weaker) in [
            ("NoNewPrivs:\t1", "NoNewPrivs:\t0"),
            ("Seccomp:\t2", "Seccomp:\t0"),
            ("Seccomp:\t2", "Seccomp:\t1"),
            ("Seccomp_filters:\t1", "Seccomp_filters:\t0"),
            ("CapInh:\t0", "CapInh:\t1"),
            ("CapPrm:\t21", "CapPrm:\t23"),
            ("CapEff:\t21", "CapEff:\t61"),
            ("CapBnd:\t21", "CapBnd:\t1ffffffffff"),
            ("CapAmb:\t0", "CapAmb:\t20"),
        ] {
            assert!(!proven(&INIT.replace(part, weaker), OWN), "{weaker}");
            assert!(!proven(&INIT.replace(part, ""), OWN), "without {part}");
        }
        assert!(!proven(INIT, "Seccomp_filters:\t1\n"));
    }

    const MOUNTS: &str = "\
10 1 0:20 / / rw,nosuid,nodev - overlay overlay rw
20 10 0:30 / /proc rw - proc proc rw
30 10 8:1 /a /data ro,nosuid,nodev,relatime - ext4 /dev/sda rw
31 30 0:40 / /data/below ro,nosuid,nodev - tmpfs tmpfs rw
32 31 8:1 /b /data/below/mine rw,nosuid,nodev - ext4 /dev/sda rw
33 10 8:1 /c /an\\040odd\\040name rw,nosuid,nodev unbindable - ext4 /dev/sda rw
";

    #[test]
    fn a_mount_of_the_hosts_is_proven_only_when_it_and_all_below_are_closed() {
        let wanted = [(30, true), (32, false), (33, false)];
        let proven = |text: &str| check_binds(text, &wanted).is_ok();
        assert!(proven(MOUNTS));
        for (part, weaker) in [
            ("/data ro,", "/data rw,"),
            ("/data ro,nosuid,nodev", "/data ro,nosuid"),
            ("/data ro,nosuid,nodev", "/data ro,nodev"),
            ("/data/below ro,", "/data/below rw,"),
            ("/data/below ro,nosuid,nodev", "/data/below ro,nosuid"),
            ("/data/below/mine rw,nosuid,nodev", "/data/below/mine rw,nodev"),
            ("relatime - ext4", "relatime shared:7 - ext4"),
            ("relatime - ext4", "relatime master:7 - ext4"),
            ("unbindable - ext4", "unbindable shared:7 - ext4"),
            ("33 10 8:1", "34 10 8:1"),
            ("33 10 8:1", "x 10 8:1"),
            ("33 10 8:1", "33"),
        ] {
            assert!(!proven(&MOUNTS.replace(part, weaker)), "{weaker}");
        }
        assert!(!proven("") && check_binds("", &[]).is_ok());
        // Goes round, and ends.
        assert!(check_binds("1 2 0:1 / / rw - x x rw\n2 1 0:1 / / rw - x x rw\n", &[]).is_ok());
    }

    proptest! {
        #[test]
        fn no_table_panics_the_reader_or_proves_what_is_not_in_it(
            text in "([0-9]{1,2} ?|/|r[ow]|nosuid|,|nodev|-| |\n|é){0,40}", id in 100_u64..,
        ) {
            drop(check_binds(&text, &[]));
            prop_assert!(check_binds(&text, &[(id, false)]).is_err());
        }
    }

    /// A process of ours that waits, with no_new_privs or without.
    struct Waiting(std::process::Child);

    impl Waiting {
        fn start(no_new_privs: bool) -> Self {
            let mut command = std::process::Command::new("setpriv");
            if no_new_privs {
                command.arg("--no-new-privs");
            }
            let mut child = command.args(["/bin/sleep", "60"]).spawn().unwrap();
            let path = format!("/proc/{}/comm", child.id());
            while fs::read_to_string(&path).unwrap() != "sleep\n" {
                assert_eq!(child.try_wait().unwrap(), None, "setpriv ended");
                std::thread::yield_now();
            }
            Self(child)
        }

        fn pid(&self) -> i32 {
            i32::try_from(self.0.id()).unwrap()
        }
    }

    impl Drop for Waiting {
        fn drop(&mut self) {
            self.0.kill().unwrap();
            self.0.wait().unwrap();
        }
    }

    /// Where this process is, which its children are too.
    fn own_cgroups(hosts: &Hierarchies) -> CgroupPaths {
        let text = fs::read_to_string("/proc/self/cgroup").unwrap();
        let place = |name: &str, root: &Path| root.join(find(&text, name).unwrap());
        CgroupPaths {
            unified: hosts.unified.as_ref().map(|root| place("", root)),
            v1: hosts.v1.iter().map(|(name, root)| (name.clone(), place(name, root))).collect(),
        }
    }

    #[test]
    fn a_process_is_proven_only_where_and_as_it_must_be() {
        let hosts = Hierarchies::of_this_host().unwrap();
        let all: Vec<_> = caps::all().iter().map(ToString::to_string).collect();
        let sets: serde_json::Map<_, _> =
            SETS.iter().map(|(_, set)| ((*set).to_owned(), json!(all))).collect();
        let spec = json!({"process": {"capabilities": sets}});
        let here = own_cgroups(&hosts);
        let good = Waiting::start(true);
        assert_eq!(init(good.pid(), &spec, false, &hosts, &here).unwrap().pid(), good.pid());

        let mut elsewhere = here.clone();
        for dir in elsewhere.v1.values_mut().chain(elsewhere.unified.as_mut()) {
            dir.push("nimbus-nobody");
        }
        let refused = |result: Result<Proven, RuntimeError>| {
            assert_eq!(result.unwrap_err().refusal().code, RefusalCode::RuntimeUnproven);
        };
        refused(init(good.pid(), &spec, false, &hosts, &elsewhere));
        refused(init(good.pid(), &spec, true, &hosts, &here));
        refused(init(good.pid(), &json!({}), false, &hosts, &here));
        let loose = Waiting::start(false);
        refused(init(loose.pid(), &spec, false, &hosts, &here));
    }
}

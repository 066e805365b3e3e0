//! What the kernel writes: texts that are lawful in ways nobody has seen yet, and names in them that
//! tenants choose.

use std::fs;
use std::path::{Component, Path};
use std::sync::OnceLock;

use nimbus_runtime::fuzzing as runtime;
use nimbus_shim::fuzzing as shim;
use serde_json::{Value, json};
use tempfile::TempDir;

/// Where the directory of cgroup files is made; on a disk each input would wait for it.
const MEMORY: &str = "/dev/shm";
/// The files of either layout that are read; the first byte of an input chooses.
const FILES: [&str; 24] = [
    "memory.current",
    "memory.max",
    "memory.stat",
    "memory.events",
    "memory.pressure",
    "memory.oom_control",
    "memory.usage_in_bytes",
    "memory.memsw.limit_in_bytes",
    "pids.current",
    "pids.max",
    "cpu.stat",
    "cpu.pressure",
    "cpuacct.usage",
    "cpuacct.usage_percpu",
    "cpuacct.stat",
    "io.stat",
    "io.pressure",
    "blkio.throttle.io_serviced_recursive",
    "rdma.current",
    "rdma.max",
    "hugetlb.2MB.current",
    "hugetlb.2MB.events",
    "hugetlb.1GB.usage_in_bytes",
    "cgroup.procs",
];

/// Whatever a cgroup's files say, both layouts end in metrics; whatever a mount table and a
/// `cgroupsPath` say, a container's directories are inside a hierarchy, below its root.
///
/// Input: the file's number, then its text; the text is the mount table too, its first line the path.
pub fn cgroup(data: &[u8]) {
    let Some((which, text)) = data.split_first() else { return };
    let name = FILES.get(usize::from(*which) % FILES.len()).expect("a remainder");
    let dir = directory();
    let file = dir.join(name);
    fs::write(&file, text).expect("memory");
    for unified in [false, true] {
        assert!(shim::metrics(dir, unified, "").is_some(), "no metrics of {name}");
    }
    fs::remove_file(&file).expect("memory");

    let text = String::from_utf8_lossy(text);
    let (path, mountinfo) = text.split_once('\n').unwrap_or((&text, ""));
    let Some((paths, guards)) = runtime::cgroup_paths(mountinfo, path) else { return };
    let all = paths.v1.values().chain(&paths.unified).chain(&guards);
    for place in all {
        assert!(place.starts_with("/sys/fs/cgroup"), "{}", place.display());
        let back = |part: Component<'_>| matches!(part, Component::ParentDir);
        let climbs = place.components().any(back);
        assert!(!climbs, "{}", place.display());
    }
}

/// Whatever a process's files in `/proc` say: no panic; a name cannot shift the fields behind it, and
/// nothing is proven that is not told.
///
/// Input: `stat`, `status`, `cgroup` and `net/dev`, all the same text.
pub fn procfs(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let start = runtime::start_time(&text);
    // The name is between the first and the last bracket, and the tenant's to choose.
    if let (Some(open), Some(close)) = (text.find('('), text.rfind(')'))
        && let (Some(before), Some(after)) = (text.get(..=open), text.get(close..))
        && open < close
    {
        for name in ["", "x", ") R 1 1 1 0", "a\n) ("] {
            let renamed = format!("{before}{name}{after}");
            assert_eq!(runtime::start_time(&renamed), start, "renamed to {name:?}");
        }
    }
    let own = "Seccomp_filters:\t0\n";
    if runtime::proves(&text, own, spec()) {
        for told in ["NoNewPrivs:", "Seccomp:", "Seccomp_filters:", "CapBnd:", "CapEff:"] {
            assert!(text.contains(told), "proven without {told}");
        }
        assert!(!runtime::proves(&text, "Seccomp_filters:\t1\n", spec()));
    }
    for controller in ["memory", "cpu,cpuacct", "unified", ""] {
        if let Some(path) = runtime::cgroup_of(&text, controller) {
            assert!(!path.is_absolute(), "{}", path.display());
        }
    }
    assert!(shim::metrics(Path::new("/nonexistent"), true, &text).is_some());
    let _number = shim::flat(&text, "oom_kill");
}

fn spec() -> &'static Value {
    static SPEC: OnceLock<Value> = OnceLock::new();
    SPEC.get_or_init(|| {
        let set = json!(["CAP_CHOWN", "CAP_KILL"]);
        json!({"process": {"capabilities": {"bounding": set, "permitted": set, "effective": set}}})
    })
}

/// One of this process's own.
fn directory() -> &'static Path {
    static DIR: OnceLock<TempDir> = OnceLock::new();
    DIR.get_or_init(|| {
        tempfile::Builder::new().prefix("nimbus-fuzz-").tempdir_in(MEMORY).expect("memory")
    })
    .path()
}

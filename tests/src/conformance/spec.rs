//! The specification that both runtimes get, byte for byte the same but for the id in it.

use std::path::{Path, PathBuf};
use std::{fs, os::unix::fs as unix};

use nimbus_forge::image::BUSYBOX_PATHS;
use serde_json::{Value, json};

use crate::Failure;
use crate::ctr::Said;

/// Parent of the containers' cgroups.
pub(super) const CGROUP_PARENT: &str = "nimbus-conformance";
/// What the containers may do, and processes that are added to them.
pub(super) const CAPABILITIES: [&str; 5] =
    ["CAP_CHOWN", "CAP_KILL", "CAP_SETUID", "CAP_SETGID", "CAP_NET_BIND_SERVICE"];
/// Memory of a container, bytes.
pub(super) const MEMORY_BYTES: u64 = 64 << 20;
/// Processes of a container.
pub(super) const PIDS: u32 = 64;

/// `/bin/sh -c script`.
pub(super) fn shell(script: &str) -> Value {
    process(&["/bin/sh", "-c", script])
}

/// Sets a field, by JSON pointer; without its parent nothing is set.
pub(super) fn set(value: &mut Value, at: &str, new: Value) {
    let (parent, name) = at.rsplit_once('/').unwrap_or_default();
    if let Some(parent) = value.pointer_mut(parent).and_then(Value::as_object_mut) {
        parent.insert(name.to_owned(), new);
    }
}

/// An OCI process.
pub(super) fn process(args: &[&str]) -> Value {
    json!({
        "user": {"uid": 0, "gid": 0},
        "args": args,
        "env": ["PATH=/bin", "HOME=/root"],
        "cwd": "/",
        "capabilities": {
            "bounding": CAPABILITIES, "effective": CAPABILITIES, "permitted": CAPABILITIES},
        "noNewPrivileges": true
    })
}

/// The specification of a container of this process.
pub(super) fn specification(id: &str, process: &Value) -> Value {
    let mount = |at: &str, kind: &str, options: &[&str]| json!({"destination": at, "type": kind, "source": kind, "options": options});
    let namespaces = ["pid", "ipc", "uts", "mount", "network"].map(|kind| json!({"type": kind}));
    json!({
        "ociVersion": "1.0.2",
        "process": process,
        "root": {"path": "rootfs"},
        "hostname": "job",
        "mounts": [
            mount("/proc", "proc", &["nosuid", "noexec", "nodev"]),
            mount("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
            mount("/dev/pts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
            mount("/dev/shm", "tmpfs", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
            mount("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
            mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"])],
        "linux": {
            "cgroupsPath": format!("/{CGROUP_PARENT}/{id}"),
            "namespaces": namespaces,
            "resources": {
                "memory": {"limit": MEMORY_BYTES, "swap": MEMORY_BYTES},
                "cpu": {"quota": 100_000, "period": 100_000},
                "pids": {"limit": PIDS}},
            "maskedPaths": ["/proc/kcore"],
            "readonlyPaths": ["/proc/sys"],
            "rootfsPropagation": "private"
        }
    })
}

/// A root with a busybox and all its applets.
pub(super) fn layer(dir: &Path) -> Result<PathBuf, Failure> {
    let root = dir.join("layer");
    for name in ["bin", "dev", "etc", "proc", "root", "sys", "tmp"] {
        fs::create_dir_all(root.join(name))?;
    }
    let passwd = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/tmp:/bin/sh\n";
    fs::write(root.join("etc/passwd"), passwd)?;
    fs::write(root.join("etc/group"), "root:x:0:\nnogroup:x:65534:\n")?;
    let busybox = BUSYBOX_PATHS.iter().find(|path| Path::new(path).is_file());
    let busybox = busybox.ok_or_else(|| Failure::new("no busybox: cargo xtask setup"))?;
    let program = root.join("bin/busybox");
    fs::write(&program, fs::read(busybox)?)?;
    fs::set_permissions(&program, unix::PermissionsExt::from_mode(0o755))?;
    let applets = Said::by(std::process::Command::new(busybox).arg("--list"))?.good()?;
    for applet in applets.lines().filter(|applet| *applet != "busybox") {
        unix::symlink("busybox", root.join("bin").join(applet))?;
    }
    Ok(root)
}

//! OCI bundles of `busybox true`, as containerd's own client specifies them with `--seccomp`.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use nimbus_forge::image::BUSYBOX_PATHS;
use serde_json::{Value, json};

use crate::ctr::Ctr;
use crate::{Failure, containerd, ensure};

/// A root filesystem with a static busybox.
pub(super) fn rootfs(dir: &Path) -> Result<PathBuf, Failure> {
    let root = dir.join("rootfs");
    for name in ["bin", "dev", "proc", "sys", "run", "tmp", "etc"] {
        fs::create_dir_all(root.join(name))?;
    }
    let busybox = BUSYBOX_PATHS.iter().find_map(|path| fs::read(path).ok());
    let busybox = busybox.ok_or_else(|| Failure::new("no busybox: cargo xtask setup"))?;
    for name in ["busybox", "true", "sleep", "sh"] {
        let program = root.join("bin").join(name);
        fs::write(&program, &busybox)?;
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
    }
    Ok(root)
}

/// The specification that containerd's client makes for `/bin/true` in this root, with its default
/// seccomp profile.
pub(super) fn specification(dir: &Path, root: &Path) -> Result<Value, Failure> {
    // No container is started under it, so no programs of ours are needed.
    let containerd = containerd::start(dir, dir, &dir.join("containerd.log"), None)?;
    let ctr = Ctr::new(&dir.join(containerd::SOCKET), dir);
    let root = root.display().to_string();
    ctr.ask(&["containers", "create", "--seccomp", "--rootfs", &root, "bench", "/bin/true"])?
        .good()?;
    let spec = ctr.spec("bench")?;
    ctr.ask(&["containers", "rm", "bench"])?.good()?;
    containerd.terminate()?;
    ensure!(spec.pointer("/linux/seccomp/syscalls").is_some(), "no seccomp profile in {spec}");
    Ok(spec)
}

/// A bundle of this specification for one container.
pub(super) fn write(dir: &Path, spec: &Value, root: &Path, id: &str) -> Result<PathBuf, Failure> {
    let bundle = dir.join("bundles").join(id);
    fs::create_dir_all(&bundle)?;
    let mut spec = spec.clone();
    if let Some(spec) = spec.as_object_mut() {
        spec.insert("root".to_owned(), json!({"path": root, "readonly": true}));
    }
    if let Some(linux) = spec.pointer_mut("/linux").and_then(Value::as_object_mut) {
        linux.insert("cgroupsPath".to_owned(), json!(format!("/nimbus-bench/{id}")));
    }
    fs::write(bundle.join("config.json"), spec.to_string())?;
    Ok(bundle)
}

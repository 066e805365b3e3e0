//! The programs that are measured beside each other through the OCI command line, in one private mount
//! namespace.
//!
//! crun refuses hosts with hybrid cgroups; so all run where the empty unified hierarchy is not mounted.
//! That takes nothing from us but what the hierarchy would give: there, processes are killed and forked
//! by its means.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nimbus_api::lease::SECCOMP_DEFAULT;
use nix::mount::{MntFlags, umount2};
use serde_json::{Value, json};

use super::bundle;
use crate::ctr::{NAMESPACE, version_line};
use crate::failure::During as _;
use crate::wait::until;
use crate::{Failure, Outcome, ensure};

/// Where the empty v2 hierarchy of a hybrid host is.
pub(super) const UNIFIED: &str = "/sys/fs/cgroup/unified";

/// One program, its bundle and its state.
pub(super) struct Contestant {
    pub(super) name: &'static str,
    program: PathBuf,
    root: PathBuf,
    /// One for each container that is there at the same time: its cgroup is in it.
    bundles: Vec<PathBuf>,
    filter: Option<PathBuf>,
    pub(super) samples: Vec<f64>,
}

impl Contestant {
    pub(super) fn command(&self, verb: &str) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--root").arg(&self.root).arg(verb);
        // What a container keeps open must not be a pipe that somebody reads to its end.
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::inherit());
        command
    }

    /// The verb, with the filter for the one that takes it compiled.
    pub(super) fn filtered(&self, verb: &str) -> Command {
        let mut command = self.command(verb);
        if let Some(filter) = &self.filter {
            command.arg("--seccomp-bpf").arg(filter);
        }
        command
    }

    /// Creates and starts a container in one of the places that containers have at the same time.
    pub(super) fn start(&self, id: &str, place: usize) -> Outcome {
        let bundle = self.bundles.get(place).ok_or_else(|| Failure::new("no such place"))?;
        let created = self.filtered("create").arg("--bundle").arg(bundle).arg(id).status()?;
        let started = self.command("start").arg(id).status()?;
        ensure!(created.success() && started.success(), "{}: {created}, {started}", self.name);
        Ok(())
    }

    /// Deletes a container once it has ended.
    pub(super) fn delete(&self, id: &str) -> Outcome {
        let mut delete = self.command("delete");
        delete.arg(id).stderr(Stdio::null());
        until("the container to be deleted", || Ok(delete.status()?.success().then_some(())))
    }

    /// The program and its version.
    pub(super) fn version(&self) -> Result<String, Failure> {
        version_line(&self.program)
    }
}

/// Ours first, then crun and runc, each with a bundle that runs `args` with containerd's default
/// seccomp profile, in this many places.
pub(super) fn all(
    dir: &Path,
    bin_dir: &Path,
    args: &[&str],
    places: usize,
) -> Result<Vec<Contestant>, Failure> {
    let root = bundle::rootfs(dir)?;
    let mut spec = bundle::specification(dir, &root)?;
    if let Some(process) = spec.pointer_mut("/process").and_then(Value::as_object_mut) {
        process.insert("args".to_owned(), json!(args));
    }
    // The peers compile containerd's profile in every start. Ours is compiled once by the node agent and
    // handed over, which is what is measured.
    let capabilities = spec.pointer("/process/capabilities/bounding").cloned().unwrap_or_default();
    let capabilities: Vec<String> = serde_json::from_value(capabilities)?;
    let program = dir.join("filter.bpf");
    let mut node = Command::new(bin_dir.join("nimbus-node"));
    node.args(["seccomp", SECCOMP_DEFAULT]);
    for capability in &capabilities {
        node.args(["--capability", capability]);
    }
    let compiled = node.output()?;
    if !compiled.status.success() {
        return Err(Failure::new(String::from_utf8_lossy(&compiled.stderr)));
    }
    fs::write(&program, compiled.stdout)?;
    let contestant = |name: &'static str, path: PathBuf, filter: Option<PathBuf>| {
        let bundle = |place| bundle::write(dir, &spec, &root, &format!("{name}-{place}"));
        let bundles: Result<Vec<_>, Failure> = (0..places).map(bundle).collect();
        let (root, samples) = (dir.join("state").join(name), Vec::new());
        fs::create_dir_all(&root)?;
        Ok::<_, Failure>(Contestant {
            name,
            program: path,
            root,
            bundles: bundles?,
            filter,
            samples,
        })
    };
    Ok(vec![
        contestant("nimbus-oci", bin_dir.join("nimbus-oci"), Some(program))?,
        contestant("crun", "crun".into(), None)?,
        contestant("runc", "runc".into(), None)?,
    ])
}

/// Measures in a private mount namespace, and removes what the contestants leave; `inside` says that
/// this is one already. Otherwise this program is run there with the same `name`.
pub(super) fn apart<T>(
    name: &str,
    inside: bool,
    (bin_dir, json): (&Path, bool),
    measure: impl FnOnce(&Path) -> Result<T, Failure>,
) -> Result<Option<T>, Failure> {
    if !inside {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private"]).arg(std::env::current_exe()?);
        command.arg("--bin-dir").arg(bin_dir).args([name, "--inside"]);
        if json {
            command.arg("--json");
        }
        let status = command.status().during("unshare")?;
        ensure!(status.success(), "the benchmark ended with {status}");
        return Ok(None);
    }
    if Path::new(UNIFIED).join("cgroup.procs").exists() {
        umount2(UNIFIED, MntFlags::MNT_DETACH).during(UNIFIED)?;
    }
    let dir = tempfile::Builder::new().prefix("nimbus-bench-").tempdir()?;
    let measured = measure(dir.path());
    remove_cgroups()?;
    let measured = measured?;
    dir.close()?;
    Ok(Some(measured))
}

/// The parents that the contestants and containerd leave behind. Where the unified hierarchy was
/// unmounted, what crun took for a cgroup was a plain directory.
fn remove_cgroups() -> Outcome {
    for hierarchy in fs::read_dir("/sys/fs/cgroup")?.filter_map(Result::ok) {
        let parent = hierarchy.path().join("nimbus-bench");
        if !parent.is_dir() {
            continue;
        }
        let plain = hierarchy.path() == Path::new(UNIFIED);
        let removed = if plain { fs::remove_dir_all(&parent) } else { fs::remove_dir(&parent) };
        removed.during(&parent.display().to_string())?;
    }
    let parent = Path::new(UNIFIED).join(NAMESPACE);
    if parent.is_dir() { Ok(fs::remove_dir(&parent)?) } else { Ok(()) }
}

//! `start`: wall time of create + start of `busybox true` with containerd's default seccomp profile,
//! the same bundle for `nimbus-oci`, crun and runc.
//!
//! crun refuses hosts with hybrid cgroups; so all three run in a private mount namespace in which
//! the empty unified hierarchy is not mounted. Waiting for the end and deleting are not measured.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use nix::mount::{MntFlags, umount2};
use serde_json::Value;

use super::{Comparison, bundle, filter};
use crate::ctr::Said;
use crate::failure::During as _;
use crate::wait::until;
use crate::{Failure, Outcome, ensure};

/// Measured starts of each.
const SAMPLES: usize = 60;
/// Starts of each before.
const WARM_UP: usize = 5;
/// Where the empty v2 hierarchy of a hybrid host is.
const UNIFIED: &str = "/sys/fs/cgroup/unified";

struct Contestant {
    name: &'static str,
    program: PathBuf,
    root: PathBuf,
    bundle: PathBuf,
    filter: Option<PathBuf>,
    samples: Vec<f64>,
}

impl Contestant {
    fn command(&self, verb: &str) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--root").arg(&self.root).arg(verb);
        // What a container keeps open must not be a pipe that somebody reads to its end.
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::inherit());
        command
    }

    fn create(&self, id: &str) -> Command {
        let mut command = self.command("create");
        if let Some(filter) = &self.filter {
            command.arg("--seccomp-bpf").arg(filter);
        }
        command.arg("--bundle").arg(&self.bundle).arg(id);
        command
    }

    /// One container from create to delete; how long create and start took, in milliseconds.
    fn once(&self, number: usize) -> Result<f64, Failure> {
        let id = format!("{}-{number}", self.name);
        let mut create = self.create(&id);
        let mut start = self.command("start");
        start.arg(&id);
        let begun = Instant::now();
        let created = create.status()?;
        let started = start.status()?;
        let took = begun.elapsed();
        ensure!(created.success() && started.success(), "{}: {created}, {started}", self.name);
        let mut delete = self.command("delete");
        delete.arg(&id).stderr(Stdio::null());
        until("the container to be deleted", || Ok(delete.status()?.success().then_some(())))?;
        Ok(took.as_secs_f64() * 1000.0)
    }
}

/// Runs it in a private mount namespace; `inside` says that this is one already.
pub fn run(bin_dir: &Path, inside: bool, json: bool, out: &mut dyn Write) -> Outcome {
    if !inside {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private"]).arg(std::env::current_exe()?);
        command.arg("--bin-dir").arg(bin_dir).args(["start", "--inside"]);
        if json {
            command.arg("--json");
        }
        let status = command.status().during("unshare")?;
        ensure!(status.success(), "the benchmark ended with {status}");
        return Ok(());
    }
    if Path::new(UNIFIED).join("cgroup.procs").exists() {
        umount2(UNIFIED, MntFlags::MNT_DETACH).during(UNIFIED)?;
    }
    let dir = tempfile::Builder::new().prefix("nimbus-bench-").tempdir()?;
    let measured = measure(dir.path(), bin_dir);
    remove_cgroups()?;
    let measured = measured?;
    let (ours, peers) = measured.split_first().ok_or_else(|| Failure::new("nobody took part"))?;
    for peer in peers {
        let version = version(peer.name)?;
        let comparison = Comparison::of("start", version, "ms", &ours.samples, &peer.samples)?;
        comparison.print(json, out)?;
    }
    dir.close()?;
    Ok(())
}

fn measure(dir: &Path, bin_dir: &Path) -> Result<Vec<Contestant>, Failure> {
    let root = bundle::rootfs(dir)?;
    let spec = bundle::specification(dir, &root)?;
    let profile = spec.pointer("/linux/seccomp").cloned().unwrap_or_default();
    let program = dir.join("filter.bpf");
    fs::write(&program, filter::compile(&profile)?)?;
    let contestant = |name: &'static str, path: PathBuf, spec: &Value, filter: Option<PathBuf>| {
        let bundle = bundle::write(dir, spec, &root, name)?;
        let (root, samples) = (dir.join("state").join(name), Vec::new());
        fs::create_dir_all(&root)?;
        Ok::<_, Failure>(Contestant { name, program: path, root, bundle, filter, samples })
    };
    let mut all = vec![
        contestant("nimbus-oci", bin_dir.join("nimbus-oci"), &spec, Some(program))?,
        contestant("crun", "crun".into(), &spec, None)?,
        contestant("runc", "runc".into(), &spec, None)?,
    ];
    for number in 0..WARM_UP + SAMPLES {
        for one in &mut all {
            let took = one.once(number).map_err(|failure| failure.during(one.name))?;
            if number >= WARM_UP {
                one.samples.push(took);
            }
        }
    }
    Ok(all)
}

/// The parents that the contestants leave behind. Where the unified hierarchy was unmounted, what
/// crun took for a cgroup was a plain directory.
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
    Ok(())
}

/// A peer and its version, from the first line that it says about itself.
fn version(program: &str) -> Result<String, Failure> {
    let said = Said::by(Command::new(program).arg("--version"))?.good()?;
    let line = said.lines().next().unwrap_or_default();
    Ok(line.replace(" version ", " ").trim().to_owned())
}

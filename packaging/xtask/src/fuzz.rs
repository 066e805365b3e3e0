//! `cargo xtask fuzz TARGET`: one of the fuzz targets in `tests/fuzz`, for a while.
//!
//! Intent: each parser of bytes that somebody else wrote has a target; a crash leaves its input below
//! `tests/fuzz/artifacts/TARGET`. libFuzzer's engine by `cargo-fuzz`, without a sanitizer, so that the
//! pinned stable toolchain does: the parsers are safe Rust, what is looked for are panics, broken
//! promises and inputs that take too long. Targets begin with the seeds in `tests/fuzz/seeds/TARGET`
//! and keep what they find interesting in `tests/fuzz/corpus/TARGET`. CI replays the seeds without
//! libFuzzer (`tests/fuzz/tests/replay.rs`), whose build takes minutes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::run::{RunError, Workspace, run, say, status};
use crate::setup;

/// The version of `cargo-fuzz` that is installed where there is none.
const CARGO_FUZZ: &str = "0.13.2";
/// Longest time for one input before it counts as a fault, seconds.
const INPUT_SECONDS_MAX: u32 = 25;

/// What to fuzz.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Which; none lists them
    target: Option<String>,
    /// How long
    #[arg(long, value_name = "N", default_value_t = 60)]
    seconds: u32,
}

/// Builds and runs the target; false when it found a fault or there is no such target.
pub(crate) fn fuzz(workspace: &Workspace, args: &Args) -> Result<bool, RunError> {
    let dir = dir(workspace);
    let targets = targets(&dir);
    let Some(target) = args.target.as_ref().filter(|target| targets.contains(target)) else {
        say(targets.join("\n"));
        return Ok(args.target.is_none());
    };
    setup::setup()?;
    install()?;
    let corpus = dir.join("corpus").join(target);
    let failed =
        |source| RunError::Start { program: format!("mkdir {}", corpus.display()), source };
    fs::create_dir_all(&corpus).map_err(failed)?;
    let mut command = workspace.cargo(["fuzz", "run", "--sanitizer", "none", "--fuzz-dir"]);
    command.arg(&dir).arg(target).arg(&corpus);
    let seeds = dir.join("seeds").join(target);
    if seeds.is_dir() {
        command.arg(seeds);
    }
    command.arg("--").args([
        format!("-max_total_time={}", args.seconds),
        format!("-timeout={INPUT_SECONDS_MAX}"),
        "-print_final_stats=1".to_owned(),
    ]);
    Ok(status(&mut command)?.success())
}

/// A cargo command in the workspace of the targets that builds where ours does.
pub(crate) fn cargo(workspace: &Workspace, verb: &str) -> Command {
    let mut command = workspace.cargo([verb, "--locked", "--manifest-path"]);
    command.arg(dir(workspace).join("Cargo.toml")).arg("--target-dir").arg(workspace.target());
    command
}

/// The workspace of the targets, which is not ours: cargo-fuzz sets compiler flags of its own.
pub(crate) fn dir(workspace: &Workspace) -> PathBuf {
    workspace.root().join("tests/fuzz")
}

fn targets(dir: &Path) -> Vec<String> {
    let files = fs::read_dir(dir.join("fuzz_targets")).into_iter().flatten().flatten();
    let mut names: Vec<_> = files
        .filter_map(|file| Some(file.path().file_stem()?.to_string_lossy().into_owned()))
        .collect();
    names.sort();
    names
}

fn install() -> Result<(), RunError> {
    let mut probe = Command::new("cargo");
    probe.args(["fuzz", "--version"]).stdout(Stdio::null()).stderr(Stdio::null());
    if status(&mut probe)?.success() {
        return Ok(());
    }
    run(Command::new("cargo").args(["install", "cargo-fuzz", "--locked", "--version", CARGO_FUZZ]))
}

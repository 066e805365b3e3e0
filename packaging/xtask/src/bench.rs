//! `cargo xtask bench NAME`: measurements, each with its peers in the same run.
//!
//! Intent: build the measured programs as they are shipped (release), then hand over to
//! `nimbus-bench` (package `nimbus-tests`), which interleaves the contestants. Benchmarks without
//! content are absent.

use std::process::Command;

use clap::ValueEnum;

use crate::run::{RunError, Workspace, status};
use crate::setup;

/// What to measure.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Which
    #[arg(value_enum)]
    name: Name,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
}

/// A benchmark.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Name {
    /// create + start of a container with containerd's default seccomp profile
    Start,
    /// One more process in a container that runs
    Exec,
    /// `ctr run --rm --seccomp`, end to end, admission included
    Run,
    /// Containers a second, 1, 8 and 32 at a time
    Density,
    /// Memory of one idle shim
    ShimMemory,
}

/// Builds and measures.
pub(crate) fn bench(workspace: &Workspace, args: &Args) -> Result<bool, RunError> {
    setup::setup()?;
    let programs = workspace.build_release()?;
    let mut command = Command::new(programs.join("nimbus-bench"));
    command.arg("--bin-dir").arg(&programs);
    command.arg(match args.name {
        Name::Start => "start",
        Name::Exec => "exec",
        Name::Run => "run",
        Name::Density => "density",
        Name::ShimMemory => "shim-memory",
    });
    if args.json {
        command.arg("--json");
    }
    Ok(status(&mut command)?.success())
}

//! `cargo xtask demo`: the main job on a fresh Debian machine.
//!
//! Intent: install, build, then hand over to `nimbus-demo` (package `nimbus-tests`), which starts
//! everything in a directory of its own and leaves nothing behind.

use std::process::Command;

use crate::run::{RunError, Workspace, status};
use crate::setup;

/// How to show it.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// One JSON object a case instead of a table
    #[arg(long)]
    json: bool,
    /// Leave everything running and print how to talk to it
    #[arg(long)]
    keep: bool,
}

/// Runs it; whether every case had exactly the outcome it must have.
pub(crate) fn demo(workspace: &Workspace, args: &Args) -> Result<bool, RunError> {
    setup::setup()?;
    let programs = workspace.build_programs()?;
    let mut command = Command::new(programs.join("nimbus-demo"));
    command.arg("--bin-dir").arg(&programs);
    if args.json {
        command.arg("--json");
    }
    if args.keep {
        command.arg("--keep");
    }
    Ok(status(&mut command)?.success())
}

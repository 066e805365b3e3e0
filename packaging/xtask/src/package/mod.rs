//! `cargo xtask package`: Debian packages of the node, control and the command line.
//!
//! Intent: from a release build, with `dpkg-deb`, the same bytes each time for the same commit and
//! toolchain. Built on Debian 12 they install there and on anything newer. Lane `vm` installs them on Debian 13.
//! Deliberately absent: signing and a repository, which are for whoever publishes them.

mod build;
mod table;

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use clap::ValueEnum;
use serde_json::Value;

use crate::run::{RunError, Workspace, output, say};
use crate::setup;
use build::Build;
use table::PACKAGES;

/// What to package.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Which build; anything but release is for trying the packages out
    #[arg(long, value_enum, default_value_t = Profile::Release)]
    profile: Profile,
}

/// How the programs are compiled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Profile {
    /// As they are shipped
    Release,
    /// As the lanes test them
    Debug,
}

/// Builds, packages and names the files.
pub(crate) fn package(workspace: &Workspace, args: &Args) -> Result<bool, RunError> {
    setup::setup()?;
    for file in make(workspace, args.profile)? {
        say(file.display());
    }
    Ok(true)
}

/// Builds the programs and makes all packages.
pub(crate) fn make(workspace: &Workspace, profile: Profile) -> Result<Vec<PathBuf>, RunError> {
    setup::setup_packages()?;
    let (programs, compression) = match profile {
        Profile::Release => (workspace.build_release()?, "-Zxz"),
        Profile::Debug => (workspace.build_programs()?, "-Znone"),
    };
    let out = workspace.target().join("deb");
    if out.exists() {
        let failed = |source| RunError::Files { what: out.display().to_string(), source };
        fs::remove_dir_all(&out).map_err(failed)?;
    }
    let said = |command: &mut Command| output(command).map(|text| text.trim().to_owned());
    let mut commit = Command::new("git");
    commit.args(["log", "-1", "--format=%ct"]).current_dir(workspace.root());
    let build = Build {
        root: workspace.root().to_owned(),
        programs,
        out,
        version: version(workspace)?,
        architecture: said(Command::new("dpkg").arg("--print-architecture"))?,
        compression,
        epoch: said(&mut commit)?,
    };
    PACKAGES.iter().map(|package| build.package(package)).collect()
}

/// The version that all packages of the workspace share.
fn version(workspace: &Workspace) -> Result<String, RunError> {
    let packages = workspace.metadata().get("packages").and_then(Value::as_array);
    let node = packages
        .into_iter()
        .flatten()
        .find(|package| package.get("name").and_then(Value::as_str) == Some("nimbus-node"));
    let version = node.and_then(|node| node.get("version")).and_then(Value::as_str);
    version.map(str::to_owned).ok_or_else(|| RunError::Answer {
        program: "cargo metadata".to_owned(),
        problem: "no version of nimbus-node".to_owned(),
    })
}

//! `cargo xtask`: the one way in for people and for CI.
//!
//! Intent: every verb of the README is a function of this program, so that a fresh Debian machine
//! needs nothing but cargo. It depends on none of the workspace's own crates and builds without
//! the packages that `setup` installs. Verbs without content are absent.
#![forbid(unsafe_code)]

mod bench;
mod ci;
mod count;
mod demo;
mod fuzz;
mod package;
mod run;
mod setup;
mod test;
mod tidy;
mod vm;

use std::error::Error;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::run::{Workspace, complain};

/// Installs, builds, tests, shows and measures Nimbus.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Install the Debian packages that building and testing need; starts no service
    Setup,
    /// The main job, live: attested images run, all others are refused
    Demo(demo::Args),
    /// Run the tests of one lane, or of all that CI runs
    Test(test::Args),
    /// Measure against the peers, interleaved
    Bench(bench::Args),
    /// Throw bytes at one of the parsers of untrusted input for a while
    Fuzz(fuzz::Args),
    /// Make Debian packages
    Package(package::Args),
    /// Check the rules of this repository that no compiler checks
    Tidy(tidy::Args),
    /// Everything that has to be green: setup, fmt, tidy, clippy, the fuzz targets replayed, test
    Ci,
}

/// How this program ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Exit {
    /// All is well.
    Fine = 0,
    /// A test, a rule or a case failed, or a command could not be run.
    Failed = 1,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        match exit {
            Exit::Fine => Self::from(0),
            Exit::Failed => Self::from(1),
        }
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match perform(cli.verb) {
        Ok(exit) => exit.into(),
        Err(error) => {
            complain(format_args!("xtask: {}", chain(error.as_ref())));
            Exit::Failed.into()
        }
    }
}

fn perform(verb: Verb) -> Result<Exit, Box<dyn Error>> {
    let workspace = Workspace::find()?;
    let good = match verb {
        Verb::Setup => {
            setup::setup()?;
            true
        }
        Verb::Demo(args) => demo::demo(&workspace, &args)?,
        Verb::Test(args) => test::test(&workspace, &args)?.is_green(),
        Verb::Bench(args) => bench::bench(&workspace, &args)?,
        Verb::Fuzz(args) => fuzz::fuzz(&workspace, &args)?,
        Verb::Package(args) => package::package(&workspace, &args)?,
        Verb::Tidy(args) => tidy::tidy(&workspace, &args)?,
        Verb::Ci => ci::ci(&workspace)?,
    };
    Ok(if good { Exit::Fine } else { Exit::Failed })
}

/// An error and its causes on one line.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}

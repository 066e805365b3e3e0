//! `nimbus-demo`: see [`nimbus_tests::demo`]. Started by `cargo xtask demo`.
#![forbid(unsafe_code)]

use std::io::{self, IsTerminal as _};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use nimbus_tests::demo::{self, Options, Style, complain};

/// Shows what Nimbus runs and what it refuses, with real programs and images.
#[derive(Debug, Parser)]
struct Args {
    /// Where the programs are; without it NIMBUS_BIN_DIR, or beside this program
    #[arg(long, value_name = "DIR")]
    bin_dir: Option<PathBuf>,
    /// One JSON object a case
    #[arg(long)]
    json: bool,
    /// Leave everything running and print how to talk to it
    #[arg(long)]
    keep: bool,
    /// End what an earlier run with --keep left running
    #[arg(long, value_name = "DIR", conflicts_with_all = ["json", "keep"])]
    end: Option<PathBuf>,
}

/// How this program ends.
enum Exit {
    /// Every case was as it must be.
    Good = 0,
    /// A case was not.
    Bad = 1,
    /// The demo could not be run.
    Broken = 2,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(match exit {
            Exit::Good => 0,
            Exit::Bad => 1,
            Exit::Broken => 2,
        })
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    let done = match &args.end {
        Some(dir) => demo::end(dir).map(|()| true),
        None => show(&args),
    };
    let exit = match done {
        Ok(true) => Exit::Good,
        Ok(false) => Exit::Bad,
        Err(failure) => {
            complain(&format!("nimbus-demo: {}", failure.text()));
            Exit::Broken
        }
    };
    exit.into()
}

fn show(args: &Args) -> Result<bool, nimbus_tests::Failure> {
    let terminal = io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let style = if terminal { Style::Coloured } else { Style::Plain };
    let options = Options { json: args.json, keep: args.keep };
    demo::run(options, style, args.bin_dir.as_deref(), &mut io::stdout())
}

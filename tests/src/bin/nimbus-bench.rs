//! `nimbus-bench`: see [`nimbus_tests::bench`]. Started by `cargo xtask bench`, which builds the
//! measured programs as they are shipped.
#![forbid(unsafe_code)]

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use nimbus_tests::bench;
use nimbus_tests::demo::complain;

/// Measures Nimbus beside its peers.
#[derive(Debug, Parser)]
struct Args {
    /// Where the programs are
    #[arg(long, value_name = "DIR")]
    bin_dir: PathBuf,
    /// One JSON object a comparison
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    name: Name,
}

#[derive(Debug, Subcommand)]
enum Name {
    /// create + start of a container with containerd's default seccomp profile
    Start {
        /// This is a private mount namespace already
        #[arg(long, hide = true)]
        inside: bool,
    },
    /// One more process in a container that runs
    Exec {
        /// This is a private mount namespace already
        #[arg(long, hide = true)]
        inside: bool,
    },
    /// Containers a second, 1, 8 and 32 at a time
    Density {
        /// This is a private mount namespace already
        #[arg(long, hide = true)]
        inside: bool,
    },
    /// `ctr run --rm --seccomp`, end to end
    Run {
        /// This is a private mount namespace already
        #[arg(long, hide = true)]
        inside: bool,
    },
    /// Memory of one idle shim
    ShimMemory,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let mut out = io::stdout();
    let done = match args.name {
        Name::Start { inside } => bench::start(&args.bin_dir, inside, args.json, &mut out),
        Name::Exec { inside } => bench::exec(&args.bin_dir, inside, args.json, &mut out),
        Name::Density { inside } => bench::density(&args.bin_dir, inside, args.json, &mut out),
        Name::Run { inside } => bench::run(&args.bin_dir, inside, args.json, &mut out),
        Name::ShimMemory => bench::shim_memory(&args.bin_dir, args.json, &mut out),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            complain(&format!("nimbus-bench: {}", failure.text()));
            ExitCode::FAILURE
        }
    }
}

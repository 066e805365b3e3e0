//! `nimbus-node`: see [`nimbus_node`].
#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser as _;
use nimbus_node::cli;

fn main() -> ExitCode {
    cli::run(cli::Args::parse()).into()
}

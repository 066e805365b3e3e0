//! `nimbusctl`: the person's way into Nimbus.
//!
//! Reads arguments, makes one or a few calls of the control API over mTLS, and prints what came
//! back: a table for a person, one JSON object with `--json`. It decides nothing; what it refuses
//! by itself is what control would refuse anyway, said earlier.
//!
//! stdout is the answer, stderr is progress and errors. Text from tenants is escaped wherever a
//! person reads it (rule 14).
#![forbid(unsafe_code)]

mod bundle;
mod cli;
mod client;
mod commands;
mod credentials;
mod error;
mod exit;
mod files;
mod image;
mod keys;
mod output;
mod units;
mod view;

use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser as _;

use crate::cli::Cli;
use crate::error::CtlError;
use crate::exit::Exit;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // A closed terminal is no reason to fail differently.
            let _unprinted = error.print();
            return if error.use_stderr() { Exit::Usage } else { Exit::Done }.into();
        }
    };
    match run(&cli) {
        Ok(exit) => exit.into(),
        Err(error) => {
            let chain = nimbus_api::error::Chain(&error);
            let _unprinted = writeln!(
                std::io::stderr().lock(),
                "nimbusctl: {}",
                output::escaped(&chain.to_string())
            );
            error.exit().into()
        }
    }
}

fn run(cli: &Cli) -> Result<Exit, CtlError> {
    // The registry client leaves the choice of a provider to the program. A second installation is
    // refused, which is as good.
    let _installed = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(CtlError::Runtime)?;
    runtime.block_on(commands::run(cli))
}

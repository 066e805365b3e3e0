//! `nimbus-control`: reads the command line, runs the library, maps the outcome to an exit code.
#![forbid(unsafe_code)]

use std::io::{self, Write as _};
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use nimbus_api::clock::SystemClock;
use nimbus_api::error::Chain;
use nimbus_control::{Command, Exit, ServeArgs, Server, issue_credentials};
use tokio::signal::unix::{SignalKind, signal};

/// The control service of Nimbus.
#[derive(Debug, Parser)]
#[command(version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let exit = match cli.command {
        Command::Serve(args) => serve(&args),
        Command::Credentials(args) => match issue_credentials(&args) {
            Ok(()) => Exit::Ok,
            Err(error) => fail(Exit::Failed, &error),
        },
    };
    exit.into()
}

fn fail(exit: Exit, error: &dyn std::error::Error) -> Exit {
    // Nowhere is left to report a failure to report.
    drop(writeln!(io::stderr().lock(), "nimbus-control: {}", Chain(error)));
    exit
}

fn serve(args: &ServeArgs) -> Exit {
    let filter = tracing_subscriber::EnvFilter::try_from_env("NIMBUS_LOG")
        .unwrap_or_else(|_unset| tracing_subscriber::EnvFilter::new("warn,nimbus_control=info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).init();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(Exit::Failed, &error),
    };
    runtime.block_on(async {
        let signals = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()));
        let (mut terminate, mut interrupt) = match signals {
            (Ok(terminate), Ok(interrupt)) => (terminate, interrupt),
            (Err(error), _) | (_, Err(error)) => return fail(Exit::Failed, &error),
        };
        let server = match Server::start(args, Arc::new(SystemClock)).await {
            Ok(server) => server,
            Err(error) => return fail(error.exit(), &error),
        };
        tokio::select! {
            _got = terminate.recv() => {}
            _got = interrupt.recv() => {}
        }
        server.stop().await;
        Exit::Ok
    })
}

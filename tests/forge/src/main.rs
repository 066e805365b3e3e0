//! `nimbus-forge`: a busybox image or the committed test data, from a shell.
//!
//! `nimbus-forge busybox LAYOUT_DIR TAG [ARG...]` writes (or adds to) an OCI layout directory and
//! prints the image's digest. `nimbus-forge testdata DIR` writes the set that `hooks/verify/testdata`
//! holds.
#![forbid(unsafe_code)]

mod testdata;

use std::io::{self, Write as _};
use std::path::Path;
use std::process::ExitCode;

use nimbus_api::error::Chain;
use nimbus_forge::{ForgeError, busybox_image};

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match run(&args) {
        Ok(text) => {
            let written = writeln!(io::stdout().lock(), "{text}");
            if written.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            // Nobody is left to tell when stderr is closed.
            drop(writeln!(io::stderr().lock(), "nimbus-forge: {}", Chain(&error)));
            ExitCode::FAILURE
        }
    }
}

fn run(args: &[&str]) -> Result<String, ForgeError> {
    match args {
        ["busybox", dir, tag, command @ ..] => {
            let command = if command.is_empty() { &["/bin/sh"] } else { command };
            Ok(busybox_image(command)?.write_layout(Path::new(dir), tag)?.to_string())
        }
        ["testdata", dir] => {
            let count = testdata::write(Path::new(dir))?;
            Ok(format!("{count} bundles in {dir}"))
        }
        _ => Err(ForgeError::Unfit(
            "usage: nimbus-forge busybox LAYOUT_DIR TAG [ARG...] | nimbus-forge testdata DIR"
                .to_owned(),
        )),
    }
}

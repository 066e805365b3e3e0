//! `nimbus-verify`: one verification, one process, in a sandbox.
//!
//! `verify` is what the node agent and control start: request on stdin, answer on stdout, nothing
//! else is said. An answer that refuses is still an answer, and the exit code is 0. The sandbox
//! is entered before the first byte of input is read; `verify-bundle`, which is for people and the
//! conformance suite, must open its files first and parses nothing until it is inside.
#![forbid(unsafe_code)]

mod cli;

use std::fs::File;
use std::io::{self, Read, Write as _};
use std::path::Path;
use std::process::ExitCode;

use clap::Parser as _;
use nimbus_api::error::Chain;
use nimbus_api::strict_json::{self, Limits, StrictJsonError};
use nimbus_api::verify::{REQUEST_BYTES_MAX, VerifyReply, VerifyRequest};
use nimbus_api::{Digest, Refusal, RefusalCode};
use nimbus_verify::bundle::Profile;
use nimbus_verify::conformance::{self, BUNDLE_BYTES_MAX, Expected, Root, Signed};
use nimbus_verify::root::ROOT_BYTES_MAX;
use nimbus_verify::sandbox;

use cli::{Cli, Verb, VerifyBundle};

/// Longest artifact that `verify-bundle` reads.
const ARTIFACT_BYTES_MAX: usize = 256 << 20;
/// Longest key file.
const KEY_BYTES_MAX: usize = 16 << 10;

/// How the process ends.
#[derive(Debug, Clone, Copy)]
enum Exit {
    /// Answered; for `verify-bundle`: verified.
    Done = 0,
    /// `verify-bundle`: not verified.
    NotVerified = 1,
    /// The command line is wrong.
    Usage = 2,
    /// The sandbox could not be entered, so nothing was read.
    Sandbox = 3,
    /// Input could not be read or output not written.
    Io = 4,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(match exit {
            Exit::Done => 0,
            Exit::NotVerified => 1,
            Exit::Usage => 2,
            Exit::Sandbox => 3,
            Exit::Io => 4,
        })
    }
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let asked = !error.use_stderr();
            let printed = error.print();
            return if asked && printed.is_ok() { Exit::Done } else { Exit::Usage }.into();
        }
    };
    let exit = match cli.verb {
        Verb::Verify => verify(),
        Verb::VerifyBundle(args) => verify_bundle(&args),
        Verb::SandboxReport => sandbox_report(),
    };
    exit.into()
}

fn verify() -> Exit {
    if let Err(error) = sandbox::enter() {
        complain(&Chain(&error));
        return Exit::Sandbox;
    }
    let text = match read_limited(io::stdin().lock(), REQUEST_BYTES_MAX) {
        Ok(text) => text,
        Err(error) => {
            complain(&format_args!("cannot read the request: {error}"));
            return Exit::Io;
        }
    };
    let reply = match strict_json::parse::<VerifyRequest>(&text, Limits::bytes(REQUEST_BYTES_MAX)) {
        Ok(request) => {
            drop(text);
            nimbus_verify::verify(&request)
        }
        Err(error @ StrictJsonError::TooLarge { .. }) => {
            VerifyReply::Refused(Refusal::with(RefusalCode::VerifyTooLarge, Chain(&error)))
        }
        Err(error) => {
            VerifyReply::Refused(Refusal::with(RefusalCode::RequestInvalid, Chain(&error)))
        }
    };
    write_json(&reply)
}

fn sandbox_report() -> Exit {
    match sandbox::report::report() {
        Ok(report) => write_json(&report),
        Err(error) => {
            complain(&Chain(&error));
            Exit::Sandbox
        }
    }
}

/// The files of one `verify-bundle`, read before the sandbox closes.
struct Files {
    bundle: Vec<u8>,
    root: Option<String>,
    key: Option<String>,
    artifact: Result<Vec<u8>, Digest>,
}

impl Files {
    fn read(args: &VerifyBundle) -> io::Result<Self> {
        let text =
            |path: &Path, most| String::from_utf8(read_file(path, most)?).map_err(io::Error::other);
        let path = Path::new(&args.signed);
        let artifact = match args.signed.parse::<Digest>() {
            Ok(digest) if !path.exists() => Err(digest),
            _ => Ok(read_file(path, ARTIFACT_BYTES_MAX)?),
        };
        Ok(Self {
            bundle: read_file(&args.bundle, BUNDLE_BYTES_MAX)?,
            root: args
                .trusted_root
                .as_deref()
                .map(|path| text(path, ROOT_BYTES_MAX))
                .transpose()?,
            key: args.key.as_deref().map(|path| text(path, KEY_BYTES_MAX)).transpose()?,
            artifact,
        })
    }
}

fn verify_bundle(args: &VerifyBundle) -> Exit {
    let files = match Files::read(args) {
        Ok(files) => files,
        Err(error) => {
            complain(&error);
            return Exit::Io;
        }
    };
    if let Err(error) = sandbox::enter() {
        complain(&Chain(&error));
        return Exit::Sandbox;
    }
    let expected = match (&files.key, &args.certificate_identity, &args.certificate_oidc_issuer) {
        (Some(key), None, None) => Expected::Key(key),
        (None, Some(identity), Some(issuer)) => Expected::Identity { identity, issuer },
        _ => {
            complain(&"either a key, or both identity and issuer");
            return Exit::Usage;
        }
    };
    let root = match &files.root {
        Some(json) => Root::Json(json),
        None if args.staging => Root::Staging,
        None => Root::Production,
    };
    let profile = if args.legacy { Profile::Legacy } else { Profile::Strict };
    let signed = match &files.artifact {
        Ok(bytes) => Signed::Bytes(bytes),
        Err(digest) => Signed::Digest(*digest),
    };
    match conformance::verify_bundle(&files.bundle, profile, expected, root, signed) {
        Ok(()) => Exit::Done,
        Err(error) => {
            complain(&error);
            Exit::NotVerified
        }
    }
}

fn read_file(path: &Path, most: usize) -> io::Result<Vec<u8>> {
    let named = |error| io::Error::other(format!("{}: {error}", path.display()));
    let bytes = read_limited(File::open(path).map_err(named)?, most).map_err(named)?;
    if bytes.len() > most {
        return Err(io::Error::other(format!("{}: more than {most} bytes", path.display())));
    }
    Ok(bytes)
}

/// One byte more than allowed is read, so that the reader can tell.
fn read_limited(from: impl Read, most: usize) -> io::Result<Vec<u8>> {
    let most = u64::try_from(most).unwrap_or(u64::MAX).saturating_add(1);
    let mut bytes = Vec::new();
    from.take(most).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn write_json(value: &impl serde::Serialize) -> Exit {
    let mut out = io::stdout().lock();
    let written = serde_json::to_writer(&mut out, value)
        .map_err(io::Error::from)
        .and_then(|()| out.write_all(b"\n"))
        .and_then(|()| out.flush());
    if written.is_ok() { Exit::Done } else { Exit::Io }
}

fn complain(what: &dyn std::fmt::Display) {
    // Nobody is left to tell when stderr is closed.
    drop(writeln!(io::stderr().lock(), "nimbus-verify: {what}"));
}

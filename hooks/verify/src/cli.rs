//! The command line, as it is typed and as it is used.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

/// Sandboxed verification of sigstore bundles.
#[derive(Debug, Parser)]
#[command(name = "nimbus-verify", version)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Read one request (JSON) from stdin, write one answer (JSON) to stdout.
    Verify,
    /// Verify one bundle, with the command line of the sigstore conformance suite.
    VerifyBundle(VerifyBundle),
    /// Say as JSON what the sandbox denies on this host.
    SandboxReport,
}

#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("signer").required(true).args(["certificate_identity", "key"]))]
pub(crate) struct VerifyBundle {
    /// Trust the staging instance instead of the public good one.
    #[arg(long, conflicts_with = "trusted_root")]
    pub(crate) staging: bool,
    /// The bundle.
    #[arg(long, value_name = "FILE")]
    pub(crate) bundle: PathBuf,
    /// Subject alternative name of the certificate, exactly.
    #[arg(long, value_name = "ID", requires = "certificate_oidc_issuer")]
    pub(crate) certificate_identity: Option<String>,
    /// OIDC issuer of the certificate, exactly.
    #[arg(long, value_name = "URL", requires = "certificate_identity")]
    pub(crate) certificate_oidc_issuer: Option<String>,
    /// The managed key, instead of a certificate.
    #[arg(long, value_name = "PEM", conflicts_with = "certificate_oidc_issuer")]
    pub(crate) key: Option<PathBuf>,
    /// A trusted_root.json.
    #[arg(long, value_name = "FILE")]
    pub(crate) trusted_root: Option<PathBuf>,
    /// Accept bundles v0.1 and v0.2 too.
    #[arg(long)]
    pub(crate) legacy: bool,
    /// What was signed: a file, or sha256: and 64 hex digits if there is no such file.
    #[arg(value_name = "FILE_OR_DIGEST")]
    pub(crate) signed: String,
}

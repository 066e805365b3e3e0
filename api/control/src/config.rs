//! The command line. All of it is read before anything is touched.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use nimbus_api::id::{OrgId, TrustDomain};

/// What the program is asked to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Runs the control service. Needs no configuration: what is missing is made.
    Serve(ServeArgs),
    /// Makes credentials for a user of one org from the CA in the data directory.
    Credentials(CredentialsArgs),
}

/// How to serve.
#[derive(Debug, Clone, Args)]
pub struct ServeArgs {
    /// Where keys, database and logs are; made with mode 0700 when absent.
    #[arg(long, default_value = "/var/lib/nimbus/control")]
    pub data_dir: PathBuf,
    /// Address of the API (mutual TLS).
    #[arg(long, default_value = "127.0.0.1:7443")]
    pub listen: SocketAddr,
    /// Address where nodes join (server authenticated).
    #[arg(long, default_value = "127.0.0.1:7444")]
    pub join_listen: SocketAddr,
    /// SPIFFE trust domain; fixed when the data directory is made.
    #[arg(long, default_value = "nimbus.local")]
    pub trust_domain: TrustDomain,
    /// Life of a lease.
    #[arg(long, default_value_t = 900, value_parser = clap::value_parser!(u32).range(2..=86_400))]
    pub lease_ttl_seconds: u32,
    /// How often a running job's lease is extended; less than the life of a lease.
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u32).range(1..=86_400))]
    pub lease_extension_seconds: u32,
}

/// Whose credentials to make.
#[derive(Debug, Clone, Args)]
pub struct CredentialsArgs {
    /// Data directory of the control service.
    #[arg(long, default_value = "/var/lib/nimbus/control")]
    pub data_dir: PathBuf,
    /// The org that the user belongs to.
    #[arg(long)]
    pub org: OrgId,
    /// Name of the user, of the same characters as an org's.
    #[arg(long)]
    pub user: OrgId,
    /// File to write (mode 0600); it must not exist.
    #[arg(long)]
    pub out: PathBuf,
}

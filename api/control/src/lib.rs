//! The Nimbus control service: the queue of jobs, the leases, the keys, the link to the nodes.
//!
//! Intent: one process that owns who may run what and where (rule 9). Inputs are gRPC calls over
//! mutual TLS ([`Server`]), its memory is one SQLite database and a few key files in one data
//! directory, its outputs are signed leases. Whatever it acknowledges is durable first (rule 8).
//!
//! Deliberately absent: the policy's private key (rule 11: control hands a policy on, it cannot make
//! one), plain-text listeners, and everything that only a node knows.
#![forbid(unsafe_code)]

mod api;
mod app;
mod claim;
mod config;
mod credentials;
mod data_dir;
mod decide;
mod exit;
mod identity;
mod keyring;
mod limits;
mod listener;
mod logs;
mod pki;
mod policy;
mod scheduler;
mod server;
mod session;
mod spec;
mod status;
mod steps;
mod store;
mod watchers;

pub use config::{Command, CredentialsArgs, ServeArgs};
pub use credentials::{CredentialsError, issue as issue_credentials};
pub use data_dir::DataDirError;
pub use exit::Exit;
pub use keyring::KeyRingError;
pub use pki::PkiError;
pub use server::{Endpoints, Server, StartError};
pub use store::OpenError;

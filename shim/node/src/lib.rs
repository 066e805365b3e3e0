//! The node agent: joins a machine to a control service, fetches and measures images, answers `Admit`,
//! drives containerd, keeps the lease clock, and reports what really ran, signed.
//!
//! Inputs: a configuration, control's session stream, shims on a root-only socket. Outputs: containers
//! in containerd's namespace `nimbus`, plans to shims, events and output to control. Decisions about
//! what may run are `nimbus_hooks`' alone.
//!
//! Map: [`cli`] → [`serve`] puts together [`agent`] (state), [`admit`] (shims), [`claims`] (leases
//! for containers of other clients), [`session`] (control),
//! [`jobs`] (containerd), [`logs`]. What is durable: [`identity`], [`trust`], [`ledger`], [`spool`],
//! [`bundles`], and the image store in [`image`].
#![forbid(unsafe_code)]

pub mod admit;
pub mod agent;
pub mod bundles;
pub mod claims;
pub mod cli;
pub mod config;
pub mod files;
pub mod identity;
pub mod image;
pub mod jobs;
pub mod join;
pub mod ledger;
pub mod logs;
pub mod network;
pub mod nonces;
pub mod parts;
pub mod program;
pub mod report;
pub mod scratch;
pub mod seccomp;
pub mod serve;
pub mod session;
pub mod spool;
pub mod status;
pub mod tls;
pub mod trust;
pub mod verify;

#[cfg(test)]
mod testing;

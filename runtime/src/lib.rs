//! Makes, starts, signals and removes one contained job.
//!
//! Intent: everything that touches the kernel for a container happens here, in a process of its own
//! that lives for one verb, has one thread, no environment and a deadline (rule 4). The request and
//! its plan come over an inherited socket ([`serve`]); what the plan says is enforced, then proven
//! (rule 5), and only then answered.
//!
//! Deliberately absent: decisions about whether a job may run, networks, registries, logs.
#![deny(unsafe_code)]

mod cgroup;
mod create;
mod delete;
mod error;
mod exec;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod identity;
mod init;
mod kill;
mod layout;
mod mounts;
mod namespaces;
pub mod oci;
mod pause;
mod process;
mod proof;
mod record;
mod remove;
mod report;
mod rootfs;
mod serve;
mod spec;
mod start;
mod sys;
mod sysctl;
mod update;

pub use error::RuntimeError;
pub use serve::{Exit, serve};

//! The decisions of Nimbus at each point of a job's life, as pure functions.
//!
//! Intent: everything that decides whether something may run is here, small enough to read in one
//! sitting, and can be given any facts in a test. For [`admit`] inputs are [`facts::Facts`], gathered by
//! the node agent; the output is a [`nimbus_api::plan::Plan`] or a [`nimbus_api::Refusal`]. What
//! happens later in a job's life ([`exec`], [`update`]) is judged by that plan alone.
//!
//! Deliberately absent: I/O, clocks, threads, randomness, and any way to say "yes" by default: an
//! absent fact is a variant of its own, and each such variant ends in a refusal.
//!
//! "Hooks" are our own decisions; OCI hook programs are never run.
#![forbid(unsafe_code)]

pub mod facts;

mod asked;
mod claim;
mod decide;
mod egress;
mod exec;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod image;
mod lease;
mod policy;
mod project;
mod seccomp;
mod spec;
mod task;
#[cfg(test)]
mod tests;
mod update;

pub use nimbus_api::lease::DEFAULT_CAPABILITIES;

pub use asked::{Asked, asked};
pub use decide::admit;
pub use exec::exec;
pub use lease::plausible;
pub use policy::may_fetch;
pub use spec::{network_path, process_identity};
pub use update::update;

/// How far the wall clock may be behind the highest `iat` seen, seconds (rule 1). The same
/// tolerance holds for every comparison of this node's wall clock with another machine's.
pub const FLOOR_TOLERANCE_SECONDS: i64 = 30;
/// Longest `config.json`.
pub const CONFIG_BYTES_MAX: usize = 1 << 20;
/// Longest lifetime that a lease may claim, seconds: a day.
pub const LIFETIME_SECONDS_MAX: u64 = 86_400;
/// Smallest share of a processor that can be enforced, thousandths: the kernel's shortest quota is
/// 1 ms of a 100 ms period.
pub const CPU_MILLIS_MIN: u32 = 10;

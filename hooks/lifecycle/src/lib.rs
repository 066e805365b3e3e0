//! The decisions of Nimbus at each point of a job's life, as pure functions.
//!
//! Intent: everything that decides whether something may run is here, small enough to read in one
//! sitting, and can be given any facts in a test. Inputs are [`facts::Facts`], gathered by the node
//! agent; the output is a [`nimbus_api::plan::Plan`] or a [`nimbus_api::Refusal`].
//!
//! Deliberately absent: I/O, clocks, threads, randomness, and any way to say "yes" by default: an
//! absent fact is a variant of its own, and each such variant ends in a refusal.
//!
//! "Hooks" are our own decisions; OCI hook programs are never run.
#![forbid(unsafe_code)]

pub mod facts;

/// How far the wall clock may be behind the highest `iat` seen, seconds (rule 1).
pub const FLOOR_TOLERANCE_SECONDS: i64 = 30;

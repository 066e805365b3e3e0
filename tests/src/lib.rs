//! The harness: a whole Nimbus in one directory, made of the real programs, and what the lanes, the
//! demo and the benchmarks do with it.
//!
//! Intent: a [`lab::Lab`] is a private containerd, a loopback registry, `nimbus-control`,
//! `nimbus-node` and everything that `nimbusctl` and `ctr` need to talk to them. Every process in
//! it is owned and killed by its own id, and [`lab::Lab::close`] fails when a process, mount, cgroup
//! or socket of it is left. The programs come from the directory in `NIMBUS_BIN_DIR`.
//!
//! Deliberately absent: anything from the insides of the programs under test. Only the contract
//! (`nimbus-api`) and the maker of test data (`nimbus-forge`) are used.
#![forbid(unsafe_code)]

pub mod bench;
pub mod certificates;
pub mod child;
pub mod conformance;
pub mod containerd;
pub mod cri;
pub mod ctl;
pub mod ctr;
pub mod demo;
pub mod failure;
pub mod gate;
pub mod images;
pub mod lab;
pub mod lane;
pub mod leftovers;
pub mod mint;
pub mod policy;
pub mod probe;
pub mod proc;
pub mod raw;
pub mod specimen;
pub mod stolen_control;
pub mod wait;

pub use failure::{Failure, Outcome};
pub use lab::{Lab, Setting};

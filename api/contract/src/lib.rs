//! The words of Nimbus: everything that two processes must agree on, and nothing that only one of
//! them needs.
//!
//! Intent: a type is here when a shim, node agent, runtime, verifier, control service or command
//! must read what another wrote. Parsers are strict: unknown fields, duplicate keys and over-long
//! input are refused (rule 14), each with a named limit (rule 13).
//!
//! Deliberately absent: decisions (`nimbus-hooks`), files, processes and networks. The one effect
//! here is [`frame`], which moves bytes and descriptors over a socket somebody else opened.
#![forbid(unsafe_code)]

pub mod clock;
pub mod digest;
pub mod dsse;
pub mod egress;
pub mod error;
pub mod frame;
pub mod id;
pub mod keys;
pub mod lease;
pub mod plan;
pub mod policy;
pub mod process;
pub mod receipt;
pub mod refusal;
pub mod runtime;
pub mod strict_json;
pub mod verify;

pub use digest::Digest;
pub use refusal::{Refusal, RefusalCode};

/// Generated from `proto/`.
#[allow(
    missing_docs,
    missing_debug_implementations,
    unreachable_pub,
    unused_qualifications,
    clippy::all,
    clippy::pedantic,
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    clippy::str_to_string,
    clippy::wildcard_enum_match_arm,
    clippy::use_self,
    reason = "generated code"
)]
pub mod proto {
    /// Shim and node agent.
    pub mod admit {
        /// `nimbus.admit.v1`.
        pub mod v1 {
            include!(concat!(env!("OUT_DIR"), "/nimbus.admit.v1.rs"));
        }
    }
    /// People and the control service.
    pub mod control {
        /// `nimbus.control.v1`.
        pub mod v1 {
            include!(concat!(env!("OUT_DIR"), "/nimbus.control.v1.rs"));
        }
    }
    /// Nodes and the control service.
    pub mod node {
        /// `nimbus.node.v1`.
        pub mod v1 {
            include!(concat!(env!("OUT_DIR"), "/nimbus.node.v1.rs"));
        }
    }
}

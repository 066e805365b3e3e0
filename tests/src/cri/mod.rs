//! The Container Runtime Interface, from kubelet's side: what a node with Kubernetes asks of containerd.
//!
//! Intent: the real CRI plugin of a lab's containerd is driven by the calls that kubelet makes, with
//! requests of the shape that kubelet gives them, once with the handler `runc` and once with ours. What
//! both say is compared ([`seen`]). Inputs: a [`crate::Lab`] whose setting asks for the CRI.
//!
//! Limits: everything that is waited for has the patience of [`crate::wait`]; one call may take
//! [`client::CALL_MAX`]. Deliberately absent: a kubelet, an API server, SPDY (streams are WebSockets).

pub mod client;
pub mod config;
pub mod ground;
pub mod log;
pub mod network;
pub mod pod;
pub mod seen;
pub mod stream;
pub mod wish;

pub use client::Cri;
pub use ground::{Handler, Node};
pub use pod::{Container, Pod};
pub use seen::Seen;

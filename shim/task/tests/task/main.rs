//! The real shim program, driven as containerd drives it, against a node agent that speaks the real
//! protocol on a real socket and decides as the test says.
//!
//! `refused`: whatever is not granted. `granted`: a busybox root handed over as a detached mount, the
//! real `nimbus-runtime`, a real container; `paused`, `exec`, `terminal` and `updated`: likewise. `pods`:
//! several containers in one process, and `grouped` who finds it. `containerd`: both once more through a containerd of its
//! own. Needs root and Debian's containerd and busybox-static.
#![cfg(test)]

mod agent;
mod containerd;
mod events;
mod exec;
mod granted;
mod grouped;
mod lab;
mod paused;
mod plan;
mod pods;
mod refused;
mod terminal;
mod updated;

//! Every system call that no safe wrapper offers, one small function each.
//!
//! Nothing here decides anything. Each function is safe to call: what it needs, its signature asks
//! for. The rest of the crate forbids unsafe code.
//!
//! The only new processes are those of [`fork`].
#![expect(unsafe_code, reason = "system calls without a safe wrapper live here and only here")]

pub(crate) mod bpf;
pub(crate) mod fd;
pub(crate) mod fork;
pub(crate) mod keyring;
pub(crate) mod mount;
pub(crate) mod net;
pub(crate) mod seal;
pub(crate) mod seccomp;
pub(crate) mod signal;

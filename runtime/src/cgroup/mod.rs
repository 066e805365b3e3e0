//! The cgroups of a container: where they are, what they limit, how they end.
//!
//! We are their only writer. Beside a container's own there is the *guard* on hybrid hosts: see
//! [`guard`].
#![forbid(unsafe_code)]

pub(crate) mod devices;
pub(crate) mod end;
pub(crate) mod freeze;
pub(crate) mod guard;
pub(crate) mod hierarchy;
pub(crate) mod join;
pub(crate) mod limits;
pub(crate) mod program;
pub(crate) mod write;

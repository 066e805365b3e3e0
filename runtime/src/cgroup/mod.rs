//! The cgroups of a container: where they are, what they limit, how they end.
//!
//! libcontainer makes the container's own cgroups. Beside them there is the *guard*: a cgroup that
//! the creating process enters before it starts anything, so that Delete can find and kill whatever
//! takes part in a creation that was cut short, before it has entered the container's cgroups.
#![forbid(unsafe_code)]

pub(crate) mod devices;
pub(crate) mod end;
pub(crate) mod freeze;
pub(crate) mod guard;
pub(crate) mod hierarchy;
pub(crate) mod limits;
pub(crate) mod program;

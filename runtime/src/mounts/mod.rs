//! The mounts of a container, made and attached by descriptor.
//!
//! A file system is made detached ([`filesystem`]), cloned from where it is ([`bind`]), or has come that
//! way ([`handed`]); its place
//! is opened below the container's root, never outside it and through no magic link ([`place`]); then
//! the one is moved onto the other. Between opening and moving nobody can exchange anything: there is
//! no path any more. Runs in a mount namespace of its own.
//!
//! Deliberately absent: mounts by path, mount sources inside the root, mounting over what is not there
//! when it is only to be hidden.
#![forbid(unsafe_code)]

pub(crate) mod bind;
pub(crate) mod cgroup;
pub(crate) mod dev;
pub(crate) mod filesystem;
pub(crate) mod handed;
pub(crate) mod kit;
pub(crate) mod mask;
pub(crate) mod place;

use std::os::fd::AsFd;

use rustix::mount::{MoveMountFlags, move_mount};

/// Moves a detached mount onto a place.
pub(crate) fn attach(mount: impl AsFd, place: impl AsFd) -> rustix::io::Result<()> {
    let by_descriptor =
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(mount, "", place, "", by_descriptor)
}

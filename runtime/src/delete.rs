//! Delete: kills what is left and removes cgroups, state and bundle.
//!
//! Works from any half-made state and any number of times, and waits for nobody but the processes
//! that it has killed, at most [`crate::cgroup::end::EMPTY_WAIT`]. The guard is looked at first: once it
//! is empty, nothing is left that could still enter or make a cgroup of the container's, and what is
//! seen of those afterwards is final.
#![forbid(unsafe_code)]

use std::path::Path;

use crate::cgroup::end::{kill_all, remove};
use crate::cgroup::hierarchy::{Hierarchies, dirs};
use crate::error::{Doing as _, RuntimeError};
use crate::layout::Layout;
use crate::record::Record;
use crate::remove::tree;

/// Deletes a container; none is done already.
pub(crate) fn delete(layout: &Layout) -> Result<(), RuntimeError> {
    if layout.open()?.is_some()
        && let Some(record) = Record::read(layout)?
    {
        return erase(layout, &record);
    }
    // Nothing is begun before the record is there, but a creation may be about to write it, or have
    // lost its directory to a Delete that came in between. Its guard is known without a record.
    let hosts = Hierarchies::of_this_host()?;
    let guard = hosts.guards().map(|guards| guards.join(layout.guard()));
    end(guard.as_deref().as_slice())?;
    erase_files(layout)
}

/// Undoes all that a record tells of.
pub(crate) fn erase(layout: &Layout, record: &Record) -> Result<(), RuntimeError> {
    let mut all = dirs(&record.cgroup);
    all.insert(0, &record.guard);
    end(&all)?;
    erase_files(layout)
}

fn end(dirs: &[&Path]) -> Result<(), RuntimeError> {
    kill_all(dirs)?;
    remove(dirs)
}

fn erase_files(layout: &Layout) -> Result<(), RuntimeError> {
    let parent = match std::fs::File::open(layout.parent()) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        opened => opened.doing("open the directory of the namespace")?,
    };
    let name = layout.dir().file_name().and_then(|name| name.to_str()).unwrap_or_default();
    tree(&parent, name).doing("remove the container's directory")
}

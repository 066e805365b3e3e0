//! Delete: kills what is left and removes cgroups, state and bundle.
//!
//! Works from any half-made state and any number of times, and waits for nobody but the processes
//! that it has killed, at most [`crate::cgroup::end::EMPTY_WAIT`].
//!
//! Who makes a container holds its directory locked. Delete ends that process first, which the record
//! names, and has the lock before it looks at anything: from then on nothing is made any more, and
//! every process is in a cgroup of the container's or in its guard, where it was born.
#![forbid(unsafe_code)]

use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use nimbus_api::RefusalCode;
use rustix::process::{Signal, pidfd_send_signal};

use crate::cgroup::end::{EMPTY_WAIT, kill_all, remove};
use crate::cgroup::hierarchy::{Hierarchies, dirs};
use crate::error::{Doing as _, RuntimeError};
use crate::layout::Layout;
use crate::record::Record;
use crate::remove::tree;

/// Between two tries to have the lock.
const LOCK_PAUSE: Duration = Duration::from_millis(1);

/// Deletes a container; none is done already.
pub(crate) fn delete(layout: &Layout) -> Result<(), RuntimeError> {
    // Known without a record, for a directory that somebody has removed.
    let guard = Hierarchies::of_this_host()?.guards().map(|guards| guards.join(layout.guard()));
    let lock = lock(layout, guard.as_deref())?;
    let record = if lock.is_some() { Record::read(layout)? } else { None };
    let Some(record) = record else {
        // Nothing is begun before the record is there.
        end(guard.as_deref().as_slice())?;
        return erase_files(layout);
    };
    erase(layout, &record)
}

/// Takes the container's directory from whoever makes the container.
fn lock(layout: &Layout, guard: Option<&Path>) -> Result<Option<OwnedFd>, RuntimeError> {
    let give_up = Instant::now() + EMPTY_WAIT;
    loop {
        let Some(dir) = layout.open()? else { return Ok(None) };
        if layout.lock(&dir)? {
            return Ok(Some(dir));
        }
        let creator = Record::read(layout)?.and_then(|record| record.creator);
        if let Some(creator) = creator
            && let Some(creator) = creator.open()?
        {
            // Ended already is as good.
            pidfd_send_signal(&creator, Signal::KILL).unwrap_or_default();
        }
        // Copies of the creator's, which hold the lock too until they are the container's.
        kill_all(guard.as_slice())?;
        if Instant::now() >= give_up {
            let detail = "the container is being made by a process that does not end";
            return Err(RuntimeError::refused(RefusalCode::RuntimeTimeout, detail));
        }
        std::thread::sleep(LOCK_PAUSE);
    }
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

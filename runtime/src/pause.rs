//! Pause and Resume: everything in a container stands still, or goes on.
#![forbid(unsafe_code)]

use nimbus_api::RefusalCode;
use nimbus_api::runtime::CgroupPaths;

use crate::cgroup::freeze;
use crate::error::RuntimeError;
use crate::layout::Layout;
use crate::record::Record;

/// Pauses a container that has been created.
pub(crate) fn pause(layout: &Layout) -> Result<(), RuntimeError> {
    freeze::freeze(&cgroup(layout)?)
}

/// Lets it go on.
pub(crate) fn resume(layout: &Layout) -> Result<(), RuntimeError> {
    freeze::thaw(&cgroup(layout)?)
}

fn cgroup(layout: &Layout) -> Result<CgroupPaths, RuntimeError> {
    let not = |detail: &str| RuntimeError::refused(RefusalCode::RuntimeFailed, detail);
    let record = Record::read(layout)?.ok_or_else(|| not("there is no such container"))?;
    match record.init {
        Some(_) => Ok(record.cgroup),
        None => Err(not("the container is not created")),
    }
}

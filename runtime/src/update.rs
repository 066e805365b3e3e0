//! Update: other limits for a container that is there, read back before it is answered.
//!
//! What an update does not mention stays. When the kernel does not take one of several limits, those
//! before it are set and the answer is an error; none is above the lease at any time.
#![forbid(unsafe_code)]

use nimbus_api::RefusalCode;
use nimbus_api::lease::LeasedResources;
use serde::Deserialize as _;
use serde_json::Value;

use crate::cgroup::{limits, write};
use crate::error::RuntimeError;
use crate::layout::Layout;
use crate::record::Record;
use crate::spec::model::Resources;

/// Sets limits and proves that they are within the lease.
pub(crate) fn update(
    layout: &Layout,
    resources: &Value,
    leased: &LeasedResources,
) -> Result<(), RuntimeError> {
    let not = |detail: String| RuntimeError::refused(RefusalCode::RuntimeFailed, detail);
    let wanted =
        Resources::deserialize(resources).map_err(|error| not(format!("resources: {error}")))?;
    let record = Record::read(layout)?.ok_or_else(|| not("there is no such container".into()))?;
    if record.init.is_none() {
        return Err(not("the container is not created".into()));
    }
    let applied = write::apply(&record.cgroup, &wanted);
    // Also when it was not all taken: what is set then must be within the lease as well.
    limits::check(&record.cgroup, leased)?;
    applied
}

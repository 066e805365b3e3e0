//! Our own record of a container, the only one that Start, Kill and Delete believe.
//!
//! Written before the first effect (rule 8) and again when the init process waits, each time to a
//! new name and then renamed over the old one, so that it is never torn.
#![forbid(unsafe_code)]

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;

use nimbus_api::runtime::CgroupPaths;
use nimbus_api::strict_json::{self, Limits};
use serde::{Deserialize, Serialize};

use crate::error::{Doing as _, RuntimeError};
use crate::identity::Identity;
use crate::layout::Layout;

/// The version of [`Record`].
const RECORD_VERSION: u32 = 1;
/// Longest record.
const RECORD_BYTES_MAX: usize = 64 << 10;

/// What is known of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Record {
    version: u32,
    /// Where its cgroups are, or will be.
    pub(crate) cgroup: CgroupPaths,
    /// The cgroup in which its processes are born where that is not one of its own.
    pub(crate) guard: PathBuf,
    /// Who makes it, as long as it is being made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) creator: Option<Identity>,
    /// Its init process, once it waits for Start.
    pub(crate) init: Option<Identity>,
}

impl Record {
    /// The record of a container that is about to be made.
    pub(crate) const fn intent(cgroup: CgroupPaths, guard: PathBuf, creator: Identity) -> Self {
        Self { version: RECORD_VERSION, cgroup, guard, creator: Some(creator), init: None }
    }

    /// What the record becomes once the init process waits.
    pub(crate) fn created(&mut self, init: Identity) {
        (self.creator, self.init) = (None, Some(init));
    }

    /// Puts the record in the place of the one before.
    pub(crate) fn write(&self, layout: &Layout) -> Result<(), RuntimeError> {
        let text =
            serde_json::to_vec(self).map_err(std::io::Error::from).doing("write a record")?;
        let new = layout.dir().join("record.json.new");
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&new)
            .doing("open the new record")?;
        file.write_all(&text).doing("write the new record")?;
        fs::rename(&new, layout.record()).doing("put the new record in place")
    }

    /// The record, or none when nothing had been begun.
    pub(crate) fn read(layout: &Layout) -> Result<Option<Self>, RuntimeError> {
        let text = match fs::read(layout.record()) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            read => read.doing("read the record")?,
        };
        let record: Self = strict_json::parse(&text, Limits::bytes(RECORD_BYTES_MAX))
            .map_err(std::io::Error::other)
            .doing("understand the record")?;
        if record.version != RECORD_VERSION {
            let found = format!("found record version {}", record.version);
            return Err(std::io::Error::other(found)).doing("understand the record");
        }
        Ok(Some(record))
    }
}

//! What is on disk of one job's network: written before anything of it exists, removed when nothing does.
//!
//! One JSON file a lease. A kill at any instruction leaves a file from which the rest is undone; a file
//! that cannot be read keeps its addresses taken and is named in the log, because undoing needs only its
//! name.

use std::path::Path;

use nimbus_api::egress::EgressRules;
use nimbus_api::error::Chain;
use nimbus_api::id::LeaseId;
use nimbus_api::strict_json::{self, Limits};
use serde::{Deserialize, Serialize};

use super::plugin::Attached;
use crate::files::{self, FileError};

/// The version of [`Record`].
pub const RECORD_VERSION: u32 = 1;
/// Longest record.
pub const RECORD_BYTES_MAX: usize = 16 << 10;
const SUFFIX: &str = ".json";

/// One job's network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// [`RECORD_VERSION`].
    pub version: u32,
    /// Under which lease.
    pub lease: LeaseId,
    /// In which boot of the machine.
    pub boot_id: String,
    /// What it may connect to; none when the record could not be read, and then it is only undone.
    pub rules: Option<EgressRules>,
    /// How it is connected, as soon as it is.
    pub attached: Option<Attached>,
}

/// Where a record is.
fn path(dir: &Path, lease: &LeaseId) -> std::path::PathBuf {
    dir.join(format!("{lease}{SUFFIX}"))
}

/// Makes a record durable.
pub fn write(dir: &Path, record: &Record) -> Result<(), FileError> {
    files::write_durable(&path(dir, &record.lease), &serde_json::to_vec(record).unwrap_or_default())
}

/// Removes a record.
pub fn remove(dir: &Path, lease: &LeaseId) -> Result<(), FileError> {
    files::remove(&path(dir, lease))
}

/// Every record of a directory.
pub fn read_all(dir: &Path) -> Result<Vec<Record>, FileError> {
    files::ensure_dir(dir)?;
    let list = |error| FileError::new("list", dir, error);
    let mut found = Vec::new();
    for item in std::fs::read_dir(dir).map_err(list)? {
        let path = item.map_err(list)?.path();
        let name = path.file_name().and_then(std::ffi::OsStr::to_str).unwrap_or_default();
        if files::is_temporary(name) {
            files::remove(&path)?;
            continue;
        }
        let Some(Ok(lease)) = name.strip_suffix(SUFFIX).map(str::parse::<LeaseId>) else {
            continue;
        };
        found.push(read(&path, lease)?);
    }
    Ok(found)
}

fn read(path: &Path, lease: LeaseId) -> Result<Record, FileError> {
    let bytes = files::read_bounded(path, RECORD_BYTES_MAX)?.unwrap_or_default();
    let read = strict_json::parse::<Record>(&bytes, Limits::bytes(RECORD_BYTES_MAX));
    match read {
        Ok(record) if record.version == RECORD_VERSION && record.lease == lease => {
            return Ok(record);
        }
        Ok(_) => tracing::error!(%lease, "a network's record is of another version or lease"),
        Err(error) => {
            tracing::error!(%lease, error = %Chain(&error), "a network's record cannot be read");
        }
    }
    let boot_id = String::new();
    Ok(Record { version: RECORD_VERSION, lease, boot_id, rules: None, attached: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_reads_back_and_one_that_cannot_be_read_is_only_undone() {
        let dir = tempfile::tempdir().unwrap();
        let rule = "192.0.2.0/24:443/tcp".parse().unwrap();
        let record = Record {
            version: RECORD_VERSION,
            lease: "l1".parse().unwrap(),
            boot_id: "boot".to_owned(),
            rules: Some(EgressRules::sorted(vec![rule]).unwrap()),
            attached: None,
        };
        write(dir.path(), &record).unwrap();
        assert_eq!(read_all(dir.path()).unwrap(), std::slice::from_ref(&record));
        let text = std::fs::read_to_string(path(dir.path(), &record.lease)).unwrap();
        for bad in
            ["", "{}", &text.replace("\"version\":1", "\"version\":2"), &text.replace("l1", "l2")]
        {
            std::fs::write(path(dir.path(), &record.lease), bad).unwrap();
            let found = read_all(dir.path()).unwrap();
            let [found] = found.as_slice() else { panic!("{found:?}") };
            assert_eq!((&found.lease, &found.rules), (&record.lease, &None), "{bad}");
        }
        std::fs::write(dir.path().join("l3.json.tmp"), "").unwrap();
        std::fs::create_dir(dir.path().join("addresses")).unwrap();
        assert_eq!(read_all(dir.path()).unwrap().len(), 1);
        assert!(!dir.path().join("l3.json.tmp").exists());
        remove(dir.path(), &record.lease).unwrap();
        remove(dir.path(), &record.lease).unwrap();
        assert!(read_all(dir.path()).unwrap().is_empty());
    }
}

//! The attestation bundles that came with a grant, by lease, for as long as the lease is held.
//!
//! They are what the tenant handed in: untrusted bytes that only `nimbus-verify` reads. On disk, so
//! that a container admitted before a restart of the agent can be asked about again.
//!
//! Limits: [`BUNDLES_MAX`] bundles and [`BUNDLES_BYTES_MAX`] bytes a lease.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use nimbus_api::Digest;
use nimbus_api::error::Chain;
use nimbus_api::id::LeaseId;
use nimbus_api::proto::control::v1::JobSpec;
use nimbus_api::{Refusal, RefusalCode};
use prost::Message as _;

use crate::agent::lock;
use crate::files::{self, FileError};

/// Most bundles of one lease.
pub const BUNDLES_MAX: usize = 64;
/// Most bytes of all bundles of one lease.
pub const BUNDLES_BYTES_MAX: usize = 4 << 20;
const FILE_BYTES_MAX: usize = BUNDLES_BYTES_MAX + (64 << 10);
const SUFFIX: &str = ".pb";

/// The bundles of one lease.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Bundles {
    /// Each as it came.
    pub list: Vec<Vec<u8>>,
    /// SHA-256 over all of them with their lengths.
    pub digest: Option<Digest>,
}

/// All of them.
#[derive(Debug)]
pub struct BundleStore {
    dir: PathBuf,
    known: Mutex<HashMap<LeaseId, Arc<Bundles>>>,
}

impl BundleStore {
    /// Opens the directory; bundles are read when they are asked for.
    pub fn open(dir: &Path) -> Result<Self, FileError> {
        files::ensure_dir(dir)?;
        Ok(Self { dir: dir.to_owned(), known: Mutex::default() })
    }

    /// Keeps the bundles of a grant.
    pub fn keep(&self, id: &LeaseId, list: Vec<Vec<u8>>) -> Result<(), Refusal> {
        let bytes: usize = list.iter().map(Vec::len).sum();
        if list.len() > BUNDLES_MAX || bytes > BUNDLES_BYTES_MAX {
            let found = format!("{} bundles of {bytes} bytes", list.len());
            return Err(Refusal::with(RefusalCode::VerifyTooLarge, found));
        }
        if !list.is_empty() {
            // A JobSpec with nothing but bundles: the form they came in.
            let stored = JobSpec { bundles: list.clone(), ..JobSpec::default() }.encode_to_vec();
            files::write_durable(&self.path(id), &stored)
                .map_err(|error| Refusal::with(RefusalCode::NodeLedgerFailed, Chain(&error)))?;
        }
        lock(&self.known).insert(id.clone(), Arc::new(Bundles::of(list)));
        Ok(())
    }

    /// The bundles of a lease; none for a lease that brought none or is not known.
    pub fn of(&self, id: &LeaseId) -> Result<Arc<Bundles>, Refusal> {
        if let Some(bundles) = lock(&self.known).get(id) {
            return Ok(Arc::clone(bundles));
        }
        let unreadable =
            |found: &dyn std::fmt::Display| Refusal::with(RefusalCode::NodeLedgerFailed, found);
        let stored = files::read_bounded(&self.path(id), FILE_BYTES_MAX)
            .map_err(|error| unreadable(&Chain(&error)))?;
        let list = match stored {
            Some(stored) => {
                JobSpec::decode(stored.as_slice()).map_err(|error| unreadable(&error))?.bundles
            }
            None => Vec::new(),
        };
        Ok(Arc::new(Bundles::of(list)))
    }

    /// Drops the bundles of a lease that is over.
    pub fn forget(&self, id: &LeaseId) {
        lock(&self.known).remove(id);
        if let Err(error) = files::remove(&self.path(id)) {
            tracing::warn!(lease = %id, error = %Chain(&error), "bundles stay behind");
        }
    }

    fn path(&self, id: &LeaseId) -> PathBuf {
        self.dir.join(format!("{id}{SUFFIX}"))
    }
}

impl Bundles {
    fn of(list: Vec<Vec<u8>>) -> Self {
        let mut all = Vec::new();
        for bundle in &list {
            all.extend_from_slice(Digest::of(bundle).as_bytes());
        }
        let digest = (!list.is_empty()).then(|| Digest::of(&all));
        Self { list, digest }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bundles_survive_a_restart_until_they_are_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let id: LeaseId = "l1".parse().unwrap();
        let list = vec![b"a".to_vec(), b"b".to_vec()];
        BundleStore::open(dir.path()).unwrap().keep(&id, list.clone()).unwrap();
        let store = BundleStore::open(dir.path()).unwrap();
        assert_eq!(store.of(&id).unwrap().list, list);
        store.forget(&id);
        assert!(store.of(&id).unwrap().list.is_empty());
    }

    #[test]
    fn too_many_or_too_long_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let store = BundleStore::open(dir.path()).unwrap();
        let id: LeaseId = "l1".parse().unwrap();
        for bad in [vec![vec![1]; BUNDLES_MAX + 1], vec![vec![0; BUNDLES_BYTES_MAX + 1]]] {
            assert_eq!(store.keep(&id, bad).unwrap_err().code, RefusalCode::VerifyTooLarge);
        }
    }
}

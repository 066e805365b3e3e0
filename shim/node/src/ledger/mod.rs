//! The ledger: which lease is used for what, crash-safe (rules 8, 9).
//!
//! One JSON file a lease, replaced whole and durable before the change counts; the state machine is
//! [`entry`]. An entry stays until its lease has been over for [`KEEP_SECONDS`] and its end has been
//! acknowledged, so a lease cannot be used a second time while anybody could believe it.
//! A file that cannot be read is a lease that nothing may be started under.
//!
//! Limit: [`ENTRIES_MAX`] leases; one more is refused with `node.busy`.

pub mod entry;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nimbus_api::clock::UnixSeconds;
use nimbus_api::error::Chain;
use nimbus_api::id::{ContainerKey, JobId, LeaseId};
use nimbus_api::lease::LeaseClaims;
use nimbus_api::plan::PLAN_BYTES_MAX;
use nimbus_api::strict_json::{self, Limits};
use nimbus_api::{Refusal, RefusalCode};
use nimbus_hooks::facts::LeaseUse;

pub use entry::{End, Entry, Revoked, Stage, Step, Usage};

use crate::files::{self, FileError};

/// Most leases kept.
pub const ENTRIES_MAX: usize = 4096;
/// How long after the time of its end a lease is remembered: until nobody's clock takes it for valid.
/// A longer memory is no safer, since what is not in the ledger cannot be used, and fills it.
pub const KEEP_SECONDS: i64 = 2 * nimbus_hooks::FLOOR_TOLERANCE_SECONDS;
/// Longest entry: a plan, twice as long when every byte of it is escaped, and the rest.
pub const ENTRY_BYTES_MAX: usize = 2 * PLAN_BYTES_MAX + (64 << 10);
const SUFFIX: &str = ".json";

/// The ledger.
#[derive(Debug)]
pub struct Ledger {
    dir: PathBuf,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    entries: BTreeMap<LeaseId, Entry>,
    unreadable: BTreeMap<LeaseId, Refusal>,
}

impl Ledger {
    /// Reads all entries and removes what a crash left half-written.
    pub fn open(dir: &Path) -> Result<Self, FileError> {
        files::ensure_dir(dir)?;
        let inner = read_dir(dir, files::remove)?;
        Ok(Self { dir: dir.to_owned(), inner: Mutex::new(inner) })
    }

    /// Reads all entries that can be read, of a ledger that another process may have open.
    pub fn peek(dir: &Path) -> Result<Vec<Entry>, FileError> {
        if !dir.is_dir() {
            return Ok(Vec::new());
        }
        Ok(read_dir(dir, |_path| Ok(()))?.entries.into_values().collect())
    }

    /// Takes a lease that came; false when it is known already.
    pub fn grant(&self, claims: LeaseClaims) -> Result<bool, Refusal> {
        let mut inner = self.lock();
        let id = claims.lease_id.clone();
        if inner.entries.contains_key(&id) || inner.unreadable.contains_key(&id) {
            return Ok(false);
        }
        if inner.entries.len() + inner.unreadable.len() >= ENTRIES_MAX {
            return Err(Refusal::with(RefusalCode::NodeBusy, "the ledger is full"));
        }
        let entry = Entry::granted(claims);
        self.store(&id, &entry)?;
        inner.entries.insert(id, entry);
        Ok(true)
    }

    /// Makes a step durable, then gives the entry as it is now.
    pub fn step(&self, id: &LeaseId, step: Step) -> Result<Entry, Refusal> {
        let mut inner = self.lock();
        let unknown = || Refusal::with(RefusalCode::LeaseMissing, "not granted to this node");
        let entry = inner.entries.get(id).ok_or_else(unknown)?;
        let next = entry.after(step)?;
        if next != *entry {
            self.store(id, &next)?;
            inner.entries.insert(id.clone(), next.clone());
        }
        Ok(next)
    }

    /// One entry.
    pub fn get(&self, id: &LeaseId) -> Option<Entry> {
        self.lock().entries.get(id).cloned()
    }

    /// The entry whose lease is used for this container and has not ended.
    pub fn by_container(&self, container: &ContainerKey) -> Option<Entry> {
        let inner = self.lock();
        let mut live = inner.entries.values().filter(|entry| entry.is_live());
        live.find(|entry| entry.usage.as_ref().is_some_and(|u| u.container == *container)).cloned()
    }

    /// Every entry.
    pub fn all(&self) -> Vec<Entry> {
        self.lock().entries.values().cloned().collect()
    }

    /// Containers admitted and not released.
    pub fn live(&self) -> usize {
        self.lock().entries.values().filter(|entry| entry.is_live()).count()
    }

    /// Leases whose end has not been reported.
    pub fn unreported(&self) -> usize {
        self.lock().entries.values().filter(|entry| !entry.reported).count()
    }

    /// What a lease has been used for, as a fact.
    pub fn use_of(&self, claims: &LeaseClaims) -> LeaseUse {
        let inner = self.lock();
        if let Some(refusal) = inner.unreadable.get(&claims.lease_id) {
            return LeaseUse::Unreadable(refusal.clone());
        }
        let newest = highest_attempt(&inner, &claims.job);
        if newest > claims.attempt {
            return LeaseUse::Superseded { attempt: newest };
        }
        inner.entries.get(&claims.lease_id).map_or(LeaseUse::Unused, Entry::as_fact)
    }

    /// Forgets leases that are long over. `waiting` says whether an end still waits in the spool.
    pub fn forget_old(
        &self,
        now: UnixSeconds,
        waiting: impl Fn(&LeaseId) -> bool,
    ) -> Result<BTreeSet<LeaseId>, FileError> {
        let mut inner = self.lock();
        let old: BTreeSet<LeaseId> = inner
            .entries
            .iter()
            .filter(|(id, entry)| {
                let over = entry.claims.exp.0.saturating_add(KEEP_SECONDS) < now.0;
                entry.reported && over && !waiting(id)
            })
            .map(|(id, _)| id.clone())
            .collect();
        for id in &old {
            files::remove(&self.path(id))?;
            inner.entries.remove(id);
        }
        Ok(old)
    }

    fn store(&self, id: &LeaseId, entry: &Entry) -> Result<(), Refusal> {
        let json = serde_json::to_vec(entry).unwrap_or_default();
        if json.len() > ENTRY_BYTES_MAX {
            return Err(Refusal::with(RefusalCode::NodeLedgerFailed, "the entry is too long"));
        }
        files::write_durable(&self.path(id), &json)
            .map_err(|error| Refusal::with(RefusalCode::NodeLedgerFailed, Chain(&error)))
    }

    fn path(&self, id: &LeaseId) -> PathBuf {
        self.dir.join(format!("{id}{SUFFIX}"))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn read_dir(
    dir: &Path,
    temporary: impl Fn(&Path) -> Result<(), FileError>,
) -> Result<Inner, FileError> {
    let mut inner = Inner::default();
    let list = |error| FileError::new("list", dir, error);
    for item in std::fs::read_dir(dir).map_err(list)? {
        let item = item.map_err(list)?;
        let name = item.file_name();
        let name = name.to_str().unwrap_or_default();
        if files::is_temporary(name) {
            temporary(&item.path())?;
            continue;
        }
        let Some(Ok(id)) = name.strip_suffix(SUFFIX).map(str::parse::<LeaseId>) else {
            tracing::warn!(name, "a file in the ledger is none of its entries");
            continue;
        };
        match read_entry(&item.path(), &id) {
            Ok(entry) => {
                inner.entries.insert(id, entry);
            }
            Err(refusal) => {
                tracing::error!(lease = %id, %refusal, "a ledger entry cannot be read");
                inner.unreadable.insert(id, refusal);
            }
        }
    }
    Ok(inner)
}

fn highest_attempt(inner: &Inner, job: &JobId) -> u32 {
    let same = inner.entries.values().filter(|entry| entry.claims.job == *job);
    same.map(|entry| entry.claims.attempt).max().unwrap_or(0)
}

fn read_entry(path: &Path, id: &LeaseId) -> Result<Entry, Refusal> {
    let failed =
        |found: &dyn std::fmt::Display| Refusal::with(RefusalCode::NodeLedgerFailed, found);
    let bytes =
        files::read_bounded(path, ENTRY_BYTES_MAX).map_err(|error| failed(&Chain(&error)))?;
    let bytes = bytes.unwrap_or_default();
    let entry: Entry = strict_json::parse(&bytes, Limits::bytes(ENTRY_BYTES_MAX))
        .map_err(|error| failed(&Chain(&error)))?;
    if entry.version != entry::ENTRY_VERSION || entry.claims.lease_id != *id {
        return Err(failed(&"another version or another lease"));
    }
    Ok(entry)
}

#[cfg(test)]
mod tests;

//! What the node believes: the key set (by the pinned lease root), the policy (by the pinned policy
//! key, which control never holds, rule 11) and the clock's floor (rule 1).
//!
//! All three only go forward: serials never fall, the floor never falls but by an audited reset. All
//! are on disk before they are used, so a node that cannot reach control still has them, and none of
//! them can be turned back by taking control over or by a restart.
//! A bad document that arrives never replaces a good one that is here.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use nimbus_api::clock::UnixSeconds;
use nimbus_api::dsse::{ENVELOPE_BYTES_MAX, VerifyingKey};
use nimbus_api::error::Chain;
use nimbus_api::id::TrustDomain;
use nimbus_api::keys::KeySet;
use nimbus_api::policy::{PolicyError, SignedPolicy};
use nimbus_api::strict_json::{self, Limits, StrictJsonError};
use nimbus_api::{Digest, Refusal, RefusalCode};
use nimbus_hooks::facts::PolicyFact;
use serde::{Deserialize, Serialize};

use crate::files::{self, FileError};

const STATE_BYTES_MAX: usize = 4096;
const POLICY_KEY_BYTES_MAX: usize = 256;

/// What never falls, as it is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct HighWater {
    version: u32,
    key_set_serial: u64,
    policy_serial: u64,
    policy_sha256: Option<Digest>,
    floor: UnixSeconds,
}

/// Why the trust state cannot be used; the agent does not start then.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// A file.
    #[error("cannot use the trust state's files")]
    File(#[from] FileError),
    /// The high-water marks cannot be read.
    #[error("the trust state cannot be read; without it documents could be rolled back")]
    State(#[source] StrictJsonError),
    /// Another version.
    #[error("the trust state has version {found}, expected 1")]
    Version {
        /// Version found.
        found: u32,
    },
}

/// Key set, policy and floor.
#[derive(Debug)]
pub struct TrustStore {
    dir: PathBuf,
    policy_key: PathBuf,
    writable: bool,
    root: Option<(VerifyingKey, TrustDomain)>,
    high: HighWater,
    keys: Result<Arc<KeySet>, Refusal>,
    policy: PolicyFact,
}

impl TrustStore {
    /// Reads what is on disk. `root` is the pinned lease root, none before the node has joined.
    pub fn open(
        dir: &Path,
        policy_key: &Path,
        root: Option<(VerifyingKey, TrustDomain)>,
    ) -> Result<Self, TrustError> {
        files::ensure_dir(dir)?;
        Self::read(dir, policy_key, root, true)
    }

    /// Reads what is on disk and changes nothing: for showing, beside a running agent.
    pub fn peek(
        dir: &Path,
        policy_key: &Path,
        root: Option<(VerifyingKey, TrustDomain)>,
    ) -> Result<Self, TrustError> {
        Self::read(dir, policy_key, root, false)
    }

    fn read(
        dir: &Path,
        policy_key: &Path,
        root: Option<(VerifyingKey, TrustDomain)>,
        writable: bool,
    ) -> Result<Self, TrustError> {
        let mut store = Self {
            writable,
            dir: dir.to_owned(),
            policy_key: policy_key.to_owned(),
            root,
            high: read_high_water(dir)?,
            keys: Err(Refusal::new(RefusalCode::KeysMissing)),
            policy: PolicyFact::Missing,
        };
        if let Some(envelope) = files::read_bounded(&store.key_set_path(), ENVELOPE_BYTES_MAX)? {
            match store.check_key_set(&envelope) {
                Ok(keys) => store.use_key_set(keys)?,
                Err(refusal) => store.keys = Err(refusal),
            }
        }
        if let Some(envelope) = files::read_bounded(&store.policy_path(), ENVELOPE_BYTES_MAX)? {
            match store.check_policy(&envelope) {
                Ok(Some(policy)) => store.use_policy(policy)?,
                Ok(None) => {}
                Err(refusal) => store.policy = PolicyFact::Refused(refusal),
            }
        }
        Ok(store)
    }

    /// Takes a key set that arrived; gives its serial.
    pub fn take_key_set(&mut self, envelope: &[u8]) -> Result<u64, Refusal> {
        let keys = self.check_key_set(envelope)?;
        let serial = keys.serial;
        files::write_durable(&self.key_set_path(), envelope).map_err(|error| not_kept(&error))?;
        self.use_key_set(keys).map_err(|error| not_kept(&error))?;
        Ok(serial)
    }

    /// Takes a policy that arrived; gives its serial.
    pub fn take_policy(&mut self, envelope: &[u8]) -> Result<u64, Refusal> {
        let policy = match self.check_policy(envelope) {
            Ok(Some(policy)) => policy,
            Ok(None) => return Err(Refusal::with(RefusalCode::PolicyMissing, "no policy key")),
            Err(refusal) => {
                if !matches!(self.policy, PolicyFact::Verified(_)) {
                    self.policy = PolicyFact::Refused(refusal.clone());
                }
                return Err(refusal);
            }
        };
        let serial = policy.policy.serial;
        files::write_durable(&self.policy_path(), envelope).map_err(|error| not_kept(&error))?;
        self.use_policy(policy).map_err(|error| not_kept(&error))?;
        Ok(serial)
    }

    /// The verified key set.
    pub fn keys(&self) -> Result<Arc<KeySet>, Refusal> {
        self.keys.clone()
    }

    /// The policy, as a fact.
    pub fn policy(&self) -> PolicyFact {
        self.policy.clone()
    }

    /// The serial of the policy in use; 0 is none.
    pub fn policy_serial(&self) -> u64 {
        match &self.policy {
            PolicyFact::Verified(policy) => policy.policy.serial,
            PolicyFact::Missing | PolicyFact::Refused(_) => 0,
        }
    }

    /// The highest `iat` of a verified lease.
    pub fn floor(&self) -> UnixSeconds {
        self.high.floor
    }

    /// Remembers the `iat` of a verified lease.
    pub fn raise_floor(&mut self, iat: UnixSeconds) -> Result<(), FileError> {
        if iat > self.high.floor {
            self.store(HighWater { floor: iat, ..self.high })?;
        }
        Ok(())
    }

    /// Puts the floor to a given time, down too. Only for the audited reset.
    pub fn reset_floor(&mut self, floor: UnixSeconds) -> Result<(), FileError> {
        self.store(HighWater { floor, ..self.high })
    }

    fn check_key_set(&self, envelope: &[u8]) -> Result<KeySet, Refusal> {
        let Some((root, domain)) = &self.root else {
            return Err(Refusal::new(RefusalCode::NodeNotJoined));
        };
        let keys = KeySet::verify(envelope, root)
            .map_err(|error| Refusal::with(RefusalCode::KeysInvalid, Chain(&error)))?;
        if keys.trust_domain != *domain {
            let found = format!("of trust domain {}, expected {domain}", keys.trust_domain);
            return Err(Refusal::with(RefusalCode::KeysInvalid, found));
        }
        if keys.serial < self.high.key_set_serial {
            let found =
                format!("serial {}, {} has been seen", keys.serial, self.high.key_set_serial);
            return Err(Refusal::with(RefusalCode::KeysInvalid, found));
        }
        Ok(keys)
    }

    fn use_key_set(&mut self, keys: KeySet) -> Result<(), FileError> {
        self.store(HighWater { key_set_serial: keys.serial, ..self.high })?;
        self.keys = Ok(Arc::new(keys));
        Ok(())
    }

    /// None when there is no policy key to check with.
    fn check_policy(&self, envelope: &[u8]) -> Result<Option<SignedPolicy>, Refusal> {
        let Some(key) = self.read_policy_key()? else { return Ok(None) };
        let policy = SignedPolicy::verify(envelope, &key).map_err(|error| {
            let code = match &error {
                PolicyError::Envelope(_) => RefusalCode::PolicyBadSignature,
                PolicyError::TooLarge { .. }
                | PolicyError::NotText(_)
                | PolicyError::Toml(_)
                | PolicyError::Invalid { .. } => RefusalCode::PolicyInvalid,
            };
            Refusal::with(code, Chain(&error))
        })?;
        let serial = policy.policy.serial;
        let other = self.high.policy_sha256.is_some_and(|seen| seen != policy.sha256);
        if serial < self.high.policy_serial || (serial == self.high.policy_serial && other) {
            let found = format!("serial {serial}, {} has been seen", self.high.policy_serial);
            return Err(Refusal::with(RefusalCode::PolicyRolledBack, found));
        }
        Ok(Some(policy))
    }

    fn use_policy(&mut self, policy: SignedPolicy) -> Result<(), FileError> {
        self.store(HighWater {
            policy_serial: policy.policy.serial,
            policy_sha256: Some(policy.sha256),
            ..self.high
        })?;
        self.policy = PolicyFact::Verified(Box::new(policy));
        Ok(())
    }

    fn read_policy_key(&self) -> Result<Option<VerifyingKey>, Refusal> {
        let bad = |found: &dyn std::fmt::Display| {
            Refusal::with(RefusalCode::PolicyBadSignature, format!("pinned key: {found}"))
        };
        let bytes = files::read_bounded(&self.policy_key, POLICY_KEY_BYTES_MAX)
            .map_err(|error| bad(&Chain(&error)))?;
        let Some(bytes) = bytes else { return Ok(None) };
        let text = String::from_utf8_lossy(&bytes);
        VerifyingKey::from_hex(&text).map(Some).map_err(|error| bad(&error))
    }

    fn store(&mut self, high: HighWater) -> Result<(), FileError> {
        if high != self.high {
            if self.writable {
                let json = serde_json::to_vec(&high).unwrap_or_default();
                files::write_durable(&state_path(&self.dir), &json)?;
            }
            self.high = high;
        }
        Ok(())
    }

    fn key_set_path(&self) -> PathBuf {
        self.dir.join("keyset.json")
    }

    fn policy_path(&self) -> PathBuf {
        self.dir.join("policy.json")
    }
}

fn state_path(dir: &Path) -> PathBuf {
    dir.join("state.json")
}

fn read_high_water(dir: &Path) -> Result<HighWater, TrustError> {
    let Some(bytes) = files::read_bounded(&state_path(dir), STATE_BYTES_MAX)? else {
        return Ok(HighWater {
            version: 1,
            key_set_serial: 0,
            policy_serial: 0,
            policy_sha256: None,
            floor: UnixSeconds(0),
        });
    };
    let high: HighWater =
        strict_json::parse(&bytes, Limits::bytes(STATE_BYTES_MAX)).map_err(TrustError::State)?;
    if high.version == 1 { Ok(high) } else { Err(TrustError::Version { found: high.version }) }
}

fn not_kept(error: &FileError) -> Refusal {
    Refusal::with(RefusalCode::NodeLedgerFailed, Chain(error))
}

#[cfg(test)]
mod tests;

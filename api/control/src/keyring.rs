//! The root key, the hot key that signs leases, and the key set that tells nodes about it.
//!
//! Two levels: the root signs a [`KeySet`] seldom, a hot key of it signs leases for an hour. A hot
//! key is rotated at three quarters of its life; the new set is durable and handed to every session
//! *before* the new key signs anything. A key stays in the set for [`KEPT_SECONDS`] after it stopped
//! signing, so that leases made with it can still be read; its private half is deleted then at once.

use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};

use nimbus_api::clock::UnixSeconds;
use nimbus_api::dsse::{SigningKey, VerifyingKey};
use nimbus_api::id::{KeyId, TrustDomain};
use nimbus_api::keys::{HotKey, KeyPurpose, KeySet};
use nimbus_api::lease::{LeaseClaims, LeaseSignError, LeaseToken};

use crate::data_dir::{DataDir, DataDirError};

/// Life of a hot key.
const HOT_SECONDS: i64 = 3600;
/// A hot key with less life than this left is replaced.
const ROTATE_SECONDS: i64 = HOT_SECONDS / 4;
/// How long a key that signs no more stays in the set.
const KEPT_SECONDS: i64 = 24 * 3600;
const ROOT: &str = "root.key";
const HOT: &str = "hot";
const SET: &str = "keyset.json";

/// Why the keys cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyRingError {
    /// A file.
    #[error("cannot keep the keys")]
    DataDir(#[source] DataDirError),
    /// A key file that holds no key.
    #[error("{} is not a key file", path.display())]
    NotAKey {
        /// Which.
        path: PathBuf,
    },
    /// A key set that our root did not sign.
    #[error("{SET} is not signed by {ROOT}")]
    Set(#[source] nimbus_api::keys::KeySetError),
    /// Another trust domain.
    #[error("the data directory belongs to trust domain {found}, asked for {asked}")]
    Domain {
        /// Of the key set.
        found: TrustDomain,
        /// Of the command line.
        asked: TrustDomain,
    },
    /// A hot key's name is not an id.
    #[error("cannot name a hot key")]
    Name,
}

/// Why a lease could not be signed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SignError {
    #[error("no hot key is valid at {0}")]
    NoKey(UnixSeconds),
    #[error("cannot sign the lease")]
    Sign(#[source] LeaseSignError),
}

struct Signer {
    kid: KeyId,
    key: SigningKey,
    nbf: UnixSeconds,
    exp: UnixSeconds,
}

struct Present {
    set: KeySet,
    envelope: Arc<[u8]>,
    signer: Option<Arc<Signer>>,
}

/// All keys of the control service but the CA's.
pub(crate) struct KeyRing {
    root: SigningKey,
    folder: PathBuf,
    path: PathBuf,
    present: RwLock<Present>,
}

impl std::fmt::Debug for KeyRing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KeyRing").field("root", &self.root).finish_non_exhaustive()
    }
}

/// A new key whose set is durable and is what [`KeyRing::envelope`] gives, but that signs nothing
/// yet.
#[must_use]
pub(crate) struct Rotation {
    signer: Arc<Signer>,
    old: Option<PathBuf>,
}

impl KeyRing {
    /// Reads the keys, or makes them when the data directory is new. `generation` is the store's,
    /// `serial_floor` the highest serial that the store has seen.
    pub(crate) fn open(
        data: &DataDir,
        domain: &TrustDomain,
        generation: u64,
        serial_floor: u64,
        now: UnixSeconds,
    ) -> Result<Self, KeyRingError> {
        let root = if let Some(root) = read_key(&data.join(ROOT))? {
            root
        } else {
            let root = SigningKey::generate();
            data.write_secret(ROOT, root.to_file_text().as_bytes())
                .map_err(KeyRingError::DataDir)?;
            root
        };
        let folder = data.folder(HOT).map_err(KeyRingError::DataDir)?;
        let mut set = match fs::read(data.join(SET)) {
            Ok(text) => KeySet::verify(&text, &root.verifying_key()).map_err(KeyRingError::Set)?,
            Err(_absent) => empty_set(domain, generation, now),
        };
        if set.trust_domain != *domain {
            let (found, asked) = (set.trust_domain, domain.clone());
            return Err(KeyRingError::Domain { found, asked });
        }
        set.serial = set.serial.max(serial_floor);
        let signer = newest_signer(&set, &folder, generation)?;
        let envelope = set.sign(&root).to_json().into();
        let present = RwLock::new(Present { set, envelope, signer });
        let ring = Self { root, folder, path: data.join(SET), present };
        if let Some(rotation) = ring.prepare(generation, now)? {
            ring.activate(rotation);
        }
        Ok(ring)
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, Present> {
        self.present.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Public half of the root.
    pub(crate) fn root(&self) -> VerifyingKey {
        self.root.verifying_key()
    }

    /// The present key set as a DSSE envelope.
    pub(crate) fn envelope(&self) -> Arc<[u8]> {
        Arc::clone(&self.read().envelope)
    }

    /// Serial of the present key set.
    pub(crate) fn serial(&self) -> u64 {
        self.read().set.serial
    }

    /// Signs a lease with the present hot key.
    pub(crate) fn sign(&self, claims: &LeaseClaims) -> Result<LeaseToken, SignError> {
        let (signer, domain) = {
            let present = self.read();
            (present.signer.clone(), present.set.trust_domain.clone())
        };
        let signer = signer
            .filter(|signer| signer.nbf <= claims.iat && claims.iat <= signer.exp)
            .ok_or(SignError::NoKey(claims.iat))?;
        LeaseToken::sign(claims, &signer.key, &domain).map_err(SignError::Sign)
    }

    /// Makes the next hot key and key set durable, and publishes the set, when it is time; none when
    /// it is not.
    pub(crate) fn prepare(
        &self,
        generation: u64,
        now: UnixSeconds,
    ) -> Result<Option<Rotation>, KeyRingError> {
        let (mut set, old) = {
            let present = self.read();
            let fresh = present.signer.as_ref().is_some_and(|signer| {
                signer.nbf <= now && signer.exp.0.saturating_sub(now.0) > ROTATE_SECONDS
            });
            if fresh && present.set.generation == generation {
                return Ok(None);
            }
            (present.set.clone(), present.signer.as_ref().map(|signer| signer.kid.clone()))
        };
        let key = SigningKey::generate();
        let public = key.verifying_key();
        let kid: KeyId = public.key_id().parse().map_err(|_error| KeyRingError::Name)?;
        let (nbf, exp) = (now, UnixSeconds(now.0.saturating_add(HOT_SECONDS)));
        set.serial = set.serial.saturating_add(1);
        (set.generation, set.issued_at) = (generation, now);
        set.keys.retain(|old| old.exp.0.saturating_add(KEPT_SECONDS) > now.0);
        let purpose = KeyPurpose::Lease;
        set.keys.push(HotKey { kid: kid.clone(), key: public, purpose, nbf, exp, generation });
        let path = key_path(&self.folder, &kid);
        crate::data_dir::write_whole(&path, key.to_file_text().as_bytes(), 0o600)
            .map_err(KeyRingError::DataDir)?;
        let text = set.sign(&self.root).to_json();
        crate::data_dir::write_whole(&self.path, &text, 0o644).map_err(KeyRingError::DataDir)?;
        let mut present = self.present.write().unwrap_or_else(PoisonError::into_inner);
        (present.set, present.envelope) = (set, text.into());
        let signer = Arc::new(Signer { kid, key, nbf, exp });
        Ok(Some(Rotation { signer, old: old.map(|kid| key_path(&self.folder, &kid)) }))
    }

    /// From here on the new key signs; the old one's private half is gone.
    pub(crate) fn activate(&self, rotation: Rotation) {
        let mut present = self.present.write().unwrap_or_else(PoisonError::into_inner);
        present.signer = Some(rotation.signer);
        drop(present);
        if let Some(old) = rotation.old
            && let Err(error) = fs::remove_file(&old)
        {
            tracing::warn!(path = %old.display(), %error, "cannot remove a hot key that is out of use");
        }
    }
}

fn empty_set(domain: &TrustDomain, generation: u64, now: UnixSeconds) -> KeySet {
    KeySet {
        version: 1,
        trust_domain: domain.clone(),
        serial: 0,
        generation,
        issued_at: now,
        keys: Vec::new(),
    }
}

fn key_path(folder: &std::path::Path, kid: &KeyId) -> PathBuf {
    folder.join(format!("{kid}.key"))
}

fn read_key(path: &std::path::Path) -> Result<Option<SigningKey>, KeyRingError> {
    let Some(text) = crate::data_dir::read_secret(path).map_err(KeyRingError::DataDir)? else {
        return Ok(None);
    };
    SigningKey::from_file_text(&text)
        .map(Some)
        .map_err(|_error| KeyRingError::NotAKey { path: path.to_owned() })
}

fn newest_signer(
    set: &KeySet,
    folder: &std::path::Path,
    generation: u64,
) -> Result<Option<Arc<Signer>>, KeyRingError> {
    let Some(newest) = set.keys.last().filter(|key| key.generation == generation) else {
        return Ok(None);
    };
    let Some(key) = read_key(&key_path(folder, &newest.kid))? else { return Ok(None) };
    if key.verifying_key() != newest.key {
        return Err(KeyRingError::NotAKey { path: key_path(folder, &newest.kid) });
    }
    let (kid, nbf, exp) = (newest.kid.clone(), newest.nbf, newest.exp);
    Ok(Some(Arc::new(Signer { kid, key, nbf, exp })))
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: UnixSeconds = UnixSeconds(1_800_000_000);

    fn open(data: &DataDir, now: UnixSeconds) -> KeyRing {
        KeyRing::open(data, &"nimbus.test".parse().unwrap(), 1, 0, now).unwrap()
    }

    #[test]
    fn keys_survive_a_restart_and_the_serial_grows_with_each_rotation() {
        let temporary = tempfile::tempdir().unwrap();
        let data = DataDir::open(temporary.path()).unwrap();
        let first = open(&data, START);
        let again = open(&data, UnixSeconds(START.0 + 60));
        assert_eq!(first.envelope(), again.envelope());
        let later = UnixSeconds(START.0 + 3000);
        let rotation = again.prepare(1, later).unwrap().unwrap();
        assert_ne!(first.envelope(), again.envelope());
        let signs = |ring: &KeyRing| ring.read().signer.as_ref().unwrap().kid.clone();
        let old = signs(&first);
        assert_eq!(signs(&again), old, "nothing signs with the new key before it was handed out");
        again.activate(rotation);
        assert_ne!(signs(&again), old);
        assert_eq!(again.serial(), 2);
        assert!(again.prepare(1, later).unwrap().is_none());
        let set = KeySet::verify(&again.envelope(), &again.root()).unwrap();
        assert_eq!(set.keys.len(), 2);
        assert_eq!(fs::read_dir(data.join(HOT)).unwrap().count(), 1);
    }

    #[test]
    fn a_key_set_that_another_root_signed_or_an_exposed_key_stops_the_start() {
        use std::os::unix::fs::PermissionsExt as _;
        let temporary = tempfile::tempdir().unwrap();
        let data = DataDir::open(temporary.path()).unwrap();
        drop(open(&data, START));
        let domain: TrustDomain = "nimbus.test".parse().unwrap();
        let mode = fs::Permissions::from_mode(0o644);
        fs::set_permissions(data.join(ROOT), mode).unwrap();
        let exposed = KeyRing::open(&data, &domain, 1, 0, START);
        assert!(matches!(exposed, Err(KeyRingError::DataDir(DataDirError::SecretExposed { .. }))));
        data.write_secret(ROOT, SigningKey::generate().to_file_text().as_bytes()).unwrap();
        assert!(matches!(KeyRing::open(&data, &domain, 1, 0, START), Err(KeyRingError::Set(_))));
    }
}

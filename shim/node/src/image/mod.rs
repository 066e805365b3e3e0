//! The node's image store: fetches images by digest, checks every byte, unpacks the layers itself.
//!
//! Inputs: an image name (a registry, or an OCI layout directory), a digest, a platform. Outputs:
//! [`MeasuredImage`], which says what the root filesystem of that image is, and detached mounts of
//! its layers. What containerd has, its content and its snapshots, is never looked at: a snapshot's
//! name proves nothing about what is in it.
//!
//! The chain of checks: the digest that was asked for is that of the manifest's (or index's) bytes;
//! the manifest gives digest and size of configuration and layers; the configuration gives the diff
//! ids; every layer's blob is hashed before it is parsed and its uncompressed stream while it is
//! unpacked. A layer that is here already, under the same diff ids below it, is not fetched again.
//!
//! On disk, below a root-only directory that one process at a time has locked: `images/<unpacker
//! version>/` and `documents/` ([`record`]), `layers/` ([`layers`]), and `tmp/`, which is emptied when
//! the store is opened; everything else appears by a rename of something whole and synced.
//!
//! An image is known under the names that had it. One that was fetched as `a.example/x` is
//! `image.missing` as `b.example/x` until that name has been asked for it too, because policy goes
//! by names; the layers are shared.
//!
//! Who waits for whom: calls for one name and digest for each other, calls that fetch one blob from one
//! place, and calls that unpack one blob, which is local work; so nobody waits for a registry or for
//! bytes that somebody else has chosen and he has not, though a layer may then come twice.
//!
//! Calls block: on files, on a registry, on another thread that prepares the same image. Call from
//! a thread that may, never from an async worker. Limits are in [`limits`].
//!
//! Absent: removal of images that are no longer used; EROFS; a defence against root of this host
//! ([`layers`] says what is noticed and what is not).
//!
//! [`record`]: self::record
//! [`layers`]: self::layers

mod archive;
mod challenge;
mod decode;
mod document;
mod fetch;
mod files;
mod layers;
mod layout;
pub mod limits;
mod lock;
mod merged;
mod path;
mod pax;
mod prepare;
mod record;
mod refuse;
mod registry;
mod request;
mod tree;
mod unpack;

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nimbus_api::{Digest, Refusal, RefusalCode};
use nimbus_hooks::facts::MeasuredImage;
use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;

pub use self::document::ImageConfig;
pub use self::layers::UNPACKER_VERSION;
pub use self::limits::ImageLimits;
pub use self::request::ImageRequest;
/// Says to a `prepare` that its image is not wanted any more.
pub use tokio_util::sync::CancellationToken as Stop;

use self::files::{OPEN_DIR, PRIVATE_FILE, private_dir};
use self::layers::{Layers, Marker};
use self::limits::Deadline;
use self::lock::Locks;
use self::record::Record;
use self::refuse::tampered;
use self::request::Platform;

const LOCK_FILE: &str = "lock";
/// A process that was just started by the one before may hold its lock until it has exec'ed.
const LOCK_TRIES: u32 = 20;
const LOCK_WAIT: Duration = Duration::from_millis(50);

/// How a store is set up.
#[derive(Debug, Clone)]
pub struct StoreConfig {
    /// Its directory; made when it is not there.
    pub root: PathBuf,
    /// `host:port` of registries that are spoken to over plain HTTP.
    pub insecure_registries: Vec<String>,
    /// Directories that `oci:/...` images may be below.
    pub layout_roots: Vec<PathBuf>,
    /// This node's, `os/architecture[/variant]`.
    pub platform: String,
    /// Limits.
    pub limits: ImageLimits,
}

/// Why a store could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum StoreOpenError {
    /// The directory cannot be made or opened.
    #[error("cannot open the image store {}", root.display())]
    Directory {
        /// Which.
        root: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Somebody else owns the directory.
    #[error("the image store {} belongs to user {owner}", root.display())]
    Owner {
        /// Which.
        root: PathBuf,
        /// Whose it is.
        owner: u32,
    },
    /// Another process has it.
    #[error("the image store {} is in use by another process", root.display())]
    Locked {
        /// Which.
        root: PathBuf,
    },
    /// The configured platform is none.
    #[error("the configured platform is not usable")]
    Platform(#[source] Refusal),
}

/// The store. Share it in an [`Arc`].
#[derive(Debug)]
pub struct ImageStore {
    config: StoreConfig,
    platform: Platform,
    scratch: OwnedFd,
    images: OwnedFd,
    documents: OwnedFd,
    unpacked: Layers,
    known: Mutex<HashMap<Digest, Arc<Image>>>,
    /// By name and digest, while an image is fetched.
    image_locks: Locks<(String, Digest)>,
    /// By where from and which layer, while it is fetched.
    transfer_locks: Locks<(String, LayerKey)>,
    /// While a layer is unpacked.
    layer_locks: Locks<LayerKey>,
    /// By digest, while what is known of an image is written.
    record_locks: Locks<Digest>,
    /// Held for its lock.
    _lock: OwnedFd,
}

/// A layer that is being made: the chain id that it is said to have, and the digest of its blob. Only
/// unpacking shows whether the one belongs to the other, and until then nobody whose blob is another
/// waits for it.
type LayerKey = (Digest, Digest);

/// An image that is whole and checked.
#[derive(Debug)]
struct Image {
    record: Record,
    platform: String,
    run: ImageConfig,
    layers: Vec<Marker>,
}

impl Image {
    fn new(record: Record, config: &document::Config, layers: Vec<Marker>) -> Self {
        let platform = config.platform.to_string();
        Self { record, platform, run: config.run.clone(), layers }
    }
}

impl ImageStore {
    /// Opens a store, makes its directories and removes what an earlier run left half-made.
    pub fn open(config: StoreConfig) -> Result<Self, StoreOpenError> {
        let platform = Platform::parse(&config.platform).map_err(StoreOpenError::Platform)?;
        let failed = |source: std::io::Error| StoreOpenError::Directory {
            root: config.root.clone(),
            source,
        };
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&config.root)
            .map_err(failed)?;
        let root = rustix::fs::open(&config.root, OPEN_DIR, Mode::empty())
            .map_err(|error| failed(error.into()))?;
        let stat = rustix::fs::fstat(&root).map_err(|error| failed(error.into()))?;
        if stat.st_uid != rustix::process::geteuid().as_raw() {
            return Err(StoreOpenError::Owner { root: config.root, owner: stat.st_uid });
        }
        let root = std::fs::File::from(root);
        root.set_permissions(std::fs::Permissions::from_mode(0o700)).map_err(failed)?;
        let lock = match lock(&root) {
            Ok(lock) => lock,
            Err(Errno::WOULDBLOCK) => return Err(StoreOpenError::Locked { root: config.root }),
            Err(error) => return Err(failed(error.into())),
        };
        let parts = parts(&root, config.limits.depth).map_err(|error| failed(error.into()))?;
        let (scratch, images, documents, unpacked) = parts;
        Ok(Self {
            config,
            platform,
            scratch,
            images,
            documents,
            unpacked,
            known: Mutex::default(),
            image_locks: Locks::default(),
            transfer_locks: Locks::default(),
            layer_locks: Locks::default(),
            record_locks: Locks::default(),
            _lock: lock,
        })
    }

    /// Fetches and unpacks what is not there yet, unless `stop` says that it is not wanted any more.
    /// Many calls for one image do the work once.
    pub fn prepare(&self, image: &ImageRequest, stop: &Stop) -> Result<MeasuredImage, Refusal> {
        let seconds = self.config.limits.prepare_seconds;
        self.prepare_image(image, Deadline::unless(stop.clone(), seconds))
    }

    /// The image as it is in the store: nothing is fetched.
    pub fn measured(&self, name: &str, digest: &Digest) -> Result<MeasuredImage, Refusal> {
        match self.image(digest)? {
            Some(image) if image.record.has(name) => self.checked(&image, name),
            Some(_) => Err(Refusal::with(
                RefusalCode::ImageMissing,
                format!("{digest} was not fetched as {name}"),
            )),
            None => Err(Refusal::with(RefusalCode::ImageMissing, format!("{name} {digest}"))),
        }
    }

    /// One detached mount for each layer, lowest first; each layer is checked again.
    pub fn open_layers(&self, image: &MeasuredImage) -> Result<Vec<OwnedFd>, Refusal> {
        let known =
            self.image(&image.digest)?.ok_or_else(|| Refusal::new(RefusalCode::ImageMissing))?;
        if known.record.rootfs != image.rootfs || diff_ids(&known.layers) != image.layers {
            return Err(tampered(format!("{} is not as it was measured", image.digest)));
        }
        known.layers.iter().map(|marker| self.unpacked.mount(marker)).collect()
    }

    /// What the image says about how it is run.
    pub fn config(&self, digest: &Digest) -> Result<ImageConfig, Refusal> {
        let image = self.image(digest)?.ok_or_else(|| {
            Refusal::with(RefusalCode::ImageMissing, format!("{digest} was not fetched"))
        })?;
        Ok(image.run.clone())
    }

    /// From memory, or from disk for an image of an earlier run.
    fn image(&self, digest: &Digest) -> Result<Option<Arc<Image>>, Refusal> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner).get(digest).cloned();
        if known.is_some() {
            return Ok(known);
        }
        let Some(image) = self.load(digest)? else { return Ok(None) };
        let image = Arc::new(image);
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        // One that was prepared in the meantime knows more names.
        Ok(Some(Arc::clone(known.entry(*digest).or_insert(image))))
    }

    fn cache(&self, digest: Digest, image: Arc<Image>) {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).insert(digest, image);
    }

    /// The image as facts, after another look at its layers.
    fn checked(&self, image: &Image, name: &str) -> Result<MeasuredImage, Refusal> {
        for marker in &image.layers {
            drop(self.unpacked.tree(marker)?);
        }
        Ok(MeasuredImage {
            name: name.to_owned(),
            digest: image.record.digest,
            manifest: image.record.manifest,
            platform: image.platform.clone(),
            layers: diff_ids(&image.layers),
            rootfs: image.record.rootfs,
            hostile_mount_point: image.record.hostile_mount_point.clone(),
        })
    }
}

fn diff_ids(layers: &[Marker]) -> Vec<Digest> {
    layers.iter().map(|marker| marker.diff_id).collect()
}

/// Held until its descriptor is closed, by a crash too.
fn lock(root: &std::fs::File) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let lock = rustix::fs::openat(root, LOCK_FILE, flags, PRIVATE_FILE)?;
    let mut tries = LOCK_TRIES;
    loop {
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(lock),
            Err(Errno::WOULDBLOCK) if tries > 0 => {
                tries -= 1;
                std::thread::sleep(LOCK_WAIT);
            }
            Err(error) => return Err(error),
        }
    }
}

fn parts(root: &std::fs::File, depth: usize) -> Result<(OwnedFd, OwnedFd, OwnedFd, Layers), Errno> {
    let scratch = private_dir(root, "tmp")?;
    layers::empty(&scratch, depth)?;
    let images = private_dir(private_dir(root, "images")?, UNPACKER_VERSION)?;
    let documents = private_dir(root, "documents")?;
    Ok((scratch, images, documents, Layers::open(root)?))
}

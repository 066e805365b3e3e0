//! Every limit of the image store, named, with its default.
//!
//! Units are in the names. A limit that is reached is `image.too_large` (the image wants too much)
//! or `image.fetch_failed` (time), never an out-of-memory.

use std::time::{Duration, Instant};

use nimbus_api::plan::LAYERS_MAX;
use nimbus_api::{Refusal, RefusalCode};

use super::Stop;

/// Longest index or manifest.
pub const MANIFEST_BYTES_MAX: u64 = 4 << 20;
/// Longest image configuration.
pub const CONFIG_BYTES_MAX: u64 = 4 << 20;
/// All compressed layers of an image together.
pub const COMPRESSED_BYTES_MAX: u64 = 32 << 30;
/// One layer, uncompressed.
pub const LAYER_BYTES_MAX: u64 = 32 << 30;
/// All layers of an image together, uncompressed.
pub const IMAGE_BYTES_MAX: u64 = 64 << 30;
/// Entries of one layer, directories that are only implied included.
pub const ENTRIES_MAX: u64 = 500_000;
/// One file. A tar header's plain size field ends here, too.
pub const FILE_BYTES_MAX: u64 = (8 << 30) - 1;
/// Longest path in a layer.
pub const PATH_BYTES_MAX: usize = 4095;
/// Longest component of a path.
pub const COMPONENT_BYTES_MAX: usize = 255;
/// Most components of a path.
pub const DEPTH_MAX: usize = 128;
/// All paths and link targets of one layer together, and once more all paths of directories that are
/// only implied: what the unpacker may have to remember.
pub const NAMES_BYTES_MAX: u64 = 256 << 20;
/// One PAX header or GNU long name.
pub const EXTENSION_BYTES_MAX: u64 = 256 << 10;
/// Extended attributes of one entry.
pub const XATTRS_MAX: usize = 32;
/// Value of one extended attribute.
pub const XATTR_BYTES_MAX: usize = 64 << 10;
/// Hard links of one file.
pub const HARD_LINKS_MAX: u64 = 10_000;
/// One `prepare`, from the first byte to the last sync.
pub const PREPARE_SECONDS_MAX: u64 = 600;
/// Tries of one transfer.
pub const TRIES_MAX: u32 = 3;
/// Names that one image is remembered under; the oldest is forgotten first.
pub const NAMES_MAX: usize = 64;

/// The limits of one store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageLimits {
    /// See [`MANIFEST_BYTES_MAX`].
    pub manifest_bytes: u64,
    /// See [`CONFIG_BYTES_MAX`].
    pub config_bytes: u64,
    /// Most layers: [`LAYERS_MAX`], what a plan can carry.
    pub layers: usize,
    /// See [`COMPRESSED_BYTES_MAX`].
    pub compressed_bytes: u64,
    /// See [`LAYER_BYTES_MAX`].
    pub layer_bytes: u64,
    /// See [`IMAGE_BYTES_MAX`].
    pub image_bytes: u64,
    /// See [`ENTRIES_MAX`].
    pub entries: u64,
    /// See [`FILE_BYTES_MAX`].
    pub file_bytes: u64,
    /// See [`PATH_BYTES_MAX`].
    pub path_bytes: usize,
    /// See [`DEPTH_MAX`].
    pub depth: usize,
    /// See [`NAMES_BYTES_MAX`].
    pub names_bytes: u64,
    /// See [`EXTENSION_BYTES_MAX`].
    pub extension_bytes: u64,
    /// See [`XATTRS_MAX`].
    pub xattrs: usize,
    /// See [`XATTR_BYTES_MAX`].
    pub xattr_bytes: usize,
    /// See [`HARD_LINKS_MAX`].
    pub hard_links: u64,
    /// See [`PREPARE_SECONDS_MAX`].
    pub prepare_seconds: u64,
    /// See [`TRIES_MAX`].
    pub tries: u32,
    /// See [`NAMES_MAX`].
    pub names: usize,
}

impl Default for ImageLimits {
    fn default() -> Self {
        Self {
            manifest_bytes: MANIFEST_BYTES_MAX,
            config_bytes: CONFIG_BYTES_MAX,
            layers: LAYERS_MAX,
            compressed_bytes: COMPRESSED_BYTES_MAX,
            layer_bytes: LAYER_BYTES_MAX,
            image_bytes: IMAGE_BYTES_MAX,
            entries: ENTRIES_MAX,
            file_bytes: FILE_BYTES_MAX,
            path_bytes: PATH_BYTES_MAX,
            depth: DEPTH_MAX,
            names_bytes: NAMES_BYTES_MAX,
            extension_bytes: EXTENSION_BYTES_MAX,
            xattrs: XATTRS_MAX,
            xattr_bytes: XATTR_BYTES_MAX,
            hard_links: HARD_LINKS_MAX,
            prepare_seconds: PREPARE_SECONDS_MAX,
            tries: TRIES_MAX,
            names: NAMES_MAX,
        }
    }
}

/// When one `prepare` must be done, and whether it is still wanted. Waiting for somebody else who is at
/// the same does not count, or that one's trouble would be ours; it has a limit of its own, as long.
#[derive(Debug, Clone)]
pub(super) struct Deadline {
    at: Instant,
    seconds: u64,
    waiting_left: Duration,
    stop: Stop,
}

impl Deadline {
    /// `stop` ends it before its time.
    pub(super) fn unless(stop: Stop, seconds: u64) -> Self {
        let time = Duration::from_secs(seconds);
        Self { at: Instant::now() + time, seconds, waiting_left: time, stop }
    }

    #[cfg(test)]
    pub(super) fn after(seconds: u64) -> Self {
        Self::unless(Stop::new(), seconds)
    }

    pub(super) fn remaining(&self) -> Duration {
        self.at.saturating_duration_since(Instant::now())
    }

    /// How much longer somebody else may be waited for.
    pub(super) const fn waiting_left(&self) -> Duration {
        self.waiting_left
    }

    /// Somebody else was waited for.
    pub(super) fn waited(&mut self, time: Duration) {
        self.waiting_left = self.waiting_left.saturating_sub(time);
        self.at += time;
    }

    /// Completes when there is no more reason to wait for anything.
    pub(super) async fn over(&self) {
        let _either = tokio::time::timeout(self.remaining(), self.stop.cancelled()).await;
    }

    /// Whether it is still wanted.
    pub(super) fn check_wanted(&self) -> Result<(), Refusal> {
        if self.stop.is_cancelled() {
            let why = "it is not wanted any more";
            return Err(Refusal::with(RefusalCode::ImageFetchFailed, why));
        }
        Ok(())
    }

    /// Whether it is still wanted and there is time.
    pub(super) fn check(&self) -> Result<(), Refusal> {
        self.check_wanted()?;
        if self.remaining().is_zero() {
            let why = format!("it took longer than {} s", self.seconds);
            return Err(Refusal::with(RefusalCode::ImageFetchFailed, why));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_for_somebody_else_leaves_the_time_for_ones_own_work() {
        let mut deadline = Deadline::after(10);
        let at = deadline.at;
        for (waited, left) in [(3, 7), (8, 0)] {
            let before = deadline.at;
            deadline.waited(Duration::from_secs(waited));
            assert_eq!(deadline.at, before + Duration::from_secs(waited));
            assert_eq!(deadline.waiting_left(), Duration::from_secs(left));
        }
        assert_eq!(deadline.at, at + Duration::from_secs(11));
    }
}

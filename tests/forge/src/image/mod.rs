//! Small OCI images from trees in memory.
//!
//! The same calls give the same bytes: no time, no host name, sorted JSON, gzip without a name.
//! Entries may be hostile on purpose; this is where the layer tars of the security tests come from.

mod busybox;
mod layer;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use nimbus_api::Digest;
use serde_json::{Value, json};

use crate::ForgeError;

pub use busybox::{BUSYBOX_APPLETS, BUSYBOX_PATHS, busybox_image, busybox_layer};
pub use layer::{Device, Layer};

/// Media type of a manifest.
pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// Media type of an index.
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// Media type of a configuration.
pub const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// Media type of a layer.
pub const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// An image as blobs.
#[derive(Debug, Clone, Default)]
pub struct Image {
    /// Every blob by its digest: layers, configuration, manifest, index.
    pub blobs: BTreeMap<Digest, Vec<u8>>,
    /// The manifest.
    pub manifest: Option<Digest>,
    /// The index around it, if one was asked for.
    pub index: Option<Digest>,
    /// Compressed layers, lowest first.
    pub layers: Vec<Digest>,
    /// Digests of the uncompressed layers, lowest first.
    pub diff_ids: Vec<Digest>,
}

/// Puts an image together.
#[derive(Debug, Clone)]
pub struct ImageBuilder {
    layers: Vec<Layer>,
    config: Value,
    architecture: String,
    index: bool,
    wrong_diff_ids: bool,
}

impl Default for ImageBuilder {
    fn default() -> Self {
        Self::new()
    }
}

impl ImageBuilder {
    /// An image without layers for linux/amd64.
    pub fn new() -> Self {
        Self {
            layers: Vec::new(),
            config: json!({"Env": ["PATH=/bin:/sbin:/usr/bin:/usr/sbin"], "WorkingDir": "/"}),
            architecture: "amd64".to_owned(),
            index: false,
            wrong_diff_ids: false,
        }
    }

    /// Puts a layer on top.
    #[must_use]
    pub fn layer(mut self, layer: Layer) -> Self {
        self.layers.push(layer);
        self
    }

    /// `Cmd` of the configuration.
    #[must_use]
    pub fn cmd(self, args: &[&str]) -> Self {
        self.set("Cmd", json!(args))
    }

    /// `Entrypoint` of the configuration.
    #[must_use]
    pub fn entrypoint(self, args: &[&str]) -> Self {
        self.set("Entrypoint", json!(args))
    }

    /// Any other field of the configuration's `config`.
    #[must_use]
    pub fn set(mut self, field: &str, value: Value) -> Self {
        if let Value::Object(config) = &mut self.config {
            config.insert(field.to_owned(), value);
        }
        self
    }

    /// Another architecture than amd64.
    #[must_use]
    pub fn architecture(mut self, architecture: &str) -> Self {
        architecture.clone_into(&mut self.architecture);
        self
    }

    /// Wraps the manifest into an index with this one platform.
    #[must_use]
    pub const fn with_index(mut self) -> Self {
        self.index = true;
        self
    }

    /// Writes diff ids into the configuration that are not those of the layers.
    #[must_use]
    pub const fn with_wrong_diff_ids(mut self) -> Self {
        self.wrong_diff_ids = true;
        self
    }

    /// Makes the blobs.
    pub fn build(self) -> Result<Image, ForgeError> {
        let mut image = Image::default();
        let mut layers = Vec::new();
        for layer in &self.layers {
            let tar = layer.tar()?;
            let diff_id = Digest::of(&tar);
            let packed = layer::gzip(&tar)?;
            let (digest, size) = image.put(packed);
            layers.push(json!({"mediaType": LAYER, "digest": digest, "size": size}));
            image.layers.push(digest);
            image.diff_ids.push(diff_id);
        }
        let claimed: Vec<_> = if self.wrong_diff_ids {
            image.diff_ids.iter().map(|id| Digest::of(id.as_bytes())).collect()
        } else {
            image.diff_ids.clone()
        };
        let config = json!({
            "architecture": self.architecture,
            "os": "linux",
            "config": self.config,
            "rootfs": {"type": "layers", "diff_ids": claimed},
        });
        let (config, size) = image.put(config.to_string().into_bytes());
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": {"mediaType": CONFIG, "digest": config, "size": size},
            "layers": layers,
        });
        let (manifest, size) = image.put(manifest.to_string().into_bytes());
        image.manifest = Some(manifest);
        if self.index {
            let index = json!({
                "schemaVersion": 2,
                "mediaType": INDEX,
                "manifests": [{
                    "mediaType": MANIFEST, "digest": manifest, "size": size,
                    "platform": {"architecture": self.architecture, "os": "linux"},
                }],
            });
            image.index = Some(image.put(index.to_string().into_bytes()).0);
        }
        Ok(image)
    }
}

impl Image {
    /// What the image is called by: its index if it has one, else its manifest.
    pub fn digest(&self) -> Result<Digest, ForgeError> {
        self.index
            .or(self.manifest)
            .ok_or_else(|| ForgeError::Unfit("the image has no manifest".to_owned()))
    }

    /// Media type and bytes of what [`Self::digest`] names.
    pub fn top(&self) -> Result<(&'static str, &[u8]), ForgeError> {
        let media_type = if self.index.is_some() { INDEX } else { MANIFEST };
        self.blobs
            .get(&self.digest()?)
            .map(|bytes| (media_type, bytes.as_slice()))
            .ok_or_else(|| ForgeError::Unfit("the image lacks its manifest".to_owned()))
    }

    /// Writes an OCI layout directory: `oci-layout`, `index.json`, `blobs/sha256`. An existing one
    /// gains the blobs and has its `index.json` replaced.
    pub fn write_layout(&self, dir: &Path, tag: &str) -> Result<Digest, ForgeError> {
        let blobs = dir.join("blobs/sha256");
        fs::create_dir_all(&blobs).map_err(ForgeError::io("create", blobs.display()))?;
        let write = |path: &Path, bytes: &[u8]| {
            fs::write(path, bytes).map_err(ForgeError::io("write", path.display()))
        };
        for (digest, bytes) in &self.blobs {
            write(&blobs.join(digest.hex()), bytes)?;
        }
        write(&dir.join("oci-layout"), br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        let (media_type, bytes) = self.top()?;
        let digest = self.digest()?;
        let index = json!({
            "schemaVersion": 2,
            "mediaType": INDEX,
            "manifests": [{
                "mediaType": media_type,
                "digest": digest,
                "size": bytes.len(),
                "annotations": {"org.opencontainers.image.ref.name": tag},
            }],
        });
        write(&dir.join("index.json"), index.to_string().as_bytes())?;
        Ok(digest)
    }

    fn put(&mut self, bytes: Vec<u8>) -> (Digest, usize) {
        let digest = Digest::of(&bytes);
        let size = bytes.len();
        self.blobs.insert(digest, bytes);
        (digest, size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn small() -> ImageBuilder {
        ImageBuilder::new()
            .layer(Layer::new().dir("bin", 0o755).file("bin/x", 0o755, "x"))
            .layer(Layer::new().whiteout("bin/x").symlink("bin/y", "x"))
            .cmd(&["/bin/x"])
    }

    #[test]
    fn the_same_calls_give_the_same_digest_and_other_content_another() {
        let digest = |builder: ImageBuilder| builder.build().unwrap().digest().unwrap();
        assert_eq!(digest(small()), digest(small()));
        assert_ne!(digest(small()), digest(small().with_index()));
        assert_ne!(digest(small()), digest(small().layer(Layer::new().file("z", 0o644, ""))));
    }

    #[test]
    fn every_blob_is_named_by_its_digest_and_diff_ids_are_of_the_plain_tar() {
        let image = small().with_index().build().unwrap();
        for (digest, bytes) in &image.blobs {
            assert_eq!(*digest, Digest::of(bytes));
        }
        for (layer, diff_id) in image.layers.iter().zip(&image.diff_ids) {
            let mut tar = Vec::new();
            let mut packed = flate2::read::GzDecoder::new(image.blobs[layer].as_slice());
            std::io::Read::read_to_end(&mut packed, &mut tar).unwrap();
            assert_eq!(*diff_id, Digest::of(&tar));
        }
    }
}

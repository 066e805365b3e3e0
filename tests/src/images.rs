//! Test images in a lab's registry, and attestations about them, good and bad.

use nimbus_api::Digest;
use nimbus_api::clock::UnixSeconds;
use nimbus_forge::image::busybox_layer;
use nimbus_forge::mutate::tamper;
use nimbus_forge::{
    Image, ImageBuilder, Layer, SLSA_PROVENANCE, bundle_with_key, provenance, statement,
};

use crate::Failure;
use crate::policy::Keys;

/// An image that can be submitted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published {
    /// Without tag or digest.
    pub name: String,
    /// Of its manifest.
    pub digest: Digest,
}

impl Published {
    /// `name@digest`.
    pub fn reference(&self) -> String {
        format!("{}@{}", self.name, self.digest)
    }

    fn statement(&self) -> Vec<u8> {
        statement(&self.name, &self.digest, SLSA_PROVENANCE, &provenance())
    }

    /// What the policy asks for.
    pub fn attested(&self, keys: &Keys) -> Result<Vec<u8>, Failure> {
        Ok(bundle_with_key(&keys.release, &self.statement())?.to_json())
    }

    /// The same with a byte of the signed statement changed.
    pub fn tampered(&self, keys: &Keys) -> Result<Vec<u8>, Failure> {
        Ok(tamper(&bundle_with_key(&keys.release, &self.statement())?).to_json())
    }

    /// Signed by somebody whom the policy does not name.
    pub fn by_a_stranger(&self, keys: &Keys) -> Result<Vec<u8>, Failure> {
        Ok(bundle_with_key(&keys.stranger, &self.statement())?.to_json())
    }

    /// Signed and logged at this time.
    pub fn logged(&self, keys: &Keys, at: UnixSeconds) -> Result<Vec<u8>, Failure> {
        Ok(keys.log.bundle_with_key(&keys.release, &self.statement(), at)?.to_json())
    }

    /// Signed by the right key, of another kind than the policy asks for.
    pub fn of_another_kind(&self, keys: &Keys) -> Result<Vec<u8>, Failure> {
        let kind = "https://spdx.dev/Document";
        let statement = statement(&self.name, &self.digest, kind, &provenance());
        Ok(bundle_with_key(&keys.release, &statement)?.to_json())
    }
}

/// busybox, and a file with this text: each text makes an image with a digest of its own.
pub fn busybox_with(text: &str) -> Result<Image, Failure> {
    let mark = Layer::new().dir("etc", 0o755).file("etc/which", 0o644, text);
    Ok(on_busybox(mark)?.build()?)
}

/// busybox with another layer on top.
pub fn on_busybox(layer: Layer) -> Result<ImageBuilder, Failure> {
    Ok(ImageBuilder::new().layer(busybox_layer()?).layer(layer))
}

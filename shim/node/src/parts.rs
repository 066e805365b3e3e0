//! The real image store and seccomp compiler, behind what the agent needs of them.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use nimbus_api::Refusal;
use nimbus_api::error::Chain;
use nimbus_api::lease::LeasedImage;
use nimbus_hooks::facts::MeasuredImage;

use crate::agent::{Filter, Filters, Images, PLATFORM};
use crate::config::NodeConfig;
use crate::image::{ImageLimits, ImageRequest, ImageStore, Stop, StoreConfig};
use crate::seccomp;

/// Opens the image store below the data directory.
pub fn open_images(config: &NodeConfig) -> Result<Arc<dyn Images>, String> {
    let store = ImageStore::open(StoreConfig {
        root: config.data_dir.join("images"),
        insecure_registries: config.insecure_registries.clone(),
        layout_roots: config.layout_roots.clone(),
        platform: PLATFORM.to_owned(),
        limits: ImageLimits::default(),
    });
    Ok(Arc::new(store.map_err(|error| Chain(&error).to_string())?))
}

impl Images for ImageStore {
    fn prepare(&self, image: &LeasedImage, stop: &Stop) -> Result<MeasuredImage, Refusal> {
        Self::prepare(self, &request(image, None), stop)
    }

    fn prepare_content(
        &self,
        image: &LeasedImage,
        content: &Path,
        stop: &Stop,
    ) -> Result<MeasuredImage, Refusal> {
        let request = request(image, Some(content));
        Self::prepare(self, &request, stop)
    }

    fn measured(&self, image: &LeasedImage) -> Result<MeasuredImage, Refusal> {
        Self::measured(self, &image.name, &image.digest)
    }

    fn open_layers(&self, image: &MeasuredImage) -> Result<Vec<OwnedFd>, Refusal> {
        Self::open_layers(self, image)
    }
}

fn request(image: &LeasedImage, content: Option<&Path>) -> ImageRequest {
    ImageRequest {
        name: image.name.clone(),
        digest: image.digest,
        platform: image.platform.clone(),
        content: content.map(Path::to_owned),
    }
}

/// The seccomp compiler.
pub fn filters() -> Arc<dyn Filters> {
    Arc::new(Profiles)
}

struct Profiles;

impl Filters for Profiles {
    fn compile(&self, profile: &str, capabilities: &[String]) -> Result<Filter, Refusal> {
        let compiled = seccomp::compile(profile, capabilities)?;
        Ok(Filter {
            program: compiled.bytes,
            program_sha256: compiled.sha256,
            profile_sha256: compiled.profile_sha256,
            instructions: compiled.instructions,
        })
    }
}

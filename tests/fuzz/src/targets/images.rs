//! What a registry serves.

use crate::image;

/// Any bytes as an image's manifest end in an image or a refusal; nothing is touched outside the store.
pub fn image_manifest(data: &[u8]) {
    image::prepare(data.to_vec(), &[image::config(&image::layer()), image::layer()]);
}

/// Any bytes as a layer end in an image or a refusal; nothing is touched outside the store.
pub fn image_layer(data: &[u8]) {
    let config = image::config(data);
    image::prepare(image::manifest(&config, data), &[config, data.to_vec()]);
}

//! The image: what was measured on this node is what the lease names.

use nimbus_api::lease::LeasedImage;
use nimbus_api::plan::LAYERS_MAX;
use nimbus_api::{Refusal, RefusalCode};

use crate::facts::{ImageFact, MeasuredImage};

pub(crate) fn check<'a>(
    fact: &'a ImageFact,
    leased: &LeasedImage,
    node_platform: &str,
) -> Result<&'a MeasuredImage, Refusal> {
    let image = match fact {
        ImageFact::Unavailable(refusal) => return Err(refusal.clone()),
        ImageFact::Measured(image) => image,
    };
    if image.digest != leased.digest || image.name != leased.name {
        let found = format!(
            "found {}@{}, leased is {}@{}",
            image.name, image.digest, leased.name, leased.digest
        );
        return Err(Refusal::with(RefusalCode::LeaseWrongImage, found));
    }
    check_platform(image, leased, node_platform)?;
    if image.layers.is_empty() || image.layers.len() > LAYERS_MAX {
        let found = format!("found {} layers, expected 1 to {LAYERS_MAX}", image.layers.len());
        return Err(Refusal::with(RefusalCode::ImageMalformed, found));
    }
    if let Some(problem) = &image.hostile_mount_point {
        return Err(Refusal::with(RefusalCode::RootfsHostile, problem));
    }
    Ok(image)
}

fn check_platform(
    image: &MeasuredImage,
    leased: &LeasedImage,
    node_platform: &str,
) -> Result<(), Refusal> {
    let found = Platform::of(&image.platform);
    let wanted = Platform::of(&leased.platform);
    let here = Platform::of(node_platform);
    let same = found.system == wanted.system
        && found.system == here.system
        && (wanted.variant.is_none() || wanted.variant == found.variant);
    if same && found.system.1.is_some() {
        return Ok(());
    }
    let text = format!(
        "found {}, leased is {}, this node is {node_platform}",
        image.platform, leased.platform
    );
    Err(Refusal::with(RefusalCode::ImagePlatform, text))
}

/// `os/architecture[/variant]`, taken apart. A variant that a lease does not name is not asked for.
struct Platform<'a> {
    system: (&'a str, Option<&'a str>),
    variant: Option<&'a str>,
}

impl<'a> Platform<'a> {
    fn of(text: &'a str) -> Self {
        let mut parts = text.splitn(3, '/');
        let os = parts.next().unwrap_or_default();
        let architecture = parts.next().filter(|part| !part.is_empty());
        Self { system: (os, architecture), variant: parts.next() }
    }
}

//! Index, manifest and configuration of an image, read strictly.
//!
//! OCI and Docker schema 2. Duplicate keys are refused; unknown fields are not, because the
//! specification has readers ignore them, but nothing unknown is acted on. A document that is index
//! and manifest at once is refused (CVE-2021-41190), and the transport's `Content-Type` is never
//! looked at. Absent: foreign layers, schema 1, nested indexes.

use nimbus_api::error::Chain;
use nimbus_api::strict_json::{self, Limits};
use nimbus_api::{Digest, Refusal, RefusalCode};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::decode::Compression;
use super::limits::ImageLimits;
use super::refuse::{malformed, too_large};
use super::request::Platform;

const SCHEMA_VERSION: u32 = 2;
const MEDIA_BYTES_MAX: usize = 255;
const MANIFEST_MEDIA: [&str; 2] = [
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
];
const INDEX_MEDIA: [&str; 2] = [
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
];
const CONFIG_MEDIA: [&str; 2] =
    ["application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"];

/// What a registry is asked for when a manifest or index is fetched.
pub(super) fn accepted_media() -> String {
    [MANIFEST_MEDIA, INDEX_MEDIA].concat().join(", ")
}

/// A blob, as a manifest names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct BlobRef {
    pub(super) digest: Digest,
    pub(super) size: u64,
}

/// A layer's blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LayerRef {
    pub(super) blob: BlobRef,
    pub(super) compression: Compression,
}

/// A checked manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Manifest {
    pub(super) config: BlobRef,
    pub(super) layers: Vec<LayerRef>,
}

/// A checked document under the digest that was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Top {
    Manifest(Manifest),
    /// The manifest for the platform.
    Index(BlobRef),
}

/// What an image says about how it is run; nothing of it is a permission.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ImageConfig {
    /// `NAME=value`.
    pub env: Vec<String>,
    /// Fixed part of the command.
    pub entrypoint: Vec<String>,
    /// Default arguments.
    pub cmd: Vec<String>,
    /// Working directory.
    pub working_dir: String,
    /// `user[:group]`, names or numbers.
    pub user: String,
}

/// A checked configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Config {
    pub(super) platform: Platform,
    pub(super) diff_ids: Vec<Digest>,
    pub(super) run: ImageConfig,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawTop {
    schema_version: u32,
    media_type: Option<String>,
    config: Option<RawDescriptor>,
    layers: Option<Vec<RawDescriptor>>,
    manifests: Option<Vec<RawDescriptor>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDescriptor {
    media_type: String,
    digest: String,
    size: u64,
    #[serde(default)]
    urls: Vec<String>,
    platform: Option<RawPlatform>,
}

#[derive(Deserialize)]
struct RawPlatform {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    variant: String,
}

#[derive(Deserialize)]
struct RawConfig {
    os: String,
    architecture: String,
    #[serde(default)]
    variant: String,
    rootfs: RawRootfs,
    config: Option<RawRun>,
}

#[derive(Deserialize)]
struct RawRootfs {
    #[serde(rename = "type")]
    kind: String,
    diff_ids: Vec<Digest>,
}

/// Builders write null for what is not set.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RawRun {
    env: Option<Vec<String>>,
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    working_dir: Option<String>,
    user: Option<String>,
}

/// Reads a manifest or index and picks the manifest for the platform.
pub(super) fn top(text: &[u8], platform: &Platform, limits: &ImageLimits) -> Result<Top, Refusal> {
    let raw: RawTop = parse(text, limits.manifest_bytes, "manifest")?;
    if raw.schema_version != SCHEMA_VERSION {
        return Err(malformed(format!("schema version {}", raw.schema_version)));
    }
    let media = raw.media_type.as_deref();
    let is = |known: &[&str]| media.is_none_or(|media| known.contains(&media));
    match (raw.config, raw.layers, raw.manifests) {
        (Some(config), Some(layers), None) if is(&MANIFEST_MEDIA) => {
            manifest(&config, &layers, limits).map(Top::Manifest)
        }
        (None, None, Some(entries)) if is(&INDEX_MEDIA) => {
            pick(entries, platform, limits).map(Top::Index)
        }
        _ => Err(malformed(format!(
            "neither manifest nor index, or both, or of media type {:?}",
            cut(media.unwrap_or("none"))
        ))),
    }
}

/// Reads a manifest that an index has led to.
pub(super) fn child(
    text: &[u8],
    platform: &Platform,
    limits: &ImageLimits,
) -> Result<Manifest, Refusal> {
    match top(text, platform, limits)? {
        Top::Manifest(manifest) => Ok(manifest),
        Top::Index(_) => Err(malformed("an index inside an index")),
    }
}

/// Reads a configuration; it must fit manifest and platform.
pub(super) fn config(
    text: &[u8],
    manifest: &Manifest,
    platform: &Platform,
    limits: &ImageLimits,
) -> Result<Config, Refusal> {
    let raw: RawConfig = parse(text, limits.config_bytes, "configuration")?;
    if raw.rootfs.kind != "layers" {
        return Err(malformed(format!("rootfs of type {:?}", cut(&raw.rootfs.kind))));
    }
    if raw.rootfs.diff_ids.len() != manifest.layers.len() {
        return Err(malformed(format!(
            "{} diff ids for {} layers",
            raw.rootfs.diff_ids.len(),
            manifest.layers.len()
        )));
    }
    let found = Platform::new(&raw.os, &raw.architecture, &raw.variant);
    if found != *platform {
        return Err(Refusal::with(
            RefusalCode::ImagePlatform,
            format!("the image is for {}, asked for was {platform}", cut(&found.to_string())),
        ));
    }
    let run = raw.config.map_or_else(ImageConfig::default, |run| ImageConfig {
        env: run.env.unwrap_or_default(),
        entrypoint: run.entrypoint.unwrap_or_default(),
        cmd: run.cmd.unwrap_or_default(),
        working_dir: run.working_dir.unwrap_or_default(),
        user: run.user.unwrap_or_default(),
    });
    Ok(Config { platform: found, diff_ids: raw.rootfs.diff_ids, run })
}

fn manifest(
    config: &RawDescriptor,
    layers: &[RawDescriptor],
    limits: &ImageLimits,
) -> Result<Manifest, Refusal> {
    if !CONFIG_MEDIA.contains(&config.media_type.as_str()) {
        let media = cut(&config.media_type);
        return Err(malformed(format!("configuration of media type {media:?}")));
    }
    if layers.is_empty() {
        return Err(malformed("no layers"));
    }
    if layers.len() > limits.layers {
        return Err(too_large(format!(
            "{} layers, at most {} are allowed",
            layers.len(),
            limits.layers
        )));
    }
    let config = blob(config)?;
    if config.size > limits.config_bytes {
        return Err(too_large(format!("a configuration of {} bytes", config.size)));
    }
    let layers = layers.iter().map(layer).collect::<Result<Vec<_>, _>>()?;
    let total = layers.iter().fold(0, |sum: u64, layer| sum.saturating_add(layer.blob.size));
    if total > limits.compressed_bytes {
        return Err(too_large(format!(
            "{total} bytes of compressed layers, at most {} are allowed",
            limits.compressed_bytes
        )));
    }
    Ok(Manifest { config, layers })
}

fn layer(raw: &RawDescriptor) -> Result<LayerRef, Refusal> {
    let compression = match raw.media_type.as_str() {
        "application/vnd.oci.image.layer.v1.tar"
        | "application/vnd.docker.image.rootfs.diff.tar" => Compression::None,
        "application/vnd.oci.image.layer.v1.tar+gzip"
        | "application/vnd.docker.image.rootfs.diff.tar.gzip" => Compression::Gzip,
        "application/vnd.oci.image.layer.v1.tar+zstd"
        | "application/vnd.docker.image.rootfs.diff.tar.zstd" => Compression::Zstd,
        other => return Err(malformed(format!("layer of media type {:?}", cut(other)))),
    };
    Ok(LayerRef { blob: blob(raw)?, compression })
}

/// The one entry for the platform: two would be a choice that nobody signed.
fn pick(
    entries: Vec<RawDescriptor>,
    platform: &Platform,
    limits: &ImageLimits,
) -> Result<BlobRef, Refusal> {
    let mut fitting = entries.into_iter().filter(|entry| {
        entry
            .platform
            .as_ref()
            .is_some_and(|raw| Platform::new(&raw.os, &raw.architecture, &raw.variant) == *platform)
    });
    let Some(entry) = fitting.next() else {
        return Err(Refusal::with(
            RefusalCode::ImagePlatform,
            format!("the index has nothing for {platform}"),
        ));
    };
    if fitting.next().is_some() {
        return Err(malformed(format!("the index has two manifests for {platform}")));
    }
    if !MANIFEST_MEDIA.contains(&entry.media_type.as_str()) {
        return Err(malformed(format!("manifest of media type {:?}", cut(&entry.media_type))));
    }
    let found = blob(&entry)?;
    if found.size > limits.manifest_bytes {
        return Err(too_large(format!("a manifest of {} bytes", found.size)));
    }
    Ok(found)
}

fn blob(raw: &RawDescriptor) -> Result<BlobRef, Refusal> {
    if !raw.urls.is_empty() {
        return Err(malformed("a blob that is to be fetched from elsewhere"));
    }
    let digest = raw.digest.parse().map_err(|error| malformed(Chain(&error)))?;
    Ok(BlobRef { digest, size: raw.size })
}

fn parse<T: DeserializeOwned>(text: &[u8], limit: u64, what: &str) -> Result<T, Refusal> {
    let bytes = usize::try_from(limit).unwrap_or(usize::MAX);
    strict_json::parse(text, Limits::bytes(bytes))
        .map_err(|error| malformed(format!("{what}: {}", Chain(&error))))
}

fn cut(text: &str) -> String {
    text.chars().take(MEDIA_BYTES_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    fn amd64() -> Platform {
        Platform::parse("linux/amd64").unwrap()
    }

    fn descriptor(media: &str) -> Value {
        json!({"mediaType": media, "digest": Digest::of(b"x"), "size": 1})
    }

    fn good() -> Value {
        json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST_MEDIA[0],
            "config": descriptor(CONFIG_MEDIA[0]),
            "layers": [descriptor("application/vnd.oci.image.layer.v1.tar+zstd")],
            "annotations": {"unknown": "fields are ignored"},
        })
    }

    fn read(document: &Value) -> Result<Top, Refusal> {
        top(document.to_string().as_bytes(), &amd64(), &ImageLimits::default())
    }

    fn with(mut document: Value, pointer: &str, value: Value) -> Value {
        *document.pointer_mut(pointer).unwrap() = value;
        document
    }

    #[test]
    fn a_good_manifest_is_read() {
        let Top::Manifest(manifest) = read(&good()).unwrap() else { panic!("no manifest") };
        assert_eq!(manifest.layers[0].compression, Compression::Zstd);
    }

    #[test]
    fn ambiguous_foreign_and_oversized_manifests_are_refused() {
        let mut both = good();
        both["manifests"] = json!([]);
        let mut elsewhere = good();
        elsewhere["layers"][0]["urls"] = json!(["https://elsewhere.example/blob"]);
        let foreign = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip";
        let nondistributable = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip";
        for bad in [
            both,
            elsewhere,
            with(good(), "/schemaVersion", json!(1)),
            with(good(), "/mediaType", json!(INDEX_MEDIA[0])),
            with(good(), "/layers", json!([])),
            with(good(), "/layers/0/mediaType", json!(foreign)),
            with(good(), "/layers/0/mediaType", json!(nondistributable)),
            with(good(), "/layers/0/digest", json!("sha512:00")),
            with(good(), "/config/mediaType", json!("application/vnd.oci.empty.v1+json")),
        ] {
            assert_eq!(read(&bad).unwrap_err().code, RefusalCode::ImageMalformed, "{bad}");
        }
        for large in [
            with(good(), "/config/size", json!(5 << 20)),
            with(good(), "/layers/0/size", json!(u64::MAX)),
            with(good(), "/layers", json!(vec![good()["layers"][0].clone(); 129])),
        ] {
            assert_eq!(read(&large).unwrap_err().code, RefusalCode::ImageTooLarge);
        }
        let twice = good()
            .to_string()
            .replace("\"schemaVersion\":2", "\"schemaVersion\":2,\"schemaVersion\":2");
        let refusal = top(twice.as_bytes(), &amd64(), &ImageLimits::default()).unwrap_err();
        assert!(refusal.detail().contains("duplicate key"), "{refusal}");
    }

    #[test]
    fn an_index_gives_exactly_the_platform() {
        let entry = |architecture: &str, content: &[u8]| {
            let mut entry = descriptor(MANIFEST_MEDIA[0]);
            entry["digest"] = json!(Digest::of(content));
            entry["platform"] = json!({"os": "linux", "architecture": architecture});
            entry
        };
        let index = |entries: Vec<Value>| json!({"schemaVersion": 2, "manifests": entries});
        let good = index(vec![entry("arm64", b"a"), entry("amd64", b"b"), entry("unknown", b"c")]);
        let expected = BlobRef { digest: Digest::of(b"b"), size: 1 };
        assert_eq!(read(&good), Ok(Top::Index(expected)));
        let missing = read(&index(vec![entry("arm64", b"a")])).unwrap_err();
        assert_eq!(missing.code, RefusalCode::ImagePlatform);
        let two = read(&index(vec![entry("amd64", b"a"), entry("amd64", b"b")])).unwrap_err();
        assert_eq!(two.code, RefusalCode::ImageMalformed);
    }

    #[test]
    fn a_configuration_must_fit_manifest_and_platform() {
        let Top::Manifest(manifest) = read(&good()).unwrap() else { panic!("no manifest") };
        let text = json!({
            "os": "linux", "architecture": "amd64", "history": [],
            "config": {"Env": ["A=b"], "Entrypoint": null, "User": "1000"},
            "rootfs": {"type": "layers", "diff_ids": [Digest::of(b"d")]},
        });
        let read = |text: &Value| {
            config(text.to_string().as_bytes(), &manifest, &amd64(), &ImageLimits::default())
        };
        let good = read(&text).unwrap();
        assert_eq!(good.diff_ids, [Digest::of(b"d")]);
        assert_eq!((good.run.env, good.run.user.as_str()), (vec!["A=b".to_owned()], "1000"));
        let other = read(&with(text.clone(), "/architecture", json!("arm64"))).unwrap_err();
        assert_eq!(other.code, RefusalCode::ImagePlatform);
        let fewer = read(&with(text, "/rootfs/diff_ids", json!([]))).unwrap_err();
        assert_eq!(fewer.code, RefusalCode::ImageMalformed);
    }

    proptest! {
        #[test]
        fn no_document_panics_the_parser(text: Vec<u8>) {
            let _unused = top(&text, &amd64(), &ImageLimits::default());
        }
    }
}

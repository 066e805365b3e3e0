//! An OCI layout directory and an image store in memory, for one image that is prepared once.

use std::path::Path;

use nimbus_api::Digest;
use nimbus_node::image::{ImageLimits, ImageRequest, ImageStore, Stop, StoreConfig};
use serde_json::json;

/// The only platform.
const PLATFORM: &str = "linux/amd64";
/// Where the directories are made; on a disk each input would wait for it.
const MEMORY: &str = "/dev/shm";

/// A layer that nothing is wrong with: an empty archive.
pub fn layer() -> Vec<u8> {
    vec![0; 1024]
}

/// The configuration of an image of this one layer.
pub fn config(layer: &[u8]) -> Vec<u8> {
    let config = json!({
        "architecture": "amd64",
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [Digest::of(layer)]},
        "config": {},
    });
    config.to_string().into_bytes()
}

/// The manifest of an image of this configuration and layer.
pub fn manifest(config: &[u8], layer: &[u8]) -> Vec<u8> {
    let blob = |media: &str, bytes: &[u8]| {
        let media = format!("application/vnd.oci.image.{media}");
        json!({"mediaType": media, "digest": Digest::of(bytes), "size": bytes.len()})
    };
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": blob("config.v1+json", config),
        "layers": [blob("layer.v1.tar", layer)],
    });
    manifest.to_string().into_bytes()
}

/// Prepares the image of this manifest and these blobs in a store of its own.
pub fn prepare(manifest: Vec<u8>, blobs: &[Vec<u8>]) {
    let dir = tempfile::Builder::new().prefix("nimbus-fuzz-").tempdir_in(MEMORY).expect("memory");
    let layout = dir.path().join("layout");
    let digest = Digest::of(&manifest);
    write(&layout, &[&manifest]);
    write(&layout, &blobs.iter().collect::<Vec<_>>());
    std::fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).expect("memory");
    let before = listing(dir.path());
    let store = ImageStore::open(StoreConfig {
        root: dir.path().join("store"),
        insecure_registries: Vec::new(),
        layout_roots: vec![dir.path().to_owned()],
        platform: PLATFORM.to_owned(),
        limits: ImageLimits::default(),
    })
    .expect("an empty store");
    let request = ImageRequest {
        name: format!("oci:{}", layout.display()),
        digest,
        platform: PLATFORM.to_owned(),
        content: None,
    };
    if let Ok(measured) = store.prepare(&request, &Stop::new()) {
        assert_eq!(store.measured(&request.name, &digest), Ok(measured));
    }
    drop(store);
    std::fs::remove_dir_all(dir.path().join("store")).expect("the store can be removed");
    assert_eq!(listing(dir.path()), before, "something was touched outside the store");
}

fn write(layout: &Path, blobs: &[&Vec<u8>]) {
    let dir = layout.join("blobs/sha256");
    std::fs::create_dir_all(&dir).expect("memory");
    for blob in blobs {
        std::fs::write(dir.join(Digest::of(blob).hex()), blob).expect("memory");
    }
}

/// Every file with its content's digest.
fn listing(dir: &Path) -> Vec<String> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(dir).expect("our directory").flatten() {
        let path = entry.path();
        if path.is_dir() {
            all.extend(listing(&path));
        } else {
            let digest = std::fs::read(&path).map(|bytes| Digest::of(&bytes));
            all.push(format!("{} {digest:?}", path.display()));
        }
    }
    all.sort();
    all
}

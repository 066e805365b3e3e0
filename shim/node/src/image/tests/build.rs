//! Makes tars, layouts and stores for the tests.

use std::collections::BTreeMap;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_fd, fsmount, fsopen,
};
use serde_json::{Value, json};
use tar::{EntryType, Header};

use crate::image::*;

/// Writes tars that no tar program would.
#[derive(Debug, Clone, Default)]
pub(super) struct Tar(pub(super) Vec<u8>);

impl Tar {
    pub(super) fn dir(self, path: &str) -> Self {
        self.raw(EntryType::Directory, path.as_bytes(), b"", 0o755, b"")
    }

    pub(super) fn file(self, path: &str, data: &[u8]) -> Self {
        self.raw(EntryType::Regular, path.as_bytes(), b"", 0o644, data)
    }

    pub(super) fn symlink(self, path: &str, target: &str) -> Self {
        self.raw(EntryType::Symlink, path.as_bytes(), target.as_bytes(), 0o777, b"")
    }

    pub(super) fn link(self, path: &str, target: &str) -> Self {
        self.raw(EntryType::Link, path.as_bytes(), target.as_bytes(), 0o644, b"")
    }

    pub(super) fn raw(
        self,
        kind: EntryType,
        path: &[u8],
        link: &[u8],
        mode: u32,
        data: &[u8],
    ) -> Self {
        let mut header = Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_700_000_000);
        self.with(header, path, link, data)
    }

    /// Long names go into a PAX header.
    pub(super) fn with(self, mut header: Header, path: &[u8], link: &[u8], data: &[u8]) -> Self {
        let mut tar = self;
        let mut pax = Vec::new();
        {
            let old = header.as_old_mut();
            match old.name.get_mut(..path.len()) {
                Some(name) => name.copy_from_slice(path),
                None => pax.extend(record(b"path", path)),
            }
            match old.linkname.get_mut(..link.len()) {
                Some(name) => name.copy_from_slice(link),
                None => pax.extend(record(b"linkpath", link)),
            }
        }
        if !pax.is_empty() {
            tar = tar.pax(&pax);
        }
        header.set_size(data.len() as u64);
        tar.header(header, data)
    }

    /// An extended header of these records.
    pub(super) fn pax(self, records: &[u8]) -> Self {
        let mut header = Header::new_ustar();
        header.set_entry_type(EntryType::XHeader);
        header.set_size(records.len() as u64);
        self.header(header, records)
    }

    pub(super) fn header(mut self, mut header: Header, data: &[u8]) -> Self {
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub(super) fn end(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }
}

/// One PAX record.
pub(super) fn record(key: &[u8], value: &[u8]) -> Vec<u8> {
    let body = [b" ", key, b"=", value, b"\n"].concat();
    let mut length = body.len() + 1;
    while length != body.len() + length.to_string().len() {
        length = body.len() + length.to_string().len();
    }
    [length.to_string().as_bytes(), &body].concat()
}

pub(super) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    out.write_all(bytes).unwrap();
    out.finish().unwrap()
}

/// A layer's blob with what manifest and configuration say about it.
#[derive(Debug, Clone)]
pub(super) struct Layer {
    pub(super) blob: Vec<u8>,
    pub(super) media: &'static str,
    pub(super) diff_id: Digest,
}

impl Layer {
    pub(super) fn plain(tar: Vec<u8>) -> Self {
        let diff_id = Digest::of(&tar);
        Self { blob: tar, media: "application/vnd.oci.image.layer.v1.tar", diff_id }
    }

    pub(super) fn gzip(tar: &[u8]) -> Self {
        let media = "application/vnd.docker.image.rootfs.diff.tar.gzip";
        Self { blob: gzip(tar), media, diff_id: Digest::of(tar) }
    }

    pub(super) fn zstd(tar: &[u8]) -> Self {
        let media = "application/vnd.oci.image.layer.v1.tar+zstd";
        Self { blob: zstd::encode_all(tar, 1).unwrap(), media, diff_id: Digest::of(tar) }
    }
}

/// The blobs of one image and the digest of its manifest.
#[derive(Debug, Clone)]
pub(super) struct Blobs {
    pub(super) all: BTreeMap<Digest, Vec<u8>>,
    pub(super) manifest: Digest,
}

pub(super) fn image(layers: &[Layer]) -> Blobs {
    let mut all = BTreeMap::new();
    let mut add = |media: &str, bytes: Vec<u8>| -> Value {
        let digest = Digest::of(&bytes);
        let descriptor = json!({"mediaType": media, "digest": digest, "size": bytes.len()});
        all.insert(digest, bytes);
        descriptor
    };
    let config = json!({
        "os": "linux", "architecture": "amd64",
        "config": {"Env": ["PATH=/bin"], "Entrypoint": ["/bin/hello"], "User": "7:8"},
        "rootfs": {
            "type": "layers",
            "diff_ids": layers.iter().map(|layer| layer.diff_id).collect::<Vec<_>>(),
        },
    });
    let config = add("application/vnd.oci.image.config.v1+json", config.to_string().into_bytes());
    let layers: Vec<Value> =
        layers.iter().map(|layer| add(layer.media, layer.blob.clone())).collect();
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": config,
        "layers": layers,
    });
    let manifest = add("unused", manifest.to_string().into_bytes());
    let manifest = manifest["digest"].as_str().unwrap().parse().unwrap();
    Blobs { all, manifest }
}

/// A place with a store, layouts and something that must not be touched.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) dir: tempfile::TempDir,
}

impl Place {
    pub(super) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let sentinel = dir.path().join("sentinel");
        std::fs::create_dir(&sentinel).unwrap();
        std::fs::write(sentinel.join("victim"), "untouched").unwrap();
        std::fs::create_dir(dir.path().join("layouts")).unwrap();
        Self { dir }
    }

    pub(super) fn root(&self) -> PathBuf {
        self.dir.path().join("store")
    }

    pub(super) fn config(&self) -> StoreConfig {
        StoreConfig {
            root: self.root(),
            insecure_registries: Vec::new(),
            layout_roots: vec![self.dir.path().join("layouts")],
            platform: "linux/amd64".to_owned(),
            limits: ImageLimits::default(),
        }
    }

    pub(super) fn store(&self) -> ImageStore {
        ImageStore::open(self.config()).unwrap()
    }

    pub(super) fn store_with(&self, change: impl FnOnce(&mut StoreConfig)) -> ImageStore {
        let mut config = self.config();
        change(&mut config);
        ImageStore::open(config).unwrap()
    }

    /// Writes a layout; the request for its image.
    pub(super) fn layout(&self, name: &str, blobs: &Blobs) -> ImageRequest {
        let dir = self.dir.path().join("layouts").join(name);
        std::fs::create_dir_all(dir.join("blobs/sha256")).unwrap();
        std::fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        let index = json!({"schemaVersion": 2, "manifests": [{
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": blobs.manifest,
            "size": blobs.all[&blobs.manifest].len(),
            "annotations": {"org.opencontainers.image.ref.name": "latest"},
        }]});
        std::fs::write(dir.join("index.json"), index.to_string()).unwrap();
        for (digest, bytes) in &blobs.all {
            std::fs::write(dir.join("blobs/sha256").join(digest.hex()), bytes).unwrap();
        }
        request(&format!("oci:{}", dir.display()), blobs.manifest)
    }

    /// Everything here but the store.
    pub(super) fn outside(&self) -> Vec<String> {
        let mut all = listing(self.dir.path());
        all.retain(|line| !line.starts_with("store"));
        all
    }

    /// What is left in the store's working directory, and the layers it has.
    pub(super) fn leftovers(&self) -> (Vec<String>, Vec<String>) {
        (
            listing(&self.root().join("tmp")),
            names(&self.root().join("layers").join(UNPACKER_VERSION)),
        )
    }

    /// The tree of a layer.
    pub(super) fn tree(&self, chain_id: &Digest) -> PathBuf {
        self.root().join("layers").join(UNPACKER_VERSION).join(chain_id.hex()).join("fs")
    }
}

/// The merged tree of an image, mounted for real but attached nowhere.
pub(super) fn merged(store: &ImageStore, image: &MeasuredImage) -> Vec<String> {
    let overlay = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).unwrap();
    let layers = store.open_layers(image).unwrap();
    for layer in layers.iter().rev() {
        fsconfig_set_fd(&overlay, "lowerdir+", layer).unwrap();
    }
    fsconfig_create(&overlay).unwrap();
    let mount = fsmount(&overlay, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty()).unwrap();
    listing(Path::new(&format!("/proc/self/fd/{}/.", mount.as_raw_fd())))
}

/// The same image as another program unpacks it.
pub(super) fn unpacked_by_umoci(place: &Place, request: &ImageRequest) -> Vec<String> {
    let layout = request.name.strip_prefix("oci:").unwrap();
    let bundle = place.dir.path().join("umoci");
    let output = std::process::Command::new("umoci")
        .args(["unpack", "--image", &format!("{layout}:latest")])
        .arg(&bundle)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let listing = listing(&bundle.join("rootfs"));
    std::fs::remove_dir_all(&bundle).unwrap();
    listing
}

pub(super) fn request(name: &str, digest: Digest) -> ImageRequest {
    ImageRequest {
        name: name.to_owned(),
        digest,
        platform: "linux/amd64".to_owned(),
        content: None,
    }
}

pub(super) fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

/// One line an entry: path, mode, owner, and what it is or holds.
pub(super) fn listing(dir: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    list(dir, "", &mut lines);
    lines.sort();
    lines
}

fn list(dir: &Path, prefix: &str, lines: &mut Vec<String>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        let name = format!("{prefix}{}", entry.file_name().as_encoded_bytes().escape_ascii());
        let path = entry.path();
        let meta = match path.symlink_metadata() {
            Ok(meta) => meta,
            // Overlayfs lists a whiteout that it then does not find.
            Err(error) => {
                lines.push(format!("{name} listed but: {error}"));
                continue;
            }
        };
        let kind = meta.file_type();
        let what = if kind.is_dir() {
            "dir".to_owned()
        } else if kind.is_symlink() {
            format!("-> {}", std::fs::read_link(&path).unwrap().display())
        } else if kind.is_file() {
            String::from_utf8_lossy(&std::fs::read(&path).unwrap()).into_owned()
        } else if kind.is_fifo() {
            "fifo".to_owned()
        } else {
            format!("device {}", meta.rdev())
        };
        lines.push(format!(
            "{name} {:o} {}:{} {what}",
            meta.mode() & 0o7777,
            meta.uid(),
            meta.gid()
        ));
        if kind.is_dir() {
            list(&path, &format!("{name}/"), lines);
        }
    }
}

//! OCI layout directories: `index.json` says which manifests there are.

use std::collections::BTreeMap;
use std::path::Path;

use nimbus_api::Digest;
use nimbus_api::strict_json::{self, Limits};
use serde::Deserialize;

use super::{Which, problem};
use crate::error::CtlError;
use crate::files;

/// Longest `index.json`.
const INDEX_BYTES_MAX: usize = 4 << 20;
/// The annotation that names a manifest.
const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// What is read of `index.json`; the rest is for whoever unpacks the image.
#[derive(Debug, Deserialize)]
struct Index {
    manifests: Vec<Entry>,
}

#[derive(Debug, Deserialize)]
struct Entry {
    digest: Digest,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

pub(super) fn resolve(path: &str, which: &Which) -> Result<Digest, CtlError> {
    let shown = format!("oci:{path}");
    let file = Path::new(path).join("index.json");
    let text = files::read(&file, INDEX_BYTES_MAX)?;
    let index: Index = strict_json::parse(&text, Limits::bytes(INDEX_BYTES_MAX))
        .map_err(|source| CtlError::Json { path: file, source })?;
    let mut found: Vec<Digest> = index
        .manifests
        .iter()
        .filter(|entry| match which {
            Which::Digest(digest) => entry.digest == *digest,
            Which::Tag(tag) => entry.annotations.get(REF_NAME) == Some(tag),
            Which::Only => true,
        })
        .map(|entry| entry.digest)
        .collect();
    found.dedup();
    match (found.as_slice(), which) {
        ([digest], _) => Ok(*digest),
        // A manifest below an index of the layout: it is not listed, but it is there.
        ([], Which::Digest(digest)) if blob_exists(path, digest) => Ok(*digest),
        ([], _) => Err(problem(&shown, "no such image in index.json")),
        (_, Which::Only) => Err(problem(&shown, "index.json has several images: add :REF")),
        (_, _) => Err(problem(&shown, "index.json has several images of that name")),
    }
}

fn blob_exists(path: &str, digest: &Digest) -> bool {
    Path::new(path).join("blobs/sha256").join(digest.hex()).is_file()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(index: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("index.json"), index).unwrap();
        dir
    }

    fn tag(text: &str) -> Which {
        Which::Tag(text.to_owned())
    }

    #[test]
    fn the_only_image_a_named_one_and_a_digest_are_found() {
        let (one, two) = (Digest::of(b"1"), Digest::of(b"2"));
        let dir = layout(&format!(
            r#"{{"schemaVersion":2,"manifests":[{{"digest":"{one}","size":1}}]}}"#
        ));
        let path = dir.path().to_str().unwrap();
        assert_eq!(resolve(path, &Which::Only).unwrap(), one);
        assert!(resolve(path, &tag("v1")).is_err());
        assert!(resolve(path, &Which::Digest(two)).is_err());
        let dir = layout(&format!(
            r#"{{"manifests":[{{"digest":"{one}","annotations":{{"{REF_NAME}":"v1"}}}},{{"digest":"{two}"}}]}}"#
        ));
        let path = dir.path().to_str().unwrap();
        assert_eq!(resolve(path, &tag("v1")).unwrap(), one);
        assert_eq!(resolve(path, &Which::Digest(two)).unwrap(), two);
        assert!(resolve(path, &Which::Only).is_err());
    }

    #[test]
    fn two_images_of_one_name_and_duplicate_keys_are_refused() {
        let (one, two) = (Digest::of(b"1"), Digest::of(b"2"));
        let entry =
            |digest| format!(r#"{{"digest":"{digest}","annotations":{{"{REF_NAME}":"v1"}}}}"#);
        let dir = layout(&format!(r#"{{"manifests":[{},{}]}}"#, entry(one), entry(two)));
        assert!(resolve(dir.path().to_str().unwrap(), &tag("v1")).is_err());
        let dir = layout(&format!(r#"{{"manifests":[],"manifests":[{}]}}"#, entry(one)));
        assert!(resolve(dir.path().to_str().unwrap(), &Which::Only).is_err());
    }
}

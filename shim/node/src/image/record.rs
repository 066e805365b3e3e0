//! What the store remembers of an image: `images/<unpacker version>/<digest>.json`, and the documents
//! themselves in `documents/<digest>`.
//!
//! The record says which names the image was fetched under and what was found in its merged tree;
//! all else is read again from the documents, whose digests are checked each time. So a record can
//! be lost, but it cannot make one image pass for another.

use nimbus_api::strict_json::{self, Limits};
use nimbus_api::{Digest, Refusal};
use serde::{Deserialize, Serialize};

use super::refuse::tampered;

const RECORD_VERSION: u32 = 1;
/// Names are at most [`super::request::NAME_BYTES_MAX`] long and [`super::limits::NAMES_MAX`] many.
pub(super) const RECORD_BYTES_MAX: u64 = 256 << 10;

/// What `<digest>.json` says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Record {
    version: u32,
    pub(super) digest: Digest,
    pub(super) manifest: Digest,
    pub(super) config: Digest,
    pub(super) rootfs: Digest,
    pub(super) hostile_mount_point: Option<String>,
    /// Oldest first.
    pub(super) names: Vec<String>,
}

impl Record {
    pub(super) fn new(digest: Digest, manifest: Digest, config: Digest, rootfs: Digest) -> Self {
        Self {
            version: RECORD_VERSION,
            digest,
            manifest,
            config,
            rootfs,
            hostile_mount_point: None,
            names: Vec::new(),
        }
    }

    pub(super) fn file_name(digest: &Digest) -> String {
        format!("{}.json", digest.hex())
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.names.iter().any(|known| known == name)
    }

    /// Adds a name; forgets the oldest when there are too many.
    pub(super) fn add(&mut self, name: &str, names_max: usize) {
        if self.has(name) {
            return;
        }
        while self.names.len() >= names_max.max(1) {
            self.names.remove(0);
        }
        self.names.push(name.to_owned());
    }

    pub(super) fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }

    pub(super) fn parse(text: &[u8], digest: &Digest) -> Result<Self, Refusal> {
        let limits = Limits::bytes(usize::try_from(RECORD_BYTES_MAX).unwrap_or(usize::MAX));
        let record: Self = strict_json::parse(text, limits)
            .map_err(|_damaged| tampered(format!("the record of {digest} is damaged")))?;
        if record.version != RECORD_VERSION || record.digest != *digest {
            return Err(tampered(format!("the record of {digest} is another's")));
        }
        Ok(record)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_survives_its_text_and_forgets_the_oldest_name() {
        let digest = Digest::of(b"x");
        let mut record = Record::new(digest, digest, Digest::of(b"c"), Digest::of(b"r"));
        for name in ["a.b/1", "a.b/2", "a.b/2", "a.b/3"] {
            record.add(name, 2);
        }
        assert_eq!(record.names, ["a.b/2", "a.b/3"]);
        assert_eq!(Record::parse(&record.to_json(), &digest), Ok(record.clone()));
        assert!(Record::parse(&record.to_json(), &Digest::of(b"y")).is_err());
    }
}

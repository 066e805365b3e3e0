//! Paths in a layer, as a tar writes them, made plain or refused.
//!
//! A leading `/` and `./` are dropped as every unpacker does; `..` is refused rather than resolved,
//! because no honest builder writes it. Bytes other than NUL and `/` are names, newlines and
//! invalid UTF-8 included. `.wh.` names are read here, so that nobody takes one for a file.

use nimbus_api::Refusal;

use super::limits::{COMPONENT_BYTES_MAX, ImageLimits};
use super::refuse::{hostile, shown, too_large};

const WHITEOUT: &[u8] = b".wh.";
const WHITEOUT_META: &[u8] = b".wh..wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// Components joined by one `/`, none of them empty, `.` or `..`; empty is the layer's root.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct LayerPath(Vec<u8>);

/// What an entry's name means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum EntryName {
    /// The entry itself.
    Plain(LayerPath),
    /// Whatever lower layers have there is gone.
    Whiteout(LayerPath),
    /// Whatever lower layers have in this directory is gone.
    Opaque(LayerPath),
}

impl LayerPath {
    pub(super) fn parse(raw: &[u8], limits: &ImageLimits) -> Result<Self, Refusal> {
        if raw.len() > limits.path_bytes {
            return Err(too_large(format!(
                "a path has {} bytes, at most {} are allowed: {}",
                raw.len(),
                limits.path_bytes,
                shown(raw)
            )));
        }
        let mut plain = Vec::with_capacity(raw.len());
        let mut depth = 0;
        for part in raw.split(|b| *b == b'/').filter(|part| !matches!(*part, b"" | b".")) {
            if part == b".." {
                return Err(hostile(format!("a path with ..: {}", shown(raw))));
            }
            if part.contains(&0) {
                return Err(hostile(format!("a path with a NUL: {}", shown(raw))));
            }
            if part.len() > COMPONENT_BYTES_MAX {
                return Err(too_large(format!("a name of {} bytes: {}", part.len(), shown(raw))));
            }
            depth += 1;
            if depth > limits.depth {
                return Err(too_large(format!(
                    "a path deeper than {} levels: {}",
                    limits.depth,
                    shown(raw)
                )));
            }
            if !plain.is_empty() {
                plain.push(b'/');
            }
            plain.extend_from_slice(part);
        }
        Ok(Self(plain))
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    pub(super) fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// The directory it is in, empty for the root; and its name, empty for the root itself.
    pub(super) fn split(&self) -> (&[u8], &[u8]) {
        match self.0.iter().rposition(|b| *b == b'/') {
            Some(at) => {
                let (parent, name) = self.0.split_at(at);
                (parent, name.get(1..).unwrap_or(b""))
            }
            None => (b"", &self.0),
        }
    }

    pub(super) fn shown(&self) -> String {
        format!("/{}", shown(&self.0))
    }

    /// Reads `.wh.` names.
    pub(super) fn classify(self) -> Result<EntryName, Refusal> {
        let (parent, name) = self.split();
        if components(parent).any(|part| part.starts_with(WHITEOUT)) {
            return Err(hostile(format!("an entry below a whiteout: {}", self.shown())));
        }
        if !name.starts_with(WHITEOUT) {
            return Ok(EntryName::Plain(self));
        }
        if name == OPAQUE {
            return Ok(EntryName::Opaque(Self(parent.to_vec())));
        }
        let gone = name.get(WHITEOUT.len()..).unwrap_or(b"");
        if name.starts_with(WHITEOUT_META) || matches!(gone, b"" | b"." | b"..") {
            return Err(hostile(format!("a whiteout of nothing: {}", self.shown())));
        }
        let mut path = parent.to_vec();
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(gone);
        Ok(EntryName::Whiteout(Self(path)))
    }
}

/// The components of a plain path.
pub(super) fn components(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    path.split(|b| *b == b'/').filter(|part| !part.is_empty())
}

/// Every directory that a plain path leads through, outermost first, without itself.
pub(super) fn ancestors(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    path.iter().enumerate().filter(|(_, byte)| **byte == b'/').filter_map(|(at, _)| path.get(..at))
}

#[cfg(test)]
mod tests {
    use super::*;
    use nimbus_api::RefusalCode;
    use proptest::prelude::*;

    fn parse(raw: &[u8]) -> Result<LayerPath, Refusal> {
        LayerPath::parse(raw, &ImageLimits::default())
    }

    #[test]
    fn leading_slashes_and_dots_are_dropped() {
        for raw in [&b"a/b"[..], b"/a/b", b"./a//b/", b"///a/./b"] {
            assert_eq!(parse(raw).unwrap().as_bytes(), b"a/b");
        }
        assert!(parse(b"./").unwrap().is_root());
    }

    #[test]
    fn dotdot_nul_long_and_deep_names_are_refused() {
        for raw in [&b".."[..], b"a/../b", b"/..", b"a/..", b"a\0b"] {
            assert_eq!(parse(raw).unwrap_err().code, RefusalCode::ImageLayerHostile);
        }
        let long = vec![b'x'; 256];
        let deep = b"d/".repeat(129);
        let very_long = b"a/".repeat(4096);
        for raw in [long, deep, very_long] {
            assert_eq!(parse(&raw).unwrap_err().code, RefusalCode::ImageTooLarge);
        }
    }

    #[test]
    fn whiteouts_are_read_and_odd_ones_refused() {
        let path = |text: &str| parse(text.as_bytes()).unwrap();
        assert_eq!(path("a/.wh.b").classify(), Ok(EntryName::Whiteout(path("a/b"))));
        assert_eq!(path(".wh.b").classify(), Ok(EntryName::Whiteout(path("b"))));
        assert_eq!(path("a/.wh..wh..opq").classify(), Ok(EntryName::Opaque(path("a"))));
        for bad in ["a/.wh.", "a/.wh..", "a/.wh...", "a/.wh..wh.plnk", ".wh.a/b"] {
            assert!(path(bad).classify().is_err(), "{bad}");
        }
    }

    #[test]
    fn ancestors_go_outside_in() {
        assert_eq!(ancestors(b"a/b/c").collect::<Vec<_>>(), [&b"a"[..], b"a/b"]);
        assert_eq!(ancestors(b"a").count(), 0);
    }

    proptest! {
        #[test]
        fn what_is_accepted_has_only_plain_components(raw in proptest::collection::vec(
            prop_oneof![Just(b'/'), Just(b'.'), any::<u8>()], 0..60)) {
            if let Ok(path) = parse(&raw) {
                let again = parse(path.as_bytes()).unwrap();
                prop_assert_eq!(&again, &path);
                prop_assert!(!path.as_bytes().starts_with(b"/"));
                for part in components(path.as_bytes()) {
                    prop_assert!(part != b"." && part != b".." && !part.contains(&0));
                }
            }
        }
    }
}

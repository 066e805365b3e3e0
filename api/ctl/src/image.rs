//! Images: what a person calls one, turned once into a name and a digest.
//!
//! `HOST[:PORT]/REPOSITORY@sha256:...`, `HOST[:PORT]/REPOSITORY:TAG` or
//! `oci:/absolute/layout[@sha256:...|:REF]`. A tag is looked up once, here; from then on only the
//! digest counts. A host must be written: there is no default registry to fall back on.

mod layout;
mod registry;

use std::str::FromStr;

use nimbus_api::Digest;

use crate::error::CtlError;

/// Longest reference.
const REFERENCE_BYTES_MAX: usize = 512;
/// Prefix of an OCI layout directory.
const LAYOUT_PREFIX: &str = "oci:";

/// An image as it was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ImageRef {
    pub(crate) place: Place,
    pub(crate) which: Which,
}

/// Where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    /// A registry.
    Registry {
        /// `HOST[:PORT]`.
        host: String,
        /// The rest.
        repository: String,
    },
    /// An OCI layout directory, absolute.
    Layout(String),
}

/// Which one of those that are there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Which {
    Digest(Digest),
    Tag(String),
    /// The only one.
    Only,
}

/// What control and the lease call it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Resolved {
    /// Without tag.
    pub(crate) name: String,
    /// Of the manifest or index.
    pub(crate) digest: Digest,
}

impl ImageRef {
    /// What policies and leases call the place.
    pub(crate) fn name(&self) -> String {
        match &self.place {
            Place::Registry { host, repository } => format!("{host}/{repository}"),
            Place::Layout(path) => format!("{LAYOUT_PREFIX}{path}"),
        }
    }

    /// Looks up the digest: at most one question to the registry, or one file of the layout.
    pub(crate) async fn resolve(&self) -> Result<Resolved, CtlError> {
        let digest = match (&self.place, &self.which) {
            (Place::Layout(path), which) => layout::resolve(path, which)?,
            (Place::Registry { .. }, Which::Digest(digest)) => *digest,
            (Place::Registry { host, repository }, Which::Tag(tag)) => {
                registry::resolve(host, repository, tag).await?
            }
            (Place::Registry { .. }, Which::Only) => {
                return Err(problem(&self.name(), "name a tag or a digest"));
            }
        };
        Ok(Resolved { name: self.name(), digest })
    }
}

impl FromStr for ImageRef {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.len() > REFERENCE_BYTES_MAX {
            return Err(format!("longer than {REFERENCE_BYTES_MAX} bytes"));
        }
        match text.strip_prefix(LAYOUT_PREFIX) {
            Some(rest) => parse_layout(rest),
            None => parse_registry(text),
        }
    }
}

fn parse_layout(text: &str) -> Result<ImageRef, String> {
    let (path, which) = split_which(text)?;
    let which = which.unwrap_or(Which::Only);
    let clean = path.strip_prefix('/').is_some_and(|rest| {
        rest.split('/').all(|part| !matches!(part, "" | "." | ".."))
            && !rest.chars().any(char::is_control)
    });
    if !clean {
        return Err("expected oci: and an absolute path without . or ..".to_owned());
    }
    Ok(ImageRef { place: Place::Layout(path.to_owned()), which })
}

fn parse_registry(text: &str) -> Result<ImageRef, String> {
    let (host, rest) = text.split_once('/').ok_or("expected HOST/REPOSITORY")?;
    if !is_host(host) {
        return Err("the registry must be written out: HOST/REPOSITORY".to_owned());
    }
    let (repository, which) = split_which(rest)?;
    let which = which.ok_or("name a tag or a digest: HOST/REPOSITORY:TAG or @sha256:...")?;
    if !repository.split('/').all(is_component) {
        return Err(format!("not a repository: {repository:?}"));
    }
    let place = Place::Registry { host: host.to_owned(), repository: repository.to_owned() };
    Ok(ImageRef { place, which })
}

/// Takes `@DIGEST` or `:TAG` off the end. With both, the digest decides and the tag is only a name.
fn split_which(text: &str) -> Result<(&str, Option<Which>), String> {
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => {
            let digest = digest
                .parse()
                .map_err(|error: nimbus_api::digest::DigestError| error.to_string())?;
            (rest, Some(Which::Digest(digest)))
        }
        None => (text, None),
    };
    let last = rest.rfind('/').map_or(0, |at| at + 1);
    let tag = rest.get(last..).and_then(|part| part.find(':')).map(|at| last + at);
    let (path, tag) = match tag {
        Some(at) => (rest.get(..at).unwrap_or_default(), rest.get(at + 1..)),
        None => (rest, None),
    };
    if tag.is_some_and(|tag| !is_tag(tag)) {
        return Err(format!("not a tag: {:?}", tag.unwrap_or_default()));
    }
    Ok((path, digest.or_else(|| tag.map(|tag| Which::Tag(tag.to_owned())))))
}

/// A host has a dot, a port, or is `localhost`.
fn is_host(host: &str) -> bool {
    let (name, port) = host.rsplit_once(':').unwrap_or((host, "443"));
    let words = name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.'));
    let looks = host.contains(['.', ':']) || host == "localhost";
    looks && words && !name.is_empty() && port.parse::<u16>().is_ok()
}

fn is_component(part: &str) -> bool {
    let word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = part.as_bytes();
    bytes.first().is_some_and(|b| word(*b))
        && bytes.last().is_some_and(|b| word(*b))
        && bytes.iter().all(|b| word(*b) || matches!(b, b'-' | b'_' | b'.'))
        && !part.contains("..")
}

fn is_tag(tag: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let bytes = tag.as_bytes();
    bytes.len() <= 128
        && bytes.first().is_some_and(|b| word(*b))
        && bytes.iter().all(|b| word(*b) || matches!(b, b'-' | b'.'))
}

fn problem(image: &str, problem: &str) -> CtlError {
    CtlError::Image { image: image.to_owned(), problem: problem.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_form_is_read() {
        let digest = Digest::of(b"x");
        let registry = |host: &str, repository: &str, which| ImageRef {
            place: Place::Registry { host: host.to_owned(), repository: repository.to_owned() },
            which,
        };
        let tag = |tag: &str| Which::Tag(tag.to_owned());
        let by_digest = Which::Digest(digest);
        for (text, expected) in [
            ("127.0.0.1:5000/a/b:v1".to_owned(), registry("127.0.0.1:5000", "a/b", tag("v1"))),
            ("localhost/a:x".to_owned(), registry("localhost", "a", tag("x"))),
            (format!("r.example/a@{digest}"), registry("r.example", "a", by_digest.clone())),
            (format!("r.example/a:v1@{digest}"), registry("r.example", "a", by_digest.clone())),
            (
                "oci:/srv/layout".to_owned(),
                ImageRef { place: Place::Layout("/srv/layout".to_owned()), which: Which::Only },
            ),
            (
                "oci:/srv/layout:v1".to_owned(),
                ImageRef { place: Place::Layout("/srv/layout".to_owned()), which: tag("v1") },
            ),
            (
                format!("oci:/srv/layout@{digest}"),
                ImageRef { place: Place::Layout("/srv/layout".to_owned()), which: by_digest },
            ),
        ] {
            assert_eq!(text.parse::<ImageRef>(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn a_name_without_host_or_tag_and_nonsense_are_refused() {
        for bad in [
            "",
            "busybox",
            "library/busybox:latest",
            "r.example/a",
            "r.example/A:x",
            "r.example/a:",
            "r.example/a:-x",
            "r.example/../a:x",
            "r.example//a:x",
            "r.example/a@sha512:00",
            "r.example/a@sha256:00",
            "http://r.example/a:x",
            "r.example:x/a:b",
            "oci:relative",
            "oci:/a/../b",
            "oci:/a//b",
            "oci:/",
            "oci:/a\n",
            "r.exa mple/a:x",
            &format!("r.example/{}:x", "a".repeat(600)),
        ] {
            assert!(bad.parse::<ImageRef>().is_err(), "{bad}");
        }
    }
}

//! What is asked for: an image name, a digest, a platform; and where that name leads.
//!
//! `HOST[:PORT]/REPOSITORY` is a registry, `oci:/absolute/directory` an OCI layout on this machine.
//! A name has neither tag nor digest, no default registry is assumed, and what is not in this
//! grammar is refused, so that one image has one name for the policy to match.

use std::path::PathBuf;

use nimbus_api::{Digest, Refusal, RefusalCode};

/// Longest name.
pub(super) const NAME_BYTES_MAX: usize = 512;
const LAYOUT_PREFIX: &str = "oci:";

/// An image to be prepared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageRequest {
    /// Where it comes from, without tag.
    pub name: String,
    /// Of its manifest or index.
    pub digest: Digest,
    /// `os/architecture[/variant]`.
    pub platform: String,
    /// Directory of blobs on this machine that it is read from instead of from where its name leads:
    /// containerd's content. Whoever has put it there says that it is of that name.
    pub content: Option<PathBuf>,
}

/// Where a name leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ImageSource {
    Registry { host: String, repository: String },
    Layout(PathBuf),
    Content(PathBuf),
}

impl ImageSource {
    pub(super) fn parse(name: &str) -> Result<Self, Refusal> {
        let refuse = |why: &str| {
            Refusal::with(RefusalCode::RequestInvalid, format!("image name {name:?}: {why}"))
        };
        if name.len() > NAME_BYTES_MAX {
            return Err(refuse("longer than 512 bytes"));
        }
        if let Some(path) = name.strip_prefix(LAYOUT_PREFIX) {
            return layout(path)
                .ok_or_else(|| refuse("expected oci: and an absolute path without . and .."));
        }
        let (host, repository) =
            name.split_once('/').ok_or_else(|| refuse("expected HOST[:PORT]/REPOSITORY"))?;
        if !is_host(host) {
            return Err(refuse("no registry host: it has a dot or a port, or is localhost"));
        }
        if !repository.split('/').all(is_repository_part) {
            return Err(refuse("no repository: lower-case words, without tag or digest"));
        }
        Ok(Self::Registry { host: host.to_owned(), repository: repository.to_owned() })
    }

    /// Who decides how fast its bytes come.
    pub(super) fn place(&self) -> String {
        match self {
            Self::Registry { host, .. } => host.clone(),
            Self::Layout(path) | Self::Content(path) => path.display().to_string(),
        }
    }
}

fn layout(path: &str) -> Option<ImageSource> {
    let rest = path.strip_prefix('/')?;
    let plain = rest
        .split('/')
        .all(|part| !matches!(part, "" | "." | "..") && !part.chars().any(char::is_control));
    plain.then(|| ImageSource::Layout(PathBuf::from(path)))
}

fn is_host(host: &str) -> bool {
    let (name, port) = match host.split_once(':') {
        Some((name, port)) => (name, Some(port)),
        None => (host, None),
    };
    let port_is_good = port.is_none_or(|port| {
        !port.starts_with('0')
            && port.bytes().all(|b| b.is_ascii_digit())
            && port.parse::<u16>().is_ok()
    });
    let labels_are_good = name.split('.').all(|label| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'))
    });
    port_is_good && labels_are_good && (port.is_some() || name.contains('.') || name == "localhost")
}

/// Letters and digits, separated by one `.`, one or two `_`, or any number of `-`.
fn is_repository_part(part: &str) -> bool {
    let alphanumeric = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    part.starts_with(alphanumeric)
        && part.ends_with(alphanumeric)
        && part.split(alphanumeric).all(|separator| {
            matches!(separator, "" | "." | "_" | "__") || separator.bytes().all(|b| b == b'-')
        })
}

/// `os/architecture[/variant]`, with the variants that mean "the usual one" left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Platform {
    os: String,
    architecture: String,
    variant: String,
}

impl Platform {
    pub(super) fn new(os: &str, architecture: &str, variant: &str) -> Self {
        let variant = match (architecture, variant) {
            ("amd64", "v1") | ("arm64", "v8") => "",
            (_, variant) => variant,
        };
        Self {
            os: os.to_owned(),
            architecture: architecture.to_owned(),
            variant: variant.to_owned(),
        }
    }

    pub(super) fn parse(text: &str) -> Result<Self, Refusal> {
        let mut parts = text.split('/');
        let (os, architecture) = (parts.next().unwrap_or(""), parts.next().unwrap_or(""));
        let variant = parts.next();
        let word = |part: &str| {
            !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'.')
        };
        let good = word(os) && word(architecture) && variant.is_none_or(word);
        if !good || parts.next().is_some() {
            return Err(Refusal::with(
                RefusalCode::ImagePlatform,
                format!("expected os/architecture[/variant], found {text:?}"),
            ));
        }
        Ok(Self::new(os, architecture, variant.unwrap_or("")))
    }
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        if self.variant.is_empty() { Ok(()) } else { write!(f, "/{}", self.variant) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_lead_to_registries_and_layouts() {
        for (name, host, repository) in [
            ("127.0.0.1:5000/jobs/hello", "127.0.0.1:5000", "jobs/hello"),
            ("localhost/a", "localhost", "a"),
            ("registry.example.com/a-b/c__d.e", "registry.example.com", "a-b/c__d.e"),
        ] {
            let expected =
                ImageSource::Registry { host: host.to_owned(), repository: repository.to_owned() };
            assert_eq!(ImageSource::parse(name), Ok(expected));
        }
        assert_eq!(
            ImageSource::parse("oci:/srv/images/hello"),
            Ok(ImageSource::Layout(PathBuf::from("/srv/images/hello")))
        );
    }

    #[test]
    fn names_that_could_be_read_in_two_ways_are_refused() {
        for name in [
            "",
            "hello",
            "library/hello",
            "host.example/a:tag",
            "host.example/a@sha256:00",
            "host.example/A",
            "host.example//a",
            "host.example/a/",
            "host.example/../a",
            "host.example:0/a",
            "host.example:99999/a",
            "host.example:/a",
            "user@host.example/a",
            "-h.example/a",
            "host.example/a___b",
            "host.example/a?b",
            "oci:relative",
            "oci:/",
            "oci:/a/../b",
            "oci:/a//b",
            "oci:/a/.",
            "oci:/a\nb",
            "[::1]:5000/a",
            "http://h.example/a",
        ] {
            let refusal = ImageSource::parse(name).unwrap_err();
            assert_eq!(refusal.code, RefusalCode::RequestInvalid, "{name}");
        }
    }

    #[test]
    fn usual_variants_are_the_same_platform() {
        assert_eq!(Platform::parse("linux/arm64/v8"), Platform::parse("linux/arm64"));
        assert_ne!(Platform::parse("linux/arm/v7"), Platform::parse("linux/arm/v6"));
        for bad in ["", "linux", "linux/", "linux/amd64/", "a/b/c/d", "linux/am d64"] {
            assert!(Platform::parse(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_name_panics_the_parser(name in ".{0,80}") {
            let _unused = ImageSource::parse(&name);
            let _unused = Platform::parse(&name);
        }
    }
}

//! Where a client wants a stream to go. Pure.
//!
//! Accepted: nothing, an absolute path or `fifo://` (a fifo), and for output `file://`. Everything
//! else is refused, `binary://` above all: it would run a program of the client's choice as root.

use std::path::{Component, PathBuf};

use nimbus_api::{Refusal, RefusalCode};

/// The three streams as a client named them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Uris {
    /// Input.
    pub stdin: String,
    /// Output.
    pub stdout: String,
    /// Errors.
    pub stderr: String,
}

impl Uris {
    /// Where input comes from and both outputs go, if a job's may.
    pub(crate) fn targets(&self) -> Result<[Target; 3], Refusal> {
        let input = Target::input(&self.stdin)?;
        Ok([input, Target::output(&self.stdout)?, Target::output(&self.stderr)?])
    }
}

/// Where one stream goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Target {
    /// Nowhere.
    Null,
    /// A fifo that the client has made.
    Fifo(PathBuf),
    /// A file that is appended to.
    File(PathBuf),
}

impl Target {
    /// Where input comes from.
    pub(crate) fn input(uri: &str) -> Result<Self, Refusal> {
        match Self::output(uri)? {
            Self::File(_) => Err(refuse(uri)),
            target @ (Self::Null | Self::Fifo(_)) => Ok(target),
        }
    }

    /// Where output goes.
    pub(crate) fn output(uri: &str) -> Result<Self, Refusal> {
        if uri.is_empty() {
            return Ok(Self::Null);
        }
        match uri.split_once("://") {
            None => Ok(Self::Fifo(plain_path(uri, uri)?)),
            Some(("fifo", path)) => Ok(Self::Fifo(plain_path(uri, path)?)),
            Some(("file", path)) => Ok(Self::File(plain_path(uri, path)?)),
            Some(_) => Err(refuse(uri)),
        }
    }
}

/// Absolute, without `..`, and without anything that a URI would have to decode.
fn plain_path(uri: &str, path: &str) -> Result<PathBuf, Refusal> {
    let plain = path.starts_with('/') && !path.contains(['%', '?', '#', '\0']);
    let path = PathBuf::from(path);
    let straight = path.components().all(|part| !matches!(part, Component::ParentDir));
    if plain && straight { Ok(path) } else { Err(refuse(uri)) }
}

fn refuse(uri: &str) -> Refusal {
    Refusal::with(RefusalCode::SpecStdioForbidden, format!("found {uri:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fifos_files_and_nothing_are_understood() {
        assert_eq!(Target::output(""), Ok(Target::Null));
        assert_eq!(Target::output("/run/f"), Ok(Target::Fifo("/run/f".into())));
        assert_eq!(Target::output("fifo:///run/f"), Ok(Target::Fifo("/run/f".into())));
        assert_eq!(Target::output("file:///var/l"), Ok(Target::File("/var/l".into())));
        assert_eq!(Target::input("/run/f"), Ok(Target::Fifo("/run/f".into())));
    }

    #[test]
    fn programs_and_crooked_paths_are_refused() {
        for uri in [
            "binary:///bin/sh?id=x",
            "binary-v2:///bin/sh",
            "http://x/",
            "relative",
            "file://relative",
            "file:///a/../../etc/passwd",
            "file:///a%2e",
            "file:///a?x=y",
            "/a/../b",
        ] {
            let refusal = Target::output(uri).unwrap_err();
            assert_eq!(refusal.code, RefusalCode::SpecStdioForbidden, "{uri}");
        }
        assert!(Target::input("file:///a").is_err());
    }
}

//! What containerd tells a shim's `start` on its standard input, of which one thing is used: the cgroup
//! that an admin has configured for shims (`ShimCgroup` of the runtime's options).
//!
//! Up to containerd 2.2 it is a protobuf `Any` with the runtime's options, or nothing; from 2.3 on it is
//! `BootstrapParams`, of which the options are an extension. Unknown bytes are nobody's wish: whether a
//! container may have other options is for the node agent to judge at Create.
//!
//! Limits: [`INPUT_BYTES_MAX`]. A terminal is not read from.

use std::fs;
use std::io::{self, IsTerminal as _, Read as _};
use std::path::{Component, Path, PathBuf};

use containerd_shim_protos::bootstrap_api::BootstrapParams;
use containerd_shim_protos::protobuf::Message as _;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::shim::oci::Options;

/// Longest input.
const INPUT_BYTES_MAX: u64 = 1 << 20;
/// How the type of runc's options ends, whatever stands before it.
const OPTIONS_TYPE: &str = "containerd.runc.v1.Options";
/// Where hierarchies are mounted.
const ROOT: &str = "/sys/fs/cgroup";

/// Why a shim cannot be put where its admin wants it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ShimCgroupError {
    /// Standard input cannot be read.
    #[error("cannot read what containerd says")]
    Input(#[source] io::Error),
    /// No path below a hierarchy.
    #[error("expected an absolute path without dots for ShimCgroup, found {0:?}")]
    Path(String),
    /// It has to be there already.
    #[error(
        "no cgroup hierarchy has the ShimCgroup {0}; make it, or take it out of the configuration"
    )]
    Absent(PathBuf),
    /// The kernel does not let it in.
    #[error("cannot enter the ShimCgroup {path}")]
    Enter {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// The cgroup that containerd's configuration names for shims, read off standard input.
pub(crate) fn shim_cgroup() -> Result<Option<PathBuf>, ShimCgroupError> {
    let stdin = io::stdin();
    if stdin.is_terminal() {
        return Ok(None);
    }
    let mut bytes = Vec::new();
    stdin.lock().take(INPUT_BYTES_MAX).read_to_end(&mut bytes).map_err(ShimCgroupError::Input)?;
    in_input(&bytes)
}

/// The same, of what was read.
pub(crate) fn in_input(bytes: &[u8]) -> Result<Option<PathBuf>, ShimCgroupError> {
    let Some(options) = options(bytes) else { return Ok(None) };
    let text = options.shim_cgroup;
    if text.is_empty() {
        return Ok(None);
    }
    let path = PathBuf::from(&text);
    let mut parts = path.components();
    let absolute = parts.next() == Some(Component::RootDir);
    let plain = parts.clone().count() > 0 && parts.all(|part| matches!(part, Component::Normal(_)));
    if absolute && plain { Ok(Some(path)) } else { Err(ShimCgroupError::Path(text)) }
}

fn options(bytes: &[u8]) -> Option<Options> {
    let of = |any: &Any| {
        let known = any.type_url.ends_with(OPTIONS_TYPE);
        known.then(|| Options::parse_from_bytes(&any.value).ok())?
    };
    if let Some(options) = Any::parse_from_bytes(bytes).ok().as_ref().and_then(of) {
        return Some(options);
    }
    let params = BootstrapParams::parse_from_bytes(bytes).ok()?;
    params.extensions.iter().find_map(|extension| of(extension.value.as_ref()?))
}

/// Puts a process into it, in every hierarchy that has it.
pub(crate) fn enter(cgroup: &Path, pid: u32) -> Result<(), ShimCgroupError> {
    let relative = cgroup.strip_prefix("/").unwrap_or(cgroup);
    let own = |dir: PathBuf| dir.join(relative).join("cgroup.procs");
    let mounts = fs::read_dir(ROOT).into_iter().flatten().filter_map(Result::ok);
    // A link is another name of a hierarchy that is there already.
    let mounts = mounts.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    let mut all: Vec<PathBuf> = mounts.map(|entry| own(entry.path())).collect();
    if Path::new(ROOT).join("cgroup.controllers").exists() {
        all = vec![own(ROOT.into())];
    }
    all.retain(|file| file.exists());
    if all.is_empty() {
        return Err(ShimCgroupError::Absent(cgroup.to_owned()));
    }
    for file in all {
        fs::write(&file, pid.to_string())
            .map_err(|source| ShimCgroupError::Enter { path: file.clone(), source })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use containerd_shim_protos::bootstrap_api::Extension;
    use containerd_shim_protos::protobuf::MessageField;
    use proptest::prelude::*;

    fn any(type_url: &str, cgroup: &str) -> Any {
        let options = Options { shim_cgroup: cgroup.to_owned(), ..Options::default() };
        let value = options.write_to_bytes().unwrap();
        Any { type_url: type_url.to_owned(), value, ..Any::default() }
    }

    #[test]
    fn the_cgroup_is_found_in_what_old_and_new_containerds_say() {
        for url in ["containerd.runc.v1.Options", "type.googleapis.com/containerd.runc.v1.Options"]
        {
            let old = any(url, "/shims/nimbus").write_to_bytes().unwrap();
            assert_eq!(in_input(&old).unwrap(), Some("/shims/nimbus".into()), "{url}");
            let new = BootstrapParams {
                instance_id: "c1".to_owned(),
                namespace: "k8s.io".to_owned(),
                extensions: vec![Extension {
                    value: MessageField::some(any(url, "/shims")),
                    ..Extension::default()
                }],
                ..BootstrapParams::default()
            };
            let new = new.write_to_bytes().unwrap();
            assert_eq!(in_input(&new).unwrap(), Some("/shims".into()), "{url}");
        }
        assert_eq!(in_input(b"").unwrap(), None);
        let other = any("io.containerd.else", "/shims").write_to_bytes().unwrap();
        assert_eq!(in_input(&other).unwrap(), None);
        let none = any("containerd.runc.v1.Options", "").write_to_bytes().unwrap();
        assert_eq!(in_input(&none).unwrap(), None);
    }

    #[test]
    fn a_path_that_could_lead_out_of_a_hierarchy_is_refused() {
        for bad in ["shims", "/", "/../shims", "/a/../../b"] {
            let input = any("containerd.runc.v1.Options", bad).write_to_bytes().unwrap();
            assert!(matches!(in_input(&input), Err(ShimCgroupError::Path(_))), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic_the_reader_or_lead_out(bytes: Vec<u8>) {
            if let Ok(Some(path)) = in_input(&bytes) {
                prop_assert!(path.components().skip(1).all(|part| matches!(part, Component::Normal(_))));
            }
        }
    }
}

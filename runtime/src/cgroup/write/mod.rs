//! The one writer of cgroups: makes a container's directories and sets its limits.
//!
//! Used by Create on fresh cgroups and by Update on ones that are in use: what a specification does
//! not mention stays as it is. A limit that this host cannot set is an error, never skipped.
//! Removing is [`super::end`]'s, devices are [`super::devices`]'s, reading back is [`super::limits`]'s.
#![forbid(unsafe_code)]

mod v1;
mod v2;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nimbus_api::RefusalCode;
use nimbus_api::runtime::CgroupPaths;

use super::hierarchy::Hierarchies;
use crate::error::{Doing as _, RuntimeError};
use crate::spec::model::Resources;

/// Makes the directories of a container, with controllers enabled along the way.
pub(crate) fn make(hosts: &Hierarchies, paths: &CgroupPaths) -> Result<(), RuntimeError> {
    if let (Some(root), Some(dir)) = (&hosts.unified, &paths.unified) {
        v2::make(root, dir)?;
    }
    v1::make(hosts, paths)
}

/// Sets limits.
pub(crate) fn apply(paths: &CgroupPaths, limits: &Resources) -> Result<(), RuntimeError> {
    match &paths.unified {
        Some(dir) => v2::apply(dir, limits),
        None => v1::apply(paths, limits),
    }
}

/// The directories between a hierarchy's root and `dir`, outermost first, `dir` last.
fn steps(root: &Path, dir: &Path) -> Result<Vec<PathBuf>, RuntimeError> {
    let below = dir.strip_prefix(root).map_err(io::Error::other);
    let below = below.doing("find a cgroup below its hierarchy")?;
    let mut reached = root.to_owned();
    Ok(below
        .components()
        .map(|part| {
            reached.push(part);
            reached.clone()
        })
        .collect())
}

/// Makes one directory; whether it was there already.
fn make_one(dir: &Path) -> Result<bool, RuntimeError> {
    match fs::create_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(true),
        made => made.map(|()| false).doing(format_args!("make the cgroup {}", dir.display())),
    }
}

/// One file of a cgroup; it must be there.
fn set(dir: &Path, file: &str, text: &str) -> Result<(), RuntimeError> {
    // Opened without O_CREAT: on a hierarchy that is none this must not make a plain file.
    let opened = fs::OpenOptions::new().write(true).open(dir.join(file));
    let written = opened.and_then(|mut opened| io::Write::write_all(&mut opened, text.as_bytes()));
    written.doing(format_args!("write {text:?} to {file}"))
}

fn unsupported(what: &str) -> RuntimeError {
    RuntimeError::refused(RefusalCode::RuntimeFailed, format!("this host cannot limit {what}"))
}

/// How cgroup files spell a number of which less than zero is no limit.
fn or_max(value: i64, max: &str) -> String {
    if value < 0 { max.to_owned() } else { value.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_directory_on_the_way_is_one_step() {
        let found = steps(Path::new("/c"), Path::new("/c/a/b")).unwrap();
        assert_eq!(found, [PathBuf::from("/c/a"), PathBuf::from("/c/a/b")]);
        assert!(steps(Path::new("/c"), Path::new("/d/a")).is_err());
    }
}

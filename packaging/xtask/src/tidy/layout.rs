//! The top level holds what a reader expects there, and nothing else.

use std::collections::BTreeSet;

use super::Finding;

/// Names that may stand at the top level.
const ALLOWED: &[&str] = &[
    ".cargo",
    ".ci",
    ".gitignore",
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE",
    "README.md",
    "SECURITY.md",
    "api",
    "clippy.toml",
    "deny.toml",
    "docs",
    "hooks",
    "packaging",
    "runtime",
    "rust-toolchain.toml",
    "rustfmt.toml",
    "shim",
    "tests",
];

/// Checks the first component of every path.
pub(super) fn check<'a>(paths: impl Iterator<Item = &'a str>) -> Vec<Finding> {
    let tops: BTreeSet<_> = paths.filter_map(|path| path.split('/').next()).collect();
    tops.into_iter()
        .filter(|top| !ALLOWED.contains(top))
        .map(|top| Finding::new(top, "does not belong at the top level"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stray_file_or_folder_is_found_once() {
        let paths = ["api/a.rs", "scratch/a", "scratch/b", "notes.txt", "README.md"];
        assert_eq!(check(paths.into_iter()).len(), 2);
    }
}

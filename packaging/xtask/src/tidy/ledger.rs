//! `docs/cve-ledger.md` may claim a test only when there is one of that name.
//!
//! A claim is a word in backticks with at least two underscores and no dot, slash or colon: house
//! style names tests as sentences, and nothing else in that table looks like that.

use super::{Finding, Source};

const LEDGER: &str = "docs/cve-ledger.md";

/// Checks every claim.
pub(super) fn check(sources: &[Source]) -> Vec<Finding> {
    let Some(ledger) = sources.iter().find(|source| source.path == LEDGER) else {
        return vec![Finding::new(LEDGER, "is missing")];
    };
    claims(&ledger.text)
        .filter(|name| !exists(sources, name))
        .map(|name| Finding::new(LEDGER, format!("names a test that does not exist: {name}")))
        .collect()
}

fn claims(text: &str) -> impl Iterator<Item = &str> {
    text.lines().flat_map(|line| line.split('`').skip(1).step_by(2)).filter(|word| {
        let name = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
        word.bytes().all(name) && word.matches('_').count() >= 2
    })
}

fn exists(sources: &[Source], name: &str) -> bool {
    let function = format!("fn {name}(");
    sources.iter().any(|source| {
        let rust = std::path::Path::new(&source.path).extension().is_some_and(|e| e == "rs");
        rust && source.text.contains(&function)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claimed_test_that_is_not_there_is_found() {
        let source = |path: &str, text: &str| Source { path: path.into(), text: text.into() };
        let ledger = "| CVE-1 | `a_link_is_refused` |\n| CVE-2 | `no_such_test` | `hooks.rs` |\n";
        let sources =
            [source(LEDGER, ledger), source("a/b.rs", "#[test]\nfn a_link_is_refused() {}\n")];
        let findings = check(&sources);
        assert_eq!(findings.len(), 1);
        assert!(findings[0].problem.contains("no_such_test"));
    }

    #[test]
    fn a_missing_ledger_is_found() {
        assert_eq!(check(&[]).len(), 1);
    }
}

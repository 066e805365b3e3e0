//! `cargo xtask tidy`: the rules of this repository that no compiler checks.
//!
//! Intent: each rule is a pure function from texts to findings, in a module of its own; this module
//! gathers the texts and prints what was found. `--fix` writes what can be generated.

mod deps;
mod layout;
mod ledger;
mod refusals;
mod sources;

use std::fmt;
use std::io;
use std::path::PathBuf;

use crate::run::{RunError, Workspace, output, say};

/// How to check.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct Args {
    /// Write generated documents anew instead of complaining about them
    #[arg(long)]
    fix: bool,
}

/// Why the rules could not be checked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TidyError {
    /// A program.
    #[error("cannot list the repository")]
    Run(#[from] RunError),
    /// A file.
    #[error("cannot read or write {}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// One broken rule.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Finding {
    at: String,
    problem: String,
}

impl Finding {
    fn new(at: impl Into<String>, problem: impl Into<String>) -> Self {
        Self { at: at.into(), problem: problem.into() }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.at, self.problem)
    }
}

/// A file of the repository, as text.
#[derive(Debug)]
pub(crate) struct Source {
    path: String,
    text: String,
}

/// Checks every rule; whether all hold.
pub(crate) fn tidy(workspace: &Workspace, args: &Args) -> Result<bool, TidyError> {
    let sources = gather(workspace)?;
    let mut findings = deps::check(workspace.metadata());
    findings.extend(layout::check(sources.iter().map(|source| source.path.as_str())));
    findings.extend(sources::check(&sources));
    findings.extend(ledger::check(&sources));
    match refusals::check(&sources) {
        Ok(()) => {}
        Err(stale) if args.fix && stale.wanted.is_some() => {
            let path = workspace.root().join(refusals::DOCUMENT);
            let text = stale.wanted.unwrap_or_default();
            std::fs::write(&path, text).map_err(|source| TidyError::File { path, source })?;
            say(format_args!("wrote {}", refusals::DOCUMENT));
        }
        Err(stale) => findings.push(stale.finding),
    }
    for finding in &findings {
        say(finding);
    }
    say(format_args!("tidy: {} files, {} findings", sources.len(), findings.len()));
    Ok(findings.is_empty())
}

/// Everything that git tracks or would track. What is not UTF-8 is not looked at.
fn gather(workspace: &Workspace) -> Result<Vec<Source>, TidyError> {
    let mut list = std::process::Command::new("git");
    list.args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]);
    let paths = output(list.current_dir(workspace.root()))?;
    let mut sources = Vec::new();
    for path in paths.split_terminator('\0') {
        let full = workspace.root().join(path);
        match std::fs::read(&full) {
            Ok(bytes) => {
                let text = String::from_utf8(bytes).unwrap_or_default();
                sources.push(Source { path: path.to_owned(), text });
            }
            // Deleted in the working tree, but not yet in the index.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(TidyError::File { path: full, source }),
        }
    }
    Ok(sources)
}

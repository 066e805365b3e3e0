//! The scenarios: each is a container's life, or a wrong turn of it, and what is seen on the way.
#![expect(
    clippy::unnecessary_wraps,
    reason = "scenarios are of one type, whether one can fail or not"
)]

mod exec;
mod life;
mod limits;
mod process;
mod recovery;
mod signals;
mod streams;

use super::run::Run;
use crate::Outcome;

/// One of them.
#[derive(Clone, Copy)]
pub(super) struct Scenario {
    /// What it is about, for the document.
    pub(super) group: &'static str,
    /// Its name.
    pub(super) name: &'static str,
    /// What is done.
    pub(super) run: fn(&mut Run<'_>) -> Outcome,
}

impl std::fmt::Debug for Scenario {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Scenario").field(&self.name).finish()
    }
}

/// Scenarios named after their functions.
macro_rules! scenarios {
    ($group:expr; $($run:ident),* $(,)?) => {
        vec![$($crate::conformance::scenarios::Scenario {
            group: $group, name: stringify!($run), run: $run,
        }),*]
    };
}
use scenarios;

/// All, in the order of the document.
pub(super) fn all() -> Vec<Scenario> {
    [
        life::scenarios(),
        signals::scenarios(),
        exec::scenarios(),
        streams::scenarios(),
        process::scenarios(),
        limits::scenarios(),
        recovery::scenarios(),
    ]
    .concat()
}

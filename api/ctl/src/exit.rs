//! Exit codes: a documented enum (also in `nimbusctl help submit`).

use std::process::ExitCode;

/// How the program ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// 0: done; with `submit --wait` the job ended with exit code 0.
    Done,
    /// 1: something failed that is no refusal: a file, a connection.
    Failed,
    /// 2: the arguments make no sense.
    Usage,
    /// 3: refused, or the job is dead or cancelled.
    Refused,
    /// The exit code of the job that was waited for.
    Job(u8),
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        match exit {
            Exit::Done => Self::SUCCESS,
            Exit::Failed => Self::from(1),
            Exit::Usage => Self::from(2),
            Exit::Refused => Self::from(3),
            Exit::Job(code) => Self::from(code),
        }
    }
}

//! The exit codes of this program.

use std::process::ExitCode;

/// How the process ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// Done.
    Ok,
    /// Not done; standard error says why.
    Failed,
    /// The command line was wrong (`EX_USAGE`).
    Usage,
}

impl From<Code> for ExitCode {
    fn from(code: Code) -> Self {
        Self::from(match code {
            Code::Ok => 0,
            Code::Failed => 1,
            Code::Usage => 64,
        })
    }
}

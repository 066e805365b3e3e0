//! Exit codes. They are stable: packaging and alerts match on them.

use std::process::ExitCode;

/// How the program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// As asked.
    Ok = 0,
    /// Something failed that has no code of its own; the text says what.
    Failed = 1,
    /// The command line is wrong (clap's own code).
    Usage = 2,
    /// The data directory cannot be made, or others may write or read it.
    DataDir = 10,
    /// A key file may be read by others, belongs to somebody else, or is not a key.
    KeyFile = 11,
    /// The database was written by a newer version.
    SchemaNewer = 12,
    /// Another control service uses the data directory.
    Locked = 13,
    /// The clock is behind the last time in the database.
    ClockBack = 14,
    /// An address cannot be listened on.
    Listen = 15,
    /// The database cannot be opened.
    Store = 16,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

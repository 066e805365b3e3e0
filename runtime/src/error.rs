//! Why a verb failed: a refusal when the reason has a code, else what was being done and the cause.
#![forbid(unsafe_code)]

use std::fmt::Display;
use std::io;

use nimbus_api::error::Chain;
use nimbus_api::runtime::RuntimeReply;
use nimbus_api::{Refusal, RefusalCode};

/// Why a verb failed.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// The reason has a code of its own.
    #[error("{0}")]
    Refused(Refusal),
    /// The kernel or the file system did not do it.
    #[error("cannot {doing}")]
    Io {
        /// What was being done.
        doing: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

impl RuntimeError {
    /// A refusal with detail.
    pub fn refused(code: RefusalCode, detail: impl Display) -> Self {
        Self::Refused(Refusal::with(code, detail))
    }

    /// A containment that is not there.
    pub fn unproven(detail: impl Display) -> Self {
        Self::refused(RefusalCode::RuntimeUnproven, detail)
    }

    /// The code to answer with.
    pub fn refusal(&self) -> Refusal {
        match self {
            Self::Refused(refusal) => refusal.clone(),
            Self::Io { .. } => Refusal::with(RefusalCode::RuntimeFailed, Chain(self)),
        }
    }

    /// The answer.
    pub fn reply(&self) -> RuntimeReply {
        RuntimeReply::Failed { refusal: self.refusal(), cause: Chain(self).to_string() }
    }
}

impl From<RefusalCode> for RuntimeError {
    fn from(code: RefusalCode) -> Self {
        Self::Refused(code.into())
    }
}

/// Says what was being done when a call failed.
pub(crate) trait Doing<T> {
    /// Turns the error into [`RuntimeError::Io`].
    fn doing(self, what: impl Display) -> Result<T, RuntimeError>;
}

impl<T, E: Into<io::Error>> Doing<T> for Result<T, E> {
    fn doing(self, what: impl Display) -> Result<T, RuntimeError> {
        self.map_err(|source| RuntimeError::Io { doing: what.to_string(), source: source.into() })
    }
}

//! Why a test failed, as text for the person who reads the log; or why it was skipped.
//!
//! It is not an [`std::error::Error`], so that every error there is becomes one by `?`.

use std::error::Error;

use nimbus_api::error::Chain;

/// What a case returns.
pub type Outcome = Result<(), Failure>;

/// A failed or skipped case.
#[derive(Debug, Clone)]
pub struct Failure {
    text: String,
    skipped: bool,
}

impl Failure {
    /// It failed.
    pub fn new(text: impl Into<String>) -> Self {
        Self { text: text.into(), skipped: false }
    }

    /// It could not be run here, and says why.
    pub fn skip(text: impl Into<String>) -> Self {
        Self { text: text.into(), skipped: true }
    }

    /// What happened.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whether it was only skipped.
    pub const fn is_skip(&self) -> bool {
        self.skipped
    }

    /// The same with what was being done in front.
    #[must_use]
    pub fn during(mut self, what: &str) -> Self {
        self.text = format!("{what}: {}", self.text);
        self
    }
}

impl<E: Error> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::new(Chain(&error).to_string())
    }
}

/// Says what was being done when something failed.
pub trait During<T> {
    /// Puts it in front of the failure.
    fn during(self, what: &str) -> Result<T, Failure>;
}

impl<T, E: Into<Failure>> During<T> for Result<T, E> {
    fn during(self, what: &str) -> Result<T, Failure> {
        self.map_err(|error| error.into().during(what))
    }
}

/// Fails the case with this text unless the condition holds.
#[macro_export]
macro_rules! ensure {
    ($condition:expr, $($text:tt)+) => {
        if !$condition {
            return Err($crate::Failure::new(format!($($text)+)));
        }
    };
}

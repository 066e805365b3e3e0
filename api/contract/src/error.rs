//! The one way an error is shown: its own text, then each cause, joined by ": ".
//!
//! House rule: an error's `Display` says its own context and never its source's; this adapter puts
//! the chain together at the edge where a person or a log reads it.

use std::error::Error;
use std::fmt;

/// Prints an error and its causes on one line.
#[derive(Debug)]
pub struct Chain<'a>(pub &'a dyn Error);

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut next = self.0.source();
        while let Some(cause) = next {
            write!(f, ": {cause}")?;
            next = cause.source();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot open the ledger")]
    struct Outer(#[source] std::io::Error);

    #[test]
    fn a_chain_prints_every_cause_once() {
        let outer = Outer(std::io::Error::other("disk on fire"));
        assert_eq!(Chain(&outer).to_string(), "cannot open the ledger: disk on fire");
    }
}

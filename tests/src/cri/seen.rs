//! What a scenario saw, to be compared between runtimes.
//!
//! Only what must not depend on the runtime is noted: no id, address, pid or time.

use std::fmt::{Debug, Display};

use crate::{Outcome, ensure};

/// Facts in the order in which they were seen.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seen {
    facts: Vec<(String, String)>,
}

impl Seen {
    /// Notes a fact.
    pub fn note(&mut self, what: impl Display, value: impl Debug) {
        self.facts.push((what.to_string(), format!("{value:?}")));
    }

    /// Fails with every fact that differs.
    pub fn same_as(&self, other: &Self) -> Outcome {
        let differences: Vec<_> = self
            .facts
            .iter()
            .filter(|fact| !other.facts.contains(fact))
            .map(|(what, value)| format!("{what}: {value}, the reference has {}", other.get(what)))
            .chain(
                other
                    .facts
                    .iter()
                    .filter(|(what, _)| !self.facts.iter().any(|(known, _)| known == what))
                    .map(|(what, value)| format!("{what}: not seen, the reference has {value}")),
            )
            .collect();
        ensure!(differences.is_empty(), "{}", differences.join("\n"));
        Ok(())
    }

    fn get(&self, what: &str) -> &str {
        let found = self.facts.iter().find(|(known, _)| known == what);
        found.map_or("nothing", |(_, value)| value.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_difference_is_told_and_nothing_else() {
        let (mut ours, mut theirs) = (Seen::default(), Seen::default());
        for seen in [&mut ours, &mut theirs] {
            seen.note("exit code", 3);
        }
        assert!(ours.same_as(&theirs).is_ok());
        ours.note("reason", "Error");
        theirs.note("reason", "OOMKilled");
        theirs.note("only there", 1);
        let text = ours.same_as(&theirs).unwrap_err().text().to_owned();
        assert_eq!(text.lines().count(), 2, "{text}");
        assert!(text.contains("OOMKilled") && text.contains("only there"), "{text}");
    }
}

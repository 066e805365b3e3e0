//! Profiles as text: read once, strictly. A word that means nothing is an error, never skipped.

use super::syscalls;

/// A profile that has been read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Profile {
    pub(super) rules: Vec<Rule>,
    /// Numbers that answer ENOSYS.
    pub(super) enosys: Vec<u32>,
}

/// One permission.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rule {
    pub(super) number: u32,
    /// Needed in the lease.
    pub(super) capability: Option<String>,
    /// All must hold; none is always.
    pub(super) conditions: Vec<Condition>,
}

/// A comparison of the low 32 bits of one argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Condition {
    pub(super) argument: u8,
    pub(super) test: Test,
    pub(super) value: u32,
}

/// How an argument is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Test {
    Equal,
    NotEqual,
    Masked(u32),
}

/// Why a text is not a profile.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line} of the seccomp profile: {problem}")]
pub struct ProfileError {
    line: usize,
    problem: String,
}

impl Profile {
    /// Reads a text; its language is told at the head of `default.profile`.
    pub(super) fn parse(text: &str) -> Result<Self, ProfileError> {
        let mut profile = Self { rules: Vec::new(), enosys: Vec::new() };
        for (index, line) in text.lines().enumerate() {
            let words: Vec<&str> = line.split_whitespace().collect();
            if words.first().is_none_or(|word| word.starts_with('#')) {
                continue;
            }
            profile.line(&words).map_err(|problem| ProfileError { line: index + 1, problem })?;
        }
        Ok(profile)
    }

    fn line(&mut self, words: &[&str]) -> Result<(), String> {
        match words {
            ["enosys", names @ ..] if !names.is_empty() => {
                for name in names {
                    self.enosys.push(number(name)?);
                }
                Ok(())
            }
            ["allow", name, "if", conditions @ ..] => {
                let conditions = conditions
                    .split(|word| *word == "and")
                    .map(condition)
                    .collect::<Result<_, _>>()?;
                self.allow(name, None, conditions)
            }
            ["with", capability, "allow", names @ ..]
                if capability.starts_with("CAP_") && !names.is_empty() =>
            {
                names.iter().try_for_each(|name| self.allow(name, Some(capability), Vec::new()))
            }
            ["allow", names @ ..] if !names.is_empty() => {
                names.iter().try_for_each(|name| self.allow(name, None, Vec::new()))
            }
            _ => Err("expected allow, with or enosys".to_owned()),
        }
    }

    /// Two rules for one call are alternatives, which makes sense for conditions only.
    fn allow(
        &mut self,
        name: &str,
        capability: Option<&str>,
        conditions: Vec<Condition>,
    ) -> Result<(), String> {
        let number = number(name)?;
        let known = |rule: &&Rule| rule.number == number;
        let unconditional = self.rules.iter().filter(known).any(|rule| rule.conditions.is_empty());
        let second = self.rules.iter().any(|rule| known(&rule));
        if self.enosys.contains(&number) || unconditional || (second && conditions.is_empty()) {
            return Err(format!("{name} is there twice"));
        }
        self.rules.push(Rule { number, capability: capability.map(str::to_owned), conditions });
        Ok(())
    }
}

fn number(name: &str) -> Result<u32, String> {
    syscalls::number(name).ok_or_else(|| format!("no system call {name:?} on this architecture"))
}

fn condition(words: &[&str]) -> Result<Condition, String> {
    let (argument, test, value) = match words {
        [argument, "==", value] => (argument, Test::Equal, value),
        [argument, "!=", value] => (argument, Test::NotEqual, value),
        [argument, "&", mask, "==", value] => (argument, Test::Masked(integer(mask)?), value),
        _ => return Err(format!("not a condition: {}", words.join(" "))),
    };
    let argument = argument.strip_prefix("arg").and_then(|digit| digit.parse().ok());
    let argument = argument.filter(|argument| *argument < 6).ok_or("expected arg0 to arg5")?;
    Ok(Condition { argument, test, value: integer(value)? })
}

fn integer(text: &str) -> Result<u32, String> {
    let parsed = match text.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16),
        None => text.parse(),
    };
    parsed.map_err(|error| format!("{text:?}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_that_mean_nothing_are_refused() {
        for bad in [
            "permit read",
            "allow",
            "allow no_such_call",
            "allow read read",
            "allow read\nallow read if arg0 == 1",
            "allow read if arg6 == 1",
            "allow read if arg0 < 1",
            "allow read if",
            "allow read if arg0 == 0x1ffffffff",
            "with SYS_CHROOT allow chroot",
            "enosys clone3\nallow clone3",
        ] {
            assert!(Profile::parse(bad).is_err(), "{bad}");
        }
        let good = "# a\n\nallow read\nwith CAP_X allow write\nallow clone if arg0 & 0x3 == 0\n";
        assert_eq!(Profile::parse(good).unwrap().rules.len(), 3);
    }
}

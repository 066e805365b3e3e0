//! Profiles as text: read once, strictly. A word that means nothing is an error, never skipped; a call
//! that only another architecture has is no error, and means nothing here.
//!
//! A profile is a list of what is allowed, or a stricter one: what of another profile is taken away.
//! Nothing that a stricter profile can say gives anything.

use super::syscalls::{self, Arch};

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
    /// Reads a list of what is allowed; its language is told at the head of `default.profile`.
    pub(super) fn parse(text: &str, arch: Arch) -> Result<Self, ProfileError> {
        let mut profile = Self { rules: Vec::new(), enosys: Vec::new() };
        each_line(text, |words| profile.line(words, arch))?;
        Ok(profile)
    }

    /// Takes away from this profile; the language is told at the head of `nimbus-strict.profile`.
    pub(super) fn stricter(mut self, text: &str, arch: Arch) -> Result<Self, ProfileError> {
        let mut narrowed = Vec::new();
        each_line(text, |words| self.less(words, arch, &mut narrowed))?;
        Ok(self)
    }

    fn line(&mut self, words: &[&str], arch: Arch) -> Result<(), String> {
        match words {
            ["enosys", names @ ..] if !names.is_empty() => {
                self.enosys.extend(numbers(names, arch)?);
                Ok(())
            }
            ["allow", name, "if", conditions @ ..] => {
                let conditions = conditions_of(conditions)?;
                self.allow(name, arch, None, &conditions)
            }
            ["with", capability, "allow", names @ ..]
                if capability.starts_with("CAP_") && !names.is_empty() =>
            {
                names.iter().try_for_each(|name| self.allow(name, arch, Some(capability), &[]))
            }
            ["allow", names @ ..] if !names.is_empty() => {
                names.iter().try_for_each(|name| self.allow(name, arch, None, &[]))
            }
            _ => Err("expected allow, with or enosys".to_owned()),
        }
    }

    /// Two rules for one call are alternatives, which makes sense for conditions only.
    fn allow(
        &mut self,
        name: &str,
        arch: Arch,
        capability: Option<&str>,
        conditions: &[Condition],
    ) -> Result<(), String> {
        let Some(number) = number(name, arch)? else { return Ok(()) };
        let known = |rule: &&Rule| rule.number == number;
        let unconditional = self.rules.iter().filter(known).any(|rule| rule.conditions.is_empty());
        let second = self.rules.iter().any(|rule| known(&rule));
        if self.enosys.contains(&number) || unconditional || (second && conditions.is_empty()) {
            return Err(format!("{name} is there twice"));
        }
        let capability = capability.map(str::to_owned);
        self.rules.push(Rule { number, capability, conditions: conditions.to_vec() });
        Ok(())
    }

    fn less(
        &mut self,
        words: &[&str],
        arch: Arch,
        narrowed: &mut Vec<Narrowed>,
    ) -> Result<(), String> {
        match words {
            ["deny", names @ ..] if !names.is_empty() => {
                names.iter().try_for_each(|name| self.take(name, arch).map(drop))
            }
            ["enosys", names @ ..] if !names.is_empty() => names.iter().try_for_each(|name| {
                self.take(name, arch)?;
                self.enosys.extend(number(name, arch)?);
                Ok(())
            }),
            ["only", name, "if", conditions @ ..] => {
                let conditions = conditions_of(conditions)?;
                let Some(number) = number(name, arch)? else { return Ok(()) };
                if !narrowed.iter().any(|known| known.number == number) {
                    narrowed.push(Narrowed { number, rules: self.take(name, arch)? });
                }
                let before = narrowed.iter().find(|known| known.number == number);
                let rules = before.map(|known| known.rules.as_slice()).unwrap_or_default();
                self.rules.extend(rules.iter().map(|rule| Rule {
                    conditions: [rule.conditions.as_slice(), &conditions].concat(),
                    ..rule.clone()
                }));
                Ok(())
            }
            _ => Err("expected deny, only or enosys".to_owned()),
        }
    }

    /// Takes every rule of a call; that there is one is asked for, so that nothing is taken away in
    /// words alone.
    fn take(&mut self, name: &str, arch: Arch) -> Result<Vec<Rule>, String> {
        let Some(number) = number(name, arch)? else { return Ok(Vec::new()) };
        let (taken, left) =
            std::mem::take(&mut self.rules).into_iter().partition(|rule| rule.number == number);
        self.rules = left;
        let taken: Vec<Rule> = taken;
        if taken.is_empty() {
            return Err(format!("{name} is not allowed to begin with, or taken twice"));
        }
        Ok(taken)
    }
}

/// A call that is narrowed, and its rules before.
struct Narrowed {
    number: u32,
    rules: Vec<Rule>,
}

fn each_line(
    text: &str,
    mut read: impl FnMut(&[&str]) -> Result<(), String>,
) -> Result<(), ProfileError> {
    for (index, line) in text.lines().enumerate() {
        let words: Vec<&str> = line.split_whitespace().collect();
        if words.first().is_none_or(|word| word.starts_with('#')) {
            continue;
        }
        read(&words).map_err(|problem| ProfileError { line: index + 1, problem })?;
    }
    Ok(())
}

fn number(name: &str, arch: Arch) -> Result<Option<u32>, String> {
    if !syscalls::exists(name) {
        return Err(format!("no system call {name:?} on any architecture"));
    }
    Ok(arch.number(name))
}

fn numbers(names: &[&str], arch: Arch) -> Result<Vec<u32>, String> {
    let found: Result<Vec<_>, _> = names.iter().map(|name| number(name, arch)).collect();
    Ok(found?.into_iter().flatten().collect())
}

fn conditions_of(words: &[&str]) -> Result<Vec<Condition>, String> {
    words.split(|word| *word == "and").map(condition).collect()
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

    fn read(text: &str) -> Result<Profile, ProfileError> {
        Profile::parse(text, Arch::X86_64)
    }

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
            "deny read",
        ] {
            assert!(read(bad).is_err(), "{bad}");
        }
        let good = "# a\n\nallow read\nwith CAP_X allow write\nallow clone if arg0 & 0x3 == 0\n";
        assert_eq!(read(good).unwrap().rules.len(), 3);
    }

    #[test]
    fn a_call_of_another_architecture_means_nothing() {
        let profile = Profile::parse("allow open openat\nenosys fork", Arch::Aarch64).unwrap();
        assert_eq!(profile.rules.len(), 1);
        assert!(profile.enosys.is_empty());
    }

    #[test]
    fn a_stricter_profile_can_only_take_away() {
        let base = || read("allow read ptrace\nallow ioctl if arg1 != 1\n").unwrap();
        for bad in [
            "allow write",
            "deny write",
            "deny read\ndeny read",
            "deny read\nonly read if arg0 == 1",
            "only write if arg0 == 1",
            "enosys write",
            "with CAP_X allow write",
        ] {
            assert!(base().stricter(bad, Arch::X86_64).is_err(), "{bad}");
        }
        let text = "deny read\nonly ioctl if arg0 == 0\nonly ioctl if arg0 == 2\nenosys ptrace";
        let found = base().stricter(text, Arch::X86_64).unwrap();
        assert_eq!(found.rules.len(), 2);
        assert!(found.rules.iter().all(|rule| rule.conditions.len() == 2), "{found:?}");
        assert_eq!(found.enosys.len(), 1);
    }
}

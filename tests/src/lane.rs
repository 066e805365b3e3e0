//! A lane: cases that share a lab where they can, run one after another, reported as libtest does.
//!
//! Intent: libtest cannot share a lab that must be closed at the end, nor skip a case when it runs.
//! A case is a function named for its promise. One that needs a lab of its own says so. After a
//! failed case the lab is shown and thrown away, so that one fault fails one case. Closing the
//! shared lab is a case too: it fails when anything is left.

use std::io::{self, Write as _};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::Instant;

use crate::{Failure, Lab, Outcome, Setting};

/// One case.
pub struct Case {
    name: String,
    how: How,
}

enum How {
    Alone(Box<dyn Fn() -> Outcome>),
    Shared(Box<dyn Fn(&mut Lab) -> Outcome>),
    Own(fn() -> Setting, fn(&mut Lab) -> Outcome),
}

impl Case {
    /// Needs no lab.
    pub fn alone(name: &str, run: impl Fn() -> Outcome + 'static) -> Self {
        Self { name: name.to_owned(), how: How::Alone(Box::new(run)) }
    }

    /// Leaves the lab as it found it.
    pub fn shared(name: &str, run: impl Fn(&mut Lab) -> Outcome + 'static) -> Self {
        Self { name: name.to_owned(), how: How::Shared(Box::new(run)) }
    }

    /// Needs a lab of its own: with another setting, or because it breaks it.
    pub fn own(name: &str, setting: fn() -> Setting, run: fn(&mut Lab) -> Outcome) -> Self {
        Self { name: name.to_owned(), how: How::Own(setting, run) }
    }
}

/// Cases named after their functions: `shared[a, b]`, `own(setting)[c]`, `own[d]`, `alone[e]`.
#[macro_export]
macro_rules! cases {
    ($($kind:ident $(($setting:expr))? [$($run:path),* $(,)?])*) => {
        [$($crate::group!($kind $(($setting))? [$($run),*])),*].into_iter().flatten().collect::<Vec<_>>()
    };
}

/// The cases of one kind, for [`cases!`].
#[macro_export]
macro_rules! group {
    (shared [$($run:path),*]) => {
        vec![$($crate::lane::Case::shared(stringify!($run), $run)),*]
    };
    (alone [$($run:path),*]) => {
        vec![$($crate::lane::Case::alone(stringify!($run), $run)),*]
    };
    (own ($setting:expr) [$($run:path),*]) => {
        vec![$($crate::lane::Case::own(stringify!($run), $setting, $run)),*]
    };
    (own [$($run:path),*]) => {
        $crate::group!(own ($crate::Setting::default) [$($run),*])
    };
}

#[derive(Default)]
struct Tally {
    passed: usize,
    failed: Vec<String>,
    skipped: usize,
}

impl std::fmt::Debug for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Case").field(&self.name).finish()
    }
}

/// Runs the cases whose name contains the filter of the command line.
pub fn main(lane: &str, cases: &[Case]) -> ExitCode {
    main_with(lane, &Setting::default(), cases)
}

/// As [`main`], with another setting of the shared lab.
pub fn main_with(lane: &str, setting: &Setting, cases: &[Case]) -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let filter = args.iter().find(|arg| !arg.starts_with('-')).cloned().unwrap_or_default();
    let chosen: Vec<_> =
        cases.iter().filter(|case| format!("{lane}::{}", case.name).contains(&filter)).collect();
    if args.iter().any(|arg| arg == "--list") {
        for case in chosen {
            say(&format!("{lane}::{}: test", case.name));
        }
        return ExitCode::SUCCESS;
    }
    say(&format!("\nrunning {} tests", chosen.len()));
    let begun = Instant::now();
    let mut tally = Tally::default();
    let mut shared: Option<Lab> = None;
    for case in &chosen {
        let outcome = run(case, setting, &mut shared);
        report(&mut tally, lane, &case.name, outcome);
    }
    if let Some(lab) = shared {
        report(&mut tally, lane, "nothing_of_the_lab_is_left", guarded(|| lab.close()));
    }
    let verdict = if tally.failed.is_empty() { "ok" } else { "FAILED" };
    if !tally.failed.is_empty() {
        say(&format!("\nfailures:\n    {}", tally.failed.join("\n    ")));
    }
    say(&format!(
        "\ntest result: {verdict}. {} passed; {} failed; {} ignored; 0 measured; {} filtered out; finished in {:.2}s\n",
        tally.passed,
        tally.failed.len(),
        tally.skipped,
        cases.len() - chosen.len(),
        begun.elapsed().as_secs_f64(),
    ));
    if tally.failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(101) }
}

fn run(case: &Case, setting: &Setting, shared: &mut Option<Lab>) -> Outcome {
    if !matches!(case.how, How::Alone(_)) && !nix::unistd::Uid::effective().is_root() {
        return Err(Failure::skip("needs root"));
    }
    match &case.how {
        How::Alone(run) => guarded(run),
        How::Own(setting, run) => guarded(|| {
            let mut lab = Lab::start(setting())?;
            shown(&mut lab, run)?;
            lab.close()
        }),
        How::Shared(run) => guarded(|| {
            let mut lab = match shared.take() {
                Some(lab) => lab,
                None => Lab::start(setting.clone())?,
            };
            let outcome = shown(&mut lab, run);
            // Only a failure leaves a lab that nobody else should have.
            if outcome.as_ref().err().is_none_or(Failure::is_skip) {
                *shared = Some(lab);
            }
            outcome
        }),
    }
}

/// Runs a case and shows the lab's logs when it fails.
fn shown(lab: &mut Lab, run: &dyn Fn(&mut Lab) -> Outcome) -> Outcome {
    let outcome = guarded(|| run(lab));
    match &outcome {
        Err(failure) if !failure.is_skip() => say(&lab.logs()),
        Ok(()) | Err(_) => {}
    }
    outcome
}

/// A panic is a failure like any other.
fn guarded(run: impl FnOnce() -> Outcome) -> Outcome {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
        let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
        Err(Failure::new(text.unwrap_or_else(|| "panicked".to_owned())))
    })
}

fn report(tally: &mut Tally, lane: &str, name: &str, outcome: Outcome) {
    match outcome {
        Ok(()) => {
            tally.passed += 1;
            say(&format!("test {lane}::{name} ... ok"));
        }
        Err(failure) if failure.is_skip() => {
            tally.skipped += 1;
            say(&format!("test {lane}::{name} ... ignored, {}", failure.text()));
        }
        Err(failure) => {
            tally.failed.push(format!("{lane}::{name}"));
            say(&format!("test {lane}::{name} ... FAILED\n{}", failure.text()));
        }
    }
}

fn say(text: &str) {
    let written = writeln!(io::stdout().lock(), "{text}");
    drop(written);
}

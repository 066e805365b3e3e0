//! `cargo xtask ci`: exactly what `.ci/run` calls.
//!
//! Intent: the cheapest check first; the README's test command last, whose count closes the output.
//! `setup` comes before everything that compiles more than this program.

use std::error::Error;
use std::time::Instant;

use crate::run::{Workspace, run, say};
use crate::{fuzz, setup, test, tidy};

/// Runs every step; a failed one ends it.
pub(crate) fn ci(workspace: &Workspace) -> Result<bool, Box<dyn Error>> {
    let mut clock = Clock::default();
    setup::setup()?;
    clock.lap("setup");
    run(&mut workspace.cargo(["fmt", "--all", "--check"]))?;
    clock.lap("fmt");
    if !tidy::tidy(workspace, &tidy::Args::default())? {
        return Ok(false);
    }
    clock.lap("tidy");
    run(&mut workspace.cargo([
        "clippy",
        "--locked",
        "--workspace",
        "--all-targets",
        "--",
        "--deny",
        "warnings",
    ]))?;
    // The fuzz targets are a workspace of their own; so that they do not rot, they are looked at too.
    run(fuzz::cargo(workspace, "clippy").args(["--", "--deny", "warnings"]))?;
    clock.lap("clippy");
    let mut replay = fuzz::cargo(workspace, "test");
    run(replay.args(["--no-default-features", "--test", "replay", "--", "--nocapture"]))?;
    clock.lap("fuzz");
    let count = test::test(workspace, &test::Args::default())?;
    clock.lap("test");
    clock.show();
    say(format_args!("ci: {count}"));
    Ok(count.is_green())
}

struct Clock {
    begun: Instant,
    laps: Vec<(&'static str, u64)>,
}

impl Default for Clock {
    fn default() -> Self {
        Self { begun: Instant::now(), laps: Vec::new() }
    }
}

impl Clock {
    fn lap(&mut self, name: &'static str) {
        self.laps.push((name, self.begun.elapsed().as_secs()));
        self.begun = Instant::now();
    }

    fn show(&self) {
        for (name, seconds) in &self.laps {
            say(format_args!("{name:8} {seconds:5} s"));
        }
    }
}

//! Waiting for something to become true, with a limit that is only reached when it never does.

use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::Failure;

/// Longest wait for something that takes milliseconds on an idle machine. Generous, because CI
/// machines are not idle; no test's outcome depends on how long something takes.
pub const PATIENCE: Duration = Duration::from_mins(1);
/// Between two looks.
const INTERVAL: Duration = Duration::from_millis(20);

/// Looks again and again until `look` finds something; what it says last is in the failure.
pub fn until<T>(
    what: &str,
    mut look: impl FnMut() -> Result<Option<T>, Failure>,
) -> Result<T, Failure> {
    until_within(what, PATIENCE, &mut look)
}

/// As [`until`] with another limit.
pub fn until_within<T>(
    what: &str,
    patience: Duration,
    mut look: impl FnMut() -> Result<Option<T>, Failure>,
) -> Result<T, Failure> {
    let begun = Instant::now();
    loop {
        if let Some(found) = look().map_err(|failure| failure.during(what))? {
            return Ok(found);
        }
        if begun.elapsed() > patience {
            return Err(Failure::new(format!("{what}: not within {} s", patience.as_secs())));
        }
        sleep(INTERVAL);
    }
}

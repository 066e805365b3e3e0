//! `density`: containers a second from create to delete of `busybox true`, 1, 8 and 32 at a time:
//! `nimbus-oci`, crun and runc. More is better, and so is a greater ratio.

use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use super::Comparison;
use super::contestant::{Contestant, all, apart};
use crate::{Failure, Outcome};

/// How many at a time, and the unit of what is measured then.
const LEVELS: [(usize, &str); 3] =
    [(1, "containers/s, 1"), (8, "containers/s, 8"), (32, "containers/s, 32")];
/// Containers of each, each time.
const CONTAINERS: usize = 64;
/// Times, taken in turns.
const ROUNDS: usize = 5;

/// Measures in a private mount namespace; `inside` says that this is one already.
pub fn run(bin_dir: &Path, inside: bool, json: bool, out: &mut dyn Write) -> Outcome {
    let measured = apart("density", inside, (bin_dir, json), |dir| {
        let mut levels = Vec::new();
        for (level, _unit) in LEVELS {
            let dir = dir.join(level.to_string());
            std::fs::create_dir(&dir)?;
            let mut all = all(&dir, bin_dir, &["/bin/true"], level)?;
            for round in 0..ROUNDS {
                for one in &mut all {
                    let rate = rate(one, round, level)?;
                    one.samples.push(rate);
                }
            }
            levels.push(all);
        }
        Ok(levels)
    })?;
    for ((_level, unit), all) in LEVELS.into_iter().zip(measured.iter().flatten()) {
        Comparison::print_all("density", unit, Some(all), json, out)?;
    }
    Ok(())
}

/// Makes, starts and deletes them, `level` at a time.
fn rate(one: &Contestant, round: usize, level: usize) -> Result<f64, Failure> {
    let next = AtomicUsize::new(0);
    let begun = Instant::now();
    let work = |place: usize| {
        loop {
            let number = next.fetch_add(1, Ordering::SeqCst);
            if number >= CONTAINERS {
                return Ok(());
            }
            let id = format!("{}-{level}-{round}-{number}", one.name);
            one.start(&id, place)?;
            one.delete(&id)?;
        }
    };
    let work = &work;
    thread::scope(|scope| {
        let workers: Vec<_> = (0..level).map(|place| scope.spawn(move || work(place))).collect();
        for worker in workers {
            let ended: Outcome =
                worker.join().unwrap_or_else(|_panic| Err(Failure::new("a worker panicked")));
            ended?;
        }
        Ok::<_, Failure>(())
    })?;
    Ok(f64::from(u32::try_from(CONTAINERS)?) / begun.elapsed().as_secs_f64())
}

//! `start`: wall time of create + start of `busybox true` with containerd's default seccomp profile,
//! the same bundle for `nimbus-oci`, crun and runc. Waiting for the end and deleting are not measured.

use std::io::Write;
use std::path::Path;
use std::time::Instant;

use super::Comparison;
use super::contestant::{all, apart};
use crate::Outcome;

/// Measured starts of each.
const SAMPLES: usize = 60;
/// Starts of each before.
const WARM_UP: usize = 5;

/// Measures in a private mount namespace; `inside` says that this is one already.
pub fn run(bin_dir: &Path, inside: bool, json: bool, out: &mut dyn Write) -> Outcome {
    let measured = apart("start", inside, (bin_dir, json), |dir| {
        let mut all = all(dir, bin_dir, &["/bin/true"], 1)?;
        for number in 0..WARM_UP + SAMPLES {
            for one in &mut all {
                let id = format!("{}-{number}", one.name);
                let begun = Instant::now();
                one.start(&id, 0)?;
                let took = begun.elapsed();
                one.delete(&id)?;
                if number >= WARM_UP {
                    one.samples.push(took.as_secs_f64() * 1000.0);
                }
            }
        }
        Ok(all)
    })?;
    Comparison::print_all("start", "ms", measured.as_deref(), json, out)
}

//! Benchmarks: ours and the peers in one run, interleaved, so that whatever else the machine does
//! falls on all of them.
//!
//! Output is one JSON object a comparison, or a line for people. `ours` and `theirs` are medians,
//! `p50` and `p99` are ours, `ratio` is ours ÷ theirs, of the medians.

mod bundle;
mod contestant;
mod density;
mod exec;
mod memory;
mod peers;
mod run;
mod start;
mod task;

use std::io::{self, Write};

use serde::Serialize;

use crate::{Failure, Outcome};
use contestant::Contestant;

pub use density::run as density;
pub use exec::run as exec;
pub use memory::run as shim_memory;
pub use run::run;
pub use start::run as start;

/// One comparison.
#[derive(Debug, Clone, Serialize)]
pub struct Comparison {
    /// Which benchmark.
    pub name: &'static str,
    /// The other program, with its version.
    pub peer: String,
    /// Of the numbers.
    pub unit: &'static str,
    /// Samples of each.
    pub n: usize,
    /// Median of ours.
    pub ours: f64,
    /// Median of the peer's.
    pub theirs: f64,
    /// The least of ours.
    pub ours_min: f64,
    /// The least of the peer's.
    pub theirs_min: f64,
    /// ours ÷ theirs.
    pub ratio: f64,
    /// Median of ours.
    pub p50: f64,
    /// 99th percentile of ours.
    pub p99: f64,
}

impl Comparison {
    fn of(
        name: &'static str,
        peer: String,
        unit: &'static str,
        ours: &[f64],
        theirs: &[f64],
    ) -> Result<Self, Failure> {
        let (mine, other) = (percentile(ours, 50)?, percentile(theirs, 50)?);
        let p99 = percentile(ours, 99)?;
        let ratio = mine / other;
        Ok(Self {
            name,
            peer,
            unit,
            n: ours.len(),
            ours: mine,
            theirs: other,
            ours_min: least(ours),
            theirs_min: least(theirs),
            ratio,
            p50: mine,
            p99,
        })
    }

    /// Compares the first with each of the others and prints that; nothing was measured here when there
    /// are none.
    fn print_all(
        name: &'static str,
        unit: &'static str,
        all: Option<&[Contestant]>,
        json: bool,
        out: &mut dyn Write,
    ) -> Outcome {
        let Some((ours, peers)) = all.and_then(<[Contestant]>::split_first) else { return Ok(()) };
        for peer in peers {
            let version = peer.version()?;
            let comparison = Self::of(name, version, unit, &ours.samples, &peer.samples)?;
            comparison.print(json, out)?;
        }
        Ok(())
    }

    /// Prints it.
    pub fn print(&self, json: bool, out: &mut dyn Write) -> io::Result<()> {
        if json {
            let text = serde_json::to_string(self).map_err(io::Error::other)?;
            return writeln!(out, "{text}");
        }
        writeln!(
            out,
            "{:18} ours {:8.2} {unit}  {:8.2} {unit}  ratio {:.2}  least {:.2} and {:.2}  ours p99 {:.2} {unit}  n {}  {}",
            self.name,
            self.ours,
            self.theirs,
            self.ratio,
            self.ours_min,
            self.theirs_min,
            self.p99,
            self.n,
            self.peer,
            unit = self.unit,
        )
    }
}

fn least(samples: &[f64]) -> f64 {
    samples.iter().copied().fold(f64::INFINITY, f64::min)
}

/// The nearest-rank percentile.
fn percentile(samples: &[f64], percent: usize) -> Result<f64, Failure> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    let found = sorted.get(rank - 1).copied();
    found.ok_or_else(|| Failure::new("no samples"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_samples() {
        let samples = [5.0, 1.0, 4.0, 2.0, 3.0];
        let percentile = |percent| percentile(&samples, percent).unwrap().to_bits();
        assert_eq!(percentile(50), 3.0_f64.to_bits());
        assert_eq!(percentile(99), 5.0_f64.to_bits());
        assert_eq!(percentile(1), 1.0_f64.to_bits());
        assert!(super::percentile(&[], 50).is_err());
    }
}

//! `exec`: wall time of one more process in a container that runs, each with containerd's default seccomp
//! profile: from the command line until `busybox true` has ended (`nimbus-oci`, crun, runc), and through
//! containerd, as its clients do it (our shim, containerd's own with either).

use std::io::Write;
use std::path::Path;
use std::time::Instant;

use super::contestant::{all, apart};
use super::peers::{self, PEERS};
use super::{Comparison, task};
use crate::{Outcome, ensure};

/// Measured processes of each.
const SAMPLES: usize = 200;
/// Processes of each before.
const WARM_UP: usize = 10;
/// The container.
const ID: &str = "exec";

/// Measures in a private mount namespace; `inside` says that this is one already.
pub fn run(bin_dir: &Path, inside: bool, json: bool, out: &mut dyn Write) -> Outcome {
    let measured = apart("exec", inside, (bin_dir, json), |dir| {
        let mut all = all(dir, bin_dir, &["/bin/sleep", "600"], 1)?;
        for one in &all {
            one.start(ID, 0)?;
        }
        for number in 0..WARM_UP + SAMPLES {
            for one in &mut all {
                let mut exec = one.filtered("exec");
                exec.args([ID, "/bin/true"]);
                let begun = Instant::now();
                let ended = exec.status()?;
                let took = begun.elapsed();
                ensure!(ended.success(), "{}: {ended}", one.name);
                if number >= WARM_UP {
                    one.samples.push(took.as_secs_f64() * 1000.0);
                }
            }
        }
        for one in &all {
            let killed = one.command("kill").args([ID, "KILL"]).status()?;
            ensure!(killed.success(), "{}: {killed}", one.name);
            one.delete(ID)?;
        }
        Ok((all, task::measure(bin_dir, WARM_UP, SAMPLES)?))
    })?;
    let Some((all, [ours, theirs @ ..])) = measured else { return Ok(()) };
    Comparison::print_all("exec", "ms", Some(&all), json, out)?;
    for (peer, samples) in PEERS.iter().zip(&theirs) {
        Comparison::of("exec", peers::version(peer)?, "ms", &ours, samples)?.print(json, out)?;
    }
    Ok(())
}

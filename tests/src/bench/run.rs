//! `run`: wall time of `ctr run --rm` of a shell that does nothing with containerd's default seccomp profile, end to
//! end, under the same containerd: ours with its admission, and `io.containerd.runc.v2` with runc and
//! with crun.
//!
//! A lease is good for one start. So that no job's other work is in the measured time, leases come from a
//! stolen control service that has granted them beforehand, while the node agent is held off from
//! containerd: what is measured is what admits and starts. Between two starts the agent is let go on
//! until it has reported the lease's end: leases that nobody ends would fill its places for jobs.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::time::Instant;

use super::contestant::apart;
use super::peers::{self, PEERS, Samples};
use super::{Comparison, bundle};
use crate::wait::until;
use crate::{Failure, Lab, Outcome, Setting, ensure};

/// Measured runs of each.
const SAMPLES: usize = 30;
/// Runs of each before.
const WARM_UP: usize = 3;
const PROGRAM: [&str; 3] = ["/bin/sh", "-c", ":"];

/// Measures in a private mount namespace, because of crun; `inside` says that this is one already.
pub fn run(bin_dir: &Path, inside: bool, json: bool, out: &mut dyn Write) -> Outcome {
    let measured = apart("run", inside, (bin_dir, json), |_dir| measure(bin_dir))?;
    let Some([ours, theirs @ ..]) = measured else { return Ok(()) };
    for (peer, samples) in PEERS.iter().zip(&theirs) {
        Comparison::of("run", peers::version(peer)?, "ms", &ours, samples)?.print(json, out)?;
    }
    Ok(())
}

fn measure(bin_dir: &Path) -> Result<Samples, Failure> {
    let setting = Setting { bin_dir: Some(bin_dir.to_owned()), gate: true, ..Setting::default() };
    let mut lab = Lab::start(setting)?;
    let root = bundle::rootfs(&lab.path("files"))?;
    let specimen = lab.specimen()?;
    let control = lab.steal_control()?;
    let mut samples = Samples::default();
    let [ours, theirs @ ..] = &mut samples;
    for number in 0..WARM_UP + SAMPLES {
        let mut attack = specimen.attack()?;
        attack.claims.nonce = control.nonce()?;
        attack.program(&PROGRAM)?;
        let attestation = lab.hello()?.attested(lab.keys())?;
        let token = lab.stolen()?.sign(&attack.claims)?;
        lab.gate()?.hold();
        control.grant(&token, attack.job(vec![attestation])?)?;
        let entry = lab.ledger_entry(&attack.claims.lease_id);
        until("the node to take the grant", || Ok(entry.exists().then_some(())))?;
        let spec = lab.path("files").join(format!("{}.json", attack.id));
        fs::write(&spec, attack.sealed(&lab.stolen()?)?)?;
        lab.remember(&attack.id);
        let took = timed(&lab, &nimbus(&spec, &attack.id))?;
        fs::remove_file(&spec)?;
        lab.gate()?.release();
        control.finished(&attack.claims.lease_id)?;
        if number >= WARM_UP {
            ours.push(took);
        }
        for (peer, samples) in PEERS.iter().zip(theirs.iter_mut()) {
            let id = peers::name(&mut lab)?;
            let took = timed(&lab, &other(peer, &root, &id))?;
            peers::remove_plain(&id)?;
            if number >= WARM_UP {
                samples.push(took);
            }
        }
    }
    lab.close()?;
    Ok(samples)
}

type Args = Vec<String>;

fn nimbus(spec: &Path, id: &str) -> Args {
    let spec = spec.display().to_string();
    let args = ["run", "--rm", "--null-io", "--runtime", crate::ctr::RUNTIME, "--config"];
    args.map(str::to_owned).into_iter().chain([spec, id.to_owned()]).collect()
}

fn other(binary: &str, root: &Path, id: &str) -> Args {
    let root = root.display().to_string();
    let args = ["run", "--rm", "--null-io", "--seccomp", "--runc-binary", binary, "--rootfs"];
    let args = args.map(str::to_owned).into_iter().chain([root, id.to_owned()]);
    args.chain(PROGRAM.map(str::to_owned)).collect()
}

/// One `ctr run`, in milliseconds.
fn timed(lab: &Lab, args: &[String]) -> Result<f64, Failure> {
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let begun = Instant::now();
    let said = lab.ctr().ask(&args)?;
    let took = begun.elapsed();
    ensure!(said.code == Some(0), "{args:?}: {}", said.stderr);
    Ok(took.as_secs_f64() * 1000.0)
}

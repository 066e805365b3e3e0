//! `shim-memory`: resident and anonymous memory of one idle shim with one running container, ours and
//! containerd's own for runc, under the same containerd.

use std::fs;
use std::io::Write;
use std::path::Path;

use super::{Comparison, bundle, peers};
use crate::ctr::version_word;
use crate::proc::{self, Process};
use crate::wait::until;
use crate::{Failure, Lab, Outcome, Setting};

/// Containers of each.
const CONTAINERS: usize = 5;
const PEER: &str = "containerd-shim-runc-v2";

/// Measures in a lab of its own.
pub fn run(bin_dir: &Path, json: bool, out: &mut dyn Write) -> Outcome {
    let setting = Setting { bin_dir: Some(bin_dir.to_owned()), ..Setting::default() };
    let mut lab = Lab::start(setting)?;
    let (mut ours, mut theirs) = (Memory::default(), Memory::default());
    let root = bundle::rootfs(&lab.path("files"))?;
    let submission = lab.good(&["/bin/sleep", "600"])?;
    let (mut jobs, mut peers) = (Vec::new(), Vec::new());
    for _ in 0..CONTAINERS {
        let job = lab.submit(&submission)?.job()?;
        let id = lab.wait_running(&job)?;
        let shim = until("the job's shim", || Ok(proc::shim(lab.dir(), &id)))?;
        jobs.push((job, id, shim));
        peers.push(peer(&mut lab, &root)?);
    }
    for ((_job, _id, shim), (_peer, other)) in jobs.iter().zip(&peers) {
        ours.add(shim)?;
        theirs.add(other)?;
    }
    for (job, id, _shim) in &jobs {
        lab.cancel(job)?;
        lab.wait_ended(job)?;
        lab.nothing_left_of(id)?;
    }
    for (id, _shim) in &peers {
        peers::remove(&lab, id)?;
    }
    lab.close()?;
    // containerd's version is its shim's.
    let name = format!("{PEER} {}", version_word("containerd")?);
    let resident = Comparison::of("shim-memory", name.clone(), "MB RSS", &ours.rss, &theirs.rss)?;
    resident.print(json, out)?;
    let anonymous = Comparison::of("shim-memory", name, "MB anonymous", &ours.anon, &theirs.anon)?;
    anonymous.print(json, out)?;
    Ok(())
}

/// A container under runc, and its shim.
fn peer(lab: &mut Lab, root: &Path) -> Result<(String, Process), Failure> {
    let id = peers::start(lab, root, "runc")?;
    let shim = until("the peer's shim", || {
        let found = proc::processes();
        Ok(found.into_iter().find(|process| process.runs(PEER) && process.mentions(&id)))
    })?;
    Ok((id, shim))
}

#[derive(Debug, Default)]
struct Memory {
    rss: Vec<f64>,
    anon: Vec<f64>,
}

impl Memory {
    fn add(&mut self, process: &Process) -> Outcome {
        let status = fs::read_to_string(format!("/proc/{}/status", process.pid))?;
        let megabytes = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let kib = line.and_then(|rest| rest.trim().strip_suffix(" kB")?.parse::<u32>().ok());
            let kib =
                kib.ok_or_else(|| Failure::new(format!("no {name} of {}", process.cmdline)))?;
            Ok::<_, Failure>(f64::from(kib) * 1024.0 / 1e6)
        };
        self.rss.push(megabytes("VmRSS:")?);
        self.anon.push(megabytes("RssAnon:")?);
        Ok(())
    }
}

//! Ending a lab: properly, with proof that nothing is left; by force, when it is dropped; or not at
//! all, when a person wants to look at it.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, umount2};

use super::programs::kill_all_of;
use super::{Lab, PREFIX};
use crate::wait::until;
use crate::{Failure, Outcome, ensure, leftovers};

/// Rounds of killing and unmounting before giving up.
const ROUNDS: usize = 50;

impl Lab {
    /// Stops everything; fails when a container, process, mount, cgroup or socket is left, or a
    /// program does not end when it is asked to. The directory is gone afterwards.
    pub fn close(mut self) -> Outcome {
        self.check_programs()?;
        let mut left = Vec::new();
        let idle = until("the containers to be gone", || {
            left = leftovers::of_run_dir(&self.run_dir());
            left.extend(self.ctr().containers()?.into_iter().map(|id| format!("container {id}")));
            left.extend(self.pods_left()?);
            Ok(left.is_empty().then_some(()))
        });
        ensure!(idle.is_ok(), "left before the end: {}\n{}", left.join(", "), self.logs());
        self.settle_pods()?;
        self.stop_programs()?;
        let stopped = until("the lab's processes to be gone", || {
            left = leftovers::of_lab(&self.dir, &self.ids);
            let guards = leftovers::empty_guards(&self.guards_before);
            left.extend(guards.iter().map(|path| format!("cgroup {}", path.display())));
            Ok(left.is_empty().then_some(()))
        });
        ensure!(stopped.is_ok(), "left at the end: {}\n{}", left.join(", "), self.logs());
        leftovers::remove_parents(&self.parents_before)?;
        fs::remove_dir_all(&self.dir)?;
        self.settled = true;
        Ok(())
    }

    /// Leaves everything running. [`end`] is how to end it.
    pub fn keep(mut self) -> PathBuf {
        self.release_programs();
        self.settled = true;
        self.dir.clone()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if self.settled {
            return;
        }
        drop([self.node.take(), self.control.take(), self.containerd.take(), self.registry.take()]);
        let swept = sweep(&self.dir, &self.ids);
        self.sweep_pods();
        for guard in leftovers::empty_guards(&self.guards_before) {
            drop(fs::remove_dir(guard));
        }
        // What is left here has been reported as the failure that led here.
        drop(swept);
    }
}

/// Ends a lab that was kept.
pub fn end(dir: &Path) -> Outcome {
    let name = dir.file_name().unwrap_or_default().to_string_lossy();
    ensure!(name.starts_with(PREFIX), "{} is not a lab", dir.display());
    sweep(dir, &BTreeSet::new())
}

/// Kills and removes whatever names the directory of a lab or one of its containers.
pub(crate) fn sweep(dir: &Path, ids: &BTreeSet<String>) -> Outcome {
    let mut left = Vec::new();
    for _round in 0..ROUNDS {
        kill_all_of(dir);
        for id in ids {
            for process in crate::proc::inside(id) {
                crate::proc::kill_if_alive(process.pid);
            }
        }
        unmount_below(dir);
        for cgroup in leftovers::cgroups(&ids.iter().map(String::as_str).collect::<Vec<_>>()) {
            drop(fs::remove_dir(cgroup));
        }
        left = leftovers::of_lab(dir, ids);
        if left.is_empty() {
            fs::remove_dir_all(dir)?;
            return Ok(());
        }
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    Err(Failure::new(format!("cannot remove: {}", left.join(", "))))
}

fn unmount_below(dir: &Path) {
    let name = dir.to_string_lossy().into_owned();
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(4));
    for point in points.filter(|point| point.starts_with(&name)) {
        // A mount that stays is found by the search that follows.
        umount2(point, MntFlags::MNT_DETACH).unwrap_or_default();
    }
}

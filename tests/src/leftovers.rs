//! What a lab or a container has left on the machine: processes, mounts, cgroups, sockets, state.
//!
//! Each search goes by the lab's directory or a container's id, both of which are unique, so that
//! labs can run beside one another and beside whatever else the machine does.

use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use crate::Outcome;
use crate::ctr::NAMESPACE;
use crate::ensure;
use crate::proc::processes;
use crate::wait::until;

/// Deepest cgroup that is looked at.
const CGROUP_DEPTH_MAX: usize = 8;

/// What is left of one container.
pub fn of_container(run_dir: &Path, id: &str) -> Vec<String> {
    let mut left = Vec::new();
    for process in processes() {
        // A client that asks about the container is not part of it.
        let client = ["ctr", "nimbusctl"].iter().any(|name| process.runs(name));
        if process.mentions(id) && !client {
            left.push(format!("process {} ({})", process.pid, process.cmdline));
        }
    }
    left.extend(cgroups(&[id]).iter().map(|path| format!("cgroup {}", path.display())));
    for namespace in children(&run_dir.join("runtime")) {
        left.extend(
            children(&namespace)
                .iter()
                .filter(|path| path.ends_with(id))
                .map(|path| format!("runtime state {}", path.display())),
        );
    }
    left.extend(mounts_naming(id));
    left
}

/// Waits until nothing is left of a container; what is left then is the failure.
pub fn none_of_container(run_dir: &Path, id: &str) -> Outcome {
    let mut last = Vec::new();
    let gone = until("nothing to be left of the container", || {
        last = of_container(run_dir, id);
        Ok(last.is_empty().then_some(()))
    });
    ensure!(gone.is_ok(), "left of container {id}: {}", last.join(", "));
    Ok(())
}

/// The runtime's guard cgroups: one a container, in the unified hierarchy, named by a hash.
pub fn guards() -> BTreeSet<PathBuf> {
    let is_guard = |path: &PathBuf| {
        path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("nimbus-guard-"))
    };
    let unified = children(Path::new("/sys/fs/cgroup/unified"));
    unified.into_iter().chain(children(Path::new("/sys/fs/cgroup"))).filter(is_guard).collect()
}

/// Guards without a process that were not there before. Somebody else's are empty for a moment only.
pub fn empty_guards(before: &BTreeSet<PathBuf>) -> Vec<PathBuf> {
    let empty = |path: &PathBuf| {
        fs::read_to_string(path.join("cgroup.procs")).is_ok_and(|text| text.is_empty())
    };
    guards().difference(before).filter(|path| empty(path)).cloned().collect()
}

/// The cgroup that containers of the agent's namespace are in, of every hierarchy that has one.
pub fn parents() -> BTreeSet<PathBuf> {
    // On a unified host the root itself is the hierarchy.
    let root = PathBuf::from("/sys/fs/cgroup");
    let hierarchies = children(&root).into_iter().chain([root]);
    let parents = hierarchies.map(|hierarchy| hierarchy.join(NAMESPACE));
    parents.filter(|parent| parent.is_dir() && !parent.is_symlink()).collect()
}

/// Removes the parents that were not there before. As with other runtimes they outlive their
/// containers; one that another lab uses is not empty and stays.
pub fn remove_parents(before: &BTreeSet<PathBuf>) -> Outcome {
    for parent in parents().difference(before) {
        match fs::remove_dir(parent) {
            Ok(()) => {}
            // Two names of one hierarchy, or somebody's.
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ResourceBusy) => {
            }
            Err(error) => {
                return Err(crate::Failure::from(error).during(&parent.display().to_string()));
            }
        }
    }
    Ok(())
}

/// What is left of a lab whose programs have all been stopped.
pub fn of_lab(dir: &Path, ids: &BTreeSet<String>) -> Vec<String> {
    let name = dir.to_string_lossy().into_owned();
    let mut left = Vec::new();
    for process in processes() {
        if process.mentions(&name) || ids.iter().any(|id| process.is_in_cgroup(id)) {
            left.push(format!("process {} ({})", process.pid, process.cmdline));
        }
    }
    left.extend(mounts_naming(&name));
    let ids: Vec<_> = ids.iter().map(String::as_str).collect();
    left.extend(cgroups(&ids).iter().map(|path| format!("cgroup {}", path.display())));
    let sockets = fs::read_to_string("/proc/net/unix").unwrap_or_default();
    left.extend(
        sockets
            .lines()
            .filter(|line| line.contains(&name))
            .map(|line| format!("socket {}", line.split(' ').next_back().unwrap_or_default())),
    );
    left
}

/// Shim sockets and runtime state in a lab's run directory: must be empty when no container is.
pub fn of_run_dir(run_dir: &Path) -> Vec<String> {
    let mut left: Vec<_> =
        children(&run_dir.join("s")).iter().map(|path| path.display().to_string()).collect();
    for namespace in children(&run_dir.join("runtime")) {
        left.extend(children(&namespace).iter().map(|path| path.display().to_string()));
    }
    left
}

fn children(dir: &Path) -> Vec<PathBuf> {
    fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

/// Mounts of any process's namespace that name this text.
fn mounts_naming(text: &str) -> Vec<String> {
    let mut found = BTreeSet::new();
    for entry in children(Path::new("/proc")) {
        let is_process =
            entry.file_name().is_some_and(|name| name.to_string_lossy().parse::<u32>().is_ok());
        if is_process {
            let mounts = fs::read_to_string(entry.join("mountinfo")).unwrap_or_default();
            let lines = mounts.lines().filter(|line| line.contains(text));
            found.extend(lines.map(|line| format!("mount {line}")));
        }
    }
    found.into_iter().collect()
}

/// cgroups, of any hierarchy, whose directory name contains one of these ids.
pub fn cgroups(ids: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut todo = vec![(PathBuf::from("/sys/fs/cgroup"), 0)];
    while let Some((dir, depth)) = todo.pop() {
        for child in children(&dir) {
            if child.is_symlink() || !child.is_dir() {
                continue;
            }
            let name = child.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if ids.iter().any(|id| name.contains(id)) {
                found.push(child.clone());
            }
            if depth < CGROUP_DEPTH_MAX {
                todo.push((child, depth + 1));
            }
        }
    }
    found
}

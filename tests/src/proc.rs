//! Reading `/proc`: which processes belong to a lab or a container.
//!
//! Every read may fail because a process has just gone; that is an empty text, never an error.

use std::fs;
use std::path::{Path, PathBuf};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// One process, as far as it could be read.
#[derive(Debug, Clone)]
pub struct Process {
    /// Its id.
    pub pid: Pid,
    /// Arguments, joined by blanks.
    pub cmdline: String,
    /// Working directory.
    pub cwd: PathBuf,
    environ: String,
    cgroup: String,
}

impl Process {
    /// Whether arguments, working directory, environment or cgroup name this text.
    pub fn mentions(&self, text: &str) -> bool {
        self.cmdline.contains(text)
            || self.environ.contains(text)
            || self.cgroup.contains(text)
            || self.cwd.to_string_lossy().contains(text)
    }

    /// Whether its cgroup path names this container.
    pub fn is_in_cgroup(&self, id: &str) -> bool {
        self.cgroup.contains(id)
    }

    /// Whether this is its program's file name.
    pub fn runs(&self, program: &str) -> bool {
        let first = self.cmdline.split(' ').next().unwrap_or_default();
        Path::new(first).file_name().is_some_and(|name| name == program)
    }
}

/// Every process but this one and those that have ended and wait to be reaped.
pub fn processes() -> Vec<Process> {
    let own = Pid::this();
    let entries = fs::read_dir("/proc").into_iter().flatten().filter_map(Result::ok);
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok().map(Pid::from_raw))
        .filter(|pid| *pid != own)
        .filter_map(read)
        .collect()
}

fn read(pid: Pid) -> Option<Process> {
    let dir = PathBuf::from(format!("/proc/{pid}"));
    let text = |name: &str| {
        let bytes = fs::read(dir.join(name)).unwrap_or_default();
        String::from_utf8_lossy(&bytes).replace('\0', " ").trim().to_owned()
    };
    let stat = text("stat");
    let state = stat.rsplit_once(") ").map_or("", |(_, rest)| rest).chars().next()?;
    if state == 'Z' || state == 'X' {
        return None;
    }
    let cwd = fs::read_link(dir.join("cwd")).unwrap_or_default();
    Some(Process {
        pid,
        cmdline: text("cmdline"),
        environ: text("environ"),
        cgroup: text("cgroup"),
        cwd,
    })
}

/// The shim of one container of a lab.
pub fn shim(lab: &Path, id: &str) -> Option<Process> {
    let lab = lab.to_string_lossy().into_owned();
    processes().into_iter().find(|process| {
        process.runs("containerd-shim-nimbus-v1")
            && process.mentions(&lab)
            && (process.cmdline.contains(id) || process.cwd.ends_with(id))
    })
}

/// The processes in a container's cgroup.
pub fn inside(id: &str) -> Vec<Process> {
    processes().into_iter().filter(|process| process.is_in_cgroup(id)).collect()
}

/// SIGKILL to a process that may have ended by itself meanwhile.
pub fn kill_if_alive(pid: Pid) {
    kill(pid, Signal::SIGKILL).unwrap_or_default();
}

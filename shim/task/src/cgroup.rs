//! The container's cgroup as the runtime left it: who is in it, killing all of them, a want of memory.
//!
//! Reads and writes the files of the paths that `nimbus-runtime` answered with. v2 where the
//! unified hierarchy limits, else the v1 controllers. Making and removing is the runtime's.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nimbus_api::runtime::CgroupPaths;
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::inotify;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::net::unix::pipe;

/// How often an emptying cgroup is looked at, and how long between: ten seconds in all.
const KILL_ROUNDS_MAX: u32 = 200;
const KILL_PAUSE: Duration = Duration::from_millis(50);
/// Read at once of what the kernel tells of memory.
const NEWS_BYTES: usize = 4096;
/// Processes that are held open at one time.
const BATCH: usize = 128;

/// One container's cgroup.
#[derive(Debug, Clone)]
pub(crate) struct Cgroup {
    paths: CgroupPaths,
}

impl Cgroup {
    /// At these paths.
    pub(crate) const fn new(paths: CgroupPaths) -> Self {
        Self { paths }
    }

    /// The v2 directory, when that is what limits.
    pub(crate) fn unified(&self) -> Option<&Path> {
        self.paths.unified.as_deref()
    }

    /// The directory of a v1 controller.
    pub(crate) fn controller(&self, name: &str) -> Option<&Path> {
        self.paths.v1.get(name).map(PathBuf::as_path)
    }

    /// Everybody in it, in the shim's pid namespace.
    pub(crate) fn pids(&self) -> Vec<i32> {
        let dir = self
            .unified()
            .or_else(|| self.controller("pids"))
            .or_else(|| self.paths.v1.values().next().map(PathBuf::as_path));
        let Some(dir) = dir else { return Vec::new() };
        let text = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
        text.lines().filter_map(|line| line.trim().parse().ok()).filter(|pid| *pid > 0).collect()
    }

    /// Signals everybody in it. True when somebody was there.
    pub(crate) fn signal(&self, signal: Signal) -> bool {
        let pids = self.pids();
        for batch in pids.chunks(BATCH) {
            let open = |pid: &i32| {
                let process = pidfd_open(Pid::from_raw(*pid)?, PidfdFlags::empty()).ok()?;
                Some((*pid, process))
            };
            let open: Vec<_> = batch.iter().filter_map(open).collect();
            // A number may have been given away since it was read; a descriptor may not, and whoever
            // is listed once it is open is whom it means.
            let still = self.pids();
            for (pid, process) in open {
                if still.contains(&pid) {
                    let _gone = pidfd_send_signal(process, signal);
                }
            }
        }
        !pids.is_empty()
    }

    /// Kills everybody in it until nobody is left, or gives up.
    pub(crate) async fn kill_all(&self) -> bool {
        for _ in 0..KILL_ROUNDS_MAX {
            if !self.kill_once() {
                return true;
            }
            tokio::time::sleep(KILL_PAUSE).await;
        }
        false
    }

    /// Kills who is in it now. True when somebody was.
    pub(crate) fn kill_once(&self) -> bool {
        if let Some(dir) = self.unified()
            && fs::write(dir.join("cgroup.kill"), "1").is_ok()
        {
            return !self.pids().is_empty();
        }
        let somebody = self.signal(Signal::KILL);
        self.thaw();
        somebody
    }

    /// What is frozen does not die in a v1 hierarchy: after killing it.
    pub(crate) fn thaw(&self) {
        if let Some(dir) = self.controller("freezer") {
            let state = dir.join("freezer.state");
            if fs::read_to_string(&state).is_ok_and(|now| now.trim() != "THAWED") {
                // Not being able to shows: who is in it stays.
                let _shows = fs::write(state, "THAWED");
            }
        }
    }

    /// Processes that the kernel killed for want of memory.
    pub(crate) fn oom_kills(&self) -> u64 {
        let file = match (self.unified(), self.controller("memory")) {
            (Some(dir), _) => dir.join("memory.events"),
            (None, Some(dir)) => dir.join("memory.oom_control"),
            (None, None) => return 0,
        };
        field(&fs::read_to_string(file).unwrap_or_default(), "oom_kill").unwrap_or(0)
    }
}

/// Wakes whoever waits when a cgroup's memory may have run out.
#[derive(Debug)]
pub(crate) struct OomWatch {
    /// An inotify or an eventfd; both are used as something to read alone.
    news: pipe::Receiver,
    /// What the kernel was told to watch, in version 1.
    _control: Option<File>,
}

impl Cgroup {
    /// Begins to watch. Must be called within the event loop.
    pub(crate) fn oom_watch(&self) -> io::Result<OomWatch> {
        if let Some(dir) = self.unified() {
            let notify =
                inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
            inotify::add_watch(&notify, dir.join("memory.events"), inotify::WatchFlags::MODIFY)?;
            let news = pipe::Receiver::from_owned_fd_unchecked(notify)?;
            return Ok(OomWatch { news, _control: None });
        }
        let dir = self.controller("memory").ok_or(io::ErrorKind::NotFound)?;
        let control = File::open(dir.join("memory.oom_control"))?;
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let order = format!("{} {}", event.as_raw_fd(), control.as_raw_fd());
        fs::write(dir.join("cgroup.event_control"), order)?;
        let news = pipe::Receiver::from_owned_fd_unchecked(event)?;
        Ok(OomWatch { news, _control: Some(control) })
    }
}

impl OomWatch {
    /// Waits until it may have.
    pub(crate) async fn woken(&mut self) -> io::Result<()> {
        self.news.readable().await?;
        let mut read = [0; NEWS_BYTES];
        loop {
            match self.news.try_read(&mut read) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }
}

/// The number behind `name` in a file of `name number` lines.
pub(crate) fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let (key, value) = line.split_once(' ')?;
        (key == name).then(|| value.trim().parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_found_by_its_whole_name() {
        let text = "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n";
        assert_eq!(field(text, "oom_kill"), Some(3));
        assert_eq!(field(text, "oom"), None);
        assert_eq!(field("oom_kill x\n", "oom_kill"), None);
    }

    #[test]
    fn oom_kills_are_read_from_either_layout() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("memory.oom_control"), "oom_kill 2\n").unwrap();
        fs::write(dir.path().join("memory.events"), "oom 9\noom_kill 1\n").unwrap();
        let mut paths = CgroupPaths::default();
        assert_eq!(Cgroup::new(paths.clone()).oom_kills(), 0);
        paths.v1.insert("memory".to_owned(), dir.path().to_owned());
        assert_eq!(Cgroup::new(paths.clone()).oom_kills(), 2);
        paths.unified = Some(dir.path().to_owned());
        assert_eq!(Cgroup::new(paths).oom_kills(), 1);
    }
}

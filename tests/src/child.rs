//! A program that a test owns: its log is a file, and it is dead and waited for when the owner goes.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::failure::During as _;
use crate::wait::until_within;
use crate::{Failure, Outcome};

/// How long a program may take to end after SIGTERM.
const GRACE: Duration = Duration::from_secs(15);

/// A running program.
#[derive(Debug)]
pub struct Program {
    name: String,
    child: Child,
    log: PathBuf,
    released: bool,
}

impl Program {
    /// Starts it with stdout and stderr appended to `log`.
    pub fn start(name: &str, command: &mut Command, log: &Path) -> Result<Self, Failure> {
        let file = append(log).during(name)?;
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        let child = command.spawn().during(&format!("start {name}"))?;
        Ok(Self { name: name.to_owned(), child, log: log.to_owned(), released: false })
    }

    /// Its process id.
    pub fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).unwrap_or(i32::MAX))
    }

    /// Fails when it has ended by itself.
    pub fn check(&mut self) -> Outcome {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => Err(self.ended(status)),
        }
    }

    fn ended(&self, status: ExitStatus) -> Failure {
        let tail = tail(&self.log, 15);
        Failure::new(format!("{} ended by itself with {status}; its log ends:\n{tail}", self.name))
    }

    /// SIGKILL, and waits.
    pub fn kill9(mut self) -> Outcome {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Leaves it running: it is nobody's from now on.
    pub fn release(mut self) {
        self.released = true;
    }

    /// SIGTERM, and waits; a program that does not listen is a failure (and dead).
    pub fn terminate(mut self) -> Outcome {
        self.check()?;
        kill(self.pid(), Signal::SIGTERM)?;
        let ended = until_within(&format!("{} to end on SIGTERM", self.name), GRACE, || {
            Ok(self.child.try_wait()?)
        });
        ended.map(drop)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if !self.released
            && let Ok(None) = self.child.try_wait()
        {
            let killed = self.child.kill().and_then(|()| self.child.wait().map(drop));
            // Nothing can be done about it here; the check for leftovers finds it.
            drop(killed);
        }
    }
}

/// A file to be written to at its end, readable by root only.
pub fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(0o600).open(path)
}

/// The last lines of a file.
pub fn tail(path: &Path, lines: usize) -> String {
    let bytes = std::fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let all: Vec<_> = text.lines().collect();
    let from = all.len().saturating_sub(lines);
    all.get(from..).unwrap_or_default().join("\n")
}

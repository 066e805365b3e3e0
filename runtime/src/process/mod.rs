//! From a copy of this program to a process of the container: the last steps, in this order.
//!
//! A session of its own, its terminal, its descriptors and no others; limits; groups, ids and
//! capabilities; no_new_privs; the program is looked for; the filter. Then it says that it is ready,
//! waits until it has been looked at from outside, and executes. Whatever goes wrong is told over the
//! [`channel`] and ends the process.
//!
//! Inputs: a judged [`ExecProcess`], the filter, descriptors. It must be in the container's namespaces
//! and cgroups already. Deliberately absent: anything that decides what the process may have.
#![forbid(unsafe_code)]

pub(crate) mod channel;
pub(crate) mod credentials;
pub(crate) mod program;
pub(crate) mod terminal;

use std::ffi::CString;
use std::os::fd::OwnedFd;

use nimbus_api::runtime::{ExecProcess, TerminalSize};
use nix::errno::Errno;
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};
use rustix::process::{Resource, Rlimit, setrlimit};

use self::channel::Inside;
use self::credentials::Credentials;
use self::program::{EXIT_NOT_EXECUTABLE, EXIT_NOT_FOUND};
use crate::report::{Report, Stage};
use crate::rootfs;
use crate::sys::seccomp::Program;
use crate::sys::{keyring, signal};

/// A step that failed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Failed {
    stage: Stage,
    errno: Errno,
}

impl From<Failed> for Report {
    fn from(failed: Failed) -> Self {
        Self { stage: failed.stage, errno: failed.errno as i32 }
    }
}

pub(crate) type Step<T = ()> = Result<T, Failed>;

/// Says at which stage a call failed.
pub(crate) trait At<T> {
    /// Turns the error into [`Failed`].
    fn at(self, stage: Stage) -> Step<T>;
}

impl<T, E: Into<std::io::Error>> At<T> for Result<T, E> {
    fn at(self, stage: Stage) -> Step<T> {
        self.map_err(|error| {
            let error: std::io::Error = error.into();
            Failed { stage, errno: Errno::from_raw(error.raw_os_error().unwrap_or(libc::EINVAL)) }
        })
    }
}

/// What an init process waits for, and to whom it then tells what went wrong: the one that made it is
/// gone by then.
#[derive(Debug)]
pub(crate) struct Gate {
    /// Read once; a byte comes by Start.
    pub(crate) start: OwnedFd,
    /// Held until the program has been executed.
    pub(crate) report: OwnedFd,
}

/// A process in the kernel's terms.
#[derive(Debug)]
pub(crate) struct Wanted {
    pub(crate) args: Vec<String>,
    pub(crate) env: Vec<String>,
    pub(crate) cwd: String,
    pub(crate) uid: u32,
    pub(crate) umask: u32,
    pub(crate) rlimits: Vec<(Resource, Rlimit)>,
    pub(crate) terminal: Option<TerminalSize>,
}

impl From<&ExecProcess> for Wanted {
    fn from(process: &ExecProcess) -> Self {
        let open = process.nofile;
        Self {
            args: process.args.clone(),
            env: process.env.clone(),
            cwd: process.cwd.clone(),
            uid: process.uid,
            umask: process.umask,
            rlimits: vec![
                (Resource::Nofile, Rlimit { current: Some(open.soft), maximum: Some(open.hard) }),
                // A core would go where the host's pattern says.
                (Resource::Core, Rlimit { current: Some(0), maximum: Some(0) }),
            ],
            terminal: process.terminal,
        }
    }
}

/// What a process of the container becomes.
#[derive(Debug)]
pub(crate) struct Becoming<'a> {
    pub(crate) process: &'a Wanted,
    pub(crate) credentials: &'a Credentials,
    /// None only on the development command line.
    pub(crate) filter: Option<&'a Program>,
    /// Whether its terminal is the container's console.
    pub(crate) console: bool,
}

impl Becoming<'_> {
    /// Becomes it when Start says so, or tells why not and ends: before it is ready over the channel,
    /// later through the gate.
    pub(crate) fn become_init(
        &self,
        stdio: Option<[OwnedFd; 3]>,
        channel: Inside,
        gate: Gate,
    ) -> ! {
        let (mut channel, mut gate) = (channel, gate);
        let prepared = self.prepare(stdio, &mut channel, Some(&mut gate));
        let command = prepared.and_then(|command| channel.ready().map(|()| command));
        let command = match command {
            Ok(command) => command,
            Err(failed) => {
                channel.fail(failed.into());
                end(failed)
            }
        };
        drop(channel);
        let mut byte = [0];
        let failed = match rustix::io::read(&gate.start, &mut byte).at(Stage::SetUp) {
            Ok(_byte) => command.execute(),
            Err(failed) => failed,
        };
        Report::from(failed).send(&gate.report);
        end(failed)
    }

    /// Becomes it, or tells why not and ends. `stdio` is none for a process that gets a terminal.
    pub(crate) fn become_it(&self, stdio: Option<[OwnedFd; 3]>, channel: Inside) -> ! {
        let mut channel = channel;
        let failed = match self.prepare(stdio, &mut channel, None) {
            Ok(command) => match channel.ready_and_wait() {
                Ok(()) => command.execute(),
                Err(failed) => failed,
            },
            Err(failed) => failed,
        };
        channel.fail(failed.into());
        end(failed)
    }

    fn prepare(
        &self,
        stdio: Option<[OwnedFd; 3]>,
        channel: &mut Inside,
        gate: Option<&mut Gate>,
    ) -> Step<Command> {
        let process = self.process;
        rustix::process::setsid().at(Stage::SetUp)?;
        let stdio = match (stdio, process.terminal) {
            (Some(stdio), None) => stdio,
            (None, Some(size)) => {
                let stdio = terminal::give(size, process.uid, channel)?;
                if self.console {
                    terminal::make_console(&stdio)?;
                }
                stdio
            }
            (Some(_), Some(_)) | (None, None) => {
                return Err(Failed { stage: Stage::SetUp, errno: Errno::EINVAL });
            }
        };
        channel.keep_only(stdio, gate)?;
        program::null_stdio().at(Stage::SetUp)?;
        match keyring::join_new_session() {
            // A kernel without keyrings has none to inherit.
            Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => {}
            joined => joined.at(Stage::SetUp)?,
        }
        rustix::process::umask(Mode::from_raw_mode(process.umask));
        self.limit()?;
        let env = self.environment();
        let entered = enter(&process.cwd);
        self.credentials.assume().at(Stage::SetUp)?;
        // A directory that root may not enter may be the user's own.
        entered.or_else(|_forbidden| enter(&process.cwd))?;
        rustix::thread::set_no_new_privs(true).at(Stage::Filter)?;
        let name = process.args.first().map(String::as_str).unwrap_or_default();
        let found = program::find(name, &env).at(Stage::Find)?;
        let args = program::c_strings(&process.args).ok_or(Errno::EINVAL).at(Stage::Find)?;
        let env = program::c_strings(&env).ok_or(Errno::EINVAL).at(Stage::Find)?;
        if let Some(filter) = self.filter {
            filter.load().at(Stage::Filter)?;
        }
        Ok(Command { file: found, args, env })
    }

    /// `HOME` is what the container's own `/etc/passwd` says, when nobody says otherwise.
    fn environment(&self) -> Vec<String> {
        let mut env = self.process.env.clone();
        let home = |one: &str| one.strip_prefix("HOME=").map(str::len);
        env.retain(|one| home(one) != Some(0));
        if !env.iter().any(|one| home(one).is_some()) {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let root = rustix::fs::open("/", flags, Mode::empty());
            let home = root.map(|root| rootfs::home(&root, self.process.uid));
            env.push(format!("HOME={}", home.as_deref().unwrap_or("/")));
        }
        env
    }

    fn limit(&self) -> Step {
        for (resource, limit) in &self.process.rlimits {
            setrlimit(*resource, *limit).at(Stage::SetUp)?;
        }
        Ok(())
    }
}

/// Ends as a shell would.
fn end(failed: Failed) -> ! {
    let absent = failed.errno == Errno::ENOENT;
    signal::exit_now(if absent { EXIT_NOT_FOUND } else { EXIT_NOT_EXECUTABLE })
}

/// A command as execve takes it.
#[derive(Debug)]
struct Command {
    file: CString,
    args: Vec<CString>,
    env: Vec<CString>,
}

impl Command {
    fn execute(&self) -> Failed {
        signal::reset_all();
        let errno = match nix::unistd::execve(&self.file, &self.args, &self.env) {
            Err(errno) => errno,
            Ok(never) => match never {},
        };
        Failed { stage: Stage::Execute, errno }
    }
}

/// Enters a directory of the container, and makes sure that it is one (CVE-2024-21626).
fn enter(path: &str) -> Step {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = openat2(CWD, path, flags, Mode::empty(), ResolveFlags::NO_MAGICLINKS);
    rustix::process::fchdir(dir.at(Stage::Directory)?).at(Stage::Directory)?;
    let reached = rustix::process::getcwd(Vec::new()).at(Stage::Directory)?;
    if reached.as_bytes().first() == Some(&b'/') {
        return Ok(());
    }
    Err(Failed { stage: Stage::Directory, errno: Errno::ENOENT })
}

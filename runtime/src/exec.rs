//! Exec: one more process in a container that runs.
//!
//! This process enters the container's namespaces by the descriptor of the init process, but for the pid
//! namespace, so that nobody in the container sees it. Then it makes a copy of itself, which is born in
//! all of them, enters the container's cgroups and becomes the program (see [`crate::process`]). Before it
//! executes anything it is looked at from outside: cgroups, capabilities, no_new_privs, filter. Whatever
//! fails, and the end of this process too, ends the copy.
//!
//! A container that stands still is not entered: the copy would stand still in it.
#![forbid(unsafe_code)]

use std::fs;
use std::os::fd::{AsFd as _, OwnedFd};

use nimbus_api::RefusalCode;
use nimbus_api::runtime::ExecProcess;
use nix::sched::CloneFlags;
use rustix::process::{Signal, pidfd_send_signal};
use rustix::thread::{ThreadNameSpaceType, move_into_thread_name_spaces};

use crate::cgroup::hierarchy::Hierarchies;
use crate::cgroup::join::Doors;
use crate::error::{Doing as _, RuntimeError};
use crate::layout::Layout;
use crate::process::channel::{self, Heard, Inside, Outside};
use crate::process::credentials::Credentials;
use crate::process::program::give_pipes;
use crate::process::{At as _, Becoming, Wanted};
use crate::proof::{self, View};
use crate::record::Record;
use crate::report::{Report, Stage};
use crate::sys::fork::{Fork, Forked, Kin, alone, fork};
use crate::sys::seccomp::Program;
use crate::sys::signal;

/// What the copy is born in. It is seen in the container from its first instant on, and what procfs shows
/// of a process (the mounts and the network that it is in) is open to everybody: so there must be
/// nothing of the host's to show.
const NAMESPACES: ThreadNameSpaceType = ThreadNameSpaceType::PROCESS_ID
    .union(ThreadNameSpaceType::MOUNT)
    .union(ThreadNameSpaceType::NETWORK)
    .union(ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION)
    .union(ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME);
/// Exit status of a copy that did not get as far as its program.
const EXIT_STRAY: i32 = 125;

/// What is to be run.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) process: ExecProcess,
    /// None only on the development command line.
    pub(crate) filter: Option<Program>,
    /// None when it gets a terminal.
    pub(crate) stdio: Option<[OwnedFd; 3]>,
    pub(crate) kin: Kin,
}

/// What runs.
#[derive(Debug)]
pub(crate) struct Executed {
    pub(crate) pid: i32,
    /// The other end of its terminal.
    pub(crate) terminal: Option<OwnedFd>,
}

/// Runs one more process.
pub(crate) fn exec(layout: &Layout, request: Request) -> Result<Executed, RuntimeError> {
    let not = |detail: &str| RuntimeError::refused(RefusalCode::RuntimeFailed, detail);
    let record = Record::read(layout)?.ok_or_else(|| not("there is no such container"))?;
    let init = record.init.ok_or_else(|| not("the container is not created"))?;
    let init = init.open()?.ok_or_else(|| not("the init process has ended"))?;
    if layout.dir().join(Layout::notify()).exists() {
        return Err(not("the container has not been started"));
    }
    let hosts = Hierarchies::of_this_host()?;
    let credentials = Credentials::of(&request.process)?;
    if let Some(stdio) = &request.stdio {
        give_pipes(stdio, request.process.uid, request.process.gid)?;
    }
    prefer_for_oom(request.process.oom_score_adj)?;
    let born = hosts.unified.as_ref().map(|_root| {
        let dir = record.cgroup.unified.as_deref().unwrap_or(&record.guard);
        fs::File::open(dir).doing("open the container's cgroup")
    });
    let born = born.transpose()?;
    let (outside, inside) = channel::pair()?;
    // From here on no path means what it meant: everything of the host's is open.
    let (doors, view) = (Doors::open(&record.cgroup)?, View::of_this_host()?);
    let alone = alone().doing("look at our own threads")?;
    move_into_thread_name_spaces(init.as_fd(), NAMESPACES)
        .doing("enter the container's namespaces")?;
    let forked =
        fork(alone, request.kin, born.as_ref().map(|dir| dir.as_fd()), CloneFlags::empty());
    let Request { process, filter, stdio, .. } = request;
    let Forked { pid, pidfd } = match forked.doing("make a process")? {
        Fork::Parent(forked) => forked,
        Fork::Child => {
            let process = Wanted::from(&process);
            let becoming = Becoming {
                process: &process,
                credentials: &credentials,
                filter: filter.as_ref(),
                console: false,
            };
            drop(outside);
            enter(&init, &doors, &becoming, stdio, inside)
        }
    };
    drop((inside, stdio));
    let look = || {
        proof::membership(&view, pid, &hosts, &record.cgroup)?;
        proof::one_more(&view, pid, &process.capabilities, filter.is_some())
    };
    let run = converse(&outside, look);
    match run {
        Ok(terminal) => Ok(Executed { pid, terminal }),
        Err(error) => {
            // Ended already: there is nobody to end.
            pidfd_send_signal(&pidfd, Signal::KILL).unwrap_or_default();
            Err(error)
        }
    }
}

/// The copy's part.
fn enter(
    init: &OwnedFd,
    doors: &Doors,
    becoming: &Becoming<'_>,
    stdio: Option<[OwnedFd; 3]>,
    inside: Inside,
) -> ! {
    if let Err(error) = doors.enter() {
        inside.refuse(&error.refusal());
        signal::exit_now(EXIT_STRAY);
    }
    // Its cgroup namespace last: from outside it is to be looked at where it really is.
    let own = ThreadNameSpaceType::CONTROL_GROUP;
    let entered = inside
        .wait()
        .and_then(|()| move_into_thread_name_spaces(init.as_fd(), own).at(Stage::SetUp));
    if let Err(failed) = entered {
        inside.fail(Report::from(failed));
        signal::exit_now(EXIT_STRAY);
    }
    becoming.become_it(stdio, inside)
}

/// Leads the process from where it waits to its program.
fn converse(
    outside: &Outside,
    look: impl Fn() -> Result<(), RuntimeError>,
) -> Result<Option<OwnedFd>, RuntimeError> {
    let mut terminal = None;
    outside.go()?;
    loop {
        match outside.hear()? {
            Heard::Terminal(fd) if terminal.is_none() => terminal = Some(fd),
            Heard::Terminal(_) => return Err(RuntimeError::unproven("a second terminal came")),
            Heard::Ready => break,
            Heard::Failed(report) => return Err(RuntimeError::Refused(report.refusal())),
            Heard::Refused(refusal) => return Err(RuntimeError::Refused(refusal)),
            Heard::End => return Err(RuntimeError::unproven("the process ended too early")),
        }
    }
    look()?;
    outside.go()?;
    match outside.hear()? {
        Heard::End => Ok(terminal),
        Heard::Failed(report) => Err(RuntimeError::Refused(report.refusal())),
        Heard::Refused(refusal) => Err(RuntimeError::Refused(refusal)),
        Heard::Ready | Heard::Terminal(_) => {
            Err(RuntimeError::unproven("the process says what it has said before"))
        }
    }
}

/// What the process inherits. This one is as good a victim meanwhile.
fn prefer_for_oom(adjust: i32) -> Result<(), RuntimeError> {
    const FILE: &str = "/proc/self/oom_score_adj";
    let now = fs::read_to_string(FILE).doing("read oom_score_adj")?;
    if now.trim() == adjust.to_string() {
        return Ok(());
    }
    fs::write(FILE, adjust.to_string()).doing("set oom_score_adj")
}

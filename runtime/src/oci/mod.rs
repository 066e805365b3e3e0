//! `nimbus-oci`: a thin OCI command line over the same steps, for conformance suites and benchmarks.
//!
//! Never packaged. It takes a plain bundle, whose root is used as it is and whose device rules are
//! added to runc's; there is no lease to prove limits by. Filters come compiled (`--seccomp-bpf`): a bundle
//! with a profile and without its program is refused, not run unfiltered. Deliberately absent:
//! hooks.
#![forbid(unsafe_code)]

mod args;
mod exec;

use std::fs;
use std::io::{self, IoSlice, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;

use nimbus_api::RefusalCode;
use nimbus_api::error::Chain;
use nimbus_api::id::ContainerKey;
use nimbus_api::strict_json::{self, Limits};
use rustix::fs::OFlags;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use rustix::process::{Pid, WaitOptions, waitpid};
use serde_json::{Value, json};

use self::args::{Args, Verb};
use crate::create::{Created, Job, create};
use crate::error::{Doing as _, RuntimeError};
use crate::layout::Layout;
use crate::namespaces::Joins;
use crate::record::Record;
use crate::rootfs::Root;
use crate::sys::fork::Kin;
use crate::sys::seal;
use crate::sys::seccomp::Program;
use crate::{delete, kill, start};

const CONFIG_BYTES_MAX: usize = 1 << 20;
const EXIT_FAILED: u8 = 1;
const EXIT_USAGE: u8 = 2;
/// Added to a signal's number, as a shell does.
const EXIT_SIGNALLED: i32 = 128;

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let args = match args::parse(std::env::args().skip(1)) {
        Ok(args) => args,
        Err(usage) => return complain(&usage.to_string(), EXIT_USAGE),
    };
    match run(args) {
        Ok(code) => ExitCode::from(code),
        Err(error) => complain(&Chain(&error).to_string(), EXIT_FAILED),
    }
}

fn complain(text: &str, code: u8) -> ExitCode {
    // Nobody to tell when stderr is gone; the exit status still says it.
    writeln!(io::stderr().lock(), "{text}").unwrap_or_default();
    ExitCode::from(code)
}

fn failed(detail: impl std::fmt::Display) -> RuntimeError {
    RuntimeError::refused(RefusalCode::RuntimeFailed, detail)
}

fn layout(root: &Path, id: &str) -> Result<Layout, RuntimeError> {
    let namespace = "oci".parse().map_err(failed)?;
    Layout::new(root, &ContainerKey { namespace, id: id.parse().map_err(failed)? })
}

fn run(args: Args) -> Result<u8, RuntimeError> {
    let root = std::path::absolute(&args.root).doing("find the root directory")?;
    match args.verb {
        Verb::Make { id, bundle, pid_file, filter, console, wait } => {
            seal::ensure().doing("run from a file that no container can write to")?;
            let layout = layout(&root, &id)?;
            let bundle = fs::canonicalize(bundle).doing("find the bundle")?;
            let job = job(&bundle, filter.as_deref(), &id)?;
            let spec = job.spec.to_string();
            let created = create(&layout, job)?;
            // What exec takes the process from that it changes.
            fs::write(layout.config(), spec).doing("note the specification")?;
            let sent = send_terminal(&created, console.as_deref());
            if let Err(error) = sent {
                delete::delete(&layout)?;
                return Err(error);
            }
            let text = bundle.to_string_lossy();
            fs::write(layout.dir().join("bundle"), text.as_bytes()).doing("note the bundle")?;
            if let Some(file) = pid_file {
                fs::write(file, created.pid.to_string()).doing("write the pid file")?;
            }
            if wait { run_to_end(&layout, &created) } else { Ok(0) }
        }
        Verb::Start { id } => start::start(&layout(&root, &id)?).map(|()| 0),
        Verb::Exec { id, process, command, filter, pid_file, detach } => {
            seal::ensure().doing("run from a file that no container can write to")?;
            let layout = layout(&root, &id)?;
            let process = exec::process(&layout, process.as_deref(), command)?;
            let filter = filter.as_deref().map(read_filter).transpose()?;
            let executed = exec::start(&layout, process, filter)?;
            if let Some(file) = pid_file {
                fs::write(file, executed.to_string()).doing("write the pid file")?;
            }
            if detach { Ok(0) } else { wait_for(executed) }
        }
        Verb::State { id } => state(&layout(&root, &id)?, &id),
        Verb::Kill { id, signal, all } => {
            kill::kill(&layout(&root, &id)?, number(&signal)?, all).map(|()| 0)
        }
        Verb::Delete { id, force } => {
            let layout = layout(&root, &id)?;
            if !force && matches!(status(&layout)?, Status::Running(_) | Status::Absent) {
                return Err(failed("the container is running, or there is none"));
            }
            delete::delete(&layout).map(|()| 0)
        }
    }
}

fn run_to_end(layout: &Layout, created: &Created) -> Result<u8, RuntimeError> {
    let started = start::start(layout);
    let ended = match &started {
        Ok(()) => wait_for(created.pid),
        Err(_) => Ok(EXIT_FAILED),
    };
    delete::delete(layout)?;
    started?;
    ended
}

/// Waits for a child: its exit code, or 128 and the signal's number.
fn wait_for(pid: i32) -> Result<u8, RuntimeError> {
    let ended = waitpid(Pid::from_raw(pid), WaitOptions::empty()).doing("wait")?;
    let Some((_, status)) = ended else {
        return Err(failed("the process cannot be waited for"));
    };
    let code = status.exit_status();
    let code = code.or_else(|| status.terminating_signal().map(|number| EXIT_SIGNALLED + number));
    Ok(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(EXIT_FAILED))
}

/// Hands the other end of a terminal to whoever listens, as runc does.
fn send_terminal(created: &Created, socket: Option<&Path>) -> Result<(), RuntimeError> {
    let (terminal, socket) = match (&created.terminal, socket) {
        (None, None) => return Ok(()),
        (Some(terminal), Some(socket)) => (terminal, socket),
        (Some(_), None) => return Err(failed("a terminal needs a --console-socket")),
        (None, Some(_)) => return Err(failed("a --console-socket came without a terminal")),
    };
    // Made for one who polls; who listens here expects to wait, as with runc's.
    rustix::fs::fcntl_getfl(terminal)
        .and_then(|flags| rustix::fs::fcntl_setfl(terminal, flags - OFlags::NONBLOCK))
        .doing("let readers of the terminal wait")?;
    let socket = UnixStream::connect(socket).doing("connect to the console socket")?;
    let fds = [terminal.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(&fds));
    let name = [IoSlice::new(b"/dev/ptmx")];
    sendmsg(&socket, &name, &mut control, SendFlags::NOSIGNAL)
        .map(|_bytes| ())
        .doing("send the terminal")
}

/// Reads a bundle.
fn job(bundle: &Path, filter: Option<&Path>, id: &str) -> Result<Job, RuntimeError> {
    let text = fs::read(bundle.join("config.json")).doing("read config.json")?;
    let mut spec = strict_json::value(&text, Limits::bytes(CONFIG_BYTES_MAX))
        .map_err(|error| failed(Chain(&error)))?;
    if spec.get("hooks").is_some_and(|hooks| !hooks.is_null()) {
        return Err(RefusalCode::SpecHooksPresent.into());
    }
    if filter.is_none() && spec.pointer("/linux/seccomp").is_some_and(|profile| !profile.is_null())
    {
        return Err(failed("the bundle has a seccomp profile: give its program by --seccomp-bpf"));
    }
    let program = filter.map(read_filter);
    let root = spec.pointer("/root/path").and_then(Value::as_str).unwrap_or("rootfs");
    let root = bundle.join(root).to_string_lossy().into_owned();
    let read_only = spec.pointer("/root/readonly").and_then(Value::as_bool).unwrap_or(false);
    if let Some(linux) = spec.get_mut("linux").and_then(Value::as_object_mut) {
        let path = linux.get("cgroupsPath").and_then(Value::as_str).unwrap_or_default();
        let path = match path {
            "" => format!("/nimbus-oci-{id}"),
            path if path.starts_with('/') => path.to_owned(),
            path => format!("/{path}"),
        };
        linux.insert("cgroupsPath".into(), path.into());
    }
    for mount in spec.get_mut("mounts").and_then(Value::as_array_mut).into_iter().flatten() {
        let bind = mount.get("options").and_then(Value::as_array).into_iter().flatten();
        let bind = bind.clone().any(|one| matches!(one.as_str(), Some("bind" | "rbind")));
        let source = mount.get("source").and_then(Value::as_str).unwrap_or_default();
        if bind && !source.starts_with('/') {
            mount["source"] = bundle.join(source).to_string_lossy().into_owned().into();
        }
    }
    let terminal = spec.pointer("/process/terminal").and_then(Value::as_bool) == Some(true);
    let stdio = || {
        let own = [
            io::stdin().as_fd().try_clone_to_owned()?,
            io::stdout().as_fd().try_clone_to_owned()?,
            io::stderr().as_fd().try_clone_to_owned()?,
        ];
        Ok::<_, io::Error>(own)
    };
    Ok(Job {
        spec,
        root: Root::Directory(root),
        read_only,
        devices: None,
        limits: None,
        program: program.transpose()?,
        joins: Joins::default(),
        binds: Vec::new(),
        stdio: (!terminal).then(stdio).transpose().doing("take over standard descriptors")?,
        kin: Kin::Child,
    })
}

fn read_filter(file: &Path) -> Result<Program, RuntimeError> {
    Program::from_bytes(&fs::read(file).doing("read the filter")?).map_err(failed)
}

/// What OCI calls a container's status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Status {
    Absent,
    Creating,
    Created(i32),
    Running(i32),
    Stopped,
}

fn status(layout: &Layout) -> Result<Status, RuntimeError> {
    if layout.open()?.is_none() {
        return Ok(Status::Absent);
    }
    let Some(init) = Record::read(layout)?.and_then(|record| record.init) else {
        return Ok(Status::Creating);
    };
    if !init.runs() {
        return Ok(Status::Stopped);
    }
    let waits = layout.dir().join(Layout::notify()).exists();
    Ok(if waits { Status::Created(init.pid) } else { Status::Running(init.pid) })
}

fn state(layout: &Layout, id: &str) -> Result<u8, RuntimeError> {
    let (word, pid) = match status(layout)? {
        Status::Absent => return Err(failed("there is no such container")),
        Status::Creating => ("creating", 0),
        Status::Created(pid) => ("created", pid),
        Status::Running(pid) => ("running", pid),
        Status::Stopped => ("stopped", 0),
    };
    let bundle = fs::read_to_string(layout.dir().join("bundle")).unwrap_or_default();
    let state =
        json!({"ociVersion": "1.0.2", "id": id, "status": word, "pid": pid, "bundle": bundle});
    writeln!(io::stdout().lock(), "{state:#}").doing("print the state")?;
    Ok(0)
}

fn number(text: &str) -> Result<i32, RuntimeError> {
    if let Ok(number) = text.parse() {
        return Ok(number);
    }
    let name = text.to_ascii_uppercase();
    let name = if name.starts_with("SIG") { name } else { format!("SIG{name}") };
    let signal: Result<nix::sys::signal::Signal, _> = name.parse();
    signal.map(|signal| signal as i32).map_err(|_unknown| failed(format!("{text:?} is no signal")))
}

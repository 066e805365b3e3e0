//! One request, one answer: the life of a `nimbus-runtime` process.
//!
//! It cleans itself up first (dies with its parent, closes what it did not ask for, private files,
//! not dumpable, nothing blocked), reads one frame, does the verb under a deadline, answers one frame and
//! ends.
#![forbid(unsafe_code)]

use std::fs::File;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::process::{ExitCode, Termination};

use nimbus_api::frame::{Frame, FrameReader, write_frame};
use nimbus_api::lease::{LeasedEgress, ScratchMedium};
use nimbus_api::plan::{
    BINDS_MAX, JoinedNamespace, LAYERS_MAX, PLAN_BYTES_MAX, PLAN_VERSION, Plan, PlanSeccomp,
};
use nimbus_api::runtime::{
    ExecRequest, OUTSIDE_NAME, RUNTIME_VERSION, RuntimeReply, RuntimeRequest, RuntimeVerb,
};
use nimbus_api::strict_json::{self, Limits};
use nimbus_api::{Digest, RefusalCode};
use rustix::fs::Mode;
use rustix::process::{DumpableBehavior, Signal};
use serde_json::Value;

use crate::create::{Job, create};
use crate::error::{Doing as _, RuntimeError};
use crate::layout::Layout;
use crate::mounts::handed::Handed;
use crate::namespaces::Joins;
use crate::rootfs::{Root, Scratch};
use crate::sys::fork::Kin;
use crate::sys::seccomp::{INSTRUCTION_BYTES, INSTRUCTIONS_MAX, Program};
use crate::sys::{fd, seal, signal};
use crate::{delete, exec, kill, pause, spec, start, update};

/// Longest request: a plan and what names it.
const REQUEST_BYTES_MAX: usize = PLAN_BYTES_MAX + (64 << 10);
/// Seconds for a request to arrive and for its verb. After them blocked calls are interrupted, and
/// what was begun is undone.
const DEADLINE_SECONDS: u32 = 30;
/// Standard descriptors, of which a process with a terminal gets none.
const STDIO: usize = 3;

/// How the process ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// The verb was done and the answer sent.
    Done = 0,
    /// It was not done; the answer says why.
    Failed = 1,
    /// There was no request to read, or no way to answer it.
    Unheard = 2,
}

impl Termination for Exit {
    fn report(self) -> ExitCode {
        ExitCode::from(self as u8)
    }
}

/// Serves the request on descriptor 3.
pub fn serve() -> Exit {
    let enters = std::env::args_os().next().is_none_or(|name| name != OUTSIDE_NAME);
    if enters && seal::ensure().is_err() {
        return Exit::Unheard;
    }
    let Ok(socket) = clean_up() else { return Exit::Unheard };
    let reply = match FrameReader::with_limit(REQUEST_BYTES_MAX).read(&socket) {
        Ok(frame) => answer(frame),
        Err(error) => Err(RuntimeError::refused(RefusalCode::RuntimeFailed, error)),
    };
    let (reply, fd, exit) = match reply {
        Ok((reply, fd)) => (reply, fd, Exit::Done),
        Err(error) => (error.reply(), None, Exit::Failed),
    };
    let text = serde_json::to_vec(&reply).unwrap_or_default();
    let fds: Vec<_> = fd.iter().map(|fd| fd.as_fd()).collect();
    if write_frame(&socket, &text, &fds).is_err() { Exit::Unheard } else { exit }
}

/// Everything that an inherited process state could do to us.
fn clean_up() -> Result<OwnedFd, RuntimeError> {
    let parent = rustix::process::getppid();
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .doing("ask to die with the parent")?;
    let socket = fd::take_request().doing("take the request's descriptor")?;
    // Only a parent that was still there after asking will be noticed, and only the one who asks: it
    // may have died before the first look, and somebody else be the parent since.
    let asks = rustix::net::sockopt::socket_peercred(&socket).doing("see who asks")?.pid;
    if rustix::process::getppid() != parent || parent != Some(asks) {
        return Err(std::io::Error::other("it is gone")).doing("keep the parent");
    }
    rustix::process::umask(Mode::RWXG | Mode::RWXO);
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .doing("become undumpable")?;
    nix::sys::signal::SigSet::empty().thread_set_mask().doing("unblock signals")?;
    rustix::process::chdir("/").doing("leave the caller's directory")?;
    signal::start_deadline(DEADLINE_SECONDS).doing("start the deadline")?;
    Ok(socket)
}

/// The answer, and the descriptor that goes with it.
type Answer = (RuntimeReply, Option<OwnedFd>);

fn answer(frame: Frame) -> Result<Answer, RuntimeError> {
    let invalid = |detail: String| RuntimeError::refused(RefusalCode::RuntimeFailed, detail);
    // Nothing here reads any, and nothing here is to begin to.
    if std::env::vars_os().next().is_some() || std::env::args_os().nth(1).is_some() {
        return Err(invalid("started with arguments or an environment".into()));
    }
    let request: RuntimeRequest =
        strict_json::parse(&frame.bytes, Limits::bytes(REQUEST_BYTES_MAX))
            .map_err(|error| invalid(nimbus_api::error::Chain(&error).to_string()))?;
    if request.version != RUNTIME_VERSION {
        return Err(invalid(format!("found request version {}", request.version)));
    }
    let layout = Layout::new(&request.state_root, &request.container)?;
    let enters = request.verb.enters();
    if !enters && !frame.fds.is_empty() {
        return Err(invalid(format!("{} descriptors came, expected none", frame.fds.len())));
    }
    if enters && !seal::is_sealed().doing("look at this program's mount")? {
        let detail = "this process was started as one that enters no container";
        return Err(RuntimeError::unproven(detail));
    }
    let done = match request.verb {
        RuntimeVerb::Create(plan) => {
            if plan.container != request.container {
                return Err(invalid("the plan is for another container".into()));
            }
            let created = create(&layout, job(*plan, frame.fds)?)?;
            let reply = RuntimeReply::Created { pid: created.pid, cgroup: created.cgroup };
            return Ok((reply, created.terminal));
        }
        RuntimeVerb::Exec(request) => {
            let executed = exec::exec(&layout, one_more(*request, frame.fds)?)?;
            return Ok((RuntimeReply::Executed { pid: executed.pid }, executed.terminal));
        }
        RuntimeVerb::Start => start::start(&layout),
        RuntimeVerb::Kill { signal, all } => kill::kill(&layout, signal, all),
        RuntimeVerb::Update(request) => {
            update::update(&layout, &request.resources, &request.leased)
        }
        RuntimeVerb::Pause => pause::pause(&layout),
        RuntimeVerb::Resume => pause::resume(&layout),
        RuntimeVerb::Delete => delete::delete(&layout),
    };
    done.map(|()| (RuntimeReply::Done, None))
}

/// Checks an exec against the descriptors that came with it.
fn one_more(request: ExecRequest, fds: Vec<OwnedFd>) -> Result<exec::Request, RuntimeError> {
    let invalid = |detail: &str| RuntimeError::refused(RefusalCode::RuntimeFailed, detail);
    let ExecRequest { process, seccomp } = request;
    let mut fds = fds.into_iter();
    let filter = fds.next().ok_or_else(|| invalid("no filter came"))?;
    let filter = Some(read_program(filter, &seccomp)?);
    let stdio: Vec<OwnedFd> = fds.collect();
    let stdio = if process.terminal.is_some() && stdio.is_empty() {
        None
    } else {
        let three = stdio.try_into();
        Some(three.map_err(|_other| invalid("stdin, stdout and stderr did not come"))?)
    };
    Ok(exec::Request { process, filter, stdio, kin: Kin::Sibling })
}

/// Checks a plan against the descriptors that came with it.
fn job(plan: Plan, fds: Vec<OwnedFd>) -> Result<Job, RuntimeError> {
    let invalid = |detail: String| RuntimeError::refused(RefusalCode::RuntimeFailed, detail);
    if plan.version != PLAN_VERSION {
        return Err(invalid(format!("found plan version {}", plan.version)));
    }
    let layers = plan.rootfs.layers.len();
    let terminal = plan.spec.pointer("/process/terminal").and_then(Value::as_bool) == Some(true);
    let stdio = if terminal { 0 } else { STDIO };
    check_pod(&plan)?;
    if layers == 0 || layers > LAYERS_MAX || fds.len() != plan.descriptors() + stdio {
        let detail = format!("{} descriptors came with a plan of {layers} layers", fds.len());
        return Err(invalid(detail));
    }
    spec::check(&plan.spec, &plan.joins).map_err(RuntimeError::Refused)?;
    let mut fds = fds.into_iter();
    let program = fds.next().map(|memfd| read_program(memfd, &plan.seccomp)).transpose()?;
    let scratch = match plan.rootfs.scratch {
        ScratchMedium::Memory => Scratch::Memory { bytes: plan.rootfs.scratch_bytes },
        ScratchMedium::Disk => {
            let mount = fds.next().ok_or_else(|| invalid("no writable space came".to_owned()))?;
            Scratch::Disk { mount, bytes: plan.rootfs.scratch_bytes }
        }
    };
    let layers = fds.by_ref().take(layers).collect();
    let binds = plan.binds.into_iter().zip(fds.by_ref());
    let binds =
        binds.map(|(wanted, mount)| Handed::new(wanted, mount)).collect::<Result<_, _>>()?;
    let joins = Joins {
        new_network: plan.egress.is_made(),
        all: plan.joins.into_iter().zip(fds.by_ref()).collect(),
    };
    let stdio = fds.collect::<Vec<_>>().try_into().ok();
    Ok(Job {
        spec: plan.spec,
        root: Root::Layers { layers, scratch },
        read_only: plan.rootfs.read_only,
        devices: Some(plan.devices),
        limits: Some(plan.resources),
        program,
        joins,
        binds,
        stdio,
        kin: Kin::Sibling,
    })
}

/// Checks that a plan joins and binds no more than one like it may: a network that was made for a job, and
/// in a pod what the pod has.
fn check_pod(plan: &Plan) -> Result<(), RuntimeError> {
    let invalid = |detail: String| Err(RuntimeError::refused(RefusalCode::RuntimeFailed, detail));
    let in_pod = plan.pod.as_ref().is_some_and(|pod| pod.container.is_some());
    let networks = plan.joins.iter().filter(|kind| **kind == JoinedNamespace::Network).count();
    let fits = match (&plan.egress, networks) {
        (LeasedEgress::Allow(_), 1) => plan.pod.is_none(),
        (LeasedEgress::Pod, 1) => plan.pod.is_some(),
        (LeasedEgress::None, 0) => true,
        (LeasedEgress::None, 1) => in_pod,
        (LeasedEgress::Allow(_) | LeasedEgress::Pod | LeasedEgress::None, _) => false,
    };
    if !fits {
        return invalid(format!("{networks} networks for what the lease says of one"));
    }
    if !in_pod && plan.joins.len() > networks {
        return invalid("namespaces of a pod are joined by what is in none".to_owned());
    }
    if plan.binds.len() > BINDS_MAX || (plan.pod.is_none() && !plan.binds.is_empty()) {
        return invalid(format!("{} binds", plan.binds.len()));
    }
    Ok(())
}

/// Reads the filter once, into memory that only this process has, and checks what was read.
fn read_program(memfd: OwnedFd, plan: &PlanSeccomp) -> Result<Program, RuntimeError> {
    let unproven = |detail: String| RuntimeError::unproven(detail);
    let file = File::from(memfd);
    let found = file.metadata().doing("look at the filter")?.len();
    let length = usize::try_from(found).unwrap_or(usize::MAX);
    if length > INSTRUCTIONS_MAX * INSTRUCTION_BYTES {
        return Err(unproven(format!("the filter has {length} bytes")));
    }
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, 0).doing("read the filter")?;
    if Digest::of(&bytes) != plan.program_sha256 {
        return Err(unproven("the filter is not the plan's".into()));
    }
    let program = Program::from_bytes(&bytes).map_err(|error| unproven(error.to_string()))?;
    if u32::try_from(program.len()) != Ok(plan.instructions) {
        return Err(unproven(format!("the filter has {} instructions", program.len())));
    }
    Ok(program)
}

//! Processes that are added to a container: Exec only registers one, Start runs it.
//!
//! Each is judged when it is added, by the plan that the container was granted (rule 2): no node agent is
//! asked, so that its upgrade kills no health probe. A container that is paused, or that an end was put
//! to, starts none.
//!
//! Limits: [`EXECS_MAX`] of a container, started or not; a client deletes what has ended.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use containerd_shim_protos::api::{DeleteResponse, ExecProcessRequest};
use containerd_shim_protos::events::task::{TaskExecAdded, TaskExecStarted, TaskExit};
use nimbus_api::clock::SystemClock;
use nimbus_api::error::Chain;
use nimbus_api::id::ContainerId;
use nimbus_api::runtime::{ExecProcess, ExecRequest, RuntimeReply, RuntimeVerb};
use nimbus_api::{Refusal, RefusalCode};
use rustix::process::{Pid, Signal, kill_process};
use tokio::sync::watch;

use super::Context;
use super::container::Container;
use super::events::{Event, Publisher};
use super::exit::Ended;
use super::{oci_json, timestamp};
use crate::exec_state::{ExecDenied, ExecMachine, ExecPhase};
use crate::process::ChildProcess;
use crate::runtime::{Answer, CallError};
use crate::state::{Exit, Phase};
use crate::status::TaskError;
use crate::stdio::{self, Streams, Uris};

/// Processes that a container may have beside its init.
pub(super) const EXECS_MAX: usize = 128;
/// The longest that starting one may take: longer than the runtime gives itself, deadline and undoing
/// together, so that it is the runtime that ends what it has begun.
const START_PATIENCE: Duration = Duration::from_mins(1);

/// One of them.
#[derive(Debug)]
pub(super) struct Exec {
    id: String,
    uris: Uris,
    process: ExecProcess,
    life: Mutex<Life>,
    exit: Ended,
}

#[derive(Debug)]
struct Life {
    machine: ExecMachine,
    made: Option<(ChildProcess, Arc<Streams>)>,
}

impl Exec {
    /// By which name.
    pub(super) fn id(&self) -> &str {
        &self.id
    }

    /// Where its streams go.
    pub(super) const fn uris(&self) -> &Uris {
        &self.uris
    }

    /// Whether it has a terminal.
    pub(super) const fn terminal(&self) -> bool {
        self.process.terminal.is_some()
    }

    /// Where it stands.
    pub(super) fn phase(&self) -> ExecPhase {
        self.life().machine.phase()
    }

    /// How it ended.
    pub(super) fn exit(&self) -> Option<Exit> {
        self.life().machine.exit()
    }

    /// Its pid, zero while there is none.
    pub(super) fn pid(&self) -> u32 {
        let pid = self.life().made.as_ref().map(|(child, _)| child.pid());
        pid.and_then(|pid| u32::try_from(pid).ok()).unwrap_or(0)
    }

    /// The copies of its streams, once it runs.
    pub(super) fn streams(&self) -> Option<Arc<Streams>> {
        self.life().made.as_ref().map(|(_, streams)| Arc::clone(streams))
    }

    /// Waits until it has ended.
    pub(super) async fn wait(&self) -> Option<Exit> {
        self.exit.wait().await
    }

    /// Signals it.
    pub(super) fn kill(&self, signal: Signal) -> Result<(), TaskError> {
        let made = self.life().made.clone();
        match (self.phase(), made) {
            (phase @ (ExecPhase::Added | ExecPhase::Starting), _) => {
                Err(TaskError::WrongExecPhase { verb: "signal", phase })
            }
            (ExecPhase::Running, Some((child, _))) => {
                child.signal(signal).map_err(|_ended| self.not_found())
            }
            (ExecPhase::Running | ExecPhase::Stopped | ExecPhase::Deleted, _) => {
                Err(self.not_found())
            }
        }
    }

    fn not_found(&self) -> TaskError {
        TaskError::NotFound(format!("process {}", self.id))
    }

    fn step(
        &self,
        verb: &'static str,
        step: impl FnOnce(&mut ExecMachine) -> Result<(), ExecDenied>,
    ) -> Result<(), TaskError> {
        step(&mut self.life().machine).map_err(|ExecDenied(phase)| match phase {
            ExecPhase::Deleted => self.not_found(),
            ExecPhase::Added | ExecPhase::Starting | ExecPhase::Running | ExecPhase::Stopped => {
                TaskError::WrongExecPhase { verb, phase }
            }
        })
    }

    fn life(&self) -> MutexGuard<'_, Life> {
        self.life.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// All of one container.
#[derive(Debug, Default)]
pub(super) struct Execs {
    known: Mutex<BTreeMap<String, Arc<Exec>>>,
    /// How many run, or are about to.
    running: watch::Sender<usize>,
}

impl Execs {
    /// The one of this name.
    pub(super) fn get(&self, id: &str) -> Option<Arc<Exec>> {
        self.known().get(id).map(Arc::clone)
    }

    /// Names and pids of those that run.
    pub(super) fn running(&self) -> BTreeMap<u32, String> {
        let known = self.known();
        let running = known.values().filter(|exec| exec.phase() == ExecPhase::Running);
        running.map(|exec| (exec.pid(), exec.id.clone())).collect()
    }

    /// Waits until none runs or is about to; false when that took too long.
    pub(super) async fn ended(&self, patience: Duration) -> bool {
        let mut running = self.running.subscribe();
        let none = running.wait_for(|count| *count == 0);
        tokio::time::timeout(patience, none).await.is_ok()
    }

    /// The container is gone: whoever waits for one that never ran gets an answer.
    pub(super) fn forget(&self) {
        let known = std::mem::take(&mut *self.known());
        for exec in known.values().filter(|exec| exec.phase() == ExecPhase::Added) {
            exec.exit.tell_unknown();
        }
    }

    fn add(&self, exec: Exec) -> Result<(), TaskError> {
        let mut known = self.known();
        if known.contains_key(&exec.id) {
            return Err(TaskError::AlreadyExists(format!("process {}", exec.id)));
        }
        if known.len() >= EXECS_MAX {
            let text = format!("the container has {EXECS_MAX} processes that were not deleted");
            return Err(TaskError::Exhausted(text));
        }
        known.insert(exec.id.clone(), Arc::new(exec));
        Ok(())
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Exec>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Counts one that runs or is about to.
struct Counted(Arc<Container>);

impl Counted {
    fn new(container: &Arc<Container>) -> Self {
        container.execs().running.send_modify(|count| *count = count.saturating_add(1));
        Self(Arc::clone(container))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.execs().running.send_modify(|count| *count = count.saturating_sub(1));
    }
}

/// Adds a process, which does not run yet.
pub(super) fn add(
    events: &Publisher,
    container: &Container,
    request: ExecProcessRequest,
) -> Result<(), TaskError> {
    let id: ContainerId = request
        .exec_id
        .parse()
        .map_err(|error| TaskError::Invalid(format!("the name of a process: {error}")))?;
    let phase = container.snapshot().phase;
    if !matches!(phase, Phase::Created | Phase::Starting | Phase::Running) {
        return Err(TaskError::WrongPhase { verb: "add a process to", phase });
    }
    let made = container.made()?;
    let process = oci_json(request.spec, "Process")?;
    let process = nimbus_hooks::exec(&made.granted.plan, &process, request.terminal)?;
    let uris = Uris { stdin: request.stdin, stdout: request.stdout, stderr: request.stderr };
    uris.targets()?;
    let exec = Exec {
        id: id.to_string(),
        uris,
        process,
        life: Mutex::new(Life { machine: ExecMachine::new(), made: None }),
        exit: Ended::default(),
    };
    container.execs().add(exec)?;
    events.publish(Event::ExecAdded(TaskExecAdded {
        container_id: container.key().id.to_string(),
        exec_id: id.to_string(),
        ..TaskExecAdded::default()
    }));
    Ok(())
}

/// Runs it; answers with its pid.
pub(super) async fn start(
    context: Context,
    container: Arc<Container>,
    exec: Arc<Exec>,
) -> Result<u32, TaskError> {
    let _turn = container.exec_turn().await;
    container.not_ended()?;
    let phase = container.snapshot().phase;
    if phase != Phase::Running {
        return Err(TaskError::WrongPhase { verb: "start a process in", phase });
    }
    exec.step("start", ExecMachine::begin_start)?;
    let counted = Counted::new(&container);
    // From the runtime's answer until it is watched, it must not be taken for an orphan.
    let _birth = context.family.birth();
    let (child, streams) = match run(&context, &container, &exec).await {
        Ok(made) => made,
        Err(refusal) => {
            exec.step("start", ExecMachine::start_failed)?;
            return Err(refusal.into());
        }
    };
    context.family.add(&child);
    exec.life().made = Some((child.clone(), Arc::new(streams)));
    exec.step("start", ExecMachine::started)?;
    let pid = exec.pid();
    context.events.publish(Event::ExecStarted(TaskExecStarted {
        container_id: container.key().id.to_string(),
        exec_id: exec.id.clone(),
        pid,
        ..TaskExecStarted::default()
    }));
    tokio::spawn(watch(context, exec, child, counted));
    Ok(pid)
}

/// Waits for it and tells.
async fn watch(context: Context, exec: Arc<Exec>, child: ChildProcess, counted: Counted) {
    let status = child.wait().await;
    context.family.remove(&child);
    let exit = Exit { status, at: SystemClock.unix_nanos() };
    if let Err(error) = exec.step("end", |machine| machine.exited(exit)) {
        context.warn_chain(&error);
    }
    context.events.publish(Event::Exit(TaskExit {
        container_id: counted.0.key().id.to_string(),
        id: exec.id.clone(),
        pid: u32::try_from(child.pid()).unwrap_or(0),
        exit_status: status,
        exited_at: timestamp(exit.at),
        ..TaskExit::default()
    }));
    exec.exit.tell(exit);
}

async fn run(
    context: &Context,
    container: &Container,
    exec: &Exec,
) -> Result<(ChildProcess, Streams), Refusal> {
    let made = container.made().map_err(|_gone| Refusal::from(RefusalCode::JobCancelled))?;
    let granted = &made.granted;
    let mut fds = vec![granted.filter()?];
    let connecting = stdio::connect(&exec.uris, exec.terminal(), &granted.budget, &context.log);
    let (connecting, ends) = connecting.map_err(|error| Refusal::from(&error))?;
    fds.extend(ends);
    let seccomp = granted.plan.seccomp.clone();
    let request = ExecRequest { process: exec.process.clone(), seccomp };
    let verb = RuntimeVerb::Exec(Box::new(request));
    let answer = tokio::select! {
        answer = context.launcher.call(verb, fds, START_PATIENCE) => answer,
        // Giving the call up kills the runtime, and with it whatever it was about to start.
        reason = container.ended() => return Err(reason),
    };
    let (child, terminal) = executed(context, answer)?;
    let attached = connecting.attach(terminal);
    attached.map(|streams| (child.clone(), streams)).map_err(|error| {
        // Whoever nobody is connected to is not reported as started, and must not run.
        let _gone = child.signal(Signal::KILL);
        context.warn_chain(&error);
        Refusal::from(&error)
    })
}

fn executed(
    context: &Context,
    answer: Result<Answer, CallError>,
) -> Result<(ChildProcess, Option<OwnedFd>), Refusal> {
    match answer {
        Ok(Answer { reply: RuntimeReply::Executed { pid }, terminal }) => {
            let child = ChildProcess::adopt(pid).map_err(|error| {
                context.warn_chain(&error);
                // Its number is its own until it is reaped, which waits for the end of this start.
                if let Some(pid) = Pid::from_raw(pid) {
                    let _gone = kill_process(pid, Signal::KILL);
                }
                Refusal::with(RefusalCode::RuntimeUnproven, Chain(&error))
            })?;
            Ok((child, terminal))
        }
        Ok(Answer { reply: RuntimeReply::Failed { refusal, cause }, .. }) => {
            context.log.info(format_args!("no process: {refusal}: {cause}"));
            Err(refusal)
        }
        Ok(Answer { reply: RuntimeReply::Done | RuntimeReply::Created { .. }, .. }) => {
            Err(Refusal::with(RefusalCode::RuntimeFailed, "answered something else to Exec"))
        }
        Err(error) => {
            context.warn_chain(&error);
            Err((&error).into())
        }
    }
}

/// Forgets it. Can be tried again when its output is not through.
pub(super) async fn delete(
    context: Context,
    container: Arc<Container>,
    exec: Arc<Exec>,
) -> Result<DeleteResponse, TaskError> {
    let phase = exec.phase();
    if matches!(phase, ExecPhase::Starting | ExecPhase::Running) {
        return Err(TaskError::WrongExecPhase { verb: "delete", phase });
    }
    if let Some(streams) = exec.streams()
        && !streams.drain().await
    {
        context.log.warn("output of a process did not end in time; what was left is lost");
    }
    let pid = exec.pid();
    exec.step("delete", ExecMachine::delete)?;
    // It may never have run.
    exec.exit.tell_unknown();
    container.execs().known().remove(exec.id());
    let exit = exec.exit();
    Ok(DeleteResponse {
        pid,
        exit_status: exit.map_or(0, |exit| exit.status),
        exited_at: exit.map(|exit| timestamp(exit.at)).unwrap_or_default(),
        ..DeleteResponse::default()
    })
}

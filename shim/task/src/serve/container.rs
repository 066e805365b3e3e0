//! One container: its state, what the runtime made of it, and the end that may be put to it.
//!
//! The state is behind a lock that is held for a few instructions and never across an await, so
//! State, Pids and Wait answer while Create or Delete are under way. Create, Start and Delete of one
//! container wait for each other by [`Container::turn`], processes that are added to it for all of
//! these.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use containerd_shim_protos::events::task::{
    TaskCreate, TaskDelete, TaskExit, TaskIO, TaskOOM, TaskPaused, TaskResumed, TaskStart,
};
use containerd_shim_protos::protobuf::MessageField;
use nimbus_api::clock::SystemClock;
use nimbus_api::id::ContainerKey;
use nimbus_api::plan::Plan;
use nimbus_api::{Refusal, RefusalCode};
use rustix::process::Signal;
use tokio::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard, watch};

use super::events::{Event, Publisher};
use super::exec::Execs;
use super::exit::Ended;
use super::session::Session;
use super::timestamp;
use crate::cgroup::Cgroup;
use crate::process::ChildProcess;
use crate::state::{Announce, Denied, Exit, Machine, Phase};
use crate::status::TaskError;
use crate::stdio::{self, SharedBudget, Streams, Uris};

/// How the client described the container.
#[derive(Debug, Clone)]
pub(super) struct Description {
    /// Which.
    pub key: ContainerKey,
    /// Its bundle, as the client spelled it.
    pub bundle: String,
    /// Its streams.
    pub uris: Uris,
    /// Whether a terminal was asked for.
    pub terminal: bool,
}

/// What the runtime made.
#[derive(Debug, Clone)]
pub(super) struct Made {
    /// The init process, our child.
    pub init: ChildProcess,
    /// Its cgroup.
    pub cgroup: Cgroup,
    /// The copies of its streams.
    pub streams: Arc<Streams>,
    /// The agent.
    pub session: Session,
    /// By what everything later in its life is judged.
    pub granted: Arc<Granted>,
}

/// What was granted at Create and holds for as long as the container is there.
#[derive(Debug)]
pub(super) struct Granted {
    /// The plan.
    pub plan: Plan,
    /// The filter that it names.
    filter: OwnedFd,
    /// How much of the output may still be kept.
    pub budget: SharedBudget,
}

impl Granted {
    /// From a plan and the descriptors that came with it, the filter first.
    pub(super) fn new(plan: &Plan, fds: &[OwnedFd]) -> Result<Self, Refusal> {
        let filter = fds.first().ok_or_else(|| Refusal::from(RefusalCode::RuntimeUnproven))?;
        let (filter, budget) = (copy(filter)?, stdio::budget(plan.resources.log_bytes));
        Ok(Self { plan: plan.clone(), filter, budget })
    }

    /// The filter once more, to be handed over.
    pub(super) fn filter(&self) -> Result<OwnedFd, Refusal> {
        copy(&self.filter)
    }
}

fn copy(fd: &OwnedFd) -> Result<OwnedFd, Refusal> {
    fd.try_clone().map_err(|error| {
        Refusal::with(RefusalCode::RuntimeFailed, format_args!("no descriptor: {error}"))
    })
}

/// One container.
#[derive(Debug)]
pub(super) struct Container {
    description: Description,
    life: Mutex<Life>,
    exit: Ended,
    end: watch::Sender<Option<Refusal>>,
    turn: RwLock<()>,
    execs: Execs,
}

#[derive(Debug)]
struct Life {
    machine: Machine,
    made: Option<Made>,
    /// Processes killed for want of memory, of which containerd has been told.
    oom_kills: u64,
    /// Whether SIGKILL was sent to it.
    killed: bool,
}

/// A view of one moment.
#[derive(Debug, Clone)]
pub(super) struct Snapshot {
    /// Where it stands.
    pub phase: Phase,
    /// How it ended.
    pub exit: Option<Exit>,
    /// What the runtime made, until it is deleted.
    pub made: Option<Made>,
    /// Whether the kernel killed for want of memory.
    pub oom_killed: bool,
}

impl Container {
    /// A container that is about to be made.
    pub(super) fn new(description: Description) -> Self {
        Self {
            description,
            life: Mutex::new(Life {
                machine: Machine::new(),
                made: None,
                oom_kills: 0,
                killed: false,
            }),
            exit: Ended::default(),
            end: watch::Sender::new(None),
            turn: RwLock::new(()),
            execs: Execs::default(),
        }
    }

    /// Which.
    pub(super) const fn key(&self) -> &ContainerKey {
        &self.description.key
    }

    /// How the client described it.
    pub(super) const fn description(&self) -> &Description {
        &self.description
    }

    /// Its init's pid, zero while there is none.
    pub(super) fn pid(&self) -> u32 {
        let made = self.life().made.as_ref().map(|made| made.init.pid());
        made.and_then(|pid| u32::try_from(pid).ok()).unwrap_or(0)
    }

    /// How it stands now.
    pub(super) fn snapshot(&self) -> Snapshot {
        let life = self.life();
        Snapshot {
            phase: life.machine.phase(),
            exit: life.machine.exit(),
            made: life.made.clone(),
            oom_killed: life.oom_kills > 0,
        }
    }

    /// What the runtime made, or why it cannot be used.
    pub(super) fn made(&self) -> Result<Made, TaskError> {
        let snapshot = self.snapshot();
        snapshot.made.ok_or(match snapshot.phase {
            Phase::Creating => TaskError::WrongPhase { verb: "use", phase: Phase::Creating },
            Phase::Created
            | Phase::Starting
            | Phase::Running
            | Phase::Pausing
            | Phase::Paused
            | Phase::Stopped
            | Phase::Deleting
            | Phase::Deleted => self.not_found(),
        })
    }

    /// That it is not there.
    pub(super) fn not_found(&self) -> TaskError {
        TaskError::NotFound(format!("container {}", self.key().id))
    }

    /// Create, Start, Pause, Resume and Delete come one after the other.
    pub(super) async fn turn(&self) -> RwLockWriteGuard<'_, ()> {
        self.turn.write().await
    }

    /// Processes come beside each other, and beside none of those.
    pub(super) async fn exec_turn(&self) -> RwLockReadGuard<'_, ()> {
        self.turn.read().await
    }

    /// The processes that were added to it.
    pub(super) const fn execs(&self) -> &Execs {
        &self.execs
    }

    /// Takes a step of its life and announces what it brings. `verb` is for the answer when it
    /// cannot be taken.
    pub(super) fn step(
        &self,
        verb: &'static str,
        events: &Publisher,
        step: impl FnOnce(&mut Machine) -> Result<&'static [Announce], Denied>,
    ) -> Result<(), TaskError> {
        let announcements = step(&mut self.life().machine).map_err(|Denied(phase)| {
            if phase == Phase::Deleted {
                return self.not_found();
            }
            TaskError::WrongPhase { verb, phase }
        })?;
        for announcement in announcements {
            self.announce(*announcement, events);
        }
        if self.snapshot().phase == Phase::Deleted {
            self.life().made = None;
            self.execs.forget();
            // It may never have been made.
            self.exit.tell_unknown();
        }
        Ok(())
    }

    /// The runtime has made it.
    pub(super) fn set_made(&self, made: Made) {
        self.life().made = Some(made);
    }

    /// Its init has ended: what the kernel knows of it is read before anybody is told.
    pub(super) fn exited(&self, status: u32, events: &Publisher) -> Result<(), TaskError> {
        self.tell_ooms(events);
        let exit = Exit { status, at: SystemClock.unix_nanos() };
        self.step("end", events, |machine| machine.exited(exit))
    }

    /// Tells that processes were killed for want of memory since that was told last; whether it did.
    pub(super) fn tell_ooms(&self, events: &Publisher) -> bool {
        let Some(made) = self.snapshot().made else { return false };
        let kills = made.cgroup.oom_kills();
        {
            let mut life = self.life();
            if kills <= life.oom_kills {
                return false;
            }
            life.oom_kills = kills;
        }
        let container_id = self.key().id.to_string();
        events.publish(Event::Oom(TaskOOM { container_id, ..TaskOOM::default() }));
        true
    }

    /// Waits until its init has ended.
    pub(super) async fn wait(&self) -> Option<Exit> {
        self.exit.wait().await
    }

    /// Puts an end to it, now; the first reason is the one that is told. What has ended by itself is
    /// not ended again: a deadline that passes before Delete comes changes nothing.
    pub(super) fn end(&self, reason: Refusal) {
        if self.exit.is_told() || self.life().machine.has_ended() {
            return;
        }
        self.end.send_if_modified(|end| {
            let fresh = end.is_none();
            end.get_or_insert(reason);
            fresh
        });
        if let Some(made) = self.snapshot().made {
            kill(&made);
        }
    }

    /// SIGKILL is being sent to it.
    pub(super) fn note_kill(&self) {
        self.life().killed = true;
    }

    /// Whether SIGKILL was sent to it.
    pub(super) fn is_killed(&self) -> bool {
        self.life().killed
    }

    /// That no end was put to it.
    pub(super) fn not_ended(&self) -> Result<(), TaskError> {
        self.end_reason().map_or(Ok(()), |reason| Err(reason.into()))
    }

    /// Why an end was put to it.
    pub(super) fn end_reason(&self) -> Option<Refusal> {
        self.end.borrow().clone()
    }

    /// Waits until an end is put to it.
    pub(super) async fn ended(&self) -> Refusal {
        let mut end = self.end.subscribe();
        loop {
            if let Some(reason) = end.borrow_and_update().clone() {
                return reason;
            }
            if end.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }

    fn life(&self) -> MutexGuard<'_, Life> {
        self.life.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn announce(&self, announcement: Announce, events: &Publisher) {
        let container_id = self.key().id.to_string();
        let pid = self.pid();
        let snapshot = self.snapshot();
        let exit = snapshot.exit.unwrap_or(Exit { status: 0, at: SystemClock.unix_nanos() });
        let event = match announcement {
            Announce::Create => Event::Create(self.create_event(container_id, pid)),
            Announce::Start => {
                Event::Start(TaskStart { container_id, pid, ..TaskStart::default() })
            }
            Announce::Paused => Event::Paused(TaskPaused { container_id, ..TaskPaused::default() }),
            Announce::Resumed => {
                Event::Resumed(TaskResumed { container_id, ..TaskResumed::default() })
            }
            Announce::Exit => {
                self.exit.tell(exit);
                Event::Exit(TaskExit {
                    id: container_id.clone(),
                    container_id,
                    pid,
                    exit_status: exit.status,
                    exited_at: timestamp(exit.at),
                    ..TaskExit::default()
                })
            }
            Announce::Delete => Event::Delete(TaskDelete {
                container_id,
                pid,
                exit_status: exit.status,
                exited_at: timestamp(exit.at),
                ..TaskDelete::default()
            }),
        };
        events.publish(event);
    }

    fn create_event(&self, container_id: String, pid: u32) -> TaskCreate {
        let Description { bundle, uris, terminal, .. } = &self.description;
        TaskCreate {
            container_id,
            bundle: bundle.clone(),
            io: MessageField::some(TaskIO {
                stdin: uris.stdin.clone(),
                stdout: uris.stdout.clone(),
                stderr: uris.stderr.clone(),
                terminal: *terminal,
                ..TaskIO::default()
            }),
            pid,
            ..TaskCreate::default()
        }
    }
}

/// Kills all of it: the init first, with which the kernel ends its whole pid namespace, then
/// whoever else is in the cgroup, until nobody is.
pub(super) fn kill(made: &Made) {
    let _gone = made.init.signal(Signal::KILL);
    if made.cgroup.kill_once() {
        let cgroup = made.cgroup.clone();
        tokio::spawn(async move { cgroup.kill_all().await });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::Log;

    #[test]
    fn what_has_ended_by_itself_is_not_ended_again_although_nobody_was_told_yet() {
        let dir = tempfile::tempdir().unwrap();
        let log = Log::open(dir.path(), "c", false);
        let events = Publisher::spawn(None, "n".to_owned(), 1, log);
        let container = Container::new(Description {
            key: ContainerKey { namespace: "n".parse().unwrap(), id: "c".parse().unwrap() },
            bundle: "/b".to_owned(),
            uris: Uris::default(),
            terminal: false,
        });
        container.step("create", &events, Machine::created).unwrap();
        container.step("start", &events, Machine::begin_start).unwrap();
        container.exited(0, &events).unwrap();
        assert_eq!(container.snapshot().phase, Phase::Starting, "its exit is held back");
        container.end(RefusalCode::LeaseEnded.into());
        assert_eq!(container.end_reason(), None);
    }
}

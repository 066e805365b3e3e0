//! The life of one container as a state machine. Pure: it takes what happened and says what is to
//! be announced.
//!
//! ```text
//! Creating -> Created -> Starting -> Running -> Stopped -> Deleting -> Deleted
//!     |          |          |         ^ |         ^ |          |
//!     |          +----------|---------|-|- ended -+ +<- failed-+
//!     +-> Deleted           |         | v
//!                           |     Pausing, Paused
//!                           +-> Created (failed)
//! ```
//!
//! Announcements always come in the order create, start, exit, delete, each at most once, with paused
//! and resumed by turns between start and exit: an exit that is noticed while Start, Pause or Resume is
//! under way is held back until that is done.

use std::fmt;

use nimbus_api::clock::UnixNanos;

/// Where a container stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Being admitted and made.
    Creating,
    /// Its init waits for Start.
    Created,
    /// Start is under way.
    Starting,
    /// Its program runs.
    Running,
    /// Being frozen, or thawed.
    Pausing,
    /// Frozen.
    Paused,
    /// Its init has ended.
    Stopped,
    /// Being cleaned up.
    Deleting,
    /// Gone.
    Deleted,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Creating => "being created",
            Self::Created => "created",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Pausing => "being paused or resumed",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
            Self::Deleting => "being deleted",
            Self::Deleted => "deleted",
        })
    }
}

/// How an init ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Exit {
    /// Exit code, or 128 + signal.
    pub status: u32,
    /// When it was noticed.
    pub at: UnixNanos,
}

/// What containerd is to be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Announce {
    /// `/tasks/create`.
    Create,
    /// `/tasks/start`.
    Start,
    /// `/tasks/paused`.
    Paused,
    /// `/tasks/resumed`.
    Resumed,
    /// `/tasks/exit`, after `/tasks/oom` if there was one.
    Exit,
    /// `/tasks/delete`.
    Delete,
}

/// Not possible in this phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Denied(pub Phase);

/// One container's life.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Machine {
    phase: Phase,
    exit: Option<Exit>,
}

type Step = Result<&'static [Announce], Denied>;

impl Machine {
    /// A container that is being made.
    pub(crate) const fn new() -> Self {
        Self { phase: Phase::Creating, exit: None }
    }

    /// Where it stands.
    pub(crate) const fn phase(&self) -> Phase {
        self.phase
    }

    /// How its init ended, once that is announced.
    pub(crate) const fn exit(&self) -> Option<Exit> {
        match self.phase {
            Phase::Stopped | Phase::Deleting | Phase::Deleted => self.exit,
            Phase::Creating
            | Phase::Created
            | Phase::Starting
            | Phase::Running
            | Phase::Pausing
            | Phase::Paused => None,
        }
    }

    /// Whether its init has ended, announced or not.
    pub(crate) const fn has_ended(&self) -> bool {
        self.exit.is_some()
    }

    /// It has been made.
    pub(crate) fn created(&mut self) -> Step {
        self.step(Phase::Creating, Phase::Created, &[Announce::Create])
    }

    /// It has not been made and nothing is left of it.
    pub(crate) fn create_failed(&mut self) -> Step {
        self.step(Phase::Creating, Phase::Deleted, &[])
    }

    /// Start begins.
    pub(crate) fn begin_start(&mut self) -> Step {
        self.step(Phase::Created, Phase::Starting, &[])
    }

    /// Start has been done.
    pub(crate) fn started(&mut self) -> Step {
        if self.exit.is_some() {
            return self.step(Phase::Starting, Phase::Stopped, &[Announce::Start, Announce::Exit]);
        }
        self.step(Phase::Starting, Phase::Running, &[Announce::Start])
    }

    /// Start has not been done.
    pub(crate) fn start_failed(&mut self) -> Step {
        if self.exit.is_some() {
            return self.step(Phase::Starting, Phase::Stopped, &[Announce::Exit]);
        }
        self.step(Phase::Starting, Phase::Created, &[])
    }

    /// Freezing begins.
    pub(crate) fn begin_pause(&mut self) -> Step {
        self.step(Phase::Running, Phase::Pausing, &[])
    }

    /// It is frozen.
    pub(crate) fn paused(&mut self) -> Step {
        self.end_pause(Phase::Paused, &[Announce::Paused], &[Announce::Exit])
    }

    /// It is not frozen, but runs.
    pub(crate) fn pause_failed(&mut self) -> Step {
        self.end_pause(Phase::Running, &[], &[Announce::Exit])
    }

    /// Thawing begins.
    pub(crate) fn begin_resume(&mut self) -> Step {
        self.step(Phase::Paused, Phase::Pausing, &[])
    }

    /// It runs again.
    pub(crate) fn resumed(&mut self) -> Step {
        let both = &[Announce::Resumed, Announce::Exit];
        self.end_pause(Phase::Running, &[Announce::Resumed], both)
    }

    /// It is frozen still.
    pub(crate) fn resume_failed(&mut self) -> Step {
        self.end_pause(Phase::Paused, &[], &[Announce::Exit])
    }

    /// Its init has ended.
    pub(crate) fn exited(&mut self, exit: Exit) -> Step {
        match self.phase {
            Phase::Starting | Phase::Pausing if self.exit.is_none() => {
                self.exit = Some(exit);
                Ok(&[])
            }
            Phase::Created | Phase::Running | Phase::Paused => {
                self.exit = Some(exit);
                self.phase = Phase::Stopped;
                Ok(&[Announce::Exit])
            }
            Phase::Creating
            | Phase::Starting
            | Phase::Pausing
            | Phase::Stopped
            | Phase::Deleting
            | Phase::Deleted => Err(Denied(self.phase)),
        }
    }

    /// Cleaning up begins.
    pub(crate) fn begin_delete(&mut self) -> Step {
        self.step(Phase::Stopped, Phase::Deleting, &[])
    }

    /// It has been cleaned up.
    pub(crate) fn deleted(&mut self) -> Step {
        self.step(Phase::Deleting, Phase::Deleted, &[Announce::Delete])
    }

    /// It could not be cleaned up; it may be tried again.
    pub(crate) fn delete_failed(&mut self) -> Step {
        self.step(Phase::Deleting, Phase::Stopped, &[])
    }

    /// Freezing or thawing is over; `ended` is announced when the init has ended meanwhile.
    fn end_pause(
        &mut self,
        to: Phase,
        announce: &'static [Announce],
        ended: &'static [Announce],
    ) -> Step {
        if self.exit.is_some() {
            return self.step(Phase::Pausing, Phase::Stopped, ended);
        }
        self.step(Phase::Pausing, to, announce)
    }

    fn step(&mut self, from: Phase, to: Phase, announce: &'static [Announce]) -> Step {
        if self.phase != from {
            return Err(Denied(self.phase));
        }
        self.phase = to;
        Ok(announce)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const EXIT: Exit = Exit { status: 137, at: UnixNanos(1) };

    fn steps() -> [fn(&mut Machine) -> Step; 15] {
        [
            Machine::begin_pause,
            Machine::paused,
            Machine::pause_failed,
            Machine::begin_resume,
            Machine::resumed,
            Machine::resume_failed,
            Machine::created,
            Machine::create_failed,
            Machine::begin_start,
            Machine::started,
            Machine::start_failed,
            |machine| machine.exited(EXIT),
            Machine::begin_delete,
            Machine::deleted,
            Machine::delete_failed,
        ]
    }

    proptest! {
        #[test]
        fn announcements_come_in_order_and_once(choices in prop::collection::vec(0_usize..15, 0..80)) {
            let mut machine = Machine::new();
            let mut said = Vec::new();
            for choice in choices {
                let before = machine.phase();
                match steps()[choice](&mut machine) {
                    Ok(announced) => said.extend_from_slice(announced),
                    Err(Denied(phase)) => {
                        prop_assert_eq!(phase, before);
                        prop_assert_eq!(machine.phase(), before);
                    }
                }
            }
            let order = |announce: &Announce| match announce {
                Announce::Create => 0,
                Announce::Start => 1,
                Announce::Paused | Announce::Resumed => 2,
                Announce::Exit => 3,
                Announce::Delete => 4,
            };
            let in_order = |pair: &[Announce]| {
                let (first, second) = (order(&pair[0]), order(&pair[1]));
                first < second || first == 2 && second == 2
            };
            prop_assert!(said.windows(2).all(in_order), "{:?}", said);
            prop_assert_eq!(machine.exit().is_some(), said.contains(&Announce::Exit));
        }
    }

    #[test]
    fn an_exit_during_start_is_announced_after_the_start() {
        let mut machine = Machine::new();
        machine.created().unwrap();
        machine.begin_start().unwrap();
        assert_eq!(machine.exited(EXIT), Ok(&[][..]));
        assert_eq!(machine.exit(), None);
        assert_eq!(machine.started(), Ok(&[Announce::Start, Announce::Exit][..]));
        assert_eq!(machine.exit(), Some(EXIT));
    }

    #[test]
    fn an_exit_during_pause_or_resume_is_announced_after_it() {
        let mut resuming = Machine::new();
        for step in [Machine::created, Machine::begin_start, Machine::started] {
            step(&mut resuming).unwrap();
        }
        resuming.begin_pause().unwrap();
        let mut pausing = resuming;
        resuming.paused().unwrap();
        resuming.begin_resume().unwrap();
        for machine in [&mut pausing, &mut resuming] {
            assert_eq!(machine.exited(EXIT), Ok(&[][..]));
            assert_eq!(machine.exit(), None);
        }
        assert_eq!(
            pausing.paused(),
            Ok(&[Announce::Exit][..]),
            "what has ended does not stand still"
        );
        assert_eq!(resuming.resumed(), Ok(&[Announce::Resumed, Announce::Exit][..]));
    }

    #[test]
    fn a_failed_delete_can_be_tried_again_and_a_running_container_is_not_deleted() {
        let mut machine = Machine::new();
        machine.created().unwrap();
        machine.begin_start().unwrap();
        machine.started().unwrap();
        assert_eq!(machine.begin_delete(), Err(Denied(Phase::Running)));
        machine.exited(EXIT).unwrap();
        machine.begin_delete().unwrap();
        machine.delete_failed().unwrap();
        machine.begin_delete().unwrap();
        assert_eq!(machine.deleted(), Ok(&[Announce::Delete][..]));
    }
}

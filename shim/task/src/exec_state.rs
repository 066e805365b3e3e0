//! The life of one process that was added to a container, as a state machine. Pure.
//!
//! ```text
//! Added <-> Starting -> Running -> Stopped -> Deleted
//!   |                                           ^
//!   +-------------------------------------------+
//! ```
//!
//! Announcements come in the order exec-added, exec-started, exit, each at most once. That it was added
//! is announced by whoever makes the machine.

use std::fmt;

use crate::state::Exit;

/// Where a process stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ExecPhase {
    /// Known, and not yet there.
    Added,
    /// Start is under way.
    Starting,
    /// It runs.
    Running,
    /// It has ended.
    Stopped,
    /// Forgotten.
    Deleted,
}

impl fmt::Display for ExecPhase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Added => "not started",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Stopped => "stopped",
            Self::Deleted => "deleted",
        })
    }
}

/// Not possible in this phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ExecDenied(pub ExecPhase);

type Step = Result<(), ExecDenied>;

/// One process's life.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ExecMachine {
    phase: ExecPhase,
    exit: Option<Exit>,
}

impl ExecMachine {
    /// A process that has been added.
    pub(crate) const fn new() -> Self {
        Self { phase: ExecPhase::Added, exit: None }
    }

    /// Where it stands.
    pub(crate) const fn phase(&self) -> ExecPhase {
        self.phase
    }

    /// How it ended.
    pub(crate) const fn exit(&self) -> Option<Exit> {
        self.exit
    }

    /// Start begins.
    pub(crate) fn begin_start(&mut self) -> Step {
        self.step(&[ExecPhase::Added], ExecPhase::Starting)
    }

    /// It has not been started, and can be once more.
    pub(crate) fn start_failed(&mut self) -> Step {
        self.step(&[ExecPhase::Starting], ExecPhase::Added)
    }

    /// It runs.
    pub(crate) fn started(&mut self) -> Step {
        self.step(&[ExecPhase::Starting], ExecPhase::Running)
    }

    /// It has ended.
    pub(crate) fn exited(&mut self, exit: Exit) -> Step {
        self.step(&[ExecPhase::Running], ExecPhase::Stopped)?;
        self.exit = Some(exit);
        Ok(())
    }

    /// It is forgotten.
    pub(crate) fn delete(&mut self) -> Step {
        self.step(&[ExecPhase::Added, ExecPhase::Stopped], ExecPhase::Deleted)
    }

    fn step(&mut self, from: &[ExecPhase], to: ExecPhase) -> Step {
        if !from.contains(&self.phase) {
            return Err(ExecDenied(self.phase));
        }
        self.phase = to;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nimbus_api::clock::UnixNanos;
    use proptest::prelude::*;

    const EXIT: Exit = Exit { status: 1, at: UnixNanos(1) };

    proptest! {
        #[test]
        fn it_runs_once_ends_once_and_is_never_deleted_while_it_may_run(
            choices in prop::collection::vec(0_usize..5, 0..60),
        ) {
            let steps: [fn(&mut ExecMachine) -> Step; 5] = [
                ExecMachine::begin_start,
                ExecMachine::start_failed,
                ExecMachine::started,
                |machine| machine.exited(EXIT),
                ExecMachine::delete,
            ];
            let mut machine = ExecMachine::new();
            let (mut started, mut ended) = (0, 0);
            for choice in choices {
                let before = machine.phase();
                if steps[choice](&mut machine).is_err() {
                    prop_assert_eq!(machine.phase(), before);
                    continue;
                }
                started += usize::from(machine.phase() == ExecPhase::Running);
                ended += usize::from(machine.phase() == ExecPhase::Stopped);
                if machine.phase() == ExecPhase::Deleted {
                    prop_assert_eq!(started, ended);
                }
                prop_assert!(started <= 1 && ended <= started);
                prop_assert_eq!(machine.exit().is_some(), ended == 1);
            }
        }
    }
}

//! Pause and Resume: the runtime freezes and thaws, the rest of the service goes on meanwhile.
//!
//! A container that stands still can be killed, by a client, its deadline or a revocation: killing
//! thaws where the kernel needs that.

use std::sync::Arc;
use std::time::Duration;

use nimbus_api::Refusal;
use nimbus_api::runtime::RuntimeVerb;

use super::Context;
use super::container::{Container, kill};
use crate::state::{Announce, Denied, Machine, Phase};
use crate::status::TaskError;

/// The longest that freezing or thawing may take.
const PAUSE_PATIENCE: Duration = Duration::from_secs(10);

/// Lets everything in it stand still.
pub(super) async fn pause(context: Context, container: Arc<Container>) -> Result<(), TaskError> {
    let _turn = container.turn().await;
    container.not_ended()?;
    if container.is_killed() {
        // What is frozen with its death before it does not die.
        return Err(TaskError::WrongPhase { verb: "pause", phase: Phase::Stopped });
    }
    container.step("pause", &context.events, Machine::begin_pause)?;
    let frozen = context.launcher.done(RuntimeVerb::Pause, PAUSE_PATIENCE).await;
    let refused = match frozen {
        Ok(()) => return end(&context, &container, Ok(()), Machine::paused),
        Err(refused) => refused,
    };
    // It may stand still all the same, when only the word of it was lost. Where it cannot be thawed it
    // counts as paused, so that Resume can be tried again.
    let thawed = context.launcher.done(RuntimeVerb::Resume, PAUSE_PATIENCE).await;
    let step = if thawed.is_ok() { Machine::pause_failed } else { Machine::paused };
    end(&context, &container, Err(refused), step)
}

/// Lets it go on.
pub(super) async fn resume(context: Context, container: Arc<Container>) -> Result<(), TaskError> {
    let _turn = container.turn().await;
    container.step("resume", &context.events, Machine::begin_resume)?;
    let thawed = context.launcher.done(RuntimeVerb::Resume, PAUSE_PATIENCE).await;
    let step = if thawed.is_ok() { Machine::resumed } else { Machine::resume_failed };
    end(&context, &container, thawed, step)
}

type Transition = fn(&mut Machine) -> Result<&'static [Announce], Denied>;

/// Takes the step that goes with the outcome.
fn end(
    context: &Context,
    container: &Container,
    outcome: Result<(), Refusal>,
    step: Transition,
) -> Result<(), TaskError> {
    container.step("pause or resume", &context.events, step)?;
    // An end or a kill that came before the freezer was written to: what is frozen would outlast it.
    if let Ok(made) = container.made() {
        if container.end_reason().is_some() {
            kill(&made);
        } else if container.is_killed() {
            made.cgroup.thaw();
        }
    }
    Ok(outcome?)
}

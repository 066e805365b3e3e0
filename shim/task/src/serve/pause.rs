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
use crate::state::{Announce, Denied, Machine};
use crate::status::TaskError;

/// The longest that freezing or thawing may take.
const PAUSE_PATIENCE: Duration = Duration::from_secs(10);

/// Lets everything in it stand still.
pub(super) async fn pause(context: Context, container: Arc<Container>) -> Result<(), TaskError> {
    let _turn = container.turn().await;
    let events = &context.events;
    container.step("pause", events, Machine::begin_pause)?;
    let frozen = context.launcher.done(RuntimeVerb::Pause, PAUSE_PATIENCE).await;
    end(&context, &container, frozen, (Machine::paused, Machine::pause_failed))
}

/// Lets it go on.
pub(super) async fn resume(context: Context, container: Arc<Container>) -> Result<(), TaskError> {
    let _turn = container.turn().await;
    let events = &context.events;
    container.step("resume", events, Machine::begin_resume)?;
    let thawed = context.launcher.done(RuntimeVerb::Resume, PAUSE_PATIENCE).await;
    end(&context, &container, thawed, (Machine::resumed, Machine::resume_failed))
}

type Transition = fn(&mut Machine) -> Result<&'static [Announce], Denied>;

/// Takes the step that goes with the outcome.
fn end(
    context: &Context,
    container: &Container,
    outcome: Result<(), Refusal>,
    (done, failed): (Transition, Transition),
) -> Result<(), TaskError> {
    let step = if outcome.is_ok() { done } else { failed };
    container.step("pause or resume", &context.events, step)?;
    if let (Some(_), Ok(made)) = (container.end_reason(), container.made()) {
        // The end came before the freezer was written to: what is frozen would outlast it.
        kill(&made);
    }
    Ok(outcome?)
}

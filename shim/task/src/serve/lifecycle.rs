//! Start, Kill and Delete of a container that has been made.

use std::sync::Arc;
use std::time::Duration;

use containerd_shim_protos::api::DeleteResponse;
use nimbus_api::RefusalCode;
use nimbus_api::runtime::RuntimeVerb;
use rustix::process::Signal;
use rustix_libc_wrappers::process::SignalExt as _;

use super::Context;
use super::container::{Container, kill as kill_made};
use super::session::released;
use super::timestamp;
use crate::state::{Machine, Phase};
use crate::status::TaskError;

/// The longest that starting may take.
const START_PATIENCE: Duration = Duration::from_secs(30);
/// The longest that cleaning up may take.
pub(super) const DELETE_PATIENCE: Duration = Duration::from_secs(30);
/// How long a killed init may take to end before Delete gives up, to be tried again.
const KILL_PATIENCE: Duration = Duration::from_secs(10);

/// Runs its program; answers with its pid.
pub(super) async fn start(context: Context, container: Arc<Container>) -> Result<u32, TaskError> {
    let _turn = container.turn().await;
    container.not_ended()?;
    let events = &context.events;
    container.step("start", events, Machine::begin_start)?;
    let pid = container.pid();
    if let Err(refusal) = context.launcher.done(RuntimeVerb::Start, START_PATIENCE).await {
        // The program may be running all the same, when only the word of it was lost: what was not
        // reported as started must not run.
        if let Ok(made) = container.made() {
            kill_made(&made);
        }
        container.step("start", events, Machine::start_failed)?;
        return Err(refusal.into());
    }
    container.step("start", events, Machine::started)?;
    if let Ok(made) = container.made() {
        made.session.started(pid).await;
    }
    Ok(pid)
}

/// The signal of this number.
pub(super) fn signal(number: u32) -> Result<Signal, TaskError> {
    let signal = i32::try_from(number).ok().and_then(Signal::from_raw);
    signal.ok_or_else(|| TaskError::Invalid(format!("unknown signal {number}")))
}

/// Signals the init, or everybody.
pub(super) fn kill(container: &Container, signal: Signal, all: bool) -> Result<(), TaskError> {
    let snapshot = container.snapshot();
    match (snapshot.phase, snapshot.made) {
        (Phase::Creating, _) if signal == Signal::KILL => {
            container.end(RefusalCode::JobCancelled.into());
            Ok(())
        }
        (phase @ Phase::Creating, _) => Err(TaskError::WrongPhase { verb: "signal", phase }),
        (Phase::Deleting | Phase::Deleted, _) | (_, None) => Err(container.not_found()),
        (_, Some(made)) => {
            if signal == Signal::KILL {
                container.note_kill();
            }
            if all {
                made.cgroup.signal(signal);
            } else {
                made.init.signal(signal).map_err(|_ended| {
                    TaskError::NotFound(format!("process {} has ended: process", made.init.pid()))
                })?;
            }
            if signal == Signal::KILL {
                made.cgroup.thaw();
            }
            Ok(())
        }
    }
}

/// Cleans up after it. Can be tried again when it fails.
pub(super) async fn delete(
    context: Context,
    container: Arc<Container>,
) -> Result<DeleteResponse, TaskError> {
    if container.snapshot().phase == Phase::Creating {
        container.end(RefusalCode::JobCancelled.into());
    }
    let _turn = container.turn().await;
    let events = &context.events;
    if container.snapshot().phase == Phase::Created {
        kill_made(&container.made()?);
        // When it does not end in time the next line says so.
        let _late = tokio::time::timeout(KILL_PATIENCE, container.wait()).await;
    }
    container.step("delete", events, Machine::begin_delete)?;
    let snapshot = container.snapshot();
    let Some(made) = snapshot.made else { return Err(container.not_found()) };
    if !made.streams.drain().await {
        context.log.warn("output did not end in time; what was left is lost");
    }
    if let Err(refusal) = context.launcher.done(RuntimeVerb::Delete, DELETE_PATIENCE).await {
        container.step("delete", events, Machine::delete_failed)?;
        return Err(refusal.into());
    }
    let status = snapshot.exit.map_or(crate::process::STATUS_UNKNOWN, |exit| exit.status);
    let reason = container.end_reason().map(|reason| reason.code);
    made.session.released(released(status, snapshot.oom_killed, reason)).await;
    let response = DeleteResponse {
        pid: container.pid(),
        exit_status: status,
        exited_at: snapshot.exit.map(|exit| timestamp(exit.at)).unwrap_or_default(),
        ..DeleteResponse::default()
    };
    container.step("delete", events, Machine::deleted)?;
    Ok(response)
}

//! Update: other limits for a container, judged by its plan (rule 2) and set by the runtime.

use std::sync::Arc;
use std::time::Duration;

use containerd_shim_protos::api::UpdateTaskRequest;
use nimbus_api::runtime::{RuntimeVerb, UpdateRequest};

use super::container::Container;
use super::{Context, oci_json};
use crate::state::Phase;
use crate::status::TaskError;

/// The longest that setting limits may take: the kernel may have to reclaim memory first.
const UPDATE_PATIENCE: Duration = Duration::from_secs(20);

/// Sets what the request asks for. What the kernel does not take is told; limits before it are set.
pub(super) async fn update(
    context: Context,
    container: Arc<Container>,
    request: UpdateTaskRequest,
) -> Result<(), TaskError> {
    let _turn = container.turn().await;
    container.not_ended()?;
    let phase = container.snapshot().phase;
    if !matches!(phase, Phase::Created | Phase::Running | Phase::Paused) {
        return Err(TaskError::WrongPhase { verb: "update", phase });
    }
    let given = oci_json(request.resources, "LinuxResources")?;
    let plan = &container.made()?.granted.plan;
    let resources = nimbus_hooks::update(plan, &given)?;
    let request = UpdateRequest { resources, leased: plan.resources };
    let verb = RuntimeVerb::Update(Box::new(request));
    Ok(context.launcher.done(verb, UPDATE_PATIENCE).await?)
}

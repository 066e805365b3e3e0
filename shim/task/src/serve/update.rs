//! Update: other limits for a container, judged by its plan (rule 2) and set by the runtime.

use std::sync::Arc;
use std::time::Duration;

use containerd_shim_protos::api::UpdateTaskRequest;
use nimbus_api::runtime::{RuntimeVerb, UpdateRequest};

use super::Context;
use super::container::Container;
use crate::state::Phase;
use crate::status::TaskError;

/// The longest that setting limits may take: the kernel may have to reclaim memory first.
const UPDATE_PATIENCE: Duration = Duration::from_secs(20);
/// How the type of OCI resources ends, whatever stands before it.
const RESOURCES_TYPE: &str = "/LinuxResources";

/// Sets what the request asks for. What the kernel does not take is told; limits before it are set.
pub(super) async fn update(
    context: Context,
    container: Arc<Container>,
    request: UpdateTaskRequest,
) -> Result<(), TaskError> {
    let _turn = container.turn().await;
    if let Some(reason) = container.end_reason() {
        return Err(reason.into());
    }
    let phase = container.snapshot().phase;
    if !matches!(phase, Phase::Created | Phase::Running | Phase::Paused) {
        return Err(TaskError::WrongPhase { verb: "update", phase });
    }
    let given = request.resources.into_option().unwrap_or_default();
    if !given.type_url.ends_with(RESOURCES_TYPE) {
        let found = given.type_url.escape_debug();
        return Err(TaskError::Invalid(format!("expected OCI LinuxResources, found {found}")));
    }
    let plan = &container.made()?.granted.plan;
    let resources = nimbus_hooks::update(plan, &given.value)?;
    let request = UpdateRequest { resources, leased: plan.resources };
    let verb = RuntimeVerb::Update(Box::new(request));
    Ok(context.launcher.done(verb, UPDATE_PATIENCE).await?)
}

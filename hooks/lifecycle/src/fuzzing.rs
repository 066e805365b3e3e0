//! Doors for the fuzz targets: decisions of which [`crate::admit`] is made, one by one, because
//! behind a lease's checks random input would never reach them.

use nimbus_api::Refusal;
use nimbus_api::id::ContainerKey;
use nimbus_api::lease::LeaseClaims;
use serde_json::Value;

use crate::claim::Place;
use crate::facts::{NodeFacts, PodRoots, TaskFacts};
use crate::{project, spec, task};

/// What a specification is reduced to under these claims, whose process is made to be its own.
pub fn spec(
    config_json: &[u8],
    container: &ContainerKey,
    claims: &LeaseClaims,
) -> Result<Value, Refusal> {
    let mut claims = claims.clone();
    claims.process_sha256 = spec::process_identity(config_json)?.digest();
    let roots = PodRoots::default();
    let bounds = spec::Bounds { container, claims: &claims, place: Place::Alone, roots: &roots };
    let judged = spec::judge(config_json, &bounds)?;
    Ok(project::spec(&judged, &claims.resources))
}

/// Whether a request has the shape that one may have.
pub fn task(task: &TaskFacts, node: &NodeFacts, container: &ContainerKey) -> Result<(), Refusal> {
    task::check(task, node, container)
}

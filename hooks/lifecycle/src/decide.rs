//! `admit`: facts in, plan or refusal out.
//!
//! The order is fixed, so that the same facts always give the same code: the lease and what it has
//! been used for, the container that it was claimed for, the shape of the request, the specification, the image, the policy, the filter, the
//! network.
//! What was asked for comes before what it is asked of, so that whoever asks for too much reads that.
//! A step runs only when all before it have said yes, and the plan is made from what they return.

use nimbus_api::lease::{GpuMode, VerifiedLease};
use nimbus_api::plan::{ExecClause, PLAN_BYTES_MAX, PLAN_VERSION, Plan};
use nimbus_api::plan::{PlanImage, PlanLease, PlanSeccomp, RootfsRecipe};
use nimbus_api::{Digest, Refusal, RefusalCode};

use crate::facts::{Facts, MeasuredImage};
use crate::spec::Bounds;
use crate::{claim, egress, image, lease, policy, project, seccomp, spec, task};

/// Decides about one `Task.Create`. The same facts give the same plan.
pub fn admit(facts: &Facts) -> Result<Plan, Refusal> {
    let authority = lease::check(facts)?;
    let lease = authority.lease;
    let place = claim::check(facts, &lease.claims)?;
    task::check(&facts.task, &facts.node, &facts.container)?;
    let bounds = Bounds {
        container: &facts.container,
        claims: &lease.claims,
        place,
        roots: &facts.node.pod_roots,
    };
    let judged = spec::judge(&facts.task.config_json, &bounds)?;
    if facts.task.terminal != judged.terminal.is_some() {
        let asks = |yes| if yes { "asks for one" } else { "asks for none" };
        let (client, specification) = (asks(facts.task.terminal), asks(judged.terminal.is_some()));
        let found = format!("the client {client}, the specification {specification}");
        return Err(Refusal::with(RefusalCode::SpecTerminalMismatch, found));
    }
    let image = image::check(&facts.image, authority.image, &facts.node.platform)?;
    let granted = policy::check(facts, image, lease.claims.policy.as_ref())?;
    let filter = seccomp::check(&facts.seccomp, &lease.claims.seccomp)?;
    // Irrefutable while nothing else can be leased; a new kind must be decided about here.
    let GpuMode::None = lease.claims.gpu.mode;
    egress::check(&lease.claims, &facts.network)?;

    let plan = Plan {
        version: PLAN_VERSION,
        container: facts.container.clone(),
        lease: plan_lease(lease),
        image: plan_image(image, granted.attestations),
        rootfs: RootfsRecipe {
            layers: image.layers.clone(),
            digest: image.rootfs,
            scratch_bytes: lease.claims.resources.scratch_bytes,
            scratch: lease.claims.resources.scratch,
            read_only: judged.read_only,
        },
        spec: project::spec(&judged, &lease.claims.resources),
        seccomp: PlanSeccomp {
            profile: filter.profile.to_owned(),
            program_sha256: filter.program_sha256,
            instructions: filter.instructions,
        },
        devices: project::devices(),
        resources: lease.claims.resources,
        egress: lease.claims.egress.clone(),
        binds: judged.binds,
        joins: judged.joins,
        pod: place.pod().cloned(),
        exec: ExecClause { capabilities: judged.capabilities },
        deadline: authority.deadline,
        policy_serial: granted.serial,
        tightened: judged.tightened,
    };
    let bytes = plan.to_json().len();
    if bytes > PLAN_BYTES_MAX {
        let found = format!("its plan would be {bytes} bytes, at most {PLAN_BYTES_MAX} are sent");
        return Err(Refusal::with(RefusalCode::SpecTooLarge, found));
    }
    Ok(plan)
}

fn plan_lease(lease: &VerifiedLease) -> PlanLease {
    PlanLease {
        lease_id: lease.claims.lease_id.clone(),
        job: lease.claims.job.clone(),
        attempt: lease.claims.attempt,
        org: lease.claims.org.clone(),
        token_sha256: lease.token,
    }
}

fn plan_image(image: &MeasuredImage, attestations: Vec<Digest>) -> PlanImage {
    PlanImage {
        name: image.name.clone(),
        digest: image.digest,
        manifest: image.manifest,
        platform: image.platform.clone(),
        attestations,
    }
}

//! Whose containers this process takes: one, or those of one pod, and of one org for as long as it lives.
//!
//! The client says which server it asks; what was granted says which pod a container is of, and that is
//! what counts. The first plan that is for this pod names the org, also when its container could not be
//! made after all.
//!
//! Limits: [`CONTAINERS_MAX`] at a time.

use std::sync::OnceLock;

use nimbus_api::id::{ContainerId, ContainerKey, OrgId};
use nimbus_api::plan::Plan;
use nimbus_api::{Refusal, RefusalCode};

use crate::status::TaskError;

/// Containers of one pod at a time.
pub(super) const CONTAINERS_MAX: usize = 64;

/// What this process is for.
#[derive(Debug)]
pub(crate) struct Pod {
    first: ContainerKey,
    /// None: for the first container only.
    sandbox: Option<ContainerId>,
    org: OnceLock<OrgId>,
}

impl Pod {
    /// A process that was started for this container, in this group.
    pub(super) const fn new(first: ContainerKey, sandbox: Option<ContainerId>) -> Self {
        Self { first, sandbox, org: OnceLock::new() }
    }

    /// How many containers may be here at a time.
    pub(super) const fn room(&self) -> usize {
        if self.sandbox.is_some() { CONTAINERS_MAX } else { 1 }
    }

    /// The container of this id, if it may ask to be made here.
    pub(super) fn key(&self, id: &str) -> Result<ContainerKey, TaskError> {
        if id == self.first.id.as_str() {
            return Ok(self.first.clone());
        }
        if self.sandbox.is_none() {
            let only = format!("this shim is for container {} only", self.first.id);
            return Err(TaskError::Invalid(only));
        }
        let id = id.parse().map_err(|error| TaskError::Invalid(format!("{error}")))?;
        Ok(ContainerKey { namespace: self.first.namespace.clone(), id })
    }

    /// Whether what was granted is for this pod, and of the org whose containers are here.
    pub(super) fn takes(&self, plan: &Plan) -> Result<(), Refusal> {
        let mismatch = |what: String| Err(Refusal::with(RefusalCode::PodMismatch, what));
        let found = plan.pod.as_ref().map(|pod| &pod.sandbox);
        match (&self.sandbox, found) {
            (None, None) => {}
            // A sandbox that was not said to be one is alone here.
            (None, Some(found)) if *found == plan.container.id => {}
            (Some(sandbox), Some(found)) if found == sandbox => {}
            (sandbox, found) => {
                let name = |id: Option<&ContainerId>| {
                    id.map_or_else(|| "no pod".to_owned(), |id| format!("sandbox {id}"))
                };
                let (found, here) = (name(found), name(sandbox.as_ref()));
                return mismatch(format!("the lease is for {found}, this shim for {here}"));
            }
        }
        let (found, here) = (&plan.lease.org, self.org.get_or_init(|| plan.lease.org.clone()));
        if found != here {
            return mismatch(format!("the lease is of org {found}, this shim of org {here}"));
        }
        Ok(())
    }
}

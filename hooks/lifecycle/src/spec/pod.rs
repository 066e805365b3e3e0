//! What a specification says of its pod: it must be what the lease says.
//!
//! The CRI plugin writes it into every specification. The shim groups containers by it, so a container
//! that says to be of another pod would share that pod's process.

use std::collections::BTreeMap;

use nimbus_api::Refusal;
use nimbus_api::policy::CRI_NAMESPACE;

use super::Bounds;
use crate::claim::mismatch;

const KIND: &str = "io.kubernetes.cri.container-type";
const SANDBOX: &str = "io.kubernetes.cri.sandbox-id";
const NAMESPACE: &str = "io.kubernetes.cri.sandbox-namespace";
const NAME: &str = "io.kubernetes.cri.sandbox-name";
const UID: &str = "io.kubernetes.cri.sandbox-uid";
const CONTAINER: &str = "io.kubernetes.cri.container-name";

pub(super) fn check(
    annotations: &BTreeMap<String, String>,
    bounds: &Bounds<'_>,
) -> Result<(), Refusal> {
    let Some(pod) = bounds.place.pod() else {
        let read = bounds.container.namespace.as_str() == CRI_NAMESPACE;
        return match [KIND, SANDBOX].iter().find(|name| read && annotations.contains_key(**name)) {
            Some(name) => {
                Err(mismatch(&format!("annotation {name:?}, and the lease is of no pod")))
            }
            None => Ok(()),
        };
    };
    let kind = if pod.container.is_some() { "container" } else { "sandbox" };
    let wanted = [
        (KIND, Some(kind)),
        (SANDBOX, Some(pod.sandbox.as_str())),
        (NAMESPACE, Some(pod.namespace.as_str())),
        (NAME, Some(pod.name.as_str())),
        (UID, Some(pod.uid.as_str())),
        (CONTAINER, pod.container.as_deref()),
    ];
    for (name, wanted) in wanted {
        let found = annotations.get(name).map(String::as_str);
        if found != wanted {
            return Err(mismatch(&format!("{name:?} is {found:?}, the lease says {wanted:?}")));
        }
    }
    Ok(())
}

//! Which containers share one server: those of one pod, as containerd's CRI plugin names it.
//!
//! Read from the annotation in `config.json`, in Kubernetes' containerd namespace only, and nothing is
//! decided by it: it says which server is asked, and that server takes only what is granted for this
//! very pod. A file or an annotation that is odd names no group; admission refuses later what is wrong.

use std::collections::BTreeMap;
use std::path::Path;

use nimbus_api::id::{ContainerId, ContainerKey};
use nimbus_api::strict_json::{self, Limits};
use serde::Deserialize;

use crate::serve::admission::read_config;

/// The namespace in which the CRI plugin makes containers.
const NAMESPACE: &str = "k8s.io";
/// Names the pod's sandbox, on the sandbox itself too.
const ANNOTATION: &str = "io.kubernetes.cri.sandbox-id";

#[derive(Deserialize)]
struct Spec {
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

/// The group of this container, if it is in one.
pub(crate) fn of(key: &ContainerKey, bundle: &Path) -> Option<ContainerId> {
    if key.namespace.as_str() != NAMESPACE {
        return None;
    }
    in_config(&read_config(bundle).ok()?)
}

fn in_config(config: &[u8]) -> Option<ContainerId> {
    let spec: Spec = strict_json::parse(config, Limits::bytes(config.len())).ok()?;
    spec.annotations.get(ANNOTATION)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key(namespace: &str) -> ContainerKey {
        ContainerKey { namespace: namespace.parse().unwrap(), id: "c".parse().unwrap() }
    }

    #[test]
    fn the_sandbox_names_the_group_in_the_namespace_of_kubernetes_only() {
        let bundle = tempfile::tempdir().unwrap();
        let config =
            r#"{"process": {}, "annotations": {"a": "b", "io.kubernetes.cri.sandbox-id": "s1"}}"#;
        std::fs::write(bundle.path().join("config.json"), config).unwrap();
        assert_eq!(of(&key("k8s.io"), bundle.path()), "s1".parse().ok());
        assert_eq!(of(&key("nimbus"), bundle.path()), None);
        assert_eq!(of(&key("k8s.io"), &bundle.path().join("absent")), None);
    }

    #[test]
    fn what_is_odd_or_can_be_read_in_two_ways_names_none() {
        for odd in [
            "",
            "{}",
            "[]",
            r#"{"annotations": null}"#,
            r#"{"annotations": {"io.kubernetes.cri.sandbox-id": 7}}"#,
            r#"{"annotations": {"io.kubernetes.cri.sandbox-id": ""}}"#,
            r#"{"annotations": {"io.kubernetes.cri.sandbox-id": "../s"}}"#,
            r#"{"annotations": {"io.kubernetes.cri.sandbox-id": "a", "io.kubernetes.cri.sandbox-id": "b"}}"#,
            r#"{"annotations": {"io.kubernetes.cri.sandbox-id": "a"}, "annotations": {}}"#,
            r#"{"annotations": {"io.kubernetes.cri.sandbox-id": "a"}} {}"#,
        ] {
            assert_eq!(in_config(odd.as_bytes()), None, "{odd}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic_the_reader(bytes: Vec<u8>) {
            let _none = in_config(&bytes);
        }
    }
}

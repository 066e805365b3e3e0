//! What is on record about a container that a client of containerd made: its image, its pod.
//!
//! Three sources, none of them trusted further than it reaches: containerd's record of the container
//! (who holds containerd's socket writes it), the annotations of the specification (so does he), and
//! containerd's image list, which says what digest a name has on this node. What comes out is a *claim*:
//! control leases it or not, and admission measures the image by its digest.
//!
//! The CRI plugin's own metadata is read leniently, because it grows with every version of containerd.
//! Limit: [`METADATA_BYTES_MAX`].

use std::collections::{BTreeMap, HashMap};

use nimbus_api::id::{ContainerId, ContainerKey};
use nimbus_api::lease::LeasedPod;
use nimbus_api::proto::node::v1::PodContainer;
use nimbus_api::{Digest, Refusal, RefusalCode};
use nimbus_hooks::CONFIG_BYTES_MAX;
use serde::Deserialize;

use crate::admit::gather::read_config;

/// Longest metadata of the CRI plugin that is read: it holds the whole CRI request.
pub const METADATA_BYTES_MAX: usize = 4 << 20;
/// Extension of a container's record in which the CRI plugin says which container of a pod it is.
const CONTAINER_METADATA: &str = "io.cri-containerd.container.metadata";
/// Extension in which it describes a sandbox.
const SANDBOX_METADATA: &str = "io.cri-containerd.sandbox.metadata";
/// Annotations with the image's name as the pod has it, and, from containerd 2 on, as the CRI plugin is
/// configured for sandboxes.
const IMAGE_NAMES: [&str; 2] =
    ["io.kubernetes.cri.image-name", "io.kubernetes.cri.podsandbox.image-name"];
/// Annotation with the pod's ticket.
const TICKET: &str = "nimbus.io/job";
/// Longest ticket.
const TICKET_BYTES_MAX: usize = 256;

/// What a container is claimed as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Repositories that its image is of, without tag or digest: the one that the pod names, or, where
    /// none is named, all that it is known by.
    pub images: Vec<String>,
    /// Of the image's manifest or index.
    pub digest: Digest,
    /// Its pod; none outside Kubernetes.
    pub pod: Option<LeasedPod>,
}

/// containerd's records, as claims need them. Blocks.
pub trait Records: Send + Sync {
    /// About one container.
    fn of(&self, container: &ContainerKey, annotations: &Annotations) -> Result<Record, Refusal>;
}

/// Annotations of a specification, which is not trusted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Annotations(BTreeMap<String, String>);

impl Annotations {
    /// Of a `config.json`.
    pub fn read(config_json: &[u8]) -> Result<Self, Refusal> {
        let config = read_config(config_json, CONFIG_BYTES_MAX)?;
        let all = config.get("annotations").and_then(serde_json::Value::as_object);
        let text = |(name, value): (&String, &serde_json::Value)| {
            Some((name.clone(), value.as_str()?.to_owned()))
        };
        Ok(Self(all.into_iter().flatten().filter_map(text).collect()))
    }

    /// Whether one is there.
    pub fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// The image's name as the pod has it.
    pub fn image(&self) -> Option<&str> {
        IMAGE_NAMES.iter().find_map(|name| self.0.get(*name)).map(String::as_str)
    }

    /// The pod's ticket; empty when it has none, or one that is none.
    pub fn ticket(&self) -> &str {
        let ticket = self.0.get(TICKET).map_or("", String::as_str);
        if ticket.len() <= TICKET_BYTES_MAX { ticket } else { "" }
    }
}

/// The CRI plugin's metadata, in the envelope that it versions it with.
#[derive(Debug, Deserialize)]
struct Versioned<T> {
    #[serde(rename = "Metadata")]
    metadata: T,
}

#[derive(Debug, Deserialize)]
struct SandboxMetadata {
    #[serde(rename = "Config")]
    config: SandboxConfig,
}

#[derive(Debug, Deserialize)]
struct SandboxConfig {
    metadata: PodMetadata,
}

#[derive(Debug, Deserialize)]
struct PodMetadata {
    name: String,
    uid: String,
    namespace: String,
    #[serde(default)]
    attempt: u32,
}

#[derive(Debug, Deserialize)]
struct ContainerMetadata {
    #[serde(rename = "SandboxID")]
    sandbox: String,
    #[serde(rename = "Config")]
    config: ContainerConfig,
}

#[derive(Debug, Deserialize)]
struct ContainerConfig {
    metadata: NameMetadata,
}

#[derive(Debug, Deserialize)]
struct NameMetadata {
    name: String,
    #[serde(default)]
    attempt: u32,
}

/// Extensions of a container's record, by name.
pub type Extensions = HashMap<String, Vec<u8>>;

/// What a container is by its extensions: the sandbox itself, or a container in one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// No pod.
    None,
    /// The sandbox.
    Sandbox(LeasedPod),
    /// A container; the pod's names are on its sandbox's record.
    Container {
        /// Its sandbox.
        sandbox: ContainerId,
        /// Its name in the pod.
        name: String,
        /// How often it was made anew.
        restart: u32,
    },
}

/// Reads the extensions of a container's record.
pub fn part(id: &ContainerId, extensions: &Extensions) -> Result<Part, Refusal> {
    if let Some(json) = extensions.get(SANDBOX_METADATA) {
        let pod = metadata::<SandboxMetadata>(json)?.config.metadata;
        return Ok(Part::Sandbox(LeasedPod {
            sandbox: id.clone(),
            namespace: pod.namespace,
            name: pod.name,
            uid: pod.uid,
            container: None,
            restart: pod.attempt,
        }));
    }
    let Some(json) = extensions.get(CONTAINER_METADATA) else { return Ok(Part::None) };
    let container = metadata::<ContainerMetadata>(json)?;
    let sandbox = container.sandbox.parse().map_err(|error| malformed(&error))?;
    let NameMetadata { name, attempt } = container.config.metadata;
    Ok(Part::Container { sandbox, name, restart: attempt })
}

impl Part {
    /// As a lease names it; `of` is the pod of the sandbox.
    pub fn in_pod(
        self,
        of: impl FnOnce(&ContainerId) -> Result<LeasedPod, Refusal>,
    ) -> Result<Option<LeasedPod>, Refusal> {
        match self {
            Self::None => Ok(None),
            Self::Sandbox(pod) => Ok(Some(pod)),
            Self::Container { sandbox, name, restart } => {
                let pod = of(&sandbox)?;
                Ok(Some(LeasedPod { container: Some(name), restart, ..pod }))
            }
        }
    }
}

fn metadata<T: serde::de::DeserializeOwned>(json: &[u8]) -> Result<T, Refusal> {
    if json.len() > METADATA_BYTES_MAX {
        return Err(malformed(&format_args!("{} bytes of CRI metadata", json.len())));
    }
    let versioned: Versioned<T> =
        serde_json::from_slice(json).map_err(|error| malformed(&error))?;
    Ok(versioned.metadata)
}

/// A name without tag and digest: `HOST/REPOSITORY`.
pub fn repository(reference: &str) -> &str {
    let name = reference.split('@').next().unwrap_or(reference);
    match name.rsplit_once(':') {
        // A colon before the last slash is a port's.
        Some((before, tag)) if !tag.contains('/') => before,
        Some(_) | None => name,
    }
}

/// In the words of the session's protocol.
pub fn in_words(pod: &LeasedPod) -> PodContainer {
    PodContainer {
        sandbox: pod.sandbox.to_string(),
        namespace: pod.namespace.clone(),
        name: pod.name.clone(),
        uid: pod.uid.clone(),
        container: pod.container.clone().unwrap_or_default(),
        restart: pod.restart,
    }
}

/// A claim that cannot be made of what is on record.
pub fn malformed(found: &dyn std::fmt::Display) -> Refusal {
    Refusal::with(RefusalCode::ClaimMalformed, found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SANDBOX: &str = r#"{"Version":"v1","Metadata":{"ID":"s1","Name":"x","Config":{"metadata":{"name":"web","uid":"u-1","namespace":"ci","attempt":2},"hostname":"web"},"NetNSPath":"/run/netns/a"}}"#;
    const CONTAINER: &str = r#"{"Version":"v1","Metadata":{"ID":"c1","Name":"x","SandboxID":"s1","Config":{"metadata":{"name":"build","attempt":3},"image":{"image":"sha256:00"}}}}"#;

    fn read(name: &str, json: &str) -> Result<Part, Refusal> {
        let extensions = HashMap::from([(name.to_owned(), json.as_bytes().to_vec())]);
        part(&"s1".parse().unwrap(), &extensions)
    }

    #[test]
    fn a_sandbox_and_its_container_are_told_apart_by_their_metadata() {
        let sandbox = read(SANDBOX_METADATA, SANDBOX).unwrap();
        let Part::Sandbox(pod) = sandbox.clone() else { panic!("{sandbox:?}") };
        assert_eq!((pod.name.as_str(), pod.namespace.as_str(), pod.restart), ("web", "ci", 2));
        assert_eq!(pod.container, None);
        let container = read(CONTAINER_METADATA, CONTAINER).unwrap();
        let found = container.in_pod(|sandbox| {
            assert_eq!(sandbox.as_str(), "s1");
            Ok(pod.clone())
        });
        let found = found.unwrap().unwrap();
        assert_eq!((found.container.as_deref(), found.restart), (Some("build"), 3));
        assert_eq!(found.uid, "u-1");
        assert_eq!(part(&"s1".parse().unwrap(), &HashMap::new()).unwrap(), Part::None);
    }

    #[test]
    fn metadata_that_says_too_little_is_refused() {
        for json in ["", "{}", r#"{"Metadata":{}}"#, r#"{"Metadata":{"SandboxID":"../x"}}"#] {
            for name in [SANDBOX_METADATA, CONTAINER_METADATA] {
                assert_eq!(read(name, json).unwrap_err().code, RefusalCode::ClaimMalformed);
            }
        }
    }

    #[test]
    fn a_repository_has_neither_tag_nor_digest() {
        for (reference, name) in [
            ("docker.io/library/busybox:latest", "docker.io/library/busybox"),
            ("127.0.0.1:5000/a/b", "127.0.0.1:5000/a/b"),
            ("127.0.0.1:5000/a/b:1.2", "127.0.0.1:5000/a/b"),
            ("r.example/a@sha256:00", "r.example/a"),
            ("r.example/a:t@sha256:00", "r.example/a"),
        ] {
            assert_eq!(repository(reference), name);
        }
    }

    proptest! {
        #[test]
        fn no_metadata_and_no_reference_panics(
            bytes in prop::collection::vec(any::<u8>(), 0..300),
            text in "\\PC{0,80}",
        ) {
            let extensions = HashMap::from([(CONTAINER_METADATA.to_owned(), bytes.clone())]);
            let _part = part(&"s1".parse().unwrap(), &extensions);
            let _annotations = Annotations::read(&bytes);
            prop_assert!(text.starts_with(repository(&text)));
        }
    }
}

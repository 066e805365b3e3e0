//! [`Records`] out of containerd's Containers and Images API, every call with a deadline.
//!
//! Called from threads that may block; the calls themselves run on the agent's event loop.

use std::collections::HashMap;
use std::path::Path;

use containerd_client::services::v1::containers_client::ContainersClient;
use containerd_client::services::v1::images_client::ImagesClient;
use containerd_client::services::v1::{
    Container, GetContainerRequest, GetImageRequest, Image, ListImagesRequest,
};
use nimbus_api::id::{ContainerId, ContainerKey, Namespace};
use nimbus_api::lease::LeasedPod;
use nimbus_api::{Digest, Refusal, RefusalCode};
use tokio::runtime::Handle;
use tonic::transport::Channel;

use super::record::{Annotations, Part, Record, Records, malformed, part, repository};
use crate::jobs::containerd::{
    ANSWER_BYTES_MAX, CALL_SECONDS_MAX, ContainerdError, channel, in_namespace, within,
};

/// What the CRI plugin puts before the digest in the name that an image has by its configuration.
const BY_CONFIG: &str = "sha256:";

/// containerd's records.
#[derive(Debug)]
pub struct ContainerdRecords {
    channel: Channel,
    runtime: Handle,
}

impl ContainerdRecords {
    /// Connects when it is first used.
    pub fn new(address: &Path, runtime: Handle) -> Self {
        let _context = runtime.enter();
        Self { channel: channel(address), runtime }
    }

    async fn container(&self, namespace: &Namespace, id: &str) -> Result<Container, Refusal> {
        let request = in_namespace(namespace, GetContainerRequest { id: id.to_owned() })?;
        let mut client =
            ContainersClient::new(self.channel.clone()).max_decoding_message_size(ANSWER_BYTES_MAX);
        let answer = within("get container", CALL_SECONDS_MAX, client.get(request)).await;
        let answer = answer.map_err(|error| error.refusal())?;
        answer.container.ok_or_else(|| malformed(&format_args!("no container {id}")))
    }

    async fn image(&self, namespace: &Namespace, name: &str) -> Result<Image, Refusal> {
        let request = in_namespace(namespace, GetImageRequest { name: name.to_owned() })?;
        let mut client = ImagesClient::new(self.channel.clone());
        let answer = within("get image", CALL_SECONDS_MAX, client.get(request)).await;
        let none = || malformed(&format_args!("no image {name:?}"));
        let told = |error: ContainerdError| {
            if error.is_not_found() { none() } else { error.refusal() }
        };
        answer.map_err(told)?.image.ok_or_else(none)
    }

    /// All names of an image, sorted: the CRI plugin puts any one of them on a sandbox's record.
    async fn names(&self, namespace: &Namespace, digest: &str) -> Result<Vec<String>, Refusal> {
        let filters = vec![format!("target.digest=={digest}")];
        let request = in_namespace(namespace, ListImagesRequest { filters })?;
        let mut client = ImagesClient::new(self.channel.clone());
        let answer = within("list images", CALL_SECONDS_MAX, client.list(request)).await;
        let mut names: Vec<String> =
            answer.map_err(|error| error.refusal())?.images.into_iter().map(|i| i.name).collect();
        names.retain(|name| !name.starts_with(BY_CONFIG));
        names.sort();
        Ok(names)
    }

    async fn record(
        &self,
        key: &ContainerKey,
        annotations: &Annotations,
    ) -> Result<Record, Refusal> {
        let container = self.container(&key.namespace, key.id.as_str()).await?;
        let asked = annotations.image();
        let name = asked.unwrap_or(&container.image).to_owned();
        if name.is_empty() {
            return Err(malformed(&"the container has no image: its root is somebody's directory"));
        }
        let image = self.image(&key.namespace, &name).await?;
        let digest = image.target.map(|target| target.digest).unwrap_or_default();
        let names =
            if asked.is_some() { vec![name] } else { self.names(&key.namespace, &digest).await? };
        let mut images: Vec<_> = names.iter().map(|name| repository(name).to_owned()).collect();
        images.dedup();
        let digest: Digest = digest.parse().map_err(|error| malformed(&error))?;
        let part = part(&key.id, &extensions(container))?;
        let pod = self.pod(key, part).await?;
        Ok(Record { images, digest, pod })
    }

    async fn pod(&self, key: &ContainerKey, part: Part) -> Result<Option<LeasedPod>, Refusal> {
        let Part::Container { sandbox, .. } = &part else { return part.in_pod(unknown) };
        let record = self.container(&key.namespace, sandbox.as_str()).await;
        let record = record
            .map_err(|refusal| Refusal::with(RefusalCode::PodSandboxMissing, refusal.detail()))?;
        let Part::Sandbox(pod) = super::record::part(sandbox, &extensions(record))? else {
            return unknown(sandbox).map(Some);
        };
        part.in_pod(|_sandbox| Ok(pod))
    }
}

fn unknown(sandbox: &ContainerId) -> Result<LeasedPod, Refusal> {
    Err(malformed(&format_args!("{sandbox} is no sandbox")))
}

fn extensions(container: Container) -> HashMap<String, Vec<u8>> {
    container.extensions.into_iter().map(|(name, any)| (name, any.value)).collect()
}

impl Records for ContainerdRecords {
    fn of(&self, container: &ContainerKey, annotations: &Annotations) -> Result<Record, Refusal> {
        self.runtime.block_on(self.record(container, annotations))
    }
}

//! The node that pods come to: one lab's CRI plugin, a runtime handler, and kubelet's directories.

use std::fs;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use k8s_cri::v1::{
    ImageSpec, ListContainersRequest, ListPodSandboxRequest, PodSandboxConfig, PullImageRequest,
    StatusRequest,
};

use super::wish::{self, PodNames};
use super::{Cri, Pod};
use crate::failure::During as _;
use crate::images::Published;
use crate::wait::until;
use crate::{Failure, Lab, Outcome, ensure, leftovers, mint};

/// The Kubernetes namespace whose pods have an org and a pod's network.
pub const MAPPED: &str = "tenant-a";
/// The one whose pods have an org and no network.
pub const CLOSED: &str = "tenant-closed";
/// One that the policy does not know.
pub const UNMAPPED: &str = "kube-public";

/// A runtime handler of containerd's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Handler {
    /// The reference.
    Runc,
    /// Ours.
    Nimbus,
}

impl Handler {
    /// As a RuntimeClass names it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Runc => "runc",
            Self::Nimbus => "nimbus",
        }
    }
}

/// One lab's node, for pods of one handler.
#[derive(Debug, Clone)]
pub struct Node {
    pub(super) cri: Rc<Cri>,
    pub(super) handler: Handler,
    pub(super) run_dir: PathBuf,
    image: String,
    kubelet: PathBuf,
    logs: PathBuf,
    cgroups: String,
}

impl Node {
    /// The node of a lab.
    pub fn of(lab: &Lab, handler: Handler) -> Result<Self, Failure> {
        let mut node = Self {
            cri: Rc::new(lab.cri()?),
            handler,
            run_dir: lab.run_dir(),
            image: String::new(),
            kubelet: lab.kubelet_root(),
            logs: lab.path("pod-logs"),
            cgroups: lab.pod_cgroups(),
        };
        until("the CRI plugin to be ready", || {
            let status = node.cri.status(StatusRequest { verbose: false }).ok();
            let status = status.and_then(|answer| answer.status).unwrap_or_default();
            let ready = !status.conditions.is_empty()
                && status
                    .conditions
                    .iter()
                    .filter(|condition| condition.r#type.ends_with("Ready"))
                    .all(|condition| condition.status);
            Ok(ready.then_some(()))
        })?;
        node.image = node.pull(lab.pod_image()?)?;
        Ok(node)
    }

    /// The client.
    pub fn cri(&self) -> &Cri {
        &self.cri
    }

    /// Which runtime pods get.
    pub const fn handler(&self) -> Handler {
        self.handler
    }

    /// The image of pods' containers, as kubelet names it: by its id.
    pub fn image(&self) -> &str {
        &self.image
    }

    /// Pulls an image and returns its id.
    pub fn pull(&self, image: &Published) -> Result<String, Failure> {
        let spec = ImageSpec { image: image.reference(), ..Default::default() };
        let request = PullImageRequest { image: Some(spec), ..Default::default() };
        Ok(self.cri.pull_image(request).during("PullImage")?.image_ref)
    }

    /// A pod in the namespace that has an org.
    pub fn pod(&self, name: &str) -> Result<Pod, Failure> {
        self.pod_in(MAPPED, name, |_config| {})
    }

    /// A pod in any namespace, with its sandbox changed.
    pub fn pod_in(
        &self,
        namespace: &str,
        name: &str,
        change: impl FnOnce(&mut PodSandboxConfig),
    ) -> Result<Pod, Failure> {
        let uid = uid()?;
        let names = PodNames { name, namespace, uid: &uid };
        let logs = self.logs.join(format!("{namespace}_{name}_{uid}"));
        fs::create_dir_all(&logs)?;
        let cgroup = format!("/{}/burstable/pod{uid}", self.cgroups);
        let mut config = wish::sandbox(&names, &logs, &cgroup);
        change(&mut config);
        Pod::run(self, config, &uid, self.kubelet.join("pods").join(&uid))
    }

    /// Fails when the CRI plugin knows of a pod or container.
    pub fn is_empty(&self) -> Outcome {
        let pods = self.cri.list_pod_sandbox(ListPodSandboxRequest::default())?.items;
        let containers = self.cri.list_containers(ListContainersRequest::default())?.containers;
        ensure!(pods.is_empty(), "there are pods: {pods:?}");
        ensure!(containers.is_empty(), "there are containers: {containers:?}");
        Ok(())
    }
}

/// A UID as the API server gives them.
fn uid() -> Result<String, Failure> {
    let hex = mint::unique()?;
    let part = |from: usize, to: usize| hex.get(from..to).unwrap_or_default().to_owned();
    Ok([part(0, 8), part(8, 12), part(12, 16), part(16, 20), part(20, 32)].join("-"))
}

/// Removes the cgroups that kubelet would remove: those of pods that are gone, deepest first.
pub fn remove_cgroups(name: &str) -> Outcome {
    for root in leftovers::cgroups(&[name]) {
        remove_below(&root)?;
    }
    Ok(())
}

fn remove_below(dir: &Path) -> Outcome {
    let children = match fs::read_dir(dir) {
        Ok(children) => children,
        // Two names of one hierarchy.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    for child in children.filter_map(Result::ok).map(|entry| entry.path()) {
        if child.is_dir() {
            remove_below(&child)?;
        }
    }
    let removed = fs::remove_dir(dir);
    removed.map_err(|error| Failure::from(error).during(&dir.display().to_string()))
}

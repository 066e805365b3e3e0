//! What a lab needs besides when pods come to its node: images, rules of the policy, kubelet's place.

use std::fmt::Write as _;
use std::path::PathBuf;

use k8s_cri::v1::{ListContainersRequest, ListPodSandboxRequest};
use nimbus_forge::image::busybox_layer;
use nimbus_forge::{ImageBuilder, Layer};

use super::Lab;
use crate::cri::ground::{CLOSED, MAPPED, remove_cgroups};
use crate::cri::{Cri, config, network};
use crate::images::Published;
use crate::{Failure, Outcome, containerd, ensure};

/// Applets that pods' scripts use besides those that every test image has.
const MORE_APPLETS: [&str; 7] = ["httpd", "wget", "timeout", "tr", "stty", "sort", "cut"];
/// The most that a pod's container may ask for, and what one gets that asks for nothing.
const MOST: &str =
    "{ cpu_millis = 2000, memory_bytes = 268435456, pids = 512, scratch_bytes = 67108864 }";

/// The images of pods. The policy vouches for them by digest.
#[derive(Debug, Clone)]
pub(super) struct PodImages {
    pause: Published,
    work: Published,
}

impl Lab {
    /// Puts the images of pods into the registry.
    pub(super) fn publish_pod_images(&mut self) -> Outcome {
        let links = |layer: Layer, applets: &[&str]| {
            applets
                .iter()
                .fold(layer, |layer, applet| layer.symlink(&format!("bin/{applet}"), "busybox"))
        };
        let work = ImageBuilder::new()
            .layer(busybox_layer()?)
            .layer(links(Layer::new(), &MORE_APPLETS))
            .cmd(&["/bin/sh"])
            .build()?;
        let pause = ImageBuilder::new().layer(busybox_layer()?);
        let pause = pause.entrypoint(&["/bin/sleep", "inf"]).build()?;
        self.pods = Some(PodImages {
            pause: self.publish(config::PAUSE, &pause)?,
            work: self.publish("pods/work", &work)?,
        });
        Ok(())
    }

    /// The image of pods' containers.
    pub fn pod_image(&self) -> Result<&Published, Failure> {
        let images = self.pods.as_ref();
        Ok(&images.ok_or_else(|| Failure::new("this lab has no CRI plugin"))?.work)
    }

    /// The rules for pods, empty when there are none.
    pub(super) fn pod_policy(&self) -> Result<String, Failure> {
        let mut text = String::new();
        let Some(PodImages { pause, work }) = &self.pods else {
            return Ok(text);
        };
        write!(
            text,
            "\n[[rule]]\nimages = [\"{}/pods/**\"]\ndigests = [\"{}\", \"{}\"]\n",
            self.registry_address, pause.digest, work.digest
        )?;
        for (namespace, network) in [(MAPPED, "pod"), (CLOSED, "none")] {
            write!(
                text,
                "\n[[claim]]\nnamespace = \"k8s.io\"\nkubernetes = [\"{namespace}\"]\n\
                 org = \"default\"\nnetwork = \"{network}\"\nmost = {MOST}\n"
            )?;
        }
        Ok(text)
    }

    /// A client of the CRI plugin.
    pub fn cri(&self) -> Result<Cri, Failure> {
        Cri::new(&self.path(containerd::SOCKET))
    }

    /// Where kubelet would keep its pods.
    pub fn kubelet_root(&self) -> PathBuf {
        self.path("kubelet")
    }

    /// The cgroup that pods are below, in every hierarchy: the name of the lab's directory.
    pub fn pod_cgroups(&self) -> String {
        self.dir.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// Pods and containers that the CRI plugin knows.
    pub(super) fn pods_left(&self) -> Result<Vec<String>, Failure> {
        if self.pods.is_none() {
            return Ok(Vec::new());
        }
        let cri = self.cri()?;
        let pods = cri.list_pod_sandbox(ListPodSandboxRequest::default())?.items;
        let containers = cri.list_containers(ListContainersRequest::default())?.containers;
        let pods = pods.into_iter().map(|pod| format!("pod {}", pod.id));
        Ok(pods.chain(containers.into_iter().map(|one| format!("container {}", one.id))).collect())
    }

    /// Fails when a pod has left a network namespace, and removes the cgroups that kubelet would.
    pub(super) fn settle_pods(&self) -> Outcome {
        if self.pods.is_none() {
            return Ok(());
        }
        let names = network::names();
        let left: Vec<_> = names.difference(&self.networks_before).collect();
        ensure!(left.is_empty(), "network namespaces are left: {left:?}");
        remove_cgroups(&self.pod_cgroups())
    }

    /// Removes by force what pods have left.
    pub(super) fn sweep_pods(&self) {
        if self.pods.is_some() {
            for name in network::names().difference(&self.networks_before) {
                drop(network::remove(name));
            }
        }
    }
}

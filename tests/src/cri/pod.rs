//! A pod and its containers, as kubelet holds them.

use std::cell::RefCell;
use std::fs;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use k8s_cri::v1::{
    ContainerConfig, ContainerState, ContainerStatus, ContainerStatusRequest,
    CreateContainerRequest, ExecSyncRequest, PodSandboxConfig, PodSandboxStatus,
    PodSandboxStatusRequest, RemoveContainerRequest, RemovePodSandboxRequest, RunPodSandboxRequest,
    StartContainerRequest, StopContainerRequest, StopPodSandboxRequest,
};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::log::{self, Entry};
use super::wish::{self, PodNames};
use super::{Cri, Node};
use crate::failure::During as _;
use crate::wait::until;
use crate::{Failure, Outcome, leftovers};

/// A volume of kubelet's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Volume {
    /// `emptyDir`.
    Empty,
    /// `secret`: files in memory.
    Secret,
    /// `configMap`.
    ConfigMap,
    /// A directory of the host's, which kubelet hands on as it is.
    Local,
}

/// A pod whose sandbox runs.
#[derive(Debug)]
pub struct Pod {
    cri: Rc<Cri>,
    run_dir: PathBuf,
    image: String,
    config: PodSandboxConfig,
    id: String,
    uid: String,
    dir: PathBuf,
    ids: RefCell<Vec<String>>,
    mounts: RefCell<Vec<PathBuf>>,
    ended: bool,
}

/// What a process in a container said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ran {
    /// Exit code.
    pub code: i32,
    /// stdout.
    pub out: String,
    /// stderr.
    pub err: String,
}

impl Pod {
    /// Makes kubelet's files and runs the sandbox.
    pub(super) fn run(
        node: &Node,
        config: PodSandboxConfig,
        uid: &str,
        dir: PathBuf,
    ) -> Result<Self, Failure> {
        fs::create_dir_all(dir.join("containers"))?;
        let hosts = format!(
            "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n127.0.0.2\t{}\n",
            config.hostname
        );
        fs::write(dir.join("etc-hosts"), hosts)?;
        let mut pod = Self {
            cri: Rc::clone(&node.cri),
            run_dir: node.run_dir.clone(),
            image: node.image().to_owned(),
            config,
            id: String::new(),
            uid: uid.to_owned(),
            dir,
            ids: RefCell::default(),
            mounts: RefCell::default(),
            ended: false,
        };
        let request = RunPodSandboxRequest {
            config: Some(pod.config.clone()),
            runtime_handler: node.handler.name().to_owned(),
        };
        let answer = pod.cri.run_pod_sandbox(request);
        pod.id = answer.during("RunPodSandbox")?.pod_sandbox_id;
        Ok(pod)
    }

    /// Id of the sandbox.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// kubelet's directory of it.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Its sandbox as the CRI plugin shows it.
    pub fn status(&self) -> Result<PodSandboxStatus, Failure> {
        let request = PodSandboxStatusRequest { pod_sandbox_id: self.id.clone(), verbose: false };
        let status = self.cri.pod_sandbox_status(request)?.status;
        status.ok_or_else(|| Failure::new("the sandbox has no status"))
    }

    /// A container that runs a script, to be changed and given to [`Self::create`].
    pub fn wish(&self, name: &str, script: &str) -> Result<ContainerConfig, Failure> {
        let metadata = self.config.metadata.clone().unwrap_or_default();
        let names =
            PodNames { name: &metadata.name, namespace: &metadata.namespace, uid: &self.uid };
        let mut config = wish::container(&names, name, &self.image, script);
        let message = self.termination_message(name);
        if let Some(dir) = message.parent() {
            fs::create_dir_all(dir)?;
        }
        fs::write(&message, "")?;
        config.mounts = vec![
            wish::mount(&self.dir.join("etc-hosts"), "/etc/hosts", false),
            wish::mount(&message, "/dev/termination-log", false),
        ];
        fs::create_dir_all(self.log(&config).parent().unwrap_or(Path::new("/")))?;
        Ok(config)
    }

    /// Where kubelet reads a container's last words.
    pub fn termination_message(&self, name: &str) -> PathBuf {
        self.dir.join("containers").join(name).join("0a1b2c3d")
    }

    /// Where a container's output goes.
    pub fn log(&self, config: &ContainerConfig) -> PathBuf {
        Path::new(&self.config.log_directory).join(&config.log_path)
    }

    /// Makes a volume as kubelet does and returns its directory.
    pub fn volume(
        &self,
        kind: Volume,
        name: &str,
        files: &[(&str, &str)],
    ) -> Result<PathBuf, Failure> {
        let plugin = match kind {
            Volume::Empty => "empty-dir",
            Volume::Secret => "secret",
            Volume::ConfigMap => "configmap",
            Volume::Local => "local-volume",
        };
        let dir = self.dir.join("volumes").join(format!("kubernetes.io~{plugin}")).join(name);
        fs::create_dir_all(&dir)?;
        if kind == Volume::Secret {
            let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
            mount(Some("tmpfs"), &dir, Some("tmpfs"), flags, Some("size=64k")).during("tmpfs")?;
            self.mounts.borrow_mut().push(dir.clone());
        }
        // Updates are atomic: the files are links into a directory that is exchanged.
        let data = "..2026_11_24_00_00_00.000000001";
        if !files.is_empty() {
            fs::create_dir(dir.join(data))?;
            std::os::unix::fs::symlink(data, dir.join("..data"))?;
        }
        for (name, text) in files {
            fs::write(dir.join(data).join(name), text)?;
            std::os::unix::fs::symlink(Path::new("..data").join(name), dir.join(name))?;
        }
        if kind == Volume::Empty {
            use std::os::unix::fs::PermissionsExt as _;
            fs::set_permissions(&dir, fs::Permissions::from_mode(0o777))?;
        }
        Ok(dir)
    }

    /// Remembers a mount of the scenario's, to be removed with the pod.
    pub fn remember_mount(&self, point: PathBuf) {
        self.mounts.borrow_mut().push(point);
    }

    /// Creates a container.
    pub fn create(&self, config: &ContainerConfig) -> Result<Container, Failure> {
        let request = CreateContainerRequest {
            pod_sandbox_id: self.id.clone(),
            config: Some(config.clone()),
            sandbox_config: Some(self.config.clone()),
        };
        let answer = self.cri.create_container(request).during("CreateContainer")?;
        let id = answer.container_id;
        self.ids.borrow_mut().push(id.clone());
        Ok(Container { cri: Rc::clone(&self.cri), id, log: self.log(config) })
    }

    /// Creates and starts a container.
    pub fn start(&self, config: &ContainerConfig) -> Result<Container, Failure> {
        let container = self.create(config)?;
        container.start()?;
        Ok(container)
    }

    /// Creates and starts a container that runs a script.
    pub fn sh(&self, name: &str, script: &str) -> Result<Container, Failure> {
        self.start(&self.wish(name, script)?)
    }

    /// Stops what runs and removes everything; fails when something of it is left on the machine.
    pub fn end(mut self) -> Outcome {
        self.ended = true;
        self.cri
            .stop_pod_sandbox(StopPodSandboxRequest { pod_sandbox_id: self.id.clone() })
            .during("StopPodSandbox")?;
        self.remove()?;
        let ids = self.ids.borrow().clone();
        for id in ids.iter().chain([&self.id]) {
            leftovers::none_of_container(&self.run_dir, id)?;
        }
        Ok(())
    }

    fn remove(&self) -> Outcome {
        for id in self.ids.borrow().iter() {
            let request = RemoveContainerRequest { container_id: id.clone() };
            self.cri.remove_container(request).during("RemoveContainer")?;
        }
        self.cri
            .remove_pod_sandbox(RemovePodSandboxRequest { pod_sandbox_id: self.id.clone() })
            .during("RemovePodSandbox")?;
        self.forget()
    }

    /// kubelet's part.
    fn forget(&self) -> Outcome {
        for point in self.mounts.borrow_mut().drain(..) {
            umount2(&point, MntFlags::MNT_DETACH).during("unmount a volume")?;
        }
        if self.dir.exists() {
            fs::remove_dir_all(&self.dir)?;
        }
        Ok(())
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        if self.id.is_empty() {
            drop(self.forget());
            return;
        }
        // The scenario has failed already; what is left is found by the lab.
        let pod_sandbox_id = self.id.clone();
        drop(self.cri.stop_pod_sandbox(StopPodSandboxRequest { pod_sandbox_id }));
        drop(self.remove());
    }
}

/// A container of a pod.
#[derive(Debug)]
pub struct Container {
    cri: Rc<Cri>,
    id: String,
    log: PathBuf,
}

impl Container {
    /// Its id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Starts it.
    pub fn start(&self) -> Outcome {
        let request = StartContainerRequest { container_id: self.id.clone() };
        self.cri.start_container(request).map(drop).during("StartContainer")
    }

    /// Ends it within this time, seconds.
    pub fn stop(&self, timeout: i64) -> Outcome {
        let request = StopContainerRequest { container_id: self.id.clone(), timeout };
        self.cri.stop_container(request).map(drop).during("StopContainer")
    }

    /// As the CRI plugin shows it.
    pub fn status(&self) -> Result<ContainerStatus, Failure> {
        let request = ContainerStatusRequest { container_id: self.id.clone(), verbose: false };
        let status = self.cri.container_status(request)?.status;
        status.ok_or_else(|| Failure::new("the container has no status"))
    }

    /// Waits until it has ended.
    pub fn ended(&self) -> Result<ContainerStatus, Failure> {
        until("the container to end", || {
            let status = self.status()?;
            Ok((status.state == i32::from(ContainerState::ContainerExited)).then_some(status))
        })
    }

    /// Runs a script in it.
    pub fn exec(&self, script: &str) -> Result<Ran, Failure> {
        self.exec_within(script, 60)
    }

    /// The same with a limit, seconds.
    pub fn exec_within(&self, script: &str, timeout: i64) -> Result<Ran, Failure> {
        let cmd = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
        let request = ExecSyncRequest { container_id: self.id.clone(), cmd, timeout };
        let answer = self.cri.exec_sync(request).during("ExecSync")?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok(Ran { code: answer.exit_code, out: text(&answer.stdout), err: text(&answer.stderr) })
    }

    /// What it has written, in the order of each stream.
    pub fn output(&self) -> Result<Vec<Entry>, Failure> {
        log::read(&self.log)
    }

    /// stdout as one text.
    pub fn stdout(&self) -> Result<String, Failure> {
        let mut text = String::new();
        for entry in self.output()?.iter().filter(|entry| entry.stream == "stdout") {
            text.push_str(&entry.text);
            if entry.full {
                text.push('\n');
            }
        }
        Ok(text)
    }

    /// Waits until it has written a line.
    pub fn says(&self, line: &str) -> Outcome {
        until(&format!("the container to say {line:?}"), || {
            let found = self.stdout()?.lines().any(|text| text == line);
            Ok(found.then_some(()))
        })
    }
}

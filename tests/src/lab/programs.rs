//! Starting, stopping, killing and restarting the programs of a lab.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use nimbus_api::clock::UnixSeconds;
use nix::sys::signal::{Signal, kill};
use serde::Serialize;
use serde_json::Value;

use super::{Lab, NODE};
use crate::child::Program;
use crate::ctl::{field, truth_of};
use crate::ctr::Said;
use crate::failure::During as _;
use crate::wait::until;
use crate::{Failure, Outcome, containerd, ensure, proc};

/// What the lab's node has for jobs.
const CAPACITY: Capacity =
    Capacity { cpu_millis: 64_000, memory_bytes: 64 << 30, pids: 65_536, max_jobs: 16 };

/// The node agent's configuration, as its operator writes it.
#[derive(Debug, Serialize)]
struct NodeConfig {
    data_dir: PathBuf,
    run_dir: PathBuf,
    containerd_address: PathBuf,
    containerd_root: PathBuf,
    containerd_state: PathBuf,
    kubelet_root: PathBuf,
    policy_key: PathBuf,
    insecure_registries: Vec<String>,
    layout_roots: Vec<PathBuf>,
    fifo_roots: Vec<PathBuf>,
    capacity: Capacity,
}

#[derive(Debug, Clone, Copy, Serialize)]
struct Capacity {
    cpu_millis: u32,
    memory_bytes: u64,
    pids: u32,
    max_jobs: u32,
}

impl Lab {
    fn log(&self, name: &str) -> PathBuf {
        self.path("logs").join(name)
    }

    pub(super) fn start_registry(&mut self) -> Outcome {
        let config = self.path("registry.yml");
        let data = self.path("registry");
        fs::write(
            &config,
            format!(
                "version: 0.1\nlog: {{level: info}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: \"127.0.0.1:0\"}}\n",
                data.display()
            ),
        )?;
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(&config);
        let log = self.log("registry");
        let mut program = Program::start("docker-registry", &mut command, &log)?;
        self.registry_address = until("the registry to listen", || {
            program.check()?;
            let text = fs::read_to_string(&log)?;
            let after = text.split_once("listening on ").map(|(_, rest)| rest);
            Ok(after.and_then(|rest| rest.split_once('"')).map(|(address, _)| address.to_owned()))
        })?;
        self.registry = Some(program);
        Ok(())
    }

    /// Starts containerd; the shim is found in the directory of the programs and inherits the run
    /// directory.
    pub fn start_containerd(&mut self) -> Outcome {
        let registry = self.setting.cri.then_some(self.registry_address.as_str());
        let log = self.log("containerd");
        self.containerd = Some(containerd::start(&self.dir, &self.bin, &log, registry)?);
        Ok(())
    }

    /// Starts control, at the same addresses as before if it has been started before.
    pub fn start_control(&mut self) -> Outcome {
        let dir = self.control_dir();
        let endpoints = dir.join("endpoints.json");
        if endpoints.exists() {
            fs::remove_file(&endpoints)?;
        }
        let mut command = Command::new(self.program("nimbus-control"));
        command
            .args(["serve", "--data-dir"])
            .arg(&dir)
            .args(["--listen", &self.api, "--join-listen", &self.join])
            .args(["--lease-ttl-seconds", &self.setting.lease_ttl.to_string()])
            .args(["--lease-extension-seconds", &self.setting.lease_extension.to_string()]);
        let mut program = Program::start("nimbus-control", &mut command, &self.log("control"))?;
        let found: Value = until("control to listen", || {
            program.check()?;
            let text = fs::read(&endpoints).ok();
            Ok(text.and_then(|text| serde_json::from_slice(&text).ok()))
        })?;
        self.api = field(&found, "api")?;
        self.join = field(&found, "join")?;
        self.control = Some(program);
        Ok(())
    }

    fn node_config(&self) -> PathBuf {
        self.path("node.toml")
    }

    pub(super) fn join_node(&self) -> Outcome {
        fs::write(self.path("policy.pub"), self.keys.policy.verifying_key().hex())?;
        let config = NodeConfig {
            data_dir: self.node_dir(),
            run_dir: self.run_dir(),
            containerd_address: self.containerd_of_node(),
            containerd_root: self.path(containerd::ROOT),
            containerd_state: self.path(containerd::STATE),
            kubelet_root: self.kubelet_root(),
            policy_key: self.path("policy.pub"),
            insecure_registries: vec![self.registry_address.clone()],
            layout_roots: vec![self.path("layouts")],
            fifo_roots: vec![self.path("fifos")],
            capacity: CAPACITY,
        };
        fs::write(self.node_config(), toml::to_string(&config)?)?;
        let token = self.ctl().join_token(NODE)?;
        let mut command = Command::new(self.program("nimbus-node"));
        command.args(["join", "--config"]).arg(self.node_config());
        command.args(["--control", &self.join, "--token", &token]);
        Said::by(&mut command)?.good().map(drop).during("nimbus-node join")
    }

    /// Starts the node agent.
    pub fn start_node(&mut self) -> Outcome {
        let mut command = Command::new(self.program("nimbus-node"));
        command.args(["serve", "--config"]).arg(self.node_config());
        let mut program = Program::start("nimbus-node", &mut command, &self.log("node"))?;
        let socket = self.run_dir().join("node.sock");
        until("the node agent to listen", || {
            program.check()?;
            Ok(std::os::unix::net::UnixStream::connect(&socket).ok())
        })?;
        self.node = Some(program);
        // Heartbeats of an earlier run of the agent count no more.
        self.specimen = None;
        Ok(())
    }

    /// Waits until control says that the node is connected.
    pub fn wait_connected(&mut self) -> Outcome {
        let ctl = self.ctl();
        until("the node to connect to control", || {
            if let Some(node) = &mut self.node {
                node.check()?;
            }
            let nodes = ctl.json(&["node", "list"])?;
            Ok(truth_of(&nodes, "connected").then_some(()))
        })
    }

    /// Signs the lab's policy with the next serial and hands it to control.
    pub fn apply_policy(&mut self) -> Outcome {
        let serial = self.serial + 1;
        let layouts = self.path("layouts").display().to_string();
        let mut document = self.keys.document(serial, &self.registry_address, &layouts)?;
        document.push_str(&self.pod_policy()?);
        let envelope = nimbus_api::policy::sign(document.as_bytes(), &self.keys.policy)?;
        self.apply_envelope(&envelope.to_json())?;
        self.serial = serial;
        Ok(())
    }

    /// Hands control any bytes as a policy.
    pub fn apply_envelope(&self, envelope: &[u8]) -> Outcome {
        let file = self.path("files").join("policy.json");
        fs::write(&file, envelope)?;
        self.ctl().policy_apply(&file).map(drop)
    }

    /// SIGKILLs control.
    pub fn kill_control(&mut self) -> Outcome {
        self.control.take().map_or(Ok(()), Program::kill9)
    }

    /// SIGKILLs the node agent.
    pub fn kill_node(&mut self) -> Outcome {
        self.node.take().map_or(Ok(()), Program::kill9)
    }

    /// SIGTERMs the node agent.
    pub fn stop_node(&mut self) -> Outcome {
        self.node.take().map_or(Ok(()), Program::terminate)
    }

    /// SIGKILLs containerd.
    pub fn kill_containerd(&mut self) -> Outcome {
        self.containerd.take().map_or(Ok(()), Program::kill9)
    }

    /// SIGKILLs the shim of a container.
    pub fn kill_shim(&self, id: &str) -> Outcome {
        let shim = until("the shim of the container", || Ok(proc::shim(&self.dir, id)))?;
        kill(shim.pid, Signal::SIGKILL)?;
        Ok(())
    }

    /// Keeps a copy of the dead control's data directory.
    pub fn save_control(&self) -> Outcome {
        copy_tree(&self.control_dir(), &self.path("control-saved"))
    }

    /// Puts the copy back.
    pub fn restore_control(&self) -> Outcome {
        fs::remove_dir_all(self.control_dir())?;
        copy_tree(&self.path("control-saved"), &self.control_dir())
    }

    /// Serial of the policy that the node has on its disk.
    pub fn policy_serial_of_node(&self) -> Result<u64, Failure> {
        let state = fs::read(self.node_dir().join("trust/state.json"))?;
        field(&serde_json::from_slice(&state)?, "policy_serial")
    }

    /// Makes the stopped node agent remember a lease that was issued at this time.
    pub fn raise_clock_floor(&self, to: UnixSeconds) -> Outcome {
        let path = self.node_dir().join("trust/state.json");
        let mut state: Value = serde_json::from_slice(&fs::read(&path)?)?;
        let floor = state.get_mut("floor");
        *floor.ok_or_else(|| Failure::new("the node's trust state has no floor"))? = to.0.into();
        fs::write(&path, state.to_string())?;
        Ok(())
    }

    /// Fails when a program has ended by itself.
    pub fn check_programs(&mut self) -> Outcome {
        let programs =
            [&mut self.registry, &mut self.containerd, &mut self.control, &mut self.node];
        programs.into_iter().flatten().try_for_each(Program::check)
    }

    pub(super) fn stop_programs(&mut self) -> Outcome {
        let programs =
            [self.node.take(), self.control.take(), self.containerd.take(), self.registry.take()];
        self.gate = None;
        let mut failures = Vec::new();
        for program in programs.into_iter().flatten() {
            if let Err(failure) = program.terminate() {
                failures.push(failure.text().to_owned());
            }
        }
        ensure!(failures.is_empty(), "{}", failures.join(", "));
        Ok(())
    }

    pub(super) fn release_programs(&mut self) {
        let programs =
            [self.node.take(), self.control.take(), self.containerd.take(), self.registry.take()];
        programs.into_iter().flatten().for_each(Program::release);
    }
}

/// With modes, owners and times, as an administrator's backup.
fn copy_tree(from: &Path, to: &Path) -> Outcome {
    let mut command = Command::new("cp");
    command.arg("--archive").arg("--no-target-directory").arg(from).arg(to);
    Said::by(&mut command)?.good().map(drop)
}

/// Signals every process that names this directory; how a lab that was kept is ended.
pub(super) fn kill_all_of(dir: &Path) {
    let name = dir.to_string_lossy().into_owned();
    for process in proc::processes().iter().filter(|process| process.mentions(&name)) {
        proc::kill_if_alive(process.pid);
    }
}

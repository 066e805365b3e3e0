//! One more process in a container that runs, as every client of containerd adds it: Exec, Start, Wait
//! and Delete of its task service, under a shim of ours and under containerd's own.

use std::path::Path;
use std::time::Instant;

use containerd_client::services::v1::tasks_client::TasksClient;
use containerd_client::services::v1::{
    DeleteProcessRequest, ExecProcessRequest, StartRequest, WaitRequest,
};
use containerd_client::tonic::Request;
use containerd_client::tonic::transport::Channel;
use containerd_client::with_namespace;
use prost_types::Any;
use serde_json::{Value, json};

use super::bundle;
use super::peers::{self, PEERS, Samples};
use crate::ctr::NAMESPACE;
use crate::failure::During as _;
use crate::{Failure, Lab, Setting, ensure};

/// Type of a process that is added.
const PROCESS_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/Process";
const PROGRAM: [&str; 3] = ["/bin/sh", "-c", ":"];

/// A container, and what a process in it is to be.
struct Target {
    id: String,
    process: Vec<u8>,
}

impl Target {
    /// The container's own process with another program.
    fn of(lab: &Lab, id: String) -> Result<Self, Failure> {
        let mut process = lab.ctr().spec(&id)?.pointer("/process").cloned().unwrap_or_default();
        let fields = process.as_object_mut();
        let fields = fields.ok_or_else(|| Failure::new(format!("{id} has no process")))?;
        fields.insert("args".to_owned(), json!(PROGRAM));
        fields.insert("terminal".to_owned(), Value::Bool(false));
        Ok(Self { id, process: process.to_string().into_bytes() })
    }

    /// Adds a process, waits for its end and deletes it.
    async fn run(&self, tasks: &mut TasksClient<Channel>, exec_id: String) -> Result<(), Failure> {
        let container_id = self.id.clone();
        let spec = Some(Any { type_url: PROCESS_TYPE.to_owned(), value: self.process.clone() });
        let request = ExecProcessRequest {
            container_id: container_id.clone(),
            exec_id: exec_id.clone(),
            spec,
            ..ExecProcessRequest::default()
        };
        tasks.exec(with_namespace!(request, NAMESPACE)).await.during("add a process")?;
        let (id, exec) = (container_id.clone(), exec_id.clone());
        let request = StartRequest { container_id: id, exec_id: exec };
        tasks.start(with_namespace!(request, NAMESPACE)).await.during("start the process")?;
        let (id, exec) = (container_id.clone(), exec_id.clone());
        let request = WaitRequest { container_id: id, exec_id: exec };
        let ended = tasks.wait(with_namespace!(request, NAMESPACE)).await.during("wait for it")?;
        ensure!(ended.into_inner().exit_status == 0, "a process in {} failed", self.id);
        let request = DeleteProcessRequest { container_id, exec_id };
        let deleted = tasks.delete_process(with_namespace!(request, NAMESPACE)).await;
        deleted.map(drop).during("delete the process")
    }
}

/// Measures in a lab of its own.
pub(super) fn measure(bin_dir: &Path, warm_up: usize, samples: usize) -> Result<Samples, Failure> {
    let setting = Setting { bin_dir: Some(bin_dir.to_owned()), ..Setting::default() };
    let mut lab = Lab::start(setting)?;
    let root = bundle::rootfs(&lab.path("files"))?;
    let submission = lab.good(&["/bin/sleep", "600"])?;
    let job = lab.submit(&submission)?.job()?;
    let own = lab.wait_running(&job)?;
    let mut targets = vec![Target::of(&lab, own.clone())?];
    for binary in PEERS {
        let id = peers::start(&mut lab, &root, binary)?;
        targets.push(Target::of(&lab, id)?);
    }
    let socket = lab.path(crate::lab::CONTAINERD_SOCKET);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let took = runtime.block_on(async {
        let channel = containerd_client::connect(socket).await.during("connect")?;
        let mut tasks = TasksClient::new(channel);
        let mut took = Samples::default();
        for number in 0..warm_up + samples {
            for (target, took) in targets.iter().zip(took.iter_mut()) {
                let begun = Instant::now();
                target.run(&mut tasks, format!("e{number}")).await?;
                if number >= warm_up {
                    took.push(begun.elapsed().as_secs_f64() * 1000.0);
                }
            }
        }
        Ok::<_, Failure>(took)
    })?;
    for peer in targets.iter().skip(1) {
        peers::remove(&lab, &peer.id)?;
    }
    lab.cancel(&job)?;
    lab.wait_ended(&job)?;
    lab.nothing_left_of(&own)?;
    lab.close()?;
    Ok(took)
}

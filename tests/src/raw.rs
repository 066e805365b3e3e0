//! containerd's own API, for what `ctr` cannot say: a specification byte for byte, rootfs mounts,
//! checkpoints, runtime options, output of any kind.
//!
//! Each call connects, does its work and disconnects: an attacker's client, not a daemon.

use containerd_client::services::v1::container::Runtime;
use containerd_client::services::v1::containers_client::ContainersClient;
use containerd_client::services::v1::tasks_client::TasksClient;
use containerd_client::services::v1::{
    Container, CreateContainerRequest, CreateTaskRequest, DeleteContainerRequest,
    DeleteTaskRequest, StartRequest, WaitRequest,
};
use containerd_client::tonic::transport::Channel;
use containerd_client::tonic::{Request, Status};
use containerd_client::types::{Descriptor, Mount};
use containerd_client::with_namespace;
use nimbus_api::{Refusal, RefusalCode};
use prost_types::Any;

use crate::ctr::{NAMESPACE, RUNTIME};
use crate::failure::During as _;
use crate::{Failure, Lab, Outcome, ensure};

/// Type of a specification.
const SPEC_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/Spec";

/// A container to be started, with everything a client can say.
#[derive(Debug, Clone, Default)]
pub struct Wish {
    /// Container id.
    pub id: String,
    /// `config.json`, byte for byte.
    pub spec: Vec<u8>,
    /// Directory to be bind-mounted as its rootfs, as a client's snapshot would be.
    pub rootfs: Option<String>,
    /// Where stdout shall go.
    pub stdout: String,
    /// Whether a terminal is asked for.
    pub terminal: bool,
    /// Whether a checkpoint is to be restored.
    pub checkpoint: bool,
    /// Type URL of runtime options.
    pub options: Option<String>,
}

/// What became of it.
#[derive(Debug, Clone)]
pub enum Tried {
    /// Create was refused.
    Refused {
        /// Our code, if there is one in the text.
        code: Option<RefusalCode>,
        /// What containerd said.
        text: String,
    },
    /// It ran and ended with this status.
    Ran(u32),
}

impl Tried {
    /// Fails unless it was refused with this code.
    pub fn expect_refused(&self, wanted: RefusalCode) -> Outcome {
        ensure!(
            matches!(self, Self::Refused { code: Some(code), .. } if *code == wanted),
            "expected {wanted}, found {self:?}"
        );
        Ok(())
    }

    /// Fails unless it ran to this end.
    pub fn expect_ran(&self, wanted: u32) -> Outcome {
        ensure!(
            matches!(self, Self::Ran(status) if *status == wanted),
            "expected exit {wanted}, found {self:?}"
        );
        Ok(())
    }
}

impl Lab {
    /// Creates the container and its task, starts it, waits for its end and removes both; checks
    /// that nothing is left of it, whatever became of it.
    pub fn try_start(&mut self, wish: &Wish) -> Result<Tried, Failure> {
        self.remember(&wish.id);
        let socket = self.path(crate::lab::CONTAINERD_SOCKET);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let tried = runtime.block_on(async {
            let channel = containerd_client::connect(socket).await.during("connect")?;
            start(channel, wish).await
        })?;
        self.nothing_left_of(&wish.id)?;
        Ok(tried)
    }
}

async fn start(channel: Channel, wish: &Wish) -> Result<Tried, Failure> {
    let mut containers = ContainersClient::new(channel.clone());
    let container = Container {
        id: wish.id.clone(),
        runtime: Some(Runtime { name: RUNTIME.to_owned(), options: None }),
        spec: Some(Any { type_url: SPEC_TYPE.to_owned(), value: wish.spec.clone() }),
        ..Container::default()
    };
    let request = CreateContainerRequest { container: Some(container) };
    let request = with_namespace!(request, NAMESPACE);
    containers.create(request).await.during("create the container")?;
    let tried = task(channel, wish).await;
    let request = DeleteContainerRequest { id: wish.id.clone() };
    containers.delete(with_namespace!(request, NAMESPACE)).await.during("delete the container")?;
    tried
}

async fn task(channel: Channel, wish: &Wish) -> Result<Tried, Failure> {
    let mut tasks = TasksClient::new(channel);
    let id = wish.id.clone();
    let created = tasks.create(with_namespace!(create_request(wish), NAMESPACE)).await;
    if let Err(status) = created {
        return Ok(refused(&status));
    }
    let request = StartRequest { container_id: id.clone(), exec_id: String::new() };
    let started = tasks.start(with_namespace!(request, NAMESPACE)).await;
    let tried = match started {
        Err(status) => refused(&status),
        Ok(_started) => {
            let request = WaitRequest { container_id: id.clone(), exec_id: String::new() };
            let ended = tasks.wait(with_namespace!(request, NAMESPACE)).await.during("wait")?;
            Tried::Ran(ended.into_inner().exit_status)
        }
    };
    let request = DeleteTaskRequest { container_id: id };
    tasks.delete(with_namespace!(request, NAMESPACE)).await.during("delete the task")?;
    Ok(tried)
}

fn create_request(wish: &Wish) -> CreateTaskRequest {
    let bind = |source: &String| Mount {
        r#type: "bind".to_owned(),
        source: source.clone(),
        options: vec!["rbind".to_owned(), "rw".to_owned()],
        ..Mount::default()
    };
    let checkpoint = wish.checkpoint.then(|| Descriptor {
        media_type: "application/vnd.containerd.container.criu.checkpoint.criu.tar".to_owned(),
        digest: nimbus_api::Digest::of(b"a checkpoint").to_string(),
        size: 1,
        ..Descriptor::default()
    });
    CreateTaskRequest {
        container_id: wish.id.clone(),
        rootfs: wish.rootfs.iter().map(bind).collect(),
        stdout: wish.stdout.clone(),
        terminal: wish.terminal,
        checkpoint,
        options: wish.options.clone().map(|type_url| Any { type_url, value: Vec::new() }),
        ..CreateTaskRequest::default()
    }
}

fn refused(status: &Status) -> Tried {
    let text = status.message().to_owned();
    Tried::Refused { code: Refusal::code_in(&text), text }
}

//! containerd, as the agent uses it: its gRPC API in namespace [`NAMESPACE`], every call with a
//! deadline but Wait, which lasts as long as a job.
//!
//! The channel connects when it is first used and again after containerd has been away. What comes
//! back as an error is code and text; a refusal of ours is found in the text by its code.

use std::path::Path;
use std::time::Duration;

use containerd_client::services::v1::container::Runtime;
use containerd_client::services::v1::containers_client::ContainersClient;
use containerd_client::services::v1::tasks_client::TasksClient;
use containerd_client::services::v1::{
    Container, CreateContainerRequest, CreateTaskRequest, DeleteContainerRequest,
    DeleteTaskRequest, GetRequest, KillRequest, ListContainersRequest, StartRequest, WaitRequest,
};
use containerd_client::types::v1::Status as TaskStatus;
use hyper_util::rt::TokioIo;
use nimbus_api::id::Namespace;
use nimbus_api::{Refusal, RefusalCode};
use tokio::net::UnixStream;
use tonic::metadata::MetadataValue;
use tonic::metadata::errors::InvalidMetadataValue;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

use super::spec::SPEC_TYPE;
use crate::agent::{NAMESPACE, RUNTIME};

/// Longest wait for Task.Create: admission, image checks and the runtime are in it.
pub const CREATE_SECONDS_MAX: u64 = 120;
/// Longest wait for any other call but Wait.
pub const CALL_SECONDS_MAX: u64 = 30;
/// Most bytes of one answer: a list of containers with their specifications.
pub const ANSWER_BYTES_MAX: usize = 64 << 20;
/// The header that names a containerd namespace.
const NAMESPACE_HEADER: &str = "containerd-namespace";
/// Label of our containers.
pub const LEASE_LABEL: &str = "nimbus.io/lease-id";

/// A call that failed.
#[derive(Debug, Clone, thiserror::Error)]
#[error("containerd: {what}: {message}")]
pub struct ContainerdError {
    what: &'static str,
    code: Code,
    message: String,
}

impl ContainerdError {
    /// There is no such container or task.
    pub fn is_not_found(&self) -> bool {
        self.code == Code::NotFound
    }

    /// As a refusal: our own code if one is in the text.
    pub fn refusal(&self) -> Refusal {
        match Refusal::code_in(&self.message) {
            Some(code) => Refusal::with(code, found_in(&self.message, code)),
            None => Refusal::with(RefusalCode::NodeContainerd, self),
        }
    }
}

/// The detail of a refusal of ours in a text: between the code's sentence and its advice.
fn found_in(text: &str, code: RefusalCode) -> String {
    let prefix = format!("[{code}] {}: ", code.sentence());
    let detail = text.split_once(&prefix).map(|(_, rest)| rest);
    detail.and_then(|rest| rest.split(';').next()).unwrap_or_default().to_owned()
}

/// A container in containerd's list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Its id.
    pub id: String,
}

/// containerd's API.
#[derive(Debug, Clone)]
pub struct Containerd {
    channel: Channel,
}

impl Containerd {
    /// Connects when it is first used.
    pub fn new(address: &Path) -> Self {
        Self { channel: channel(address) }
    }

    fn containers(&self) -> ContainersClient<Channel> {
        ContainersClient::new(self.channel.clone()).max_decoding_message_size(ANSWER_BYTES_MAX)
    }

    fn tasks(&self) -> TasksClient<Channel> {
        TasksClient::new(self.channel.clone())
    }

    /// Makes a container's record.
    pub async fn create_container(
        &self,
        id: &str,
        lease_id: &str,
        spec: Vec<u8>,
    ) -> Result<(), ContainerdError> {
        let container = Container {
            id: id.to_owned(),
            labels: [(LEASE_LABEL.to_owned(), lease_id.to_owned())].into(),
            runtime: Some(Runtime { name: RUNTIME.to_owned(), options: None }),
            spec: Some(prost_types::Any { type_url: SPEC_TYPE.to_owned(), value: spec }),
            ..Container::default()
        };
        let request = request(CreateContainerRequest { container: Some(container) });
        let mut client = self.containers();
        within("create container", CALL_SECONDS_MAX, client.create(request)).await.map(drop)
    }

    /// Creates its task: admission happens in here.
    pub async fn create_task(
        &self,
        id: &str,
        stdout: String,
        stderr: String,
    ) -> Result<(), ContainerdError> {
        let request = request(CreateTaskRequest {
            container_id: id.to_owned(),
            stdout,
            stderr,
            ..CreateTaskRequest::default()
        });
        let mut client = self.tasks();
        within("create task", CREATE_SECONDS_MAX, client.create(request)).await.map(drop)
    }

    /// Runs its program.
    pub async fn start(&self, id: &str) -> Result<(), ContainerdError> {
        let request =
            request(StartRequest { container_id: id.to_owned(), ..StartRequest::default() });
        let mut client = self.tasks();
        within("start task", CALL_SECONDS_MAX, client.start(request)).await.map(drop)
    }

    /// Waits for its end; gives the exit status. No deadline.
    pub async fn wait(&self, id: &str) -> Result<u32, ContainerdError> {
        let request =
            request(WaitRequest { container_id: id.to_owned(), ..WaitRequest::default() });
        let answer = self.tasks().wait(request).await;
        answer.map(|answer| answer.into_inner().exit_status).map_err(|s| failed("wait", &s))
    }

    /// Its task's state.
    pub async fn status(&self, id: &str) -> Result<TaskStatus, ContainerdError> {
        let request = request(GetRequest { container_id: id.to_owned(), ..GetRequest::default() });
        let mut client = self.tasks();
        let answer = within("get task", CALL_SECONDS_MAX, client.get(request)).await?;
        Ok(answer.process.map_or(TaskStatus::Unknown, |process| process.status()))
    }

    /// Kills every process of it.
    pub async fn kill(&self, id: &str) -> Result<(), ContainerdError> {
        let signal = u32::try_from(libc::SIGKILL).unwrap_or(9);
        let request = request(KillRequest {
            container_id: id.to_owned(),
            signal,
            all: true,
            ..KillRequest::default()
        });
        let mut client = self.tasks();
        within("kill task", CALL_SECONDS_MAX, client.kill(request)).await.map(drop)
    }

    /// Deletes its task.
    pub async fn delete_task(&self, id: &str) -> Result<(), ContainerdError> {
        let request = request(DeleteTaskRequest { container_id: id.to_owned() });
        let mut client = self.tasks();
        within("delete task", CALL_SECONDS_MAX, client.delete(request)).await.map(drop)
    }

    /// Deletes its record.
    pub async fn delete_container(&self, id: &str) -> Result<(), ContainerdError> {
        let request = request(DeleteContainerRequest { id: id.to_owned() });
        let mut client = self.containers();
        within("delete container", CALL_SECONDS_MAX, client.delete(request)).await.map(drop)
    }

    /// All containers of our namespace.
    pub async fn list(&self) -> Result<Vec<Listed>, ContainerdError> {
        let request = request(ListContainersRequest::default());
        let mut client = self.containers();
        let answer = within("list containers", CALL_SECONDS_MAX, client.list(request)).await?;
        Ok(answer.containers.into_iter().map(|container| Listed { id: container.id }).collect())
    }
}

/// A channel that connects when it is first used. On an event loop.
pub(crate) fn channel(address: &Path) -> Channel {
    let path = address.to_owned();
    let open = tower::service_fn(move |_uri: tonic::transport::Uri| {
        let path = path.clone();
        async move { Ok::<_, std::io::Error>(TokioIo::new(UnixStream::connect(path).await?)) }
    });
    // The name is for tonic alone: the connector knows where.
    Endpoint::from_static("http://containerd")
        .connect_timeout(Duration::from_secs(CALL_SECONDS_MAX))
        .connect_with_connector_lazy(open)
}

/// A request in another namespace than ours.
pub(crate) fn in_namespace<T>(namespace: &Namespace, message: T) -> Result<Request<T>, Refusal> {
    let value = namespace.as_str().parse().map_err(|_error: InvalidMetadataValue| {
        Refusal::with(RefusalCode::NodeInternal, format!("namespace {namespace}"))
    })?;
    let mut request = Request::new(message);
    request.metadata_mut().insert(NAMESPACE_HEADER, value);
    Ok(request)
}

fn request<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert(NAMESPACE_HEADER, MetadataValue::from_static(NAMESPACE));
    request
}

/// An answer within a time, or why there is none.
pub(crate) async fn within<T>(
    what: &'static str,
    seconds: u64,
    call: impl Future<Output = Result<tonic::Response<T>, Status>>,
) -> Result<T, ContainerdError> {
    match tokio::time::timeout(Duration::from_secs(seconds), call).await {
        Ok(Ok(answer)) => Ok(answer.into_inner()),
        Ok(Err(status)) => Err(failed(what, &status)),
        Err(_elapsed) => {
            let message = format!("no answer within {seconds} s");
            Err(ContainerdError { what, code: Code::DeadlineExceeded, message })
        }
    }
}

fn failed(what: &'static str, status: &Status) -> ContainerdError {
    ContainerdError { what, code: status.code(), message: status.message().to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_comes_back_through_containerds_text() {
        let sent = Refusal::with(RefusalCode::LeaseWrongNode, "found a, expected b");
        let error = ContainerdError {
            what: "create task",
            code: Code::Unknown,
            message: format!("failed to create shim task: {sent}: unknown"),
        };
        assert_eq!(error.refusal(), sent);
        let other = ContainerdError { message: "disk full".to_owned(), ..error };
        assert_eq!(other.refusal().code, RefusalCode::NodeContainerd);
    }
}

//! CRI v1 over gRPC on containerd's socket, one blocking call at a time.

use std::path::Path;
use std::time::Duration;

use k8s_cri::v1::image_service_client::ImageServiceClient;
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use k8s_cri::v1::{
    AttachRequest, AttachResponse, ContainerStatsRequest, ContainerStatsResponse,
    ContainerStatusRequest, ContainerStatusResponse, CreateContainerRequest,
    CreateContainerResponse, ExecRequest, ExecResponse, ExecSyncRequest, ExecSyncResponse,
    ListContainerStatsRequest, ListContainerStatsResponse, ListContainersRequest,
    ListContainersResponse, ListPodSandboxRequest, ListPodSandboxResponse, PodSandboxStatsRequest,
    PodSandboxStatsResponse, PodSandboxStatusRequest, PodSandboxStatusResponse, PortForwardRequest,
    PortForwardResponse, PullImageRequest, PullImageResponse, RemoveContainerRequest,
    RemoveContainerResponse, RemovePodSandboxRequest, RemovePodSandboxResponse,
    ReopenContainerLogRequest, ReopenContainerLogResponse, RunPodSandboxRequest,
    RunPodSandboxResponse, StartContainerRequest, StartContainerResponse, StatusRequest,
    StatusResponse, StopContainerRequest, StopContainerResponse, StopPodSandboxRequest,
    StopPodSandboxResponse, UpdateContainerResourcesRequest, UpdateContainerResourcesResponse,
    VersionRequest, VersionResponse,
};
use tokio::runtime::Runtime;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use crate::Failure;

/// Longest wait for one answer: kubelet's own is two minutes.
pub const CALL_MAX: Duration = Duration::from_mins(2);

/// A client of one containerd's CRI plugin.
#[derive(Debug)]
pub struct Cri {
    runtime: Runtime,
    pods: RuntimeServiceClient<Channel>,
    images: ImageServiceClient<Channel>,
}

/// One blocking method a call, named as the call.
macro_rules! calls {
    ($($service:ident.$name:ident($request:ty) -> $answer:ty;)*) => {$(
        #[doc = concat!("`", stringify!($name), "` of the CRI.")]
        pub fn $name(&self, request: $request) -> Result<$answer, Status> {
            let mut client = self.$service.clone();
            self.runtime.block_on(async {
                let answer = tokio::time::timeout(CALL_MAX, client.$name(request)).await;
                let late = |_elapsed| Status::new(Code::DeadlineExceeded, "the CRI plugin does not answer");
                answer.map_err(late)?.map(tonic::Response::into_inner)
            })
        }
    )*};
}

impl Cri {
    /// A client of the containerd at this socket; it connects when it is used.
    pub fn new(socket: &Path) -> Result<Self, Failure> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display()))?;
        let channel = {
            let _inside = runtime.enter();
            endpoint.connect_lazy()
        };
        let pods = RuntimeServiceClient::new(channel.clone());
        Ok(Self { runtime, pods, images: ImageServiceClient::new(channel) })
    }

    calls! {
        pods.version(VersionRequest) -> VersionResponse;
        pods.status(StatusRequest) -> StatusResponse;
        pods.run_pod_sandbox(RunPodSandboxRequest) -> RunPodSandboxResponse;
        pods.stop_pod_sandbox(StopPodSandboxRequest) -> StopPodSandboxResponse;
        pods.remove_pod_sandbox(RemovePodSandboxRequest) -> RemovePodSandboxResponse;
        pods.pod_sandbox_status(PodSandboxStatusRequest) -> PodSandboxStatusResponse;
        pods.list_pod_sandbox(ListPodSandboxRequest) -> ListPodSandboxResponse;
        pods.create_container(CreateContainerRequest) -> CreateContainerResponse;
        pods.start_container(StartContainerRequest) -> StartContainerResponse;
        pods.stop_container(StopContainerRequest) -> StopContainerResponse;
        pods.remove_container(RemoveContainerRequest) -> RemoveContainerResponse;
        pods.container_status(ContainerStatusRequest) -> ContainerStatusResponse;
        pods.list_containers(ListContainersRequest) -> ListContainersResponse;
        pods.update_container_resources(UpdateContainerResourcesRequest) -> UpdateContainerResourcesResponse;
        pods.reopen_container_log(ReopenContainerLogRequest) -> ReopenContainerLogResponse;
        pods.exec_sync(ExecSyncRequest) -> ExecSyncResponse;
        pods.exec(ExecRequest) -> ExecResponse;
        pods.attach(AttachRequest) -> AttachResponse;
        pods.port_forward(PortForwardRequest) -> PortForwardResponse;
        pods.container_stats(ContainerStatsRequest) -> ContainerStatsResponse;
        pods.list_container_stats(ListContainerStatsRequest) -> ListContainerStatsResponse;
        pods.pod_sandbox_stats(PodSandboxStatsRequest) -> PodSandboxStatsResponse;
        images.pull_image(PullImageRequest) -> PullImageResponse;
    }
}

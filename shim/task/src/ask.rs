//! Calls to a server that is there already, from `start` and `delete`: short processes of their own.
//!
//! Limits: [`ANSWER_PATIENCE`] for one that is to take a container more, [`DELETE_PATIENCE`] for one that
//! is to be rid of one.

use std::io;
use std::path::Path;
use std::time::Duration;

use containerd_shim_protos::api::{
    ConnectRequest, DeleteRequest, DeleteResponse, KillRequest, ShutdownRequest, WaitRequest,
};
use containerd_shim_protos::shim_async::{Client, TaskClient};
use containerd_shim_protos::ttrpc::asynchronous::transport::Socket;
use containerd_shim_protos::ttrpc::context;
use nimbus_api::id::ContainerId;
use tokio::net::UnixStream;

/// How long a server may take to say that it is there, at one time of asking: one that ends just then may
/// leave the question unanswered.
const ANSWER_PATIENCE: Duration = Duration::from_secs(1);
/// How long it may take to end and clean up a container. containerd kills `delete` after five seconds, and
/// what a server has not done in time the runtime does.
const DELETE_PATIENCE: Duration = Duration::from_millis(1500);
const KILL: u32 = 9;

/// What came of telling a server that a container will come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Introduced {
    /// It waits for it.
    Expected,
    /// It has ended, or is about to.
    Gone,
    /// It did not answer; it may be starting at this moment.
    Silent,
}

/// Tells a server that a container will come, so that it does not end before.
pub(crate) fn introduce(socket: &Path, id: &ContainerId) -> io::Result<Introduced> {
    block_on(async {
        let asked = async {
            let task = connect(socket).await?;
            let request = ConnectRequest { id: id.to_string(), ..ConnectRequest::default() };
            task.connect(patient(ANSWER_PATIENCE), &request).await.ok()
        };
        match tokio::time::timeout(ANSWER_PATIENCE, asked).await {
            Ok(Some(_answer)) => Introduced::Expected,
            Ok(None) => Introduced::Gone,
            Err(_late) => Introduced::Silent,
        }
    })
}

/// Has a server end a container, forget it, and end itself when that was the last. The answer is the
/// server's own; none when it does not have this container, or not in time.
pub(crate) async fn delete(socket: &Path, id: &ContainerId) -> Option<DeleteResponse> {
    let asked = async {
        let task = connect(socket).await?;
        let id = id.to_string();
        let kill = KillRequest { id: id.clone(), signal: KILL, all: true, ..Default::default() };
        if task.kill(patient(DELETE_PATIENCE), &kill).await.is_ok() {
            let wait = WaitRequest { id: id.clone(), ..Default::default() };
            let _ended = task.wait(patient(DELETE_PATIENCE), &wait).await;
        }
        let delete = DeleteRequest { id: id.clone(), ..Default::default() };
        let deleted = task.delete(patient(DELETE_PATIENCE), &delete).await.ok();
        let shutdown = ShutdownRequest { id, ..Default::default() };
        let _stays = task.shutdown(patient(DELETE_PATIENCE), &shutdown).await;
        deleted
    };
    tokio::time::timeout(DELETE_PATIENCE, asked).await.ok().flatten()
}

async fn connect(socket: &Path) -> Option<TaskClient> {
    let stream = UnixStream::connect(socket).await.ok()?;
    Some(TaskClient::new(Client::new(Socket::from(stream))))
}

fn patient(patience: Duration) -> context::Context {
    context::with_duration(patience)
}

fn block_on<T>(work: impl Future<Output = T>) -> io::Result<T> {
    let event_loop = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    Ok(event_loop.block_on(work))
}

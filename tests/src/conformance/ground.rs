//! One containerd for one of the two runtimes, with an agent, a client and everything that is told.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use containerd_client::tonic::transport::Channel;
use containerd_client::tonic::{Code, Response, Status};
use nix::sys::signal::{Signal, kill};
use tokio::runtime::Runtime;

use super::agent::Agent;
use super::events::Events;
use super::spec::{self, CGROUP_PARENT};
use crate::child::{Program, tail};
use crate::failure::During as _;
use crate::wait::until;
use crate::{Failure, Outcome, containerd, ensure, leftovers, proc};

/// containerd's namespace of all containers here.
pub(super) const NAMESPACE: &str = "conformance";
/// Longest wait for an answer. What is not answered by then is reported as such.
const CALL_PATIENCE: Duration = Duration::from_secs(20);
/// Lines of containerd's log that are shown when something goes wrong.
const LOG_LINES: usize = 30;
/// Threads of a client: one is enough, and one more for those who wait.
const CLIENT_THREADS: usize = 2;

/// What a call came to.
pub(super) type Answer<T> = Result<T, Status>;

/// Which runtime.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    /// Debian's runc under containerd's own shim.
    Runc,
    /// Ours.
    Nimbus,
}

impl Side {
    /// As containerd calls it.
    pub(super) const fn runtime(self) -> &'static str {
        match self {
            Self::Runc => "io.containerd.runc.v2",
            Self::Nimbus => crate::ctr::RUNTIME,
        }
    }

    /// Its name.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Runc => "runc",
            Self::Nimbus => "nimbus",
        }
    }

    const fn shim(self) -> &'static str {
        match self {
            Self::Runc => "containerd-shim-runc-v2",
            Self::Nimbus => "containerd-shim-nimbus-v1",
        }
    }
}

/// One side's containerd.
#[derive(Debug)]
pub(super) struct Ground {
    side: Side,
    dir: tempfile::TempDir,
    programs: PathBuf,
    layer: PathBuf,
    containerd: Option<Program>,
    agent: Option<Agent>,
    client: Runtime,
    channel: Channel,
    events: Events,
    ids: BTreeSet<String>,
}

impl Ground {
    /// Starts everything.
    pub(super) fn start(side: Side) -> Result<Self, Failure> {
        let dir = tempfile::Builder::new().prefix("nimbus-conformance-").tempdir()?;
        let programs = crate::lab::bin_dir()?;
        fs::create_dir(dir.path().join(containerd::RUN_DIR))?;
        let layer = spec::layer(dir.path())?;
        let socket = dir.path().join(containerd::RUN_DIR).join("node.sock");
        let agent = Agent::listen(&socket, &layer)?;
        let daemon =
            containerd::start(dir.path(), &programs, &dir.path().join("containerd.log"), None)?;
        let client = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(CLIENT_THREADS)
            .enable_all()
            .build()?;
        let socket = dir.path().join(containerd::SOCKET);
        let channel = client.block_on(containerd_client::connect(socket)).during("connect")?;
        let events = Events::listen(&client, &channel)?;
        Ok(Self {
            side,
            dir,
            programs,
            layer,
            containerd: Some(daemon),
            agent: Some(agent),
            client,
            channel,
            events,
            ids: BTreeSet::new(),
        })
    }

    /// Which runtime it is for.
    pub(super) const fn side(&self) -> Side {
        self.side
    }

    /// Its directory.
    pub(super) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The root that every container gets; runc under an overlay, as a snapshotter would mount it.
    pub(super) fn layer(&self) -> &Path {
        &self.layer
    }

    /// A connection to containerd.
    pub(super) fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// Everything that was told.
    pub(super) const fn events(&self) -> &Events {
        &self.events
    }

    /// Waits for an answer.
    pub(super) fn ask<T>(
        &self,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Answer<T> {
        self.client.block_on(within_patience(call))
    }

    /// Asks and does not wait for the answer yet.
    pub(super) fn begin<T: Send + 'static>(
        &self,
        call: impl Future<Output = Result<Response<T>, Status>> + Send + 'static,
    ) -> tokio::task::JoinHandle<Answer<T>> {
        self.client.spawn(within_patience(call))
    }

    /// Waits for what was begun.
    pub(super) fn finish<T>(&self, begun: tokio::task::JoinHandle<Answer<T>>) -> Answer<T> {
        self.client.block_on(begun).unwrap_or_else(|error| Err(Status::internal(error.to_string())))
    }

    /// SIGKILL to containerd.
    pub(super) fn kill_containerd(&mut self) -> Outcome {
        self.containerd.take().map_or(Ok(()), Program::kill9)
    }

    /// Starts containerd again.
    pub(super) fn start_containerd(&mut self) -> Outcome {
        let log = self.dir().join("containerd.log");
        self.containerd = Some(containerd::start(self.dir(), &self.programs, &log, None)?);
        self.events.wait_subscribed(&self.client, &self.channel)
    }

    /// SIGKILL to the shim of a container.
    pub(super) fn kill_shim(&self, id: &str) -> Outcome {
        let shim = until("the shim of the container", || {
            let is_shim = |process: &proc::Process| {
                let ours = process.cmdline.split(' ').any(|word| word == id);
                process.runs(self.side.shim()) && ours
            };
            Ok(proc::processes().into_iter().find(is_shim))
        })?;
        kill(shim.pid, Signal::SIGKILL)?;
        Ok(())
    }

    /// The end of containerd's log.
    pub(super) fn log(&self) -> String {
        tail(&self.dir().join("containerd.log"), LOG_LINES)
    }

    /// Stops everything; fails when anything is left.
    pub(super) fn close(mut self) -> Outcome {
        let name = self.dir().display().to_string();
        let mut left = Vec::new();
        let idle = until("the shims to end", || {
            let ours =
                |process: &proc::Process| process.runs(self.side.shim()) && process.mentions(&name);
            left = proc::processes().into_iter().filter(ours).map(|one| one.cmdline).collect();
            Ok(left.is_empty().then_some(()))
        });
        ensure!(idle.is_ok(), "left: {}\n{}", left.join(", "), self.log());
        self.containerd.take().map_or(Ok(()), Program::terminate)?;
        drop(self.agent.take());
        let left = leftovers::cgroups(&[CGROUP_PARENT]);
        for parent in left.iter().filter(|path| path.ends_with(CGROUP_PARENT)) {
            // Two names of one hierarchy; a container that is left in it keeps it.
            fs::remove_dir(parent).unwrap_or_default();
        }
        let left = leftovers::of_lab(self.dir(), &self.ids);
        ensure!(left.is_empty(), "left: {}", left.join(", "));
        fs::remove_dir_all(self.dir()).during("the directory of a containerd")
    }

    /// A container of this id is about to be made.
    pub(super) fn remember(&mut self, id: &str) {
        self.ids.insert(id.to_owned());
    }
}

impl Drop for Ground {
    /// What a failed close has left; what cannot be removed was reported by it.
    fn drop(&mut self) {
        if let Some(daemon) = self.containerd.take() {
            drop(daemon);
            drop(crate::lab::sweep(self.dir.path(), &self.ids));
        }
    }
}

async fn within_patience<T>(call: impl Future<Output = Result<Response<T>, Status>>) -> Answer<T> {
    match tokio::time::timeout(CALL_PATIENCE, call).await {
        Ok(answer) => answer.map(Response::into_inner),
        Err(_late) => Err(Status::new(Code::Cancelled, "nobody answered")),
    }
}

//! Events for containerd, in order, over its ttrpc socket.
//!
//! A queue of [`AT_WILL_MAX`] and [`ONCE_MAX`] a container and one task that delivers: the next event goes only after the
//! one before it was taken or refused, and a connection that breaks (containerd restarts) is made
//! anew with a growing pause, for ever. What a client or the job brings about (a pause, a process, a
//! want of memory) leaves room for the events that come once in a life, the exits of all processes that
//! there may be at a time among them; an exit is never known by its event alone, `Wait` and `State`
//! always tell.

use std::path::{Path, PathBuf};
use std::time::Duration;

use containerd_shim_protos::events::task::{
    TaskCreate, TaskDelete, TaskExecAdded, TaskExecStarted, TaskExit, TaskOOM, TaskPaused,
    TaskResumed, TaskStart,
};
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{MessageField, MessageFull};
use containerd_shim_protos::shim::event::Envelope;
use containerd_shim_protos::shim::events::ForwardRequest;
use containerd_shim_protos::shim_async::{Client, EventsClient};
use containerd_shim_protos::topics;
use containerd_shim_protos::ttrpc::asynchronous::transport::Socket;
use containerd_shim_protos::ttrpc::{self, context};
use nimbus_api::clock::SystemClock;
use tokio::net::UnixStream;
use tokio::sync::{mpsc, watch};

use super::exec::EXECS_MAX;
use crate::log::Log;

/// What is brought about at will and waits at most.
const AT_WILL_MAX: usize = 120;
/// What comes once in a life and waits at most, of one container; nothing else takes these places.
const ONCE_MAX: usize = 8 + EXECS_MAX;
/// One delivery.
const FORWARD_PATIENCE: Duration = Duration::from_secs(5);
/// An event that containerd refuses is given up after so many tries; one it cannot be reached for
/// is not.
const REFUSALS_MAX: u32 = 3;
const PAUSE_FIRST: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// One event.
#[derive(Debug)]
pub(crate) enum Event {
    /// The container has been made.
    Create(TaskCreate),
    /// Its program runs.
    Start(TaskStart),
    /// A process is about to be added.
    ExecAdded(TaskExecAdded),
    /// It runs.
    ExecStarted(TaskExecStarted),
    /// It stands still.
    Paused(TaskPaused),
    /// It goes on.
    Resumed(TaskResumed),
    /// Processes of it were killed for want of memory.
    Oom(TaskOOM),
    /// Its init has ended.
    Exit(TaskExit),
    /// It has been cleaned up.
    Delete(TaskDelete),
}

impl Event {
    /// Whether a client or the job brings it about, as often as it likes.
    const fn at_will(&self) -> bool {
        match self {
            Self::ExecAdded(_)
            | Self::ExecStarted(_)
            | Self::Oom(_)
            | Self::Paused(_)
            | Self::Resumed(_) => true,
            Self::Create(_) | Self::Start(_) | Self::Exit(_) | Self::Delete(_) => false,
        }
    }
}

/// Takes events; clones share one queue.
#[derive(Debug, Clone)]
pub(crate) struct Publisher {
    queue: mpsc::Sender<Envelope>,
    undelivered: watch::Sender<usize>,
    kept_free: usize,
    namespace: String,
    log: Log,
}

impl Publisher {
    /// Starts delivering the events of so many containers to containerd's socket; without an address
    /// they go nowhere.
    pub(crate) fn spawn(
        address: Option<PathBuf>,
        namespace: String,
        containers: usize,
        log: Log,
    ) -> Self {
        let kept_free = ONCE_MAX.saturating_mul(containers);
        // Places cost nothing until they are taken.
        let (queue, events) = mpsc::channel(kept_free.saturating_add(AT_WILL_MAX));
        let undelivered = watch::Sender::new(0);
        match address {
            Some(address) => {
                let worker = Worker {
                    address,
                    client: None,
                    undelivered: undelivered.clone(),
                    log: log.clone(),
                };
                tokio::spawn(worker.run(events));
            }
            None => log.warn("no address for events"),
        }
        Self { queue, undelivered, kept_free, namespace, log }
    }

    /// Puts an event into the queue; never waits.
    pub(crate) fn publish(&self, event: Event) {
        if event.at_will() && self.queue.capacity() <= self.kept_free {
            self.log.warn("what happened is not told: events are not taken");
            return;
        }
        let (topic, encoded) = match event {
            Event::Create(event) => (topics::TASK_CREATE_EVENT_TOPIC, pack(&event)),
            Event::Start(event) => (topics::TASK_START_EVENT_TOPIC, pack(&event)),
            Event::ExecAdded(event) => (topics::TASK_EXEC_ADDED_EVENT_TOPIC, pack(&event)),
            Event::ExecStarted(event) => (topics::TASK_EXEC_STARTED_EVENT_TOPIC, pack(&event)),
            Event::Paused(event) => (topics::TASK_PAUSED_EVENT_TOPIC, pack(&event)),
            Event::Resumed(event) => (topics::TASK_RESUMED_EVENT_TOPIC, pack(&event)),
            Event::Oom(event) => (topics::TASK_OOM_EVENT_TOPIC, pack(&event)),
            Event::Exit(event) => (topics::TASK_EXIT_EVENT_TOPIC, pack(&event)),
            Event::Delete(event) => (topics::TASK_DELETE_EVENT_TOPIC, pack(&event)),
        };
        let envelope = Envelope {
            timestamp: super::timestamp(SystemClock.unix_nanos()),
            namespace: self.namespace.clone(),
            topic: topic.to_owned(),
            event: encoded,
            ..Envelope::default()
        };
        self.undelivered.send_modify(|count| *count = count.saturating_add(1));
        if self.queue.try_send(envelope).is_err() {
            self.undelivered.send_modify(|count| *count = count.saturating_sub(1));
            self.log.warn(format_args!("event {topic} is lost: nobody takes events"));
        }
    }

    /// Waits until all is delivered; false when that took too long.
    pub(crate) async fn flush(&self, patience: Duration) -> bool {
        let mut undelivered = self.undelivered.subscribe();
        let empty = undelivered.wait_for(|count| *count == 0);
        tokio::time::timeout(patience, empty).await.is_ok()
    }
}

/// A message as containerd spells its type.
pub(super) fn pack<M: MessageFull>(event: &M) -> MessageField<Any> {
    Any::pack(event).map_or_else(
        |_unencodable| MessageField::none(),
        |any| {
            // containerd's own spelling: the bare name.
            let type_url = any.type_url.rsplit('/').next().unwrap_or_default().to_owned();
            MessageField::some(Any { type_url, ..any })
        },
    )
}

struct Worker {
    address: PathBuf,
    client: Option<EventsClient>,
    undelivered: watch::Sender<usize>,
    log: Log,
}

enum Delivery {
    Taken,
    Refused(String),
    Unreachable,
}

impl Worker {
    async fn run(mut self, mut events: mpsc::Receiver<Envelope>) {
        while let Some(envelope) = events.recv().await {
            self.deliver(envelope).await;
            self.undelivered.send_modify(|count| *count = count.saturating_sub(1));
        }
    }

    async fn deliver(&mut self, envelope: Envelope) {
        let topic = envelope.topic.clone();
        let request =
            ForwardRequest { envelope: MessageField::some(envelope), ..Default::default() };
        let mut pause = PAUSE_FIRST;
        let mut refusals = 0;
        loop {
            match self.forward(&request).await {
                Delivery::Taken => return,
                Delivery::Refused(why) => {
                    refusals += 1;
                    if refusals >= REFUSALS_MAX {
                        self.log.warn(format_args!("containerd refuses event {topic}: {why}"));
                        return;
                    }
                }
                Delivery::Unreachable => self.client = None,
            }
            tokio::time::sleep(pause).await;
            pause = pause.saturating_mul(2).min(PAUSE_MAX);
        }
    }

    async fn forward(&mut self, request: &ForwardRequest) -> Delivery {
        if self.client.is_none() {
            self.client = connect(&self.address).await;
        }
        let Some(client) = &self.client else { return Delivery::Unreachable };
        let sent = client.forward(context::with_duration(FORWARD_PATIENCE), request);
        match tokio::time::timeout(FORWARD_PATIENCE, sent).await {
            Ok(Ok(_empty)) => Delivery::Taken,
            Ok(Err(ttrpc::Error::RpcStatus(status))) => Delivery::Refused(status.message),
            Ok(Err(_)) | Err(_) => Delivery::Unreachable,
        }
    }
}

async fn connect(address: &Path) -> Option<EventsClient> {
    let connecting = UnixStream::connect(address);
    let stream = tokio::time::timeout(FORWARD_PATIENCE, connecting).await.ok()?.ok()?;
    Some(EventsClient::new(Client::new(Socket::from(stream))))
}

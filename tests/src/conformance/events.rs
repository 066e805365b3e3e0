//! What containerd tells its subscribers about tasks, in words that can be compared.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use containerd_client::events::{
    TaskCheckpointed, TaskCreate, TaskDelete, TaskExecAdded, TaskExecStarted, TaskExit, TaskOom,
    TaskPaused, TaskResumed, TaskStart,
};
use containerd_client::services::v1::events_client::EventsClient;
use containerd_client::services::v1::{PublishRequest, SubscribeRequest};
use containerd_client::tonic::Request;
use containerd_client::tonic::transport::Channel;
use containerd_client::types::Envelope;
use containerd_client::with_namespace;
use prost::{Message, Name};
use prost_types::Any;
use tokio::runtime::Runtime;

use super::ground::NAMESPACE;
use crate::wait::until;
use crate::{Failure, Outcome};

/// Before a subscription that has ended is made anew.
const AGAIN: Duration = Duration::from_millis(50);

/// One event of one container.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Told {
    container: String,
    what: String,
}

/// Everything that was told so far; a subscription is made anew for as long as this is there.
#[derive(Debug, Clone, Default)]
pub(super) struct Events {
    told: Arc<Mutex<Vec<Told>>>,
    probes: Arc<AtomicUsize>,
}

impl Events {
    /// Subscribes, and returns when that has taken effect.
    pub(super) fn listen(client: &Runtime, channel: &Channel) -> Result<Self, Failure> {
        let events = Self::default();
        client.spawn(events.clone().subscribe(channel.clone()));
        events.wait_subscribed(client, channel)?;
        Ok(events)
    }

    async fn subscribe(self, channel: Channel) {
        loop {
            let mut client = EventsClient::new(channel.clone());
            let request = SubscribeRequest { filters: vec![format!("namespace=={NAMESPACE}")] };
            if let Ok(stream) = client.subscribe(request).await {
                let mut stream = stream.into_inner();
                while let Ok(Some(envelope)) = stream.message().await {
                    self.hear(&envelope);
                }
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    fn hear(&self, envelope: &Envelope) {
        let told = envelope.event.as_ref().and_then(translate);
        if let Some(told) = told {
            self.told.lock().unwrap_or_else(PoisonError::into_inner).push(told);
        }
    }

    /// A subscription has no answer of its own: events are published until one comes back.
    pub(super) fn wait_subscribed(&self, client: &Runtime, channel: &Channel) -> Outcome {
        let number = self.probes.fetch_add(1, Ordering::SeqCst);
        let container_id = format!("probe-{number}");
        let probe = TaskOom { container_id: container_id.clone() };
        let event = Any { type_url: TaskOom::full_name(), value: probe.encode_to_vec() };
        until("the subscription to take effect", || {
            let request = PublishRequest { topic: "/probe".to_owned(), event: Some(event.clone()) };
            let mut events = EventsClient::new(channel.clone());
            // Not before containerd is there.
            let published = client.block_on(events.publish(with_namespace!(request, NAMESPACE)));
            drop(published);
            Ok((!self.of(&container_id).is_empty()).then_some(()))
        })
    }

    /// Those of one container, in the order in which they came.
    pub(super) fn of(&self, container: &str) -> Vec<String> {
        let told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let of_it = told.iter().filter(|told| told.container == container);
        of_it.map(|told| told.what.clone()).collect()
    }
}

/// Process ids and times are nobody's promise; whether there is one is.
fn translate(event: &Any) -> Option<Told> {
    let told = |container: String, what: String| Some(Told { container, what });
    let pid = |pid: u32| if pid == 0 { " (no pid)" } else { "" };
    if let Some(one) = decode::<TaskCreate>(event) {
        return told(one.container_id, format!("create{}", pid(one.pid)));
    }
    if let Some(one) = decode::<TaskStart>(event) {
        return told(one.container_id, format!("start{}", pid(one.pid)));
    }
    if let Some(one) = decode::<TaskExit>(event) {
        let exec = if one.id == one.container_id { String::new() } else { format!(" {}", one.id) };
        let time = if one.exited_at.is_none_or(|at| at.seconds <= 0) { " (no time)" } else { "" };
        let what = format!("exit{exec} {}{}{time}", one.exit_status, pid(one.pid));
        return told(one.container_id, what);
    }
    if let Some(one) = decode::<TaskDelete>(event) {
        let exec = if one.id.is_empty() { String::new() } else { format!(" {}", one.id) };
        let what = format!("delete{exec} {}{}", one.exit_status, pid(one.pid));
        return told(one.container_id, what);
    }
    if let Some(one) = decode::<TaskExecAdded>(event) {
        return told(one.container_id, format!("exec-added {}", one.exec_id));
    }
    if let Some(one) = decode::<TaskExecStarted>(event) {
        return told(one.container_id, format!("exec-started {}{}", one.exec_id, pid(one.pid)));
    }
    if let Some(one) = decode::<TaskOom>(event) {
        return told(one.container_id, "oom".to_owned());
    }
    if let Some(one) = decode::<TaskPaused>(event) {
        return told(one.container_id, "paused".to_owned());
    }
    if let Some(one) = decode::<TaskResumed>(event) {
        return told(one.container_id, "resumed".to_owned());
    }
    decode::<TaskCheckpointed>(event)
        .and_then(|one| told(one.container_id, "checkpointed".to_owned()))
}

fn decode<M: Message + Name + Default>(event: &Any) -> Option<M> {
    let bare = event.type_url.rsplit('/').next().unwrap_or_default();
    (bare == M::full_name()).then(|| M::decode(event.value.as_slice()).ok()).flatten()
}

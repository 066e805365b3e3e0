//! containerd's side of events: takes them and remembers their order, whose they are, and whose exits came.

use std::path::Path;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use containerd_shim_protos::api::{Empty, ForwardRequest};
use containerd_shim_protos::events::task::{TaskExit, TaskOOM};
use containerd_shim_protos::protobuf::Message as _;
use containerd_shim_protos::ttrpc::{Result, Server, TtrpcContext};
use containerd_shim_protos::{Events, create_events};

use crate::lab::wait_until;

const PATIENCE: Duration = Duration::from_secs(20);

/// Topics; names of processes that ended; containers with topics.
#[derive(Clone, Default)]
pub(crate) struct Sink(
    Arc<(Mutex<Vec<String>>, Condvar)>,
    Arc<Mutex<Vec<String>>>,
    Arc<Mutex<Vec<(String, String)>>>,
);

impl Events for Sink {
    fn forward(&self, _context: &TtrpcContext, request: ForwardRequest) -> Result<Empty> {
        let (topics, news) = &*self.0;
        if request.envelope.topic == "/tasks/exit" {
            let exit = TaskExit::parse_from_bytes(&request.envelope.event.value).unwrap();
            self.1.lock().unwrap().push(exit.id);
        }
        // The first field of every event of a task is the container's id.
        let event = TaskOOM::parse_from_bytes(&request.envelope.event.value).unwrap();
        let topic = request.envelope.topic.trim_start_matches("/tasks/").to_owned();
        self.2.lock().unwrap().push((event.container_id, topic));
        topics.lock().unwrap().push(request.envelope.topic.clone());
        news.notify_all();
        Ok(Empty::default())
    }
}

impl Sink {
    pub(crate) fn listen(socket: &Path) -> (Self, Server) {
        let sink = Self::default();
        let mut server = Server::new()
            .bind(&format!("unix://{}", socket.display()))
            .unwrap()
            .register_service(create_events(Arc::new(sink.clone())));
        server.start().unwrap();
        (sink, server)
    }

    /// Everything so far, once this topic has come.
    pub(crate) fn until(&self, topic: &str) -> Vec<String> {
        let (topics, news) = &*self.0;
        let (topics, late) = news
            .wait_timeout_while(topics.lock().unwrap(), PATIENCE, |topics| {
                !topics.iter().any(|found| found == topic)
            })
            .unwrap();
        assert!(!late.timed_out(), "only {topics:?}");
        topics.clone()
    }

    /// Who has ended, in order.
    pub(crate) fn exits(&self) -> Vec<String> {
        self.1.lock().unwrap().clone()
    }

    /// What was told of this container, once that has come.
    pub(crate) fn of(&self, id: &str, topic: &str) -> Vec<String> {
        let so_far = || {
            let all = self.2.lock().unwrap();
            all.iter().filter(|(of, _)| of == id).map(|(_, topic)| topic.clone()).collect()
        };
        wait_until(topic, || {
            let told: Vec<String> = so_far();
            told.iter().any(|found| found == topic)
        });
        so_far()
    }

    pub(crate) fn so_far(&self) -> Vec<String> {
        self.0.0.lock().unwrap().clone()
    }
}

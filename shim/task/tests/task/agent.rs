//! A node agent on `node.sock` that answers as it is told and remembers what it hears.

use std::net::Shutdown;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use nimbus_api::Refusal;
use nimbus_api::frame::{FrameReader, write_frame};
use nimbus_api::proto::admit::v1::{
    Admit, AgentMessage, Granted, Refused, Released, Resume, ShimMessage, agent_message,
    shim_message,
};
use prost::Message as _;

const PATIENCE: Duration = Duration::from_secs(20);

/// What to answer to Admit.
pub(crate) enum Answer {
    Refuse(Refusal),
    Close,
    Silent,
    /// The plan as JSON, its digest, and what makes the descriptors.
    Grant(Granted, Box<dyn Fn() -> Vec<OwnedFd> + Send + Sync>),
    /// The same, by what was asked; silence when that is none.
    Choose(Box<Choice>),
}

pub(crate) type Choice = dyn Fn(&Admit) -> Option<(Granted, Vec<OwnedFd>)> + Send + Sync;

#[derive(Clone)]
pub(crate) struct Agent(Arc<Shared>);

struct Shared {
    answer: Answer,
    /// With the container that the connection is for.
    heard: Mutex<Vec<(String, shim_message::Kind)>>,
    news: Condvar,
    /// Of which container, the latest last.
    connections: Mutex<Vec<(String, UnixStream)>>,
}

impl Agent {
    pub(crate) fn listen(socket: &Path, answer: Answer) -> Self {
        let listener = UnixListener::bind(socket).unwrap();
        let shared = Arc::new(Shared {
            answer,
            heard: Mutex::default(),
            news: Condvar::new(),
            connections: Mutex::default(),
        });
        let agent = Self(Arc::clone(&shared));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let shared = Arc::clone(&shared);
                std::thread::spawn(move || shared.serve(&stream.unwrap()));
            }
        });
        agent
    }

    /// Waits until the shim has said something that fits.
    pub(crate) fn hear<T>(&self, fits: impl Fn(&shim_message::Kind) -> Option<T>) -> T {
        self.hear_of(|_id, kind| fits(kind))
    }

    fn hear_of<T>(&self, fits: impl Fn(&str, &shim_message::Kind) -> Option<T>) -> T {
        let heard = self.0.heard.lock().unwrap();
        let fits = |(id, kind): &(String, _)| fits(id, kind);
        let (heard, late) = self
            .0
            .news
            .wait_timeout_while(heard, PATIENCE, |heard| {
                !heard.iter().any(|one| fits(one).is_some())
            })
            .unwrap();
        assert!(!late.timed_out(), "heard only {heard:?}");
        heard.iter().find_map(fits).unwrap()
    }

    /// The Released of this container.
    pub(crate) fn released_of(&self, of: &str) -> Released {
        self.hear_of(|id, kind| {
            let shim_message::Kind::Released(released) = kind else { return None };
            (id == of).then(|| released.clone())
        })
    }

    /// The config.json of the Admit.
    pub(crate) fn config(&self) -> Vec<u8> {
        self.hear(|kind| {
            let shim_message::Kind::Admit(admit) = kind else { return None };
            Some(admit.config_json.clone())
        })
    }

    /// The first Resume.
    pub(crate) fn resume(&self) -> Resume {
        self.hear(|kind| {
            let shim_message::Kind::Resume(resume) = kind else { return None };
            Some(resume.clone())
        })
    }

    /// The Released.
    pub(crate) fn released(&self) -> Released {
        self.hear(|kind| {
            let shim_message::Kind::Released(released) = kind else { return None };
            Some(released.clone())
        })
    }

    /// What has been said so far, without the long part.
    pub(crate) fn heard(&self) -> Vec<&'static str> {
        self.0.heard.lock().unwrap().iter().map(|(_, kind)| name(kind)).collect()
    }

    /// The same, of this container.
    pub(crate) fn heard_of(&self, of: &str) -> Vec<&'static str> {
        let heard = self.0.heard.lock().unwrap();
        heard.iter().filter(|(id, _)| id == of).map(|(_, kind)| name(kind)).collect()
    }

    /// Says something on the connection that is open.
    pub(crate) fn say(&self, kind: agent_message::Kind) {
        let connections = self.0.connections.lock().unwrap();
        send(&connections.last().unwrap().1, kind, &[]);
    }

    /// Says something about this container.
    pub(crate) fn say_of(&self, of: &str, kind: agent_message::Kind) {
        let connections = self.0.connections.lock().unwrap();
        send(&connections.iter().rfind(|(id, _)| id == of).unwrap().1, kind, &[]);
    }

    /// Breaks the connection.
    pub(crate) fn hang_up(&self) {
        let (_, connection) = self.0.connections.lock().unwrap().pop().unwrap();
        connection.shutdown(Shutdown::Both).unwrap();
    }
}

fn name(kind: &shim_message::Kind) -> &'static str {
    match kind {
        shim_message::Kind::Admit(_) => "admit",
        shim_message::Kind::Resume(_) => "resume",
        shim_message::Kind::Started(_) => "started",
        shim_message::Kind::Released(_) => "released",
    }
}

impl Shared {
    fn serve(&self, stream: &UnixStream) {
        let mut of = None;
        let mut reader = FrameReader::default();
        while let Ok(frame) = reader.read(stream) {
            let kind = ShimMessage::decode(frame.bytes.as_slice()).unwrap().kind.unwrap();
            let (admit, first) = match &kind {
                shim_message::Kind::Admit(admit) => (Some(admit.clone()), Some(admit.id.clone())),
                shim_message::Kind::Resume(resume) => (None, Some(resume.id.clone())),
                shim_message::Kind::Started(_) | shim_message::Kind::Released(_) => (None, None),
            };
            if let Some(id) = first {
                let stream = stream.try_clone().unwrap();
                self.connections.lock().unwrap().push((id.clone(), stream));
                of = Some(id);
            }
            self.heard.lock().unwrap().push((of.clone().unwrap(), kind));
            self.news.notify_all();
            if admit.is_some_and(|admit| !self.answer(stream, &admit)) {
                return;
            }
        }
    }

    /// Whether the connection stays.
    fn answer(&self, stream: &UnixStream, admit: &Admit) -> bool {
        match &self.answer {
            Answer::Refuse(refusal) => {
                let refused = Refused {
                    code: refusal.code.to_string(),
                    sentence: refusal.sentence(),
                    advice: refusal.code.advice().to_owned(),
                };
                send(stream, agent_message::Kind::Refused(refused), &[]);
                false
            }
            Answer::Close => {
                stream.shutdown(Shutdown::Both).unwrap();
                false
            }
            Answer::Silent => true,
            Answer::Grant(granted, fds) => {
                send(stream, agent_message::Kind::Granted(granted.clone()), &fds());
                true
            }
            Answer::Choose(choose) => {
                if let Some((granted, fds)) = choose(admit) {
                    send(stream, agent_message::Kind::Granted(granted), &fds);
                }
                true
            }
        }
    }
}

fn send(stream: &UnixStream, kind: agent_message::Kind, fds: &[OwnedFd]) {
    let bytes = AgentMessage { kind: Some(kind) }.encode_to_vec();
    let fds: Vec<_> = fds.iter().map(|fd| fd.as_fd()).collect();
    write_frame(stream, &bytes, &fds).unwrap();
}

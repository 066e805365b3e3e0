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
    AgentMessage, Granted, Refused, Released, Resume, ShimMessage, agent_message, shim_message,
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
}

#[derive(Clone)]
pub(crate) struct Agent(Arc<Shared>);

struct Shared {
    answer: Answer,
    heard: Mutex<Vec<shim_message::Kind>>,
    news: Condvar,
    connection: Mutex<Option<UnixStream>>,
}

impl Agent {
    pub(crate) fn listen(socket: &Path, answer: Answer) -> Self {
        let listener = UnixListener::bind(socket).unwrap();
        let shared = Arc::new(Shared {
            answer,
            heard: Mutex::default(),
            news: Condvar::new(),
            connection: Mutex::default(),
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
        let heard = self.0.heard.lock().unwrap();
        let (heard, late) = self
            .0
            .news
            .wait_timeout_while(heard, PATIENCE, |heard| {
                !heard.iter().any(|kind| fits(kind).is_some())
            })
            .unwrap();
        assert!(!late.timed_out(), "heard only {heard:?}");
        heard.iter().find_map(fits).unwrap()
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
        let name = |kind: &shim_message::Kind| match kind {
            shim_message::Kind::Admit(_) => "admit",
            shim_message::Kind::Resume(_) => "resume",
            shim_message::Kind::Started(_) => "started",
            shim_message::Kind::Released(_) => "released",
        };
        self.0.heard.lock().unwrap().iter().map(name).collect()
    }

    /// Says something on the connection that is open.
    pub(crate) fn say(&self, kind: agent_message::Kind) {
        let connection = self.0.connection.lock().unwrap();
        send(connection.as_ref().unwrap(), kind, &[]);
    }

    /// Breaks the connection.
    pub(crate) fn hang_up(&self) {
        let connection = self.0.connection.lock().unwrap().take().unwrap();
        connection.shutdown(Shutdown::Both).unwrap();
    }
}

impl Shared {
    fn serve(&self, stream: &UnixStream) {
        *self.connection.lock().unwrap() = Some(stream.try_clone().unwrap());
        let mut reader = FrameReader::default();
        while let Ok(frame) = reader.read(stream) {
            let kind = ShimMessage::decode(frame.bytes.as_slice()).unwrap().kind.unwrap();
            let admit = matches!(kind, shim_message::Kind::Admit(_));
            self.heard.lock().unwrap().push(kind);
            self.news.notify_all();
            if admit && !self.answer(stream) {
                return;
            }
        }
    }

    /// Whether the connection stays.
    fn answer(&self, stream: &UnixStream) -> bool {
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
        }
    }
}

fn send(stream: &UnixStream, kind: agent_message::Kind, fds: &[OwnedFd]) {
    let bytes = AgentMessage { kind: Some(kind) }.encode_to_vec();
    let fds: Vec<_> = fds.iter().map(|fd| fd.as_fd()).collect();
    write_frame(stream, &bytes, &fds).unwrap();
}

//! What goes on with the node agent while a container lives: extensions, revocation, the deadline.
//!
//! The connection of the grant is kept. When it breaks it is made anew with `Resume`, with a pause
//! that grows to [`PAUSE_MAX`], for ever; the container runs on until its deadline meanwhile. The
//! deadline is a timer of our own and needs no agent. `Released` is tried for
//! [`RELEASE_PATIENCE`]; after that the agent's ledger finds out by itself (rule 8).

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use nimbus_api::clock::BootNanos;
use nimbus_api::error::Chain;
use nimbus_api::proto::admit::v1::{
    Refused, Released, Resume, Started, agent_message, shim_message,
};
use nimbus_api::refusal::RefusalClass;
use nimbus_api::{Refusal, RefusalCode};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::admission::PROTOCOL_VERSION;
use super::container::Container;
use super::deadline::Deadline;
use super::link::{Link, LinkError};
use crate::log::Log;
use crate::status::TaskError;

const PAUSE_FIRST: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// How long `Released` is tried.
const RELEASE_PATIENCE: Duration = Duration::from_secs(2);
/// Orders that wait at most; there are two in a container's life.
const ORDERS_MAX: usize = 4;

/// Tells the session what happened to the container.
#[derive(Debug, Clone)]
pub(super) struct Session(mpsc::Sender<Order>);

#[derive(Debug)]
enum Order {
    Started(u32),
    Released(Released, oneshot::Sender<()>),
}

/// What the session begins with.
#[derive(Debug)]
pub(super) struct Opening {
    /// The connection of the grant.
    pub link: Link,
    /// Armed.
    pub deadline: Deadline,
    /// Where to connect again.
    pub socket: PathBuf,
    /// Names the plan to the agent.
    pub plan_sha256: String,
}

/// The message that a container is gone.
pub(super) fn released(
    exit_status: u32,
    oom_killed: bool,
    reason: Option<RefusalCode>,
) -> Released {
    let reason = reason.map(|code| code.as_str().to_owned()).unwrap_or_default();
    Released { exit_status, oom_killed, reason }
}

impl Session {
    /// Starts it.
    pub(super) fn spawn(opening: Opening, container: Arc<Container>, log: Log) -> Self {
        let (orders, queue) = mpsc::channel(ORDERS_MAX);
        let runner = Runner {
            link: Some(opening.link),
            deadline: Some(opening.deadline),
            socket: opening.socket,
            plan_sha256: opening.plan_sha256,
            retry: Retry::new(),
            started: None,
            container,
            log,
        };
        tokio::spawn(runner.run(queue));
        Self(orders)
    }

    /// The container's program has been started.
    pub(super) async fn started(&self, pid: u32) {
        let _ended = self.0.send(Order::Started(pid)).await;
    }

    /// The container is gone; returns when the agent was told or could not be, and ends the session.
    pub(super) async fn released(&self, message: Released) {
        let (done, told) = oneshot::channel();
        if self.0.send(Order::Released(message, done)).await.is_ok() {
            let _told = told.await;
        }
    }
}

#[derive(Debug)]
struct Retry {
    pause: Duration,
    at: Instant,
}

impl Retry {
    fn new() -> Self {
        Self { pause: PAUSE_FIRST, at: Instant::now() }
    }

    fn later(&mut self) {
        self.at = Instant::now() + self.pause;
        self.pause = self.pause.saturating_mul(2).min(PAUSE_MAX);
    }
}

struct Runner {
    link: Option<Link>,
    /// None once it has passed.
    deadline: Option<Deadline>,
    socket: PathBuf,
    plan_sha256: String,
    retry: Retry,
    started: Option<u32>,
    container: Arc<Container>,
    log: Log,
}

enum Event {
    Agent(Result<agent_message::Kind, LinkError>),
    Passed,
    Retry,
    Order(Option<Order>),
}

impl Runner {
    async fn run(mut self, mut orders: mpsc::Receiver<Order>) {
        loop {
            match self.next(&mut orders).await {
                Event::Passed => {
                    self.deadline = None;
                    self.container.end(RefusalCode::LeaseEnded.into());
                }
                Event::Agent(Ok(kind)) => self.hear(kind),
                Event::Agent(Err(error)) => self.lost(&error),
                Event::Retry => self.reconnect().await,
                Event::Order(Some(Order::Started(pid))) => {
                    self.started = Some(pid);
                    self.say(shim_message::Kind::Started(Started { pid })).await;
                }
                Event::Order(Some(Order::Released(message, done))) => {
                    let telling = self.release(message);
                    if tokio::time::timeout(RELEASE_PATIENCE, telling).await.is_err() {
                        self.log
                            .warn("the node agent could not be told that the container is gone");
                    }
                    let _waiter_gone = done.send(());
                    return;
                }
                Event::Order(None) => return,
            }
        }
    }

    async fn next(&mut self, orders: &mut mpsc::Receiver<Order>) -> Event {
        let agent = async {
            if let Some(link) = &mut self.link {
                return Event::Agent(link.receive().await.map(|(kind, _no_fds)| kind));
            }
            tokio::time::sleep_until(self.retry.at).await;
            Event::Retry
        };
        let passed = async {
            match &self.deadline {
                Some(deadline) => deadline.passed().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            // The deadline first: nothing that the agent says may hold it up.
            biased;
            () = passed => Event::Passed,
            order = orders.recv() => Event::Order(order),
            event = agent => event,
        }
    }

    fn hear(&mut self, kind: agent_message::Kind) {
        match kind {
            agent_message::Kind::Deadline(deadline) => {
                self.retry = Retry::new();
                let Some(armed) = &mut self.deadline else { return };
                // Fail closed: a timer that cannot be moved fires when it was to.
                if let Err(error) = armed.extend(BootNanos(deadline.boottime_ns)) {
                    self.log.warn(format_args!("the deadline cannot be extended: {error}"));
                }
            }
            agent_message::Kind::Revoked(revoked) => {
                let code = revoked.code.parse().unwrap_or(RefusalCode::LeaseRevoked);
                self.container.end(Refusal::with(code, revoked.sentence));
            }
            agent_message::Kind::Refused(refused) => self.refused(&refused),
            agent_message::Kind::Granted(_) => {
                self.log.warn("the node agent granted what is granted already; ignored");
            }
        }
    }

    /// The answer to a Resume that the agent does not take. What may pass by itself is tried again;
    /// otherwise the agent does not know this container, and unknown means stop (rule 9).
    fn refused(&mut self, refused: &Refused) {
        let error = TaskError::from_agent(refused);
        self.log.warn(format_args!("the node agent refuses to resume: {error}"));
        let code: Option<RefusalCode> = refused.code.parse().ok();
        if code.is_some_and(|code| code.class() == RefusalClass::Unavailable) {
            self.link = None;
            self.retry.later();
            return;
        }
        self.container.end(code.unwrap_or(RefusalCode::LeaseRevoked).into());
    }

    fn lost(&mut self, error: &LinkError) {
        self.log.warn(Chain(error));
        self.link = None;
        self.retry.later();
    }

    async fn reconnect(&mut self) {
        // Counted before it is tried: a connection that breaks at once must not make a busy loop.
        self.retry.later();
        match Link::connect(&self.socket).await {
            Ok(link) => self.link = Some(link),
            Err(error) => return self.log.debug(Chain(&error)),
        }
        let key = self.container.key();
        let resume = Resume {
            version: PROTOCOL_VERSION,
            namespace: key.namespace.to_string(),
            id: key.id.to_string(),
            plan_sha256: self.plan_sha256.clone(),
        };
        self.say(shim_message::Kind::Resume(resume)).await;
        if let Some(pid) = self.started {
            self.say(shim_message::Kind::Started(Started { pid })).await;
        }
        if self.link.is_some() {
            self.log.info("connected to the node agent again");
        }
    }

    async fn say(&mut self, kind: shim_message::Kind) {
        let Some(link) = &mut self.link else { return };
        if let Err(error) = link.send(kind).await {
            self.lost(&error);
        }
    }

    async fn release(&mut self, message: Released) {
        loop {
            self.say(shim_message::Kind::Released(message.clone())).await;
            if self.link.is_some() {
                return;
            }
            tokio::time::sleep(PAUSE_FIRST).await;
            self.reconnect().await;
        }
    }
}

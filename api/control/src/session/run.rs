//! One session, from hello to its end.
//!
//! The order at the beginning: record the hello, take the node's place, read which leases we think
//! it has, then welcome, keys, policy, acknowledgements, revocations. A lease that the hello did not
//! list may still have its end on the way in the spool, so it is judged only at the first heartbeat
//! after the hello: started and not held is lost, never started is granted again. One that was claimed
//! is never granted unasked: it is lost when the time in which it could start has passed, unless the
//! node has claimed it again by then.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use futures::stream::{FuturesOrdered, StreamExt as _};
use nimbus_api::error::Chain;
use nimbus_api::lease::{LEASE_VERSION, LeaseClaims, LeaseToken, NONCE_BYTES};
use nimbus_api::proto::control::v1::LogStream;
use nimbus_api::proto::node::v1::{
    Event as WireEvent, Heartbeat, Hello, LogData, NodeMessage, event, node_message::Kind,
};
use nimbus_api::{Refusal, RefusalCode};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until, timeout};
use tonic::{Status, Streaming};

use super::claims::Claims;
use super::outbox::Outbox;
use super::{Command, Present, receipt};
use crate::app::App;
use crate::identity::Peer;
use crate::keyring::SignError;
use crate::limits::{
    GRACE_SECONDS, HELD_MAX, HELLO_MAX, LOG_DATA_BYTES_MAX, LOGS_IN_FLIGHT, NAME_BYTES_MAX,
    NODE_MESSAGE_CHARS_MAX, SESSION_SILENCE_MAX, SKEW_SECONDS,
};
use crate::logs::{Append, Kept, StreamKey};
use crate::status;
use crate::store::{Event, EventKind, LiveLease, NodeHello, StoreError};

/// Why a session ended.
#[derive(Debug)]
pub(super) enum Ended {
    /// The node went away, or its place was taken.
    Gone,
    /// The node does not read.
    Slow,
    /// The node says nothing.
    Silent,
    /// Control stops.
    Stopping,
    /// The node said something that it may not.
    Protocol(String),
    /// Control cannot answer.
    Store(StoreError),
}

impl From<StoreError> for Ended {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl Ended {
    fn status(self) -> Option<Status> {
        let invalid = |text: &str| status::of(&Refusal::with(RefusalCode::RequestInvalid, text));
        match self {
            Self::Gone => None,
            Self::Slow | Self::Stopping => Some(status::code(RefusalCode::ControlUnavailable)),
            Self::Silent => Some(invalid("no heartbeat came")),
            Self::Protocol(problem) => Some(invalid(&problem)),
            Self::Store(StoreError::Gap { expected, found }) => {
                Some(invalid(&format!("expected event {expected}, found {found}")))
            }
            Self::Store(error) => Some(status::store(error)),
        }
    }
}

pub(super) struct Session {
    pub(super) app: Arc<App>,
    pub(super) node: String,
    peer: Peer,
    pub(super) outbox: Outbox,
    id: u64,
    /// Leases that the hello did not list, until they have been judged.
    missing: Option<Vec<LiveLease>>,
    /// Output limits of attempts that this node may send output of.
    limits: HashMap<(String, u32), Option<u64>>,
    /// The node's policy, as the store has it.
    policy_serial: u64,
    /// Serial of the key set that the node was sent.
    key_set_serial: u64,
}

type Acks = FuturesOrdered<oneshot::Receiver<Kept>>;

/// Runs a session to its end.
pub(super) async fn run(
    app: Arc<App>,
    (node, peer): (String, Peer),
    mut inbound: Streaming<NodeMessage>,
    sender: mpsc::Sender<Result<nimbus_api::proto::node::v1::ControlMessage, Status>>,
) {
    let hello = match first(&mut inbound).await {
        Ok(hello) => hello,
        Err(ended) => {
            tracing::info!(node, ?ended, "no session");
            if let Some(status) = ended.status() {
                drop(sender.send(Err(status)).await);
            }
            return;
        }
    };
    tracing::info!(node, held = hello.held.len(), version = hello.version, "session begins");
    let outbox = Outbox(sender.clone());
    let limits = HashMap::new();
    let policy_serial = hello.policy_serial;
    let mut session = Session {
        app,
        node,
        peer,
        outbox,
        id: 0,
        missing: None,
        limits,
        policy_serial,
        key_set_serial: 0,
    };
    let ended = match session.begin(&hello).await {
        Ok(commands) => session.go_on(inbound, commands).await,
        Err(ended) => ended,
    };
    tracing::info!(node = session.node, ?ended, "session ended");
    session.app.registry.leave(&session.node, session.id);
    let now_ms = session.app.clock.unix_millis();
    if let Err(error) = session.app.store.seen(session.node.clone(), now_ms).await {
        tracing::debug!(error = %Chain(&error), "last contact not recorded");
    }
    if let Some(status) = ended.status() {
        drop(timeout(HELLO_MAX, sender.send(Err(status))).await);
    }
}

async fn first(inbound: &mut Streaming<NodeMessage>) -> Result<Hello, Ended> {
    let message = timeout(HELLO_MAX, inbound.next()).await.map_err(|_late| Ended::Silent)?;
    let Some(Ok(message)) = message else { return Err(Ended::Gone) };
    let Some(Kind::Hello(hello)) = message.kind else {
        return Err(Ended::Protocol("the first message must be hello".to_owned()));
    };
    if hello.held.len() > HELD_MAX {
        return Err(Ended::Protocol(format!("hello lists more than {HELD_MAX} leases")));
    }
    if hello.platform.len() > NAME_BYTES_MAX || hello.version.len() > NAME_BYTES_MAX {
        return Err(Ended::Protocol("platform or version is too long".to_owned()));
    }
    Ok(hello)
}

fn nonce_of(bytes: &[u8]) -> Result<[u8; NONCE_BYTES], Ended> {
    let wrong =
        || Ended::Protocol(format!("a nonce has {NONCE_BYTES} bytes, found {}", bytes.len()));
    bytes.try_into().map_err(|_error| wrong())
}

impl Session {
    async fn begin(&mut self, hello: &Hello) -> Result<mpsc::Receiver<Command>, Ended> {
        let (now, now_ms) = (self.app.clock.boottime(), self.app.clock.unix_millis());
        let nonce = nonce_of(&hello.nonce)?;
        let said = NodeHello {
            version: hello.version.clone(),
            policy_serial: hello.policy_serial,
            capacity: hello.capacity.unwrap_or_default(),
            max_jobs: hello.max_jobs,
        };
        let present = Present {
            thumbprint: self.peer.thumbprint(),
            platform: hello.platform.clone(),
            capacity: said.capacity,
            max_jobs: said.max_jobs,
            reads_leases: hello.lease_versions.contains(&LEASE_VERSION),
            nonce,
            nonce_at: now,
            last_seen_ms: now_ms,
        };
        let seq = self.app.store.hello(self.node.clone(), said, now_ms).await?;
        // The place first, the leases second: what is granted in between is granted twice, which is
        // once for the node; the other way round it would be granted to nobody.
        let (id, commands) = self.app.registry.enter(&self.node, present);
        self.id = id;
        let live = self.app.store.live_leases(self.node.clone()).await?;
        self.outbox.welcome().await?;
        self.keys_first().await?;
        if let Some(envelope) = self.app.policy_envelope() {
            self.outbox.policy(&envelope).await?;
        }
        self.outbox.event_ack(seq).await?;
        self.compare(hello, live).await?;
        self.app.dispatch.notify_one();
        Ok(commands)
    }

    /// Compares what the node holds with what we think it holds.
    async fn compare(&mut self, hello: &Hello, live: Vec<LiveLease>) -> Result<(), Ended> {
        let known: HashMap<_, _> =
            live.iter().map(|lease| (lease.lease_id.as_str(), lease)).collect();
        for held in &hello.held {
            for stream in [LogStream::Stdout, LogStream::Stderr] {
                let Ok(_id) = held.job.parse::<nimbus_api::id::JobId>() else { continue };
                let key = StreamKey { job: held.job.clone(), attempt: held.attempt, stream };
                self.outbox.log_ack(self.app.logs.kept(key).await).await?;
            }
            let code = match known.get(held.lease_id.as_str()) {
                None => RefusalCode::LeaseStale,
                Some(lease) if lease.revoked.is_empty() => continue,
                Some(lease) => lease.revoked.parse().unwrap_or(RefusalCode::LeaseRevoked),
            };
            self.outbox.revocation(held.lease_id.clone(), code).await?;
        }
        let held: HashSet<_> = hello.held.iter().map(|held| held.lease_id.as_str()).collect();
        let missing = live.iter().filter(|lease| !held.contains(lease.lease_id.as_str()));
        self.missing = Some(missing.cloned().collect());
        Ok(())
    }

    async fn go_on(
        &mut self,
        mut inbound: Streaming<NodeMessage>,
        mut commands: mpsc::Receiver<Command>,
    ) -> Ended {
        let mut acks = Acks::new();
        let mut claims = Claims::new();
        let mut silent_at = Instant::now() + SESSION_SILENCE_MAX;
        let mut stop = self.app.stop.clone();
        loop {
            let done = tokio::select! {
                message = inbound.next(), if acks.len() < LOGS_IN_FLIGHT => match message {
                    Some(Ok(message)) => {
                        if matches!(message.kind, Some(Kind::Heartbeat(_))) {
                            silent_at = Instant::now() + SESSION_SILENCE_MAX;
                        }
                        self.take(message, &mut acks, &mut claims).await
                    }
                    Some(Err(_)) | None => Err(Ended::Gone),
                },
                command = commands.recv() => match command {
                    Some(command) => self.tell(command).await,
                    None => Err(Ended::Gone),
                },
                Some(kept) = acks.next(), if !acks.is_empty() => match kept {
                    Ok(kept) => self.acknowledge(kept).await,
                    // The disk failed: the node sends it again on its next session.
                    Err(_dropped) => Err(Ended::Store(StoreError::Closed)),
                },
                Some(decided) = claims.next(), if !claims.is_empty() => self.answer(decided).await,
                () = sleep_until(silent_at) => Err(Ended::Silent),
                () = crate::app::stopped(&mut stop) => Err(Ended::Stopping),
            };
            if let Err(ended) = done {
                return ended;
            }
        }
    }

    async fn acknowledge(&self, kept: Kept) -> Result<(), Ended> {
        self.app.watchers.ring(&kept.key.job);
        self.outbox.log_ack(kept).await
    }

    async fn take(
        &mut self,
        message: NodeMessage,
        acks: &mut Acks,
        claims: &mut Claims,
    ) -> Result<(), Ended> {
        match message.kind {
            Some(Kind::Hello(_)) => Err(Ended::Protocol("hello comes once".to_owned())),
            Some(Kind::Heartbeat(beat)) => self.heartbeat(&beat).await,
            Some(Kind::Event(event)) => self.event(event).await,
            Some(Kind::Log(log)) => self.log(log, acks).await,
            Some(Kind::Claim(claim)) => self.claim(claim, claims).await,
            // A kind of a newer node: it will see that it is not acknowledged.
            None => Ok(()),
        }
    }

    async fn heartbeat(&mut self, beat: &Heartbeat) -> Result<(), Ended> {
        let nonce = nonce_of(&beat.nonce)?;
        let (now, now_ms) = (self.app.clock.boottime(), self.app.clock.unix_millis());
        if self.peer.not_after <= self.app.clock.unix() {
            return Err(Ended::Protocol("the certificate has expired".to_owned()));
        }
        let place = (self.node.as_str(), self.id);
        let was_stale = self.app.registry.beat(place, nonce, now, now_ms).ok_or(Ended::Gone)?;
        if let Some(missing) = self.missing.take() {
            let undecided = self.judge_missing(missing, nonce).await?;
            self.missing = Some(undecided).filter(|missing| !missing.is_empty());
        }
        self.tend(nonce, now_ms).await?;
        if let Some(serial) = beat.policy_serial.filter(|serial| *serial != self.policy_serial) {
            self.app.store.node_policy(self.node.clone(), serial, now_ms).await?;
            self.policy_serial = serial;
        }
        if was_stale {
            self.app.dispatch.notify_one();
        }
        Ok(())
    }

    /// Judges the leases that the hello did not list, now that all events before it have come; what
    /// is to be judged later is given back.
    async fn judge_missing(
        &mut self,
        missing: Vec<LiveLease>,
        nonce: [u8; NONCE_BYTES],
    ) -> Result<Vec<LiveLease>, Ended> {
        let mut undecided = Vec::new();
        if missing.is_empty() {
            return Ok(undecided);
        }
        let live = self.app.store.live_leases(self.node.clone()).await?;
        let now_ms = self.app.clock.unix_millis();
        for before in missing {
            let Some(lease) = live.iter().find(|live| live.lease_id == before.lease_id) else {
                continue;
            };
            if before.started || !lease.revoked.is_empty() {
                self.lose(lease, now_ms).await?;
            } else if lease.started {
                // It came on its way: the node has it.
            } else if let Some(until) = lease.claimed_until {
                let late = until.0.saturating_add(GRACE_SECONDS + SKEW_SECONDS);
                if late < self.app.clock.unix().0 {
                    self.lose(lease, now_ms).await?;
                } else {
                    undecided.push(before);
                }
            } else {
                let ttl = self.app.terms.ttl_seconds;
                let lease_id = lease.lease_id.clone();
                if let Some(claims) = self.app.store.reissue(lease_id, nonce, ttl, now_ms).await? {
                    self.grant(claims).await?;
                }
            }
        }
        Ok(undecided)
    }

    async fn lose(&self, lease: &LiveLease, now_ms: i64) -> Result<(), Ended> {
        tracing::warn!(node = self.node, job = lease.job, "the node no longer has the lease");
        if let Some(job) = self.app.store.lose(lease.lease_id.clone(), now_ms).await? {
            self.app.changed(&job);
        }
        Ok(())
    }

    /// The node has a lease that its hello did not list.
    pub(super) fn found(&mut self, lease_id: &str) {
        if let Some(missing) = &mut self.missing {
            missing.retain(|lease| lease.lease_id != lease_id);
        }
    }

    /// Sends the key set if the node has not got the present one: a lease may be signed by a key of it
    /// before its turn among the commands has come.
    pub(super) async fn keys_first(&mut self) -> Result<(), Ended> {
        let serial = self.app.keys.serial();
        if serial != self.key_set_serial {
            self.outbox.key_set(&self.app.keys.envelope()).await?;
            self.key_set_serial = serial;
        }
        Ok(())
    }

    async fn tend(&mut self, nonce: [u8; NONCE_BYTES], now_ms: i64) -> Result<(), Ended> {
        let terms = &self.app.terms;
        let extension = terms.extension_seconds;
        if !self.app.store.needs_tending(self.node.clone(), extension, now_ms).await? {
            return Ok(());
        }
        let times = (terms.ttl_seconds, extension);
        let tended = self.app.store.tend(self.node.clone(), nonce, times, now_ms).await?;
        for claims in tended.extended {
            match self.app.keys.sign(&claims) {
                Ok(token) => {
                    self.keys_first().await?;
                    self.outbox.extension(&token).await?;
                }
                Err(error) => tracing::error!(error = %Chain(&error), "cannot extend a lease"),
            }
        }
        for (lease_id, job) in tended.overdue {
            self.app.watchers.ring(&job);
            self.outbox.revocation(lease_id, RefusalCode::JobRuntime).await?;
        }
        Ok(())
    }

    async fn event(&mut self, event: WireEvent) -> Result<(), Ended> {
        let kind = match &event.kind {
            Some(event::Kind::Started(started)) => {
                let problem = receipt::problem(&self.peer.spki, &event, &started.receipt);
                if let Some(problem) = &problem {
                    tracing::error!(node = self.node, job = event.job, problem, "receipt refused");
                }
                EventKind::Started(problem.is_none().then(|| started.receipt.clone()))
            }
            Some(event::Kind::Finished(finished)) => EventKind::Finished {
                exit_code: finished.exit_code,
                reason: finished.reason.chars().take(NODE_MESSAGE_CHARS_MAX).collect(),
                message: finished.message.chars().take(NODE_MESSAGE_CHARS_MAX).collect(),
                oom_killed: finished.oom_killed,
            },
            None => EventKind::Unknown,
        };
        let lease_id = event.lease_id.clone();
        let event = Event {
            node: self.node.clone(),
            seq: event.seq,
            lease_id: event.lease_id,
            job: event.job,
            attempt: event.attempt,
            at_ms: event.at_ms,
            kind,
        };
        let applied = self.app.store.apply(event, self.app.clock.unix_millis()).await?;
        if let Some(job) = &applied.job {
            self.app.changed(job);
        }
        self.outbox.event_ack(applied.seq).await?;
        match applied.revoke {
            Some(code) => self.outbox.revocation(lease_id, code).await,
            None => Ok(()),
        }
    }

    async fn log(&mut self, log: LogData, acks: &mut Acks) -> Result<(), Ended> {
        let stream = match LogStream::try_from(log.stream) {
            Ok(stream @ (LogStream::Stdout | LogStream::Stderr)) => stream,
            Ok(LogStream::Unspecified) | Err(_) => {
                return Err(Ended::Protocol("output of no stream".to_owned()));
            }
        };
        if log.data.len() > LOG_DATA_BYTES_MAX {
            return Err(Ended::Protocol(format!("more than {LOG_DATA_BYTES_MAX} bytes of output")));
        }
        let key = StreamKey { job: log.job, attempt: log.attempt, stream };
        let Some(limit) = self.log_limit(&key).await? else {
            // Not this node's: acknowledged, so that it stops sending, and thrown away.
            let size = u64::try_from(log.data.len()).unwrap_or(u64::MAX);
            let next_offset = log.offset.saturating_add(size);
            return self.outbox.log_ack(Kept { key, next_offset, eof: log.eof }).await;
        };
        let append = Append { key, offset: log.offset, data: log.data, eof: log.eof, limit };
        let closed = || Ended::Store(StoreError::Closed);
        acks.push_back(self.app.logs.append(append).await.ok_or_else(closed)?);
        Ok(())
    }

    async fn log_limit(&mut self, key: &StreamKey) -> Result<Option<u64>, Ended> {
        let attempt = (key.job.clone(), key.attempt);
        if let Some(limit) = self.limits.get(&attempt) {
            return Ok(*limit);
        }
        if self.limits.len() >= HELD_MAX {
            self.limits.clear();
        }
        let node = self.node.clone();
        let limit = self.app.store.log_limit(node, attempt.0.clone(), attempt.1).await?;
        self.limits.insert(attempt, limit);
        Ok(limit)
    }

    async fn tell(&mut self, command: Command) -> Result<(), Ended> {
        match command {
            Command::Grant(claims) => self.grant(*claims).await,
            Command::Revoke { lease_id, code } => self.outbox.revocation(lease_id, code).await,
            Command::KeySet(envelope) => self.outbox.key_set(&envelope).await,
            Command::Policy(envelope) => self.outbox.policy(&envelope).await,
        }
    }

    async fn grant(&mut self, claims: LeaseClaims) -> Result<(), Ended> {
        let Some(token) = self.sign(&claims).await? else { return Ok(()) };
        let Some(spec) = self.app.store.spec(claims.job.to_string()).await? else { return Ok(()) };
        self.keys_first().await?;
        self.outbox.grant(&token, spec).await
    }

    /// Signs a lease; with new times when the hot key was replaced since it was made.
    pub(super) async fn sign(&self, claims: &LeaseClaims) -> Result<Option<LeaseToken>, Ended> {
        let error = match self.app.keys.sign(claims) {
            Ok(token) => return Ok(Some(token)),
            Err(error @ SignError::Sign(_)) => error,
            Err(SignError::NoKey(_)) => {
                let now = self.app.clock.boottime();
                let Some(nonce) = self.app.registry.nonce(&self.node, now) else { return Ok(None) };
                let (id, ttl) = (claims.lease_id.to_string(), self.app.terms.ttl_seconds);
                let now_ms = self.app.clock.unix_millis();
                let Some(fresh) = self.app.store.reissue(id, nonce, ttl, now_ms).await? else {
                    return Ok(None);
                };
                match self.app.keys.sign(&fresh) {
                    Ok(token) => return Ok(Some(token)),
                    Err(error) => error,
                }
            }
        };
        // The lease runs out and the job is tried again.
        tracing::error!(error = %Chain(&error), "cannot sign a lease");
        Ok(None)
    }
}

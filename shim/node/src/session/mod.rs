//! The link to control: one stream, made again for ever when it breaks.
//!
//! Out go Hello, heartbeats with nonces, spooled events and output; in come grants, extensions,
//! revocations, acknowledgements, key sets and policies ([`incoming`]). When control is away nothing
//! stops: held leases run to their deadline, events and output wait on disk.
//! The certificate is renewed over the same connection from half of its life on.

mod incoming;

use std::sync::Arc;
use std::time::Duration;

use nimbus_api::error::Chain;
use nimbus_api::lease::LEASE_VERSION;
use nimbus_api::proto::control::v1::Resources;
use nimbus_api::proto::node::v1::control_message::Kind as FromControl;
use nimbus_api::proto::node::v1::node_message::Kind as ToControl;
use nimbus_api::proto::node::v1::sessions_client::SessionsClient;
use nimbus_api::proto::node::v1::{
    ControlMessage, Heartbeat, HeldLease, Hello, NodeMessage, RenewCertificateRequest, Welcome,
};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Channel;

use crate::agent::{Agent, PLATFORM};
use crate::identity::{self, Identity, IdentityError};
use crate::jobs::Jobs;
use crate::ledger::Stage;
use crate::tls::{self, LinkError};

/// Shortest pause before a new try; doubles up to [`PAUSE_MAX`], with as much chance added.
pub const PAUSE_MIN: Duration = Duration::from_millis(200);
/// Longest pause before a new try.
pub const PAUSE_MAX: Duration = Duration::from_secs(10);
/// Messages that may wait to be sent.
const OUTGOING_MAX: usize = 64;
/// Longest message from control: a grant with all its bundles.
const MESSAGE_BYTES_MAX: usize = 8 << 20;
/// Longest wait for Welcome and for a renewal.
const ANSWER_SECONDS_MAX: u64 = 20;
/// Bounds of the heartbeat interval that control may ask for, milliseconds.
const HEARTBEAT_MS: std::ops::RangeInclusive<u32> = 200..=60_000;
/// Pause between two looks for output.
const LOG_PAUSE: Duration = Duration::from_millis(100);
/// Pause between two looks at the certificate's age, and between tries to renew it.
const RENEW_PAUSE: Duration = Duration::from_secs(30);

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
enum SessionError {
    #[error("the node has not joined")]
    NotJoined,
    #[error("no connection")]
    Link(#[source] LinkError),
    #[error("control ended the session")]
    Status(#[source] Box<tonic::Status>),
    #[error("control closed the session")]
    Closed,
    #[error("control did not say welcome in time")]
    NoWelcome,
    #[error("the certificate was renewed")]
    Renewed,
    #[error("a part of the session broke off")]
    Task(#[source] tokio::task::JoinError),
}

/// Keeps a session for as long as the agent runs; `linked` says whether there is one.
pub async fn run(jobs: Arc<Jobs>, linked: watch::Sender<bool>) {
    let mut pause = PAUSE_MIN;
    loop {
        let began = tokio::time::Instant::now();
        let error = match once(&jobs, &linked).await {
            Ok(()) => SessionError::Closed,
            Err(error) => error,
        };
        linked.send_replace(false);
        if began.elapsed() > PAUSE_MAX || matches!(error, SessionError::Renewed) {
            pause = PAUSE_MIN;
        }
        tracing::warn!(error = %Chain(&error), ?pause, "no session with control, trying again");
        tokio::time::sleep(pause + pause.mul_f64(chance())).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

/// From 0 to 1, so that a thousand nodes do not come back at once.
fn chance() -> f64 {
    let [first, ..] = *uuid::Uuid::new_v4().as_bytes();
    f64::from(first) / 255.0
}

async fn once(jobs: &Arc<Jobs>, linked: &watch::Sender<bool>) -> Result<(), SessionError> {
    let agent = &jobs.agent;
    let identity = agent.identity().ok_or(SessionError::NotJoined)?;
    let channel = tls::connect_to_api(&identity).await.map_err(SessionError::Link)?;
    let mut client =
        SessionsClient::new(channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX);
    let (send, outgoing) = mpsc::channel(OUTGOING_MAX);
    say(&send, ToControl::Hello(hello(agent))).await;
    let status = |status| SessionError::Status(Box::new(status));
    let opened = client.session(ReceiverStream::new(outgoing)).await.map_err(status)?;
    let mut incoming = opened.into_inner();
    let welcome = welcome(&mut incoming).await?;
    tracing::info!(version = welcome.version, "in session with control");
    linked.send_replace(true);
    jobs.logs.rewind();
    let _open = OpenDesk { agent: Arc::clone(agent), number: agent.desk.open(send.clone()) };

    let mut tasks = JoinSet::new();
    tasks.spawn(heartbeats(Arc::clone(agent), send.clone(), welcome.heartbeat_interval_ms));
    tasks.spawn(events(Arc::clone(agent), send.clone()));
    tasks.spawn(output(Arc::clone(jobs), send));
    let mut renewal = Box::pin(renew(Arc::clone(agent), channel, identity));
    loop {
        tokio::select! {
            message = incoming.message() => match message.map_err(status)? {
                Some(message) => incoming::take(jobs, message).await,
                None => return Err(SessionError::Closed),
            },
            () = &mut renewal => return Err(SessionError::Renewed),
            ended = tasks.join_next() => match ended {
                Some(Err(error)) => return Err(SessionError::Task(error)),
                Some(Ok(())) | None => return Err(SessionError::Closed),
            },
        }
    }
}

/// Claims go out on this session until it is over.
struct OpenDesk {
    agent: Arc<Agent>,
    number: u64,
}

impl Drop for OpenDesk {
    fn drop(&mut self) {
        self.agent.desk.close(self.number);
    }
}

async fn welcome(incoming: &mut Streaming<ControlMessage>) -> Result<Welcome, SessionError> {
    let patience = Duration::from_secs(ANSWER_SECONDS_MAX);
    let first = tokio::time::timeout(patience, incoming.message()).await;
    let first = first.map_err(|_elapsed| SessionError::NoWelcome)?;
    match first.map_err(|status| SessionError::Status(Box::new(status)))?.and_then(|m| m.kind) {
        Some(FromControl::Welcome(welcome)) => Ok(welcome),
        Some(_) | None => Err(SessionError::NoWelcome),
    }
}

/// Says one thing; false when the session is over.
async fn say(send: &mpsc::Sender<NodeMessage>, kind: ToControl) -> bool {
    send.send(NodeMessage { kind: Some(kind) }).await.is_ok()
}

fn hello(agent: &Agent) -> Hello {
    let held = agent.ledger.all().into_iter().filter_map(|entry| {
        let id = entry.claims.lease_id.to_string();
        // Control hears of an end by its event, and counts the lease as held until then.
        let over = entry.reported && !agent.spool.holds(&id, true);
        (!over).then(|| HeldLease {
            lease_id: id,
            job: entry.claims.job.to_string(),
            attempt: entry.claims.attempt,
            started: entry.stage >= Stage::Started && entry.usage.is_some(),
        })
    });
    Hello {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        boot_id: agent.boot_id.clone(),
        lease_versions: vec![LEASE_VERSION],
        held: held.collect(),
        policy_serial: agent.trust().policy_serial(),
        capacity: Some(Resources::from(&agent.config.capacity)),
        max_jobs: agent.config.capacity.max_jobs,
        platform: PLATFORM.to_owned(),
        nonce: agent.new_nonce().to_vec(),
    }
}

async fn heartbeats(agent: Arc<Agent>, send: mpsc::Sender<NodeMessage>, interval_ms: u32) {
    let interval = interval_ms.clamp(*HEARTBEAT_MS.start(), *HEARTBEAT_MS.end());
    let interval = Duration::from_millis(interval.into());
    loop {
        tokio::time::sleep(interval).await;
        // The nonce's time is taken when there is room to send it, not when it began to wait.
        let Ok(room) = send.reserve().await else { return };
        let nonce = agent.new_nonce().to_vec();
        let beat = Heartbeat { nonce, policy_serial: Some(agent.trust().policy_serial()) };
        room.send(NodeMessage { kind: Some(ToControl::Heartbeat(beat)) });
    }
}

/// Sends the spool in order; what is not acknowledged on this connection is sent again on the next.
async fn events(agent: Arc<Agent>, send: mpsc::Sender<NodeMessage>) {
    let mut sent = agent.spool.acked();
    loop {
        let changed = agent.spool.changed();
        tokio::pin!(changed);
        changed.as_mut().enable();
        while let Some(event) = agent.spool.after(sent) {
            sent = event.seq;
            if !say(&send, ToControl::Event(event)).await {
                return;
            }
        }
        tokio::select! {
            () = changed => {}
            () = send.closed() => return,
        }
    }
}

async fn output(jobs: Arc<Jobs>, send: mpsc::Sender<NodeMessage>) {
    loop {
        let logs = Arc::clone(&jobs.logs);
        let Ok(batch) = tokio::task::spawn_blocking(move || logs.batch()).await else { return };
        let idle = batch.is_empty();
        for data in batch {
            if !say(&send, ToControl::Log(data)).await {
                return;
            }
        }
        if idle {
            tokio::time::sleep(LOG_PAUSE).await;
        }
        if send.is_closed() {
            return;
        }
    }
}

/// Completes when a new certificate has been taken into use.
async fn renew(agent: Arc<Agent>, channel: Channel, identity: Arc<Identity>) {
    loop {
        if agent.clock.unix() >= identity.renew_from() {
            match renew_once(&agent, channel.clone(), &identity).await {
                Ok(()) => return,
                Err(error) => {
                    tracing::warn!(error = %Chain(&error), "the certificate was not renewed");
                }
            }
        }
        tokio::time::sleep(RENEW_PAUSE).await;
    }
}

#[derive(Debug, thiserror::Error)]
enum RenewError {
    #[error("control did not give a certificate")]
    Refused(#[source] Box<tonic::Status>),
    #[error("the new certificate cannot be used")]
    Identity(#[from] IdentityError),
    #[error("the new certificate is no newer than the old one")]
    NotNewer,
}

async fn renew_once(
    agent: &Arc<Agent>,
    channel: Channel,
    old: &Arc<Identity>,
) -> Result<(), RenewError> {
    let csr = identity::certificate_request(&old.key)?;
    let mut request = tonic::Request::new(RenewCertificateRequest { csr });
    request.set_timeout(Duration::from_secs(ANSWER_SECONDS_MAX));
    let answer = SessionsClient::new(channel).renew_certificate(request).await;
    let certificate = answer.map_err(|status| RenewError::Refused(Box::new(status)))?.into_inner();
    let mut record = old.record.clone();
    record.chain_pem = certificate.chain_pem;
    // The CA stays the one that joining pinned: a renewal does not move trust.
    let key = nimbus_api::dsse::SigningKey::from_seed(old.key.seed());
    let new = Identity::of(record, key)?;
    if new.validity.1 <= old.validity.1 {
        return Err(RenewError::NotNewer);
    }
    new.save(&agent.config.data_dir)?;
    agent.set_identity(new);
    tracing::info!("the certificate was renewed");
    Ok(())
}

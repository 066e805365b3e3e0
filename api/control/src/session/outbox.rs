//! What control says on a session, one function a message.

use nimbus_api::lease::LeaseToken;
use nimbus_api::proto::control::v1::JobSpec;
use nimbus_api::proto::node::v1::{
    ClaimAnswer, ClaimRefused, ControlMessage, EventAck, Extension, Grant, LogAck, Revocation,
    Welcome, claim_answer, control_message::Kind,
};
use nimbus_api::{Refusal, RefusalCode};
use tokio::sync::mpsc;
use tonic::Status;

use super::run::Ended;
use crate::limits::{HEARTBEAT, SLOW_READER_MAX};
use crate::logs::Kept;

/// The sending half of a session.
pub(super) struct Outbox(pub(super) mpsc::Sender<Result<ControlMessage, Status>>);

impl Outbox {
    async fn send(&self, kind: Kind) -> Result<(), Ended> {
        let message = Ok(ControlMessage { kind: Some(kind) });
        match tokio::time::timeout(SLOW_READER_MAX, self.0.send(message)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_closed)) => Err(Ended::Gone),
            Err(_late) => Err(Ended::Slow),
        }
    }

    pub(super) async fn welcome(&self) -> Result<(), Ended> {
        let heartbeat_interval_ms = u32::try_from(HEARTBEAT.as_millis()).unwrap_or(u32::MAX);
        let version = env!("CARGO_PKG_VERSION").to_owned();
        self.send(Kind::Welcome(Welcome { heartbeat_interval_ms, version })).await
    }

    pub(super) async fn key_set(&self, envelope: &[u8]) -> Result<(), Ended> {
        self.send(Kind::KeySet(envelope.to_vec())).await
    }

    pub(super) async fn policy(&self, envelope: &[u8]) -> Result<(), Ended> {
        self.send(Kind::Policy(envelope.to_vec())).await
    }

    pub(super) async fn event_ack(&self, seq: u64) -> Result<(), Ended> {
        self.send(Kind::EventAck(EventAck { seq })).await
    }

    pub(super) async fn log_ack(&self, kept: Kept) -> Result<(), Ended> {
        let Kept { key, next_offset, eof } = kept;
        let stream = key.stream as i32;
        let (job, attempt) = (key.job, key.attempt);
        self.send(Kind::LogAck(LogAck { job, attempt, stream, next_offset, eof })).await
    }

    pub(super) async fn grant(&self, token: &LeaseToken, spec: JobSpec) -> Result<(), Ended> {
        let lease = token.as_str().to_owned();
        self.send(Kind::Grant(Grant { lease, spec: Some(spec) })).await
    }

    pub(super) async fn claim_granted(
        &self,
        id: String,
        token: &LeaseToken,
        spec: JobSpec,
    ) -> Result<(), Ended> {
        let grant = Grant { lease: token.as_str().to_owned(), spec: Some(spec) };
        self.claim_answer(id, claim_answer::Kind::Grant(grant)).await
    }

    pub(super) async fn claim_refused(&self, id: String, refusal: &Refusal) -> Result<(), Ended> {
        let reason = refusal.code.as_str().to_owned();
        let refused = ClaimRefused { reason, message: refusal.to_string() };
        self.claim_answer(id, claim_answer::Kind::Refused(refused)).await
    }

    async fn claim_answer(&self, id: String, kind: claim_answer::Kind) -> Result<(), Ended> {
        self.send(Kind::ClaimAnswer(ClaimAnswer { id, kind: Some(kind) })).await
    }

    pub(super) async fn extension(&self, token: &LeaseToken) -> Result<(), Ended> {
        self.send(Kind::Extension(Extension { lease: token.as_str().to_owned() })).await
    }

    pub(super) async fn revocation(
        &self,
        lease_id: String,
        code: RefusalCode,
    ) -> Result<(), Ended> {
        let message = Refusal::new(code).to_string();
        let reason = code.as_str().to_owned();
        self.send(Kind::Revocation(Revocation { lease_id, reason, message })).await
    }
}

//! Where claims wait for control: asked by the threads of shims, answered over the session.
//!
//! A claim goes out on the session that is there, or on the next one that comes within
//! [`CLAIM_SECONDS`]; an answer is taken by whoever still waits for it. Control is idempotent, so a claim
//! whose answer was lost with a session is asked again on the next.
//!
//! Limit: [`CLAIMS_MAX`] claims at one time.

use std::collections::HashMap;
use std::sync::mpsc;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nimbus_api::proto::node::v1::claim_answer::Kind as Answer;
use nimbus_api::proto::node::v1::node_message::Kind;
use nimbus_api::proto::node::v1::{Claim, ClaimAnswer, Grant, NodeMessage};
use nimbus_api::{Refusal, RefusalCode};

use crate::agent::lock;

/// Longest wait for control, seconds. kubelet gives containerd's CRI plugin two minutes, and the image is
/// to be prepared after it.
pub const CLAIM_SECONDS: u64 = 20;
/// Most claims that wait at one time.
pub const CLAIMS_MAX: usize = 128;
/// Longest message of control that is passed on.
const MESSAGE_CHARS_MAX: usize = 400;

/// How claims leave the node.
type Outgoing = tokio::sync::mpsc::Sender<NodeMessage>;

/// The claims of this node.
#[derive(Debug, Default)]
pub struct Desk {
    inner: Mutex<Inner>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Inner {
    /// The session, and which one it is.
    session: Option<(u64, Outgoing)>,
    sessions: u64,
    waiting: HashMap<String, mpsc::SyncSender<ClaimAnswer>>,
}

/// A claim that waits; leaves the desk when it is dropped.
struct Waiting<'a> {
    desk: &'a Desk,
    id: String,
    answers: mpsc::Receiver<ClaimAnswer>,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        lock(&self.desk.inner).waiting.remove(&self.id);
    }
}

impl Desk {
    /// A session with control is there. Gives what [`Desk::close`] wants.
    pub fn open(&self, outgoing: Outgoing) -> u64 {
        let mut inner = lock(&self.inner);
        inner.sessions += 1;
        let number = inner.sessions;
        inner.session = Some((number, outgoing));
        self.changed.notify_all();
        number
    }

    /// That session is over; a newer one stays.
    pub fn close(&self, number: u64) {
        let mut inner = lock(&self.inner);
        if inner.session.as_ref().is_some_and(|(open, _)| *open == number) {
            inner.session = None;
            self.changed.notify_all();
        }
    }

    /// Hands an answer to whoever waits for it; false when nobody does.
    pub fn answer(&self, answer: ClaimAnswer) -> bool {
        let waiting = lock(&self.inner).waiting.get(&answer.id).cloned();
        waiting.is_some_and(|waiting| waiting.try_send(answer).is_ok())
    }

    /// Asks control. Blocks.
    pub fn ask(&self, claim: &Claim) -> Result<Grant, Refusal> {
        self.ask_within(claim, Duration::from_secs(CLAIM_SECONDS))
    }

    fn ask_within(&self, claim: &Claim, patience: Duration) -> Result<Grant, Refusal> {
        let until = Instant::now() + patience;
        let waiting = self.wait_for(&claim.id)?;
        let mut asked = 0;
        loop {
            let Some((session, outgoing)) = self.session_after(asked, until) else {
                let found = if asked == 0 { "no session with it" } else { "no answer" };
                return Err(Refusal::with(RefusalCode::ClaimUnavailable, found));
            };
            asked = session;
            let message = NodeMessage { kind: Some(Kind::Claim(claim.clone())) };
            if outgoing.blocking_send(message).is_err() {
                continue;
            }
            loop {
                match waiting.answers.recv_timeout(POLL) {
                    Ok(answer) => return granted(answer),
                    Err(_none) if self.is_open(session) && Instant::now() < until => {}
                    Err(_none) => break,
                }
            }
        }
    }

    fn wait_for(&self, id: &str) -> Result<Waiting<'_>, Refusal> {
        let (send, answers) = mpsc::sync_channel(1);
        let mut inner = lock(&self.inner);
        if inner.waiting.len() >= CLAIMS_MAX {
            let found = format!("{CLAIMS_MAX} containers wait for control");
            return Err(Refusal::with(RefusalCode::NodeBusy, found));
        }
        inner.waiting.insert(id.to_owned(), send);
        drop(inner);
        Ok(Waiting { desk: self, id: id.to_owned(), answers })
    }

    fn is_open(&self, session: u64) -> bool {
        lock(&self.inner).session.as_ref().is_some_and(|(open, _)| *open == session)
    }

    /// A session other than this one, waited for.
    fn session_after(&self, asked: u64, until: Instant) -> Option<(u64, Outgoing)> {
        let mut inner = lock(&self.inner);
        loop {
            if let Some((number, outgoing)) = inner.session.as_ref().filter(|(n, _)| *n != asked) {
                return Some((*number, outgoing.clone()));
            }
            let left = until.checked_duration_since(Instant::now())?;
            if left.is_zero() {
                return None;
            }
            let waited = self.changed.wait_timeout(inner, left);
            inner = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// Between two looks whether the session is still the one that was asked.
const POLL: Duration = Duration::from_millis(100);

fn granted(answer: ClaimAnswer) -> Result<Grant, Refusal> {
    match answer.kind {
        Some(Answer::Grant(grant)) => Ok(grant),
        Some(Answer::Refused(refused)) => {
            let code = refused.reason.parse().unwrap_or(RefusalCode::ClaimUnavailable);
            let found: String = refused.message.chars().take(MESSAGE_CHARS_MAX).collect();
            Err(Refusal::with(code, found))
        }
        None => Err(Refusal::with(RefusalCode::ClaimUnavailable, "an answer of a newer version")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nimbus_api::proto::node::v1::ClaimRefused;
    use std::sync::Arc;
    use std::thread;

    const SOON: Duration = Duration::from_millis(50);
    const LATE: Duration = Duration::from_secs(30);

    fn claim(id: &str) -> Claim {
        Claim { id: id.to_owned(), ..Claim::default() }
    }

    fn grant(id: &str) -> ClaimAnswer {
        let grant = Grant { lease: format!("lease of {id}"), spec: None };
        ClaimAnswer { id: id.to_owned(), kind: Some(Answer::Grant(grant)) }
    }

    #[test]
    fn without_a_session_or_an_answer_it_is_refused() {
        let desk = Desk::default();
        let refused = desk.ask_within(&claim("a"), SOON).unwrap_err();
        assert_eq!(refused.code, RefusalCode::ClaimUnavailable);
        let (send, _silent) = tokio::sync::mpsc::channel(1);
        desk.open(send);
        let refused = desk.ask_within(&claim("a"), SOON).unwrap_err();
        assert_eq!(refused.code, RefusalCode::ClaimUnavailable);
        assert!(!desk.answer(grant("a")), "nobody waits any more");
    }

    #[test]
    fn an_answer_goes_to_the_claim_that_it_names_and_keeps_its_code() {
        let desk = Arc::new(Desk::default());
        let (send, mut sent) = tokio::sync::mpsc::channel(4);
        desk.open(send);
        let ask = |id: &'static str| {
            let desk = Arc::clone(&desk);
            thread::spawn(move || desk.ask_within(&claim(id), LATE))
        };
        let (one, two) = (ask("one"), ask("two"));
        drop((sent.blocking_recv().unwrap(), sent.blocking_recv().unwrap()));
        let refused = ClaimRefused {
            reason: RefusalCode::ClaimNotMapped.as_str().to_owned(),
            message: "why".to_owned(),
        };
        let refused = ClaimAnswer { id: "two".to_owned(), kind: Some(Answer::Refused(refused)) };
        assert!(desk.answer(refused) && desk.answer(grant("one")));
        assert_eq!(one.join().unwrap().unwrap().lease, "lease of one");
        assert_eq!(two.join().unwrap().unwrap_err().code, RefusalCode::ClaimNotMapped);
    }

    #[test]
    fn a_claim_that_was_lost_with_its_session_is_asked_again_on_the_next() {
        let desk = Arc::new(Desk::default());
        let (send, mut first) = tokio::sync::mpsc::channel(1);
        let session = desk.open(send);
        let asks = Arc::clone(&desk);
        let asked = thread::spawn(move || asks.ask_within(&claim("a"), LATE));
        first.blocking_recv().unwrap();
        desk.close(session);
        let (send, mut second) = tokio::sync::mpsc::channel(1);
        desk.open(send);
        second.blocking_recv().unwrap();
        assert!(desk.answer(grant("a")));
        asked.join().unwrap().unwrap();
    }

    #[test]
    fn more_claims_than_the_limit_are_refused() {
        let desk = Desk::default();
        let _held: Vec<_> =
            (0..CLAIMS_MAX).map(|n| desk.wait_for(&n.to_string()).unwrap()).collect();
        assert_eq!(desk.ask_within(&claim("x"), SOON).unwrap_err().code, RefusalCode::NodeBusy);
    }
}

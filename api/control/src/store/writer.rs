//! The one thread that writes: a bounded queue, and one commit for all that waits in it.
//!
//! A commit costs one sync of the disk whatever is in it, so requests that arrive while one is under
//! way share the next. Each runs in a savepoint and is answered after the commit, with the commit's
//! error if it failed: nothing is acknowledged that is not durable.

use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use rusqlite::Connection;
use tokio::sync::{mpsc, oneshot};

use super::{StoreError, schema};
use crate::limits::{WRITE_BATCH, WRITE_QUEUE};

/// The way to the writer thread.
#[derive(Clone)]
pub(super) struct Writer {
    queue: Arc<Mutex<Option<mpsc::Sender<Request>>>>,
    thread: Arc<Mutex<Option<JoinHandle<()>>>>,
}

struct Request {
    now_ms: i64,
    work: Box<dyn Work>,
}

trait Work: Send {
    /// Does the change inside of a savepoint; says whether it is to be kept.
    fn run(&mut self, connection: &Connection) -> bool;
    /// Answers after the commit.
    fn answer(self: Box<Self>, committed: bool);
}

struct Change<F, T> {
    work: Option<F>,
    outcome: Option<Result<T, StoreError>>,
    reply: oneshot::Sender<Result<T, StoreError>>,
}

impl<F, T> Work for Change<F, T>
where
    F: FnOnce(&Connection) -> Result<T, StoreError> + Send,
    T: Send,
{
    fn run(&mut self, connection: &Connection) -> bool {
        let outcome = match self.work.take() {
            Some(change) => change(connection),
            None => Err(StoreError::Closed),
        };
        let keep = outcome.is_ok();
        self.outcome = Some(outcome);
        keep
    }

    fn answer(self: Box<Self>, committed: bool) {
        let outcome = match self.outcome {
            Some(Ok(_value)) if !committed => Err(StoreError::Closed),
            Some(outcome) => outcome,
            None => Err(StoreError::Closed),
        };
        // The caller may have gone away; what it asked for is done all the same.
        drop(self.reply.send(outcome));
    }
}

impl Writer {
    pub(super) fn start(connection: Connection) -> Result<Self, std::io::Error> {
        let (sender, receiver) = mpsc::channel(WRITE_QUEUE);
        let thread = std::thread::Builder::new()
            .name("store-writer".to_owned())
            .spawn(move || write_all(connection, receiver))?;
        Ok(Self {
            queue: Arc::new(Mutex::new(Some(sender))),
            thread: Arc::new(Mutex::new(Some(thread))),
        })
    }

    pub(super) async fn run<T: Send + 'static>(
        &self,
        now_ms: i64,
        change: impl FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let queue = queue.ok_or(StoreError::Closed)?;
        let (reply, answer) = oneshot::channel();
        let work = Box::new(Change { work: Some(change), outcome: None, reply });
        queue.send(Request { now_ms, work }).await.map_err(|_closed| StoreError::Closed)?;
        answer.await.unwrap_or(Err(StoreError::Closed))
    }

    /// Takes no more, writes what waits, ends the thread.
    pub(super) async fn close(&self) {
        drop(self.queue.lock().unwrap_or_else(PoisonError::into_inner).take());
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            drop(tokio::task::spawn_blocking(move || thread.join()).await);
        }
    }
}

fn write_all(connection: Connection, mut queue: mpsc::Receiver<Request>) {
    let mut batch = Vec::with_capacity(WRITE_BATCH);
    while let Some(first) = queue.blocking_recv() {
        batch.push(first);
        while batch.len() < WRITE_BATCH {
            let Ok(next) = queue.try_recv() else { break };
            batch.push(next);
        }
        let committed = match write_batch(&connection, &mut batch) {
            Ok(()) => true,
            Err(error) => {
                tracing::error!(%error, "a commit failed; nothing of it is acknowledged");
                drop(connection.execute_batch("ROLLBACK"));
                false
            }
        };
        for request in batch.drain(..) {
            request.work.answer(committed);
        }
    }
    if let Err((_connection, error)) = connection.close() {
        tracing::error!(%error, "the database did not close well");
    }
}

fn write_batch(connection: &Connection, batch: &mut [Request]) -> Result<(), rusqlite::Error> {
    connection.execute_batch("BEGIN IMMEDIATE")?;
    let before = connection.total_changes();
    let mut latest = i64::MIN;
    for request in batch.iter_mut() {
        latest = latest.max(request.now_ms);
        connection.execute_batch("SAVEPOINT request")?;
        if !request.work.run(connection) {
            connection.execute_batch("ROLLBACK TO request")?;
        }
        connection.execute_batch("RELEASE request")?;
    }
    // A batch that changed nothing costs no sync.
    if connection.total_changes() != before {
        schema::record_time(connection, latest)?;
    }
    connection.execute_batch("COMMIT")
}

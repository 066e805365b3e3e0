//! `nimbus.control.v1.Logs`.

use std::sync::Arc;
use std::time::Duration;

use nimbus_api::RefusalCode;
use nimbus_api::proto::control::v1::logs_server::Logs;
use nimbus_api::proto::control::v1::{Attempt, Job, LogChunk, LogStream, ReadLogsRequest};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};
use tonic::{Request, Response, Status};

use super::{Filled, Person, jobs};
use crate::app::{App, stopped};
use crate::limits::{SLOW_READER_MAX, STREAM_QUEUE};
use crate::logs::StreamKey;
use crate::status;
use crate::watchers::Watcher;

/// Bytes in one chunk.
const CHUNK_BYTES: usize = 64 << 10;
/// How long a reader waits, after the attempt has ended, for output that is still on its way: the end of
/// a job and its output come by different ways, and the end may be first.
const TAIL_MAX: Duration = Duration::from_secs(5);
const STREAMS: [LogStream; 2] = [LogStream::Stdout, LogStream::Stderr];

/// The service.
#[derive(Debug, Clone)]
pub(crate) struct LogsService(pub(crate) Arc<App>);

#[tonic::async_trait]
impl Logs for LogsService {
    type ReadLogsStream = Filled<LogChunk>;

    async fn read_logs(
        &self,
        request: Request<ReadLogsRequest>,
    ) -> Result<Response<Self::ReadLogsStream>, Status> {
        let person = Person::of(&request)?;
        let asked = request.into_inner();
        let (job, found) = jobs::visible(&self.0, &person, &asked.name).await?;
        let newest = u32::try_from(found.attempts.len()).unwrap_or(u32::MAX);
        if asked.attempt > newest {
            let problem = format!("found {}, the job has {newest}", asked.attempt);
            return Err(status::invalid("attempt", problem));
        }
        let watcher = self.0.watchers.join(&job);
        let watcher = watcher.ok_or_else(|| status::code(RefusalCode::ControlUnavailable))?;
        let (sender, receiver) = mpsc::channel(STREAM_QUEUE);
        let reader = Reader { app: Arc::clone(&self.0), job, watcher, sender, offsets: [0; 2] };
        tokio::spawn(reader.run(asked.attempt, asked.follow));
        Ok(Response::new(Filled::new(receiver)))
    }
}

struct Reader {
    app: Arc<App>,
    job: String,
    watcher: Watcher,
    sender: mpsc::Sender<Result<LogChunk, Status>>,
    offsets: [u64; 2],
}

impl Reader {
    async fn run(mut self, attempt: u32, follow: bool) {
        if let Err(status) = self.read_all(attempt, follow).await {
            drop(self.sender.try_send(Err(status)));
        }
    }

    /// One attempt, or for attempt 0 the newest and, with follow, each that comes after it.
    async fn read_all(&mut self, attempt: u32, follow: bool) -> Result<(), Status> {
        let mut present = attempt;
        let mut ended_at = None;
        loop {
            let job = self.app.store.job_brief(self.job.clone()).await.map_err(status::store)?;
            let Some(job) = job else { return Ok(()) };
            if attempt == 0 && present == 0 {
                present = newest(&job);
            }
            if present == 0 && !follow {
                return Ok(());
            }
            let silent = present == 0 || !self.send_new(present).await?;
            let this = job.attempts.iter().find(|found| found.number == present);
            let over = this.is_some_and(|found| found.ended_at_ms != 0);
            if silent && (!follow || over || present == 0 && jobs::has_ended(&job)) {
                let waited =
                    *ended_at.get_or_insert_with(Instant::now) + TAIL_MAX <= Instant::now();
                let tail = follow || over;
                if !tail || waited || !started(this) || self.all_ended(present).await {
                    if follow && attempt == 0 && present < newest(&job) {
                        (present, ended_at, self.offsets) =
                            (present.saturating_add(1), None, [0; 2]);
                        continue;
                    }
                    if !follow || attempt != 0 || jobs::has_ended(&job) {
                        return Ok(());
                    }
                }
            }
            if silent && !self.wait(ended_at).await? {
                return Ok(());
            }
        }
    }

    /// Waits for news, or for the end of the tail; whether the caller is still there.
    async fn wait(&mut self, ended_at: Option<Instant>) -> Result<bool, Status> {
        let mut stop = self.app.stop.clone();
        let tail = async {
            match ended_at {
                Some(at) if at + TAIL_MAX > Instant::now() => sleep_until(at + TAIL_MAX).await,
                Some(_) | None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = self.watcher.rung() => Ok(true),
            () = tail => Ok(true),
            () = self.sender.closed() => Ok(false),
            () = stopped(&mut stop) => Err(status::code(RefusalCode::ControlUnavailable)),
        }
    }

    async fn all_ended(&self, attempt: u32) -> bool {
        for (stream, offset) in STREAMS.into_iter().zip(self.offsets) {
            let kept = self.app.logs.kept(self.key(attempt, stream)).await;
            if !kept.eof || kept.next_offset > offset {
                return false;
            }
        }
        true
    }

    fn key(&self, attempt: u32, stream: LogStream) -> StreamKey {
        StreamKey { job: self.job.clone(), attempt, stream }
    }

    /// Sends what is there beyond what was sent, one chunk a stream; whether there was anything.
    async fn send_new(&mut self, attempt: u32) -> Result<bool, Status> {
        let mut any = false;
        for (stream, offset) in STREAMS.into_iter().zip(self.offsets) {
            let read = self.app.logs.read(self.key(attempt, stream), offset, CHUNK_BYTES).await;
            let data = read.map_err(|error| {
                tracing::error!(job = self.job, %error, "cannot read output");
                status::code(RefusalCode::ControlUnavailable)
            })?;
            if data.is_empty() {
                continue;
            }
            any = true;
            let size = u64::try_from(data.len()).unwrap_or(u64::MAX);
            let [out, err] = &mut self.offsets;
            let sent = if stream == LogStream::Stderr { err } else { out };
            *sent = sent.saturating_add(size);
            let chunk = LogChunk { stream: stream as i32, offset, data, attempt };
            let gone = || Status::cancelled("the reader has gone");
            tokio::time::timeout(SLOW_READER_MAX, self.sender.send(Ok(chunk)))
                .await
                .map_err(|_late| gone())?
                .map_err(|_closed| gone())?;
        }
        Ok(any)
    }
}

fn newest(job: &Job) -> u32 {
    job.attempts.last().map_or(0, |attempt| attempt.number)
}

/// Whether an attempt can have output.
fn started(attempt: Option<&Attempt>) -> bool {
    attempt.is_some_and(|attempt| attempt.started_at_ms != 0)
}

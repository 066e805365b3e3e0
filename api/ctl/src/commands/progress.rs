//! Waiting for a job: each change on stderr of a terminal, and patience with a restarted control
//! service.

use std::io::{self, IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

use nimbus_api::proto::control::v1::jobs_client::JobsClient;
use nimbus_api::proto::control::v1::{Job, WatchJobRequest};
use tonic::transport::Channel;

use crate::error::CtlError;
use crate::output::escaped;
use crate::view::{is_over, last_part, state_name};

/// How often a broken stream is opened again before we give up.
const RETRIES_MAX: u32 = 30;
/// The wait before each.
const RETRY_WAIT: Duration = Duration::from_secs(1);
/// How often the line on the terminal is written anew.
const TICK: Duration = Duration::from_secs(1);

/// The job as it is when it has ended.
pub(super) async fn until_over(
    client: &mut JobsClient<Channel>,
    mut job: Job,
) -> Result<Job, CtlError> {
    let mut line = Line::new();
    let mut failures = 0;
    while !is_over(job.state()) {
        match watch(client, &mut job, &mut line).await {
            // The stream ended early, or control is being restarted: ask again.
            Ok(()) => {}
            Err(status) if may_pass(status.code()) => {}
            Err(status) => {
                line.end();
                return Err(status.into());
            }
        }
        if is_over(job.state()) {
            break;
        }
        failures += 1;
        if failures > RETRIES_MAX {
            line.end();
            let found = format!("{} has not ended, and control does not answer", job.name);
            return Err(CtlError::Argument(found));
        }
        tokio::time::sleep(RETRY_WAIT).await;
    }
    line.end();
    Ok(job)
}

/// A broken connection comes as UNKNOWN or INTERNAL as well.
fn may_pass(code: tonic::Code) -> bool {
    matches!(code, tonic::Code::Unavailable | tonic::Code::Unknown | tonic::Code::Internal)
}

async fn watch(
    client: &mut JobsClient<Channel>,
    job: &mut Job,
    line: &mut Line,
) -> Result<(), tonic::Status> {
    let request = WatchJobRequest { name: job.name.clone() };
    let mut changes = client.watch_job(request).await?.into_inner();
    loop {
        line.show(job);
        match tokio::time::timeout(TICK, changes.message()).await {
            Ok(change) => match change? {
                Some(change) => *job = change,
                None => return Ok(()),
            },
            Err(_elapsed) => {}
        }
        if is_over(job.state()) {
            return Ok(());
        }
    }
}

/// One line of a terminal that is written over and over; nothing where stderr is none.
struct Line {
    terminal: bool,
    begun: Instant,
}

impl Line {
    fn new() -> Self {
        Self { terminal: io::stderr().is_terminal(), begun: Instant::now() }
    }

    fn show(&self, job: &Job) {
        let attempt = job.attempts.len();
        let text = format!(
            "{}  {}  attempt {attempt}  {} s",
            escaped(last_part(&job.name)),
            state_name(job.state()),
            self.begun.elapsed().as_secs(),
        );
        self.write(&format!("\r\u{1b}[2K{text}"));
    }

    fn end(&self) {
        self.write("\r\u{1b}[2K");
    }

    /// A terminal that has gone away is not worth failing for.
    fn write(&self, text: &str) {
        if self.terminal {
            let mut err = io::stderr().lock();
            let _unwritten = err.write_all(text.as_bytes()).and_then(|()| err.flush());
        }
    }
}

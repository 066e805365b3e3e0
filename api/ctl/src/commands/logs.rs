//! `logs`: a job's stdout on ours, its stderr on ours.

use std::io::{self, IsTerminal as _, Write};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use nimbus_api::proto::control::v1::logs_client::LogsClient;
use nimbus_api::proto::control::v1::{LogChunk, LogStream, ReadLogsRequest};
use serde_json::json;

use super::Session;
use crate::cli::LogsArgs;
use crate::client::ANSWER_BYTES_MAX;
use crate::error::CtlError;
use crate::exit::Exit;
use crate::output::{self, Sanitizer};

pub(super) async fn run(session: &Session, args: &LogsArgs) -> Result<Exit, CtlError> {
    let request = ReadLogsRequest {
        name: session.job_name(&args.job)?,
        attempt: args.attempt.unwrap_or(0),
        follow: args.follow,
    };
    let mut client =
        LogsClient::new(session.channel.clone()).max_decoding_message_size(ANSWER_BYTES_MAX);
    let mut chunks = client.read_logs(request).await?.into_inner();
    let mut out = Stream::new(io::stdout().is_terminal() && !args.raw);
    let mut err = Stream::new(io::stderr().is_terminal() && !args.raw);
    while let Some(chunk) = chunks.message().await? {
        if session.json {
            output::print_json(&json(&chunk))?;
        } else if chunk.stream() == LogStream::Stderr {
            err.write(&mut io::stderr().lock(), &chunk.data)?;
        } else {
            out.write(&mut io::stdout().lock(), &chunk.data)?;
        }
    }
    Ok(Exit::Done)
}

/// One object a chunk: its bytes may be no text.
fn json(chunk: &LogChunk) -> serde_json::Value {
    let stream = if chunk.stream() == LogStream::Stderr { "stderr" } else { "stdout" };
    json!({
        "attempt": chunk.attempt,
        "stream": stream,
        "offset": chunk.offset,
        "data": BASE64.encode(&chunk.data),
    })
}

/// One of our two outputs.
struct Stream {
    sanitizer: Option<Sanitizer>,
}

impl Stream {
    fn new(sanitize: bool) -> Self {
        Self { sanitizer: sanitize.then(Sanitizer::default) }
    }

    fn write(&mut self, to: &mut impl Write, data: &[u8]) -> Result<(), CtlError> {
        let written = match &mut self.sanitizer {
            Some(sanitizer) => to.write_all(sanitizer.push(data).as_bytes()),
            None => to.write_all(data),
        };
        written.and_then(|()| to.flush()).map_err(CtlError::Output)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_go_through_a_pipe_unchanged_and_escaped_to_a_terminal() {
        let data = b"a\x1b[31m\xff\n";
        let mut piped = Vec::new();
        Stream::new(false).write(&mut piped, data).unwrap();
        assert_eq!(piped, data);
        let mut shown = Vec::new();
        Stream::new(true).write(&mut shown, data).unwrap();
        assert_eq!(String::from_utf8(shown).unwrap(), "a\\u{1b}[31m\u{fffd}\n");
    }
}

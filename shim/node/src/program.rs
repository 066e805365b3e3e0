//! Running one of the host's programs: `nft`, `ip`, a CNI plugin, `mkfs.ext4`, `losetup`.
//!
//! Input: arguments and standard input of ours; the environment holds what is named and nothing else.
//! Output: exit status and what was printed. Limits: [`PATIENCE`] for the whole of it, then the program
//! is killed; [`OUTPUT_BYTES_MAX`] of each stream, more is a failure.

use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Command;

/// How long a program may take.
pub const PATIENCE: Duration = Duration::from_secs(15);
/// Longest output, each of both streams.
pub const OUTPUT_BYTES_MAX: usize = 64 << 10;
/// Longest part of what a program said that goes into an error.
const SAID_CHARS_MAX: usize = 300;

/// A program did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    /// It could not be started, fed or read.
    #[error("cannot run {program:?}")]
    Run {
        /// Which.
        program: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It took too long.
    #[error("{program:?} did not end within {PATIENCE:?}")]
    Timeout {
        /// Which.
        program: PathBuf,
    },
    /// It said too much.
    #[error("{program:?} printed more than {OUTPUT_BYTES_MAX} bytes")]
    TooLong {
        /// Which.
        program: PathBuf,
    },
    /// It failed.
    #[error("{program:?} failed ({status}): {said}")]
    Failed {
        /// Which.
        program: PathBuf,
        /// How it ended.
        status: ExitStatus,
        /// The beginning of what it printed.
        said: String,
    },
}

/// What is run.
#[derive(Debug)]
pub struct Call<'a> {
    /// The program, absolute.
    pub program: &'a Path,
    /// Its arguments.
    pub args: &'a [&'a str],
    /// Its whole environment.
    pub env: &'a [(&'a str, &'a str)],
    /// What it reads.
    pub input: Vec<u8>,
}

/// Runs a program to its end; what it printed on stdout. Blocks; not to be called on the event loop.
pub fn run(runtime: &tokio::runtime::Handle, call: Call<'_>) -> Result<Vec<u8>, ProgramError> {
    let program = call.program.to_owned();
    let ended = runtime.block_on(async { tokio::time::timeout(PATIENCE, to_end(call)).await });
    let Ok(ended) = ended else { return Err(ProgramError::Timeout { program }) };
    let (status, stdout, stderr) =
        ended.map_err(|source| ProgramError::Run { program: program.clone(), source })?;
    if stdout.len().max(stderr.len()) > OUTPUT_BYTES_MAX {
        return Err(ProgramError::TooLong { program });
    }
    if status.success() {
        return Ok(stdout);
    }
    let said = if stderr.is_empty() { &stdout } else { &stderr };
    let said = String::from_utf8_lossy(said).trim().chars().take(SAID_CHARS_MAX).collect();
    Err(ProgramError::Failed { program, status, said })
}

async fn to_end(call: Call<'_>) -> std::io::Result<(ExitStatus, Vec<u8>, Vec<u8>)> {
    let mut child = Command::new(call.program)
        .args(call.args)
        .env_clear()
        .envs(call.env.iter().copied())
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let write = async {
        if let Some(mut stdin) = stdin {
            // A program that ends without reading everything is heard.
            let _unread = stdin.write_all(&call.input).await;
        }
    };
    let ((), stdout, stderr) = tokio::join!(write, read(stdout), read(stderr));
    // A stream that was cut keeps nobody waiting: its other end is closed by now.
    Ok((child.wait().await?, stdout?, stderr?))
}

async fn read(stream: Option<impl tokio::io::AsyncRead + Unpin>) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let most = u64::try_from(OUTPUT_BYTES_MAX).unwrap_or(u64::MAX).saturating_add(1);
    if let Some(stream) = stream {
        stream.take(most).read_to_end(&mut bytes).await?;
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, input: &[u8]) -> Result<Vec<u8>, ProgramError> {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        run(
            runtime.handle(),
            Call {
                program: Path::new("/bin/sh"),
                args: &["-c", script],
                env: &[("ONLY", "this")],
                input: input.to_vec(),
            },
        )
    }

    #[test]
    fn a_program_gets_its_input_and_no_environment_but_its_own() {
        let found = shell("read line; echo \"$line $ONLY $HOME $CARGO\"", b"in\n").unwrap();
        assert_eq!(found, b"in this  \n");
    }

    #[test]
    fn a_failure_says_what_the_program_said_and_no_more() {
        let failed = shell("echo out; echo err >&2; exit 3", b"").unwrap_err().to_string();
        assert!(failed.contains("err") && failed.contains('3'), "{failed}");
        let long = shell("head -c 9000 /dev/zero | tr '\\0' x; exit 1", b"").unwrap_err();
        assert!(long.to_string().len() < 500, "{long}");
    }

    #[test]
    fn endless_output_is_a_failure_and_not_a_lack_of_memory() {
        let failed = shell("while :; do echo xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx; done", b"");
        assert!(matches!(failed, Err(ProgramError::TooLong { .. })), "{failed:?}");
    }

    #[test]
    fn a_program_that_is_not_there_is_named() {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let program = Path::new("/no/such/program");
        let call = Call { program, args: &[], env: &[], input: Vec::new() };
        let failed = run(runtime.handle(), call).unwrap_err();
        assert!(failed.to_string().contains("/no/such/program"), "{failed}");
    }
}

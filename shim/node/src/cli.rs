//! The command line of `nimbus-node`: what a person can tell it, and what it answers with.

use std::io::{self, IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use nimbus_api::Refusal;
use nimbus_api::clock::{Clock, SystemClock, UnixSeconds};
use nimbus_api::error::Chain;
use tracing_subscriber::EnvFilter;

use crate::config::{ConfigError, NodeConfig};
use crate::files::{self, FileError};
use crate::join::{self, JoinError, JoinToken};
use crate::seccomp;
use crate::serve::{self, ServeError};
use crate::status::Status;
use crate::trust::{TrustError, TrustStore};

/// Environment variable with the log filter, as `tracing` reads it.
pub const LOG_VARIABLE: &str = "NIMBUS_LOG";

/// The Nimbus node agent: admits, runs and reports leased jobs on this machine.
#[derive(Debug, Parser)]
#[command(name = "nimbus-node", version)]
pub struct Args {
    /// Write logs as JSON, one object a line. What is logged: environment variable NIMBUS_LOG.
    #[arg(long, global = true)]
    log_json: bool,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Serve until SIGTERM.
    Serve {
        /// The node's configuration.
        #[arg(long)]
        config: PathBuf,
    },
    /// Get this machine's identity from a control service. The agent must not run.
    Join {
        /// The node's configuration.
        #[arg(long)]
        config: PathBuf,
        /// HOST:PORT of control's join listener.
        #[arg(long)]
        control: String,
        /// What nimbusctl node token printed.
        #[arg(long)]
        token: JoinToken,
    },
    /// Say what this node is and holds.
    Status {
        /// The node's configuration.
        #[arg(long)]
        config: PathBuf,
        /// As one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Write the seccomp program that a container gets to standard output, as the kernel takes it.
    ///
    /// For looking at it: `nimbus-node seccomp default --capability CAP_CHOWN > filter.bpf`.
    Seccomp {
        /// default or nimbus-strict
        profile: String,
        /// What the container may; give it again for more
        #[arg(long = "capability", value_name = "CAP_NAME")]
        capabilities: Vec<String>,
    },
    /// The clock's floor.
    Clock {
        #[command(subcommand)]
        verb: ClockVerb,
    },
}

#[derive(Debug, Subcommand)]
enum ClockVerb {
    /// Take the present time as the floor, after the clock has been set right. Recorded in
    /// audit.log of the data directory. The agent must not run.
    Reset {
        /// The node's configuration.
        #[arg(long)]
        config: PathBuf,
    },
}

/// Exit codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Done = 0,
    /// It failed.
    Failed = 1,
    /// The command line is wrong (clap's own).
    Usage = 2,
    /// The configuration is wrong.
    Config = 3,
    /// The node has no identity.
    NotJoined = 4,
    /// Another agent has the directories.
    Busy = 5,
    /// Control refused.
    Refused = 6,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        #[expect(clippy::as_conversions, reason = "the enum's own representation")]
        Self::from(exit as u8)
    }
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
enum CommandError {
    #[error("the configuration was not taken")]
    Config(#[source] ConfigError),
    #[error("the agent did not start")]
    Serve(#[source] ServeError),
    #[error("this node did not join")]
    Join(#[source] JoinError),
    #[error("cannot use the data directory")]
    Directory(#[source] ServeError),
    #[error("cannot use the trust state")]
    Trust(#[source] TrustError),
    #[error("cannot use the data directory's files")]
    File(#[source] FileError),
    #[error("no such filter")]
    Seccomp(#[source] Refusal),
    #[error("cannot write the answer")]
    Output(#[source] io::Error),
}

impl CommandError {
    fn exit(&self) -> Exit {
        match self {
            Self::Config(_) => Exit::Config,
            Self::Serve(error) | Self::Directory(error) => match error {
                ServeError::Busy { .. } => Exit::Busy,
                ServeError::NotJoined => Exit::NotJoined,
                ServeError::Identity(_)
                | ServeError::Trust(_)
                | ServeError::Spool(_)
                | ServeError::File(_)
                | ServeError::Images(_)
                | ServeError::Settle(_)
                | ServeError::Start(_) => Exit::Failed,
            },
            Self::Join(JoinError::Refused { .. }) | Self::Seccomp(_) => Exit::Refused,
            Self::Join(_) | Self::Trust(_) | Self::File(_) | Self::Output(_) => Exit::Failed,
        }
    }
}

/// Does what the command line says.
pub fn run(args: Args) -> Exit {
    start_log(args.log_json);
    match dispatch(args.verb) {
        Ok(()) => Exit::Done,
        Err(error) => {
            // Nobody is left to tell when stderr is gone.
            let _unheard = writeln!(io::stderr().lock(), "nimbus-node: {}", Chain(&error));
            error.exit()
        }
    }
}

fn dispatch(verb: Verb) -> Result<(), CommandError> {
    match verb {
        Verb::Serve { config } => serve::run(load(&config)?).map_err(CommandError::Serve),
        Verb::Join { config, control, token } => join(&load(&config)?, &control, &token),
        Verb::Status { config, json } => status(&load(&config)?, json),
        Verb::Seccomp { profile, capabilities } => seccomp(&profile, &capabilities),
        Verb::Clock { verb: ClockVerb::Reset { config } } => reset_clock(&load(&config)?),
    }
}

fn seccomp(profile: &str, capabilities: &[String]) -> Result<(), CommandError> {
    let compiled = seccomp::compile(profile, capabilities).map_err(CommandError::Seccomp)?;
    io::stdout().lock().write_all(&compiled.bytes).map_err(CommandError::Output)
}

fn load(path: &std::path::Path) -> Result<NodeConfig, CommandError> {
    NodeConfig::load(path).map_err(CommandError::Config)
}

fn join(config: &NodeConfig, control: &str, token: &JoinToken) -> Result<(), CommandError> {
    files::ensure_dir(&config.data_dir).map_err(CommandError::File)?;
    let _lock = serve::hold(config.data_dir.join("lock")).map_err(CommandError::Directory)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| CommandError::Serve(ServeError::Start(error)))?;
    let joined = runtime.block_on(join::join(&config.data_dir, control, token));
    let (identity, key_set) = joined.map_err(CommandError::Join)?;
    let record = &identity.record;
    let root = (record.root_key, record.trust_domain.clone());
    let mut trust =
        TrustStore::open(&config.data_dir.join("trust"), &config.policy_key, Some(root))
            .map_err(CommandError::Trust)?;
    if let Err(refusal) = trust.take_key_set(&key_set) {
        tracing::warn!(%refusal, "the key set that came along was not taken");
    }
    let mut out = io::stdout().lock();
    writeln!(
        out,
        "joined {} as node {} ({})",
        record.trust_domain, record.node, identity.thumbprint
    )
    .map_err(CommandError::Output)
}

fn status(config: &NodeConfig, json: bool) -> Result<(), CommandError> {
    let status = Status::read(config).map_err(CommandError::Directory)?;
    let mut out = io::stdout().lock();
    let written = if json {
        let text = serde_json::to_string_pretty(&status).unwrap_or_default();
        writeln!(out, "{text}")
    } else {
        status.write(&mut out)
    };
    written.map_err(CommandError::Output)
}

/// Takes the present time as the floor. The record is on disk before the floor moves.
fn reset_clock(config: &NodeConfig) -> Result<(), CommandError> {
    files::ensure_dir(&config.data_dir).map_err(CommandError::File)?;
    let _lock = serve::hold(config.data_dir.join("lock")).map_err(CommandError::Directory)?;
    let mut trust = TrustStore::open(&config.data_dir.join("trust"), &config.policy_key, None)
        .map_err(CommandError::Trust)?;
    let now: UnixSeconds = SystemClock.unix();
    let before = trust.floor();
    files::append_audit(
        &config.data_dir.join("audit.log"),
        &serde_json::json!({
            "at": now.to_string(),
            "what": "clock floor reset",
            "from": before.to_string(),
            "to": now.to_string(),
            "uid": rustix::process::getuid().as_raw(),
            "pid": std::process::id(),
        }),
    )
    .map_err(CommandError::File)?;
    trust.reset_floor(now).map_err(CommandError::File)?;
    writeln!(io::stdout().lock(), "clock floor was {before}, is {now}")
        .map_err(CommandError::Output)
}

fn start_log(json: bool) {
    let filter =
        EnvFilter::try_from_env(LOG_VARIABLE).unwrap_or_else(|_absent| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(io::stderr().is_terminal())
        .with_writer(io::stderr);
    if json {
        builder.json().init();
    } else {
        builder.init();
    }
}

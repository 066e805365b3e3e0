//! What a node says about itself, from its files: for a person as lines, for a program as JSON. Works
//! whether the agent runs or not, and changes nothing.

use std::io::{self, Write};

use nimbus_api::strict_json::{self, Limits};
use serde::Serialize;

use crate::config::NodeConfig;
use crate::files;
use crate::identity::Identity;
use crate::ledger::{Ledger, Stage};
use crate::serve::{self, RunningState, ServeError};
use crate::trust::TrustStore;

const STATE_BYTES_MAX: usize = 1024;

/// The documented form of `nimbus-node status --json`.
#[derive(Debug, Serialize)]
pub struct Status {
    /// Whether an agent answers on the socket.
    pub running: bool,
    /// Its process, when it runs.
    pub pid: Option<u32>,
    /// Whether it is in session with control.
    pub linked: bool,
    /// The node's name; none before it has joined.
    pub node: Option<String>,
    /// Its trust domain.
    pub trust_domain: Option<String>,
    /// SHA-256 of its identity key.
    pub thumbprint: Option<String>,
    /// Where control is.
    pub api_address: Option<String>,
    /// When its certificate ends, Unix seconds.
    pub certificate_not_after: Option<i64>,
    /// Serial of its key set; 0 is none.
    pub key_set_serial: u64,
    /// Serial of its policy; 0 is none that can be used.
    pub policy_serial: u64,
    /// The clock's floor, Unix seconds.
    pub clock_floor: i64,
    /// Leases that it has not finished with.
    pub held: Vec<Held>,
}

/// One lease of a [`Status`].
#[derive(Debug, Serialize)]
pub struct Held {
    /// Lease.
    pub lease_id: String,
    /// Job.
    pub job: String,
    /// Which try.
    pub attempt: u32,
    /// `granted`, `used`, `started` or `ended`.
    pub stage: Stage,
    /// Whether control took it back.
    pub revoked: bool,
    /// Its container, when it has one.
    pub container: Option<String>,
}

impl Status {
    /// Reads it.
    pub fn read(config: &NodeConfig) -> Result<Self, ServeError> {
        let identity = Identity::load(&config.data_dir)?;
        let record = identity.as_ref().map(|identity| &identity.record);
        let root = record.map(|record| (record.root_key, record.trust_domain.clone()));
        let trust = TrustStore::peek(&config.data_dir.join("trust"), &config.policy_key, root)?;
        let running = std::os::unix::net::UnixStream::connect(config.socket()).is_ok();
        let state = if running { running_state(config)? } else { None };
        Ok(Self {
            running,
            pid: state.as_ref().map(|state| state.pid),
            linked: state.is_some_and(|state| state.linked),
            node: record.map(|record| record.node.to_string()),
            trust_domain: record.map(|record| record.trust_domain.to_string()),
            thumbprint: identity.as_ref().map(|identity| identity.thumbprint.to_string()),
            api_address: record.map(|record| record.api_address.clone()),
            certificate_not_after: identity.as_ref().map(|identity| identity.validity.1.0),
            key_set_serial: trust.keys().map_or(0, |keys| keys.serial),
            policy_serial: trust.policy_serial(),
            clock_floor: trust.floor().0,
            held: held(config)?,
        })
    }

    /// Writes it for a person.
    pub fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        let or_none = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
        let word = |yes: bool| if yes { "yes" } else { "no" };
        writeln!(out, "node          {}", or_none(&self.node))?;
        writeln!(out, "trust domain  {}", or_none(&self.trust_domain))?;
        writeln!(out, "thumbprint    {}", or_none(&self.thumbprint))?;
        writeln!(out, "control       {}", or_none(&self.api_address))?;
        writeln!(out, "running       {}", word(self.running))?;
        writeln!(out, "in session    {}", word(self.linked))?;
        writeln!(out, "key set       {}", self.key_set_serial)?;
        writeln!(out, "policy        {}", self.policy_serial)?;
        writeln!(out, "held          {}", self.held.len())?;
        for held in &self.held {
            let revoked = if held.revoked { ", revoked" } else { "" };
            writeln!(
                out,
                "  {} attempt {} of {}: {:?}{revoked}",
                held.lease_id, held.attempt, held.job, held.stage
            )?;
        }
        Ok(())
    }
}

fn running_state(config: &NodeConfig) -> Result<Option<RunningState>, ServeError> {
    let bytes = files::read_bounded(&serve::state_path(config), STATE_BYTES_MAX)?;
    Ok(bytes.and_then(|b| strict_json::parse(&b, Limits::bytes(STATE_BYTES_MAX)).ok()))
}

fn held(config: &NodeConfig) -> Result<Vec<Held>, ServeError> {
    let entries = Ledger::peek(&config.data_dir.join("ledger"))?;
    Ok(entries
        .into_iter()
        .filter(|entry| !entry.reported)
        .map(|entry| Held {
            lease_id: entry.claims.lease_id.to_string(),
            job: entry.claims.job.to_string(),
            attempt: entry.claims.attempt,
            stage: entry.stage,
            revoked: entry.revoked.is_some(),
            container: entry.usage.map(|usage| usage.container.to_string()),
        })
        .collect())
}

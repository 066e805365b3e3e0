//! Debian's `ctr` against a lab's containerd: what somebody can do who has that socket.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nimbus_api::{Refusal, RefusalCode};
use serde_json::Value;

use crate::Failure;

/// The namespace that the node agent uses.
pub const NAMESPACE: &str = "nimbus";
/// Our runtime.
pub const RUNTIME: &str = "io.containerd.nimbus.v1";

/// A client of one containerd.
#[derive(Debug, Clone)]
pub struct Ctr {
    address: PathBuf,
    fifos: PathBuf,
    namespace: String,
}

/// What it said.
#[derive(Debug, Clone)]
pub struct Said {
    /// Exit status; none when a signal ended it.
    pub code: Option<i32>,
    /// stdout.
    pub stdout: String,
    /// stderr.
    pub stderr: String,
}

impl Said {
    /// Runs a command to its end.
    pub fn by(command: &mut Command) -> Result<Self, Failure> {
        let name = command.get_program().to_string_lossy().into_owned();
        let output = command
            .stdin(Stdio::null())
            .output()
            .map_err(|error| Failure::from(error).during(&name))?;
        Ok(Self {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// The refusal in what it said, if it failed.
    pub fn refusal(&self) -> Option<RefusalCode> {
        if self.code == Some(0) {
            return None;
        }
        Refusal::code_in(&self.stderr).or_else(|| Refusal::code_in(&self.stdout))
    }

    /// stdout of a success.
    pub fn good(self) -> Result<String, Failure> {
        if self.code == Some(0) {
            return Ok(self.stdout);
        }
        Err(Failure::new(format!("ended with {:?}: {}{}", self.code, self.stdout, self.stderr)))
    }
}

/// A program and its version, from the first line that it says about itself.
pub(crate) fn version_line(program: &Path) -> Result<String, Failure> {
    let said = Said::by(Command::new(program).arg("--version"))?.good()?;
    Ok(said.lines().next().unwrap_or_default().replace(" version ", " ").trim().to_owned())
}

/// Its version alone: the third word of what runc and containerd say.
pub(crate) fn version_word(program: &str) -> Result<String, Failure> {
    let said = Said::by(Command::new(program).arg("--version"))?.good()?;
    let word = said.split_whitespace().nth(2).unwrap_or("of unknown version");
    Ok(word.trim_start_matches('v').to_owned())
}

impl Ctr {
    /// A client of the containerd at this socket, in the agent's namespace; fifos go below `fifos`.
    pub fn new(address: &Path, fifos: &Path) -> Self {
        let namespace = NAMESPACE.to_owned();
        Self { address: address.to_owned(), fifos: fifos.to_owned(), namespace }
    }

    /// The same in another namespace.
    #[must_use]
    pub fn within(mut self, namespace: &str) -> Self {
        namespace.clone_into(&mut self.namespace);
        self
    }

    /// A command.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("ctr");
        command
            .arg("--address")
            .arg(&self.address)
            .args(["--namespace", &self.namespace])
            .args(args);
        command
    }

    /// Runs one.
    pub fn ask(&self, args: &[&str]) -> Result<Said, Failure> {
        Said::by(&mut self.command(args))
    }

    /// Runs a container of this specification under our runtime until it ends, without output, and
    /// removes it.
    pub fn run(&self, id: &str, spec: &[u8], more: &[&str]) -> Result<Said, Failure> {
        let file = self.fifos.join(format!("{id}.json"));
        std::fs::write(&file, spec)?;
        let mut command = self.command(&["run", "--rm", "--runtime", RUNTIME]);
        if !more.contains(&"--log-uri") {
            command.arg("--null-io");
        }
        command.args(more).arg("--config").arg(&file).arg(id);
        let said = Said::by(&mut command)?;
        std::fs::remove_file(&file)?;
        // A refused container's record is left when the client does not remove it.
        let removed = self.ask(&["containers", "rm", id])?;
        drop(removed);
        Ok(said)
    }

    /// The specification of a container.
    pub fn spec(&self, id: &str) -> Result<Value, Failure> {
        let text = self.ask(&["containers", "info", id])?.good()?;
        let mut info: Value = serde_json::from_str(&text)?;
        Ok(info.get_mut("Spec").map(Value::take).unwrap_or_default())
    }

    /// Ids of all containers.
    pub fn containers(&self) -> Result<Vec<String>, Failure> {
        let text = self.ask(&["containers", "ls", "--quiet"])?.good()?;
        Ok(text.split_whitespace().map(str::to_owned).collect())
    }
}

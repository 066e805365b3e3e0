//! `nimbusctl` against a lab's control service.
//!
//! This is the one place that knows its arguments.

use std::path::{Path, PathBuf};
use std::process::Command;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::Failure;
use crate::ctr::Said;
use crate::failure::During as _;
use crate::lab::Submission;

/// A client with one person's credentials.
#[derive(Debug, Clone)]
pub struct Ctl {
    program: PathBuf,
    credentials: PathBuf,
}

impl Ctl {
    /// `program` is `nimbusctl`.
    pub fn new(program: &Path, credentials: &Path) -> Self {
        Self { program: program.to_owned(), credentials: credentials.to_owned() }
    }

    /// A command with these arguments.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.env("NIMBUS_CREDENTIALS", &self.credentials).args(args);
        command
    }

    /// Runs one.
    pub fn run(&self, args: &[&str]) -> Result<Said, Failure> {
        Said::by(&mut self.command(args))
    }

    /// Runs one with `--json` and reads what it says.
    pub fn json(&self, args: &[&str]) -> Result<Value, Failure> {
        let mut command = self.command(&["--json"]);
        command.args(args);
        let text = Said::by(&mut command)?.good().during(&format!("nimbusctl {args:?}"))?;
        serde_json::from_str(&text).during(&format!("nimbusctl {args:?} said {text:?}"))
    }

    /// Submits and does not wait for the job's end.
    pub fn submit(&self, submission: &Submission, bundles: &[PathBuf]) -> Result<Said, Failure> {
        let mut command = self.command(&["--json", "submit"]);
        for bundle in bundles {
            command.arg("--bundle").arg(bundle);
        }
        for entry in &submission.env {
            command.arg("--env").arg(entry);
        }
        for rule in &submission.allow {
            command.arg("--allow").arg(rule);
        }
        if let Some(id) = &submission.request_id {
            command.arg("--request-id").arg(id);
        }
        if let Some(seconds) = submission.max_runtime {
            command.arg("--max-runtime-seconds").arg(seconds.to_string());
        }
        if let Some(attempts) = submission.max_attempts {
            command.arg("--max-attempts").arg(attempts.to_string());
        }
        if let Some(size) = &submission.scratch {
            command.arg("--scratch").arg(size);
        }
        if submission.scratch_in_memory {
            command.arg("--scratch-in-memory");
        }
        if let Some(profile) = &submission.seccomp {
            command.arg("--seccomp").arg(profile);
        }
        command.arg(&submission.image).arg("--").args(&submission.args);
        Said::by(&mut command)
    }

    /// A join token for a node.
    pub fn join_token(&self, node: &str) -> Result<String, Failure> {
        field(&self.json(&["node", "token", node])?, "token")
    }

    /// The same program as somebody else.
    #[must_use]
    pub fn with_credentials(&self, credentials: &Path) -> Self {
        Self::new(&self.program, credentials)
    }

    /// Attests an image with a private key in PEM; the bundle goes to `out`.
    pub fn attest(&self, image: &str, key: &Path, out: &Path) -> Result<String, Failure> {
        let mut command = self.command(&["attest", image, "--key"]);
        command.arg(key).arg("--output").arg(out);
        Said::by(&mut command)?.good().during("nimbusctl attest")
    }

    /// Hands control a signed policy.
    pub fn policy_apply(&self, file: &Path) -> Result<String, Failure> {
        let mut command = self.command(&["--json", "policy", "apply"]);
        command.arg(file);
        Said::by(&mut command)?.good().during("nimbusctl policy apply")
    }
}

/// A field of an object.
pub fn field<T: DeserializeOwned>(object: &Value, name: &str) -> Result<T, Failure> {
    let value = object.get(name).cloned();
    let value = value.ok_or_else(|| Failure::new(format!("no {name} in {object}")))?;
    serde_json::from_value(value).during(name)
}

/// The first field of this name, however deep.
pub fn find<'a>(value: &'a Value, name: &str) -> Option<&'a Value> {
    match value {
        Value::Object(map) => {
            map.get(name).or_else(|| map.values().find_map(|inner| find(inner, name)))
        }
        Value::Array(list) => list.iter().find_map(|inner| find(inner, name)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => None,
    }
}

/// The receipt of a job's first attempt, as it was signed.
pub fn receipt(job: &Value) -> Result<Vec<u8>, Failure> {
    match find(job, "receipt") {
        Some(Value::String(text)) if text.starts_with('{') => Ok(text.clone().into_bytes()),
        Some(Value::String(text)) => Ok(BASE64.decode(text)?),
        Some(object @ Value::Object(_)) => Ok(object.to_string().into_bytes()),
        _ => Err(Failure::new(format!("no receipt in {job}"))),
    }
}

/// Whether the first field of this name is true.
pub fn truth_of(value: &Value, name: &str) -> bool {
    find(value, name).and_then(Value::as_bool).unwrap_or(false)
}

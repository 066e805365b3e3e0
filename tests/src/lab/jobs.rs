//! Submitting jobs and watching what becomes of them.

use std::fs;

use nimbus_api::{Refusal, RefusalCode};
use serde_json::Value;

use super::Lab;
use crate::ctl::{field, find};
use crate::ctr::Said;
use crate::images::Published;
use crate::wait::until;
use crate::{Failure, Outcome, mint};

/// What is submitted.
#[derive(Debug, Clone, Default)]
pub struct Submission {
    /// `name@digest`, `name:tag` or `oci:/...`.
    pub image: String,
    /// The whole argument vector.
    pub args: Vec<String>,
    /// `KEY=VALUE`.
    pub env: Vec<String>,
    /// Sigstore bundles.
    pub bundles: Vec<Vec<u8>>,
    /// What it may connect to.
    pub allow: Vec<String>,
    /// A UUID; none lets `nimbusctl` choose.
    pub request_id: Option<String>,
    /// Seconds; none is control's default.
    pub max_runtime: Option<u32>,
    /// None is control's default.
    pub max_attempts: Option<u32>,
    /// None is control's default.
    pub seccomp: Option<String>,
    /// Writable space, as `nimbusctl` takes it; none is control's default.
    pub scratch: Option<String>,
    /// In memory instead of on disk.
    pub scratch_in_memory: bool,
}

impl Submission {
    /// An image with these bundles.
    pub fn of(image: &Published, bundles: Vec<Vec<u8>>, args: &[&str]) -> Self {
        Self {
            image: image.reference(),
            args: args.iter().map(|arg| (*arg).to_owned()).collect(),
            bundles,
            ..Self::default()
        }
    }
}

/// What control made of a submission.
#[derive(Debug, Clone)]
pub enum Submitted {
    /// A job: its id.
    Job(String),
    /// Refused at once.
    Refused {
        /// The code.
        code: RefusalCode,
        /// Everything that was said.
        text: String,
    },
}

impl Submitted {
    /// The job.
    pub fn job(self) -> Result<String, Failure> {
        match self {
            Self::Job(job) => Ok(job),
            Self::Refused { text, .. } => Err(Failure::new(format!("submit was refused: {text}"))),
        }
    }
}

/// How a job ended.
#[derive(Debug, Clone)]
pub struct Ended {
    /// `DONE`, `DEAD` or `CANCELLED`.
    pub state: String,
    /// Set when it was done.
    pub exit_code: Option<i64>,
    /// Set when it was not.
    pub code: Option<RefusalCode>,
    /// Sentence and advice that came with the code.
    pub message: String,
    /// The job, whole.
    pub job: Value,
}

impl Ended {
    fn of(job: Value) -> Result<Self, Failure> {
        let reason: String = field(&job, "reason").unwrap_or_default();
        Ok(Self {
            state: state(&job)?,
            exit_code: job.get("exit_code").and_then(Value::as_i64),
            code: reason.parse().ok(),
            message: field(&job, "message").unwrap_or_default(),
            job,
        })
    }

    /// Fails unless the job was done with this exit code.
    pub fn expect_exit(&self, code: i64) -> Outcome {
        if self.state == "DONE" && self.exit_code == Some(code) {
            return Ok(());
        }
        Err(Failure::new(format!("expected exit {code}, found {}", self.job)))
    }

    /// Fails unless the job was refused with this code.
    pub fn expect_refused(&self, code: RefusalCode) -> Outcome {
        if self.state == "DEAD" && self.code == Some(code) {
            return Ok(());
        }
        Err(Failure::new(format!("expected {code}, found {}", self.job)))
    }

    /// Its attempts.
    pub fn attempts(&self) -> &[Value] {
        self.job.get("attempts").and_then(Value::as_array).map_or(&[], Vec::as_slice)
    }
}

/// The state without a prefix, in capitals.
fn state(job: &Value) -> Result<String, Failure> {
    let text: String = field(job, "state")?;
    let text = text.to_uppercase();
    Ok(text.strip_prefix("JOB_STATE_").unwrap_or(&text).to_owned())
}

impl Lab {
    /// A submission that nothing is wrong with.
    pub fn good(&mut self, args: &[&str]) -> Result<Submission, Failure> {
        let image = self.hello()?;
        let bundle = image.attested(&self.keys)?;
        Ok(Submission::of(&image, vec![bundle], args))
    }

    /// Submits.
    pub fn submit(&mut self, submission: &Submission) -> Result<Submitted, Failure> {
        let said = self.try_submit(submission)?;
        if let Some(code) = said.refusal() {
            return Ok(Submitted::Refused { code, text: said.stderr });
        }
        let job: Value = serde_json::from_str(&said.good()?)?;
        let id = job_id(&job)?;
        self.remember(&id);
        Ok(Submitted::Job(id))
    }

    /// Submits and returns what nimbusctl said.
    pub fn try_submit(&self, submission: &Submission) -> Result<Said, Failure> {
        let mut files = Vec::new();
        for bundle in &submission.bundles {
            let file = self.path("files").join(format!("{}.json", mint::unique()?));
            fs::write(&file, bundle)?;
            files.push(file);
        }
        self.ctl().submit(submission, &files)
    }

    /// The job as it is now.
    pub fn job(&self, id: &str) -> Result<Value, Failure> {
        self.ctl().json(&["get", id])
    }

    /// Waits until a job has ended.
    pub fn wait_ended(&mut self, id: &str) -> Result<Ended, Failure> {
        let mut last = Value::Null;
        let ended = until("the job to end", || {
            last = self.job(id)?;
            let over = matches!(state(&last)?.as_str(), "DONE" | "DEAD" | "CANCELLED");
            Ok(over.then(|| last.clone()))
        });
        ended.map_or_else(
            |failure| Err(Failure::new(format!("{}; it is {last}", failure.text()))),
            Ended::of,
        )
    }

    /// Waits until a job runs and returns the id of its container.
    pub fn wait_running(&mut self, id: &str) -> Result<String, Failure> {
        let mut last = Value::Null;
        let running = until("the job to run", || {
            last = self.job(id)?;
            let state = state(&last)?;
            if matches!(state.as_str(), "DONE" | "DEAD" | "CANCELLED") {
                return Err(Failure::new(format!("it has ended: {last}")));
            }
            Ok((state == "RUNNING").then(|| attempts(&last)))
        });
        let attempt =
            running.map_err(|failure| Failure::new(format!("{}; it is {last}", failure.text())))?;
        Ok(format!("{id}-{attempt}"))
    }

    /// Submits, waits for the end, and returns how it ended; a refusal at once counts as one.
    pub fn outcome(&mut self, submission: &Submission) -> Result<Ended, Failure> {
        match self.submit(submission)? {
            Submitted::Job(id) => {
                let ended = self.wait_ended(&id)?;
                for number in 1..=ended.attempts().len() {
                    self.nothing_left_of(&format!("{id}-{number}"))?;
                }
                Ok(ended)
            }
            Submitted::Refused { code, text } => Ok(Ended {
                state: "DEAD".to_owned(),
                exit_code: None,
                code: Some(code),
                message: text.trim().to_owned(),
                job: Value::String(text),
            }),
        }
    }

    /// Cancels a job.
    pub fn cancel(&self, id: &str) -> Outcome {
        self.ctl().run(&["cancel", id])?.good().map(drop)
    }

    /// stdout of the newest attempt of a job.
    pub fn output(&self, id: &str) -> Result<String, Failure> {
        self.ctl().run(&["logs", id])?.good()
    }

    /// stdout of one attempt of a job.
    pub fn output_of(&self, id: &str, attempt: usize) -> Result<String, Failure> {
        self.ctl().run(&["logs", "--attempt", &attempt.to_string(), id])?.good()
    }

    /// Starts a container by `ctr` that must be refused, and checks that nothing is left of it.
    pub fn refused_by_ctr(
        &mut self,
        id: &str,
        spec: &[u8],
        more: &[&str],
    ) -> Result<(Option<RefusalCode>, Said), Failure> {
        self.remember(id);
        let said = self.ctr().run(id, spec, more)?;
        self.nothing_left_of(id)?;
        Ok((Refusal::code_in(&said.stderr).filter(|_code| said.code != Some(0)), said))
    }
}

fn attempts(job: &Value) -> usize {
    job.get("attempts").and_then(Value::as_array).map_or(0, Vec::len)
}

fn job_id(job: &Value) -> Result<String, Failure> {
    let name = find(job, "name").and_then(Value::as_str).unwrap_or_default();
    let id = name.rsplit_once("/jobs/").map(|(_, id)| id.to_owned());
    id.ok_or_else(|| Failure::new(format!("no job name in {job}")))
}

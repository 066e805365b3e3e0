//! Asking `nimbus-verify` about an image's attestations, with a cache of what verified.
//!
//! One process a question, JSON in and out, empty environment, a deadline from the policy, bounded
//! output. What it says is a fact; whether it is enough is `nimbus_hooks::admit`'s.
//! Only answers with a verified bundle are cached, under everything that they depend on: bundles,
//! subjects, policy document, program. A negative answer is asked for again each time.
//!
//! Limits: [`CACHE_MAX`] answers for [`CACHE_SECONDS`], reply at most
//! [`nimbus_api::verify::REPLY_BYTES_MAX`].

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use nimbus_api::clock::{BootNanos, Clock};
use nimbus_api::error::Chain;
use nimbus_api::policy::SignedPolicy;
use nimbus_api::strict_json::{self, Limits};
use nimbus_api::verify::{BundleOutcome, REPLY_BYTES_MAX, VerifyReply, VerifyRequest};
use nimbus_api::{Digest, Refusal, RefusalCode};
use nimbus_hooks::facts::{AttestationFact, MeasuredImage};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Command;

use crate::agent::lock;
use crate::bundles::Bundles;

/// Most answers kept; more empties the cache.
pub const CACHE_MAX: usize = 1024;
/// How long an answer is kept.
pub const CACHE_SECONDS: u64 = 600;
/// What starting the process may take on top of the policy's budget, milliseconds.
pub const START_MARGIN_MS: u64 = 3000;
/// The program.
pub const PROGRAM: &str = "nimbus-verify";
const PROGRAM_FALLBACK: &str = "/usr/libexec/nimbus/nimbus-verify";

/// Somebody who answers verification requests.
pub trait Verifier: Send + Sync {
    /// Answers one request within `budget`. Blocks.
    fn ask(&self, request: &VerifyRequest, budget: Duration) -> Result<VerifyReply, Refusal>;
    /// Changes when the program does.
    fn fingerprint(&self) -> String;
}

/// `nimbus-verify` as a process.
#[derive(Debug)]
pub struct VerifierProcess {
    program: PathBuf,
    runtime: tokio::runtime::Handle,
}

impl VerifierProcess {
    /// The program beside this one, else the packaged one.
    pub fn find(runtime: tokio::runtime::Handle) -> Self {
        let own = std::fs::read_link("/proc/self/exe").ok();
        let beside = own.as_deref().and_then(Path::parent).map(|dir| dir.join(PROGRAM));
        let program = beside.filter(|path| path.is_file());
        Self { program: program.unwrap_or_else(|| PathBuf::from(PROGRAM_FALLBACK)), runtime }
    }

    async fn run(&self, request: Vec<u8>) -> Result<Vec<u8>, Refusal> {
        let down = |error: std::io::Error| Refusal::with(RefusalCode::VerifyDown, error);
        let failed = |error: std::io::Error| Refusal::with(RefusalCode::VerifyFailed, error);
        let mut child = Command::new(&self.program)
            .arg("verify")
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(down)?;
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
        let write = async move {
            if let Some(mut stdin) = stdin {
                stdin.write_all(&request).await?;
                stdin.shutdown().await?;
            }
            Ok::<_, std::io::Error>(())
        };
        let read = async move {
            let mut reply = Vec::new();
            let most = u64::try_from(REPLY_BYTES_MAX).unwrap_or(u64::MAX).saturating_add(1);
            if let Some(stdout) = stdout {
                stdout.take(most).read_to_end(&mut reply).await?;
            }
            Ok::<_, std::io::Error>(reply)
        };
        // A verifier that answers without reading everything is heard.
        let (_written, reply) = tokio::join!(write, read);
        let reply = reply.map_err(failed)?;
        if reply.len() > REPLY_BYTES_MAX {
            return Err(Refusal::with(RefusalCode::VerifyFailed, "the answer is too long"));
        }
        let status = child.wait().await.map_err(failed)?;
        // What a verifier printed before it failed is no answer: a refusing one ends well too.
        if !status.success() {
            return Err(Refusal::with(RefusalCode::VerifyFailed, status));
        }
        Ok(reply)
    }
}

impl Verifier for VerifierProcess {
    fn ask(&self, request: &VerifyRequest, budget: Duration) -> Result<VerifyReply, Refusal> {
        let text = serde_json::to_vec(request)
            .map_err(|error| Refusal::with(RefusalCode::VerifyFailed, error))?;
        let answer = async { tokio::time::timeout(budget, self.run(text)).await };
        let reply = self
            .runtime
            .block_on(answer)
            .map_err(|_elapsed| Refusal::new(RefusalCode::VerifyTimeout))??;
        strict_json::parse(&reply, Limits::bytes(REPLY_BYTES_MAX))
            .map_err(|error| Refusal::with(RefusalCode::VerifyFailed, Chain(&error)))
    }

    fn fingerprint(&self) -> String {
        self.program.metadata().map_or_else(
            |_gone| String::new(),
            |m| format!("{}:{}:{}:{}:{}", m.dev(), m.ino(), m.size(), m.mtime(), m.mtime_nsec()),
        )
    }
}

/// When it was given, and what it says.
type Answer = (BootNanos, Arc<Vec<BundleOutcome>>);

/// The verifier with its cache.
pub struct Attestations {
    verifier: Box<dyn Verifier>,
    clock: Arc<dyn Clock>,
    cache: Mutex<HashMap<Digest, Answer>>,
}

impl std::fmt::Debug for Attestations {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Attestations").finish_non_exhaustive()
    }
}

impl Attestations {
    /// With an empty cache.
    pub fn new(verifier: Box<dyn Verifier>, clock: Arc<dyn Clock>) -> Self {
        Self { verifier, clock, cache: Mutex::default() }
    }

    /// What the verifier says about this image's bundles, by the policy's rule for its name. Blocks.
    pub fn fact(
        &self,
        policy: &SignedPolicy,
        image: &MeasuredImage,
        bundles: &Bundles,
    ) -> AttestationFact {
        match self.outcomes(policy, image, bundles) {
            Ok(outcomes) => AttestationFact::Outcomes(outcomes),
            Err(refusal) => AttestationFact::Unavailable(refusal),
        }
    }

    fn outcomes(
        &self,
        policy: &SignedPolicy,
        image: &MeasuredImage,
        bundles: &Bundles,
    ) -> Result<Vec<BundleOutcome>, Refusal> {
        let rule = policy.policy.rule_for(&image.name, &[image.digest, image.manifest]);
        let (Some(rule), Some(digest)) = (rule, bundles.digest) else { return Ok(Vec::new()) };
        let limits = policy.policy.limits;
        if bundles.list.len() > usize::try_from(limits.bundles).unwrap_or(usize::MAX) {
            let found =
                format!("found {}, the policy allows {}", bundles.list.len(), limits.bundles);
            return Err(Refusal::with(RefusalCode::VerifyTooLarge, found));
        }
        let mut subjects = vec![image.manifest];
        if image.digest != image.manifest {
            subjects.push(image.digest);
        }
        let key = cache_key(policy, &image.name, &subjects, digest, &self.verifier.fingerprint());
        let now = self.clock.boottime();
        if let Some(outcomes) = self.cached(&key, now) {
            return Ok(outcomes);
        }
        let list = bundles.list.iter();
        let encoded = list.map(|b| base64::engine::general_purpose::STANDARD.encode(b)).collect();
        let request = VerifyRequest::for_rule(
            &policy.policy,
            &rule.require,
            subjects,
            encoded,
            self.clock.unix(),
        )?;
        let budget = u64::from(limits.budget_ms).saturating_add(START_MARGIN_MS);
        match self.verifier.ask(&request, Duration::from_millis(budget))? {
            VerifyReply::Refused(refusal) => Err(refusal),
            VerifyReply::Outcomes(outcomes) if outcomes.len() != bundles.list.len() => {
                let found = format!("{} answers for {}", outcomes.len(), bundles.list.len());
                Err(Refusal::with(RefusalCode::VerifyFailed, found))
            }
            VerifyReply::Outcomes(outcomes) => {
                if outcomes.iter().any(|outcome| matches!(outcome, BundleOutcome::Verified(_))) {
                    self.remember(key, now, &outcomes);
                }
                Ok(outcomes)
            }
        }
    }

    fn cached(&self, key: &Digest, now: BootNanos) -> Option<Vec<BundleOutcome>> {
        let cache = lock(&self.cache);
        let (at, outcomes) = cache.get(key)?;
        (at.plus_seconds(CACHE_SECONDS) >= now).then(|| outcomes.as_ref().clone())
    }

    fn remember(&self, key: Digest, now: BootNanos, outcomes: &[BundleOutcome]) {
        let mut cache = lock(&self.cache);
        if cache.len() >= CACHE_MAX {
            cache.clear();
        }
        cache.insert(key, (now, Arc::new(outcomes.to_vec())));
    }
}

fn cache_key(
    policy: &SignedPolicy,
    image: &str,
    subjects: &[Digest],
    bundles: Digest,
    verifier: &str,
) -> Digest {
    let text = format!("{}\n{image}\n{subjects:?}\n{bundles}\n{verifier}", policy.sha256);
    Digest::of(text.as_bytes())
}

#[cfg(test)]
mod tests;

//! The policy: which attestations an image needs, signed by a key that control never holds.
//!
//! One TOML document, signed as raw bytes in a DSSE envelope. Default deny: no rule for an image
//! means refused. Empty lists, unknown fields and dangling names are errors when it is read, not
//! surprises when it is used. Reading checks neither signature nor time: [`SignedPolicy::verify`]
//! does the first, `nimbus_hooks::admit` the second.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::clock::UnixSeconds;
use crate::digest::Digest;
use crate::dsse::{Envelope, EnvelopeError, SigningKey, VerifyingKey};
use crate::id::{Namespace, OrgId};
use crate::lease::{DEFAULT_CAPABILITIES, SCRATCH_DISK_BYTES_MIN};

/// DSSE payload type of a policy.
pub const POLICY_TYPE: &str = "application/vnd.nimbus.policy.v1+toml";
/// Longest document.
pub const POLICY_BYTES_MAX: usize = 1 << 20;
/// The containerd namespace of the CRI plugin: the only one that pods are read in.
pub const CRI_NAMESPACE: &str = "k8s.io";
/// Most rules, needs, trusts or claim rules.
pub const POLICY_ENTRIES_MAX: usize = 256;

/// A policy document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    /// 1.
    pub version: u32,
    /// A name for people.
    pub id: String,
    /// Grows with every change; a node refuses a lower one than it has seen.
    pub serial: u64,
    /// After this no new start is admitted.
    #[serde(with = "time_text")]
    pub not_after: UnixSeconds,
    /// Bounds of one verification.
    #[serde(default)]
    pub limits: PolicyLimits,
    /// Who can be believed, by name.
    pub trust: BTreeMap<String, Trust>,
    /// Which attestation satisfies, by name.
    pub need: BTreeMap<String, Need>,
    /// The first rule whose pattern matches, and whose digests are these when it lists any, decides.
    pub rule: Vec<Rule>,
    /// Which containers of other clients of containerd get a lease, and of which org. None: no
    /// container but the agent's own starts.
    #[serde(default)]
    pub claim: Vec<ClaimRule>,
    /// What is refused whatever else holds.
    #[serde(default)]
    pub deny: Deny,
}

/// Bounds of one verification.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PolicyLimits {
    /// Most bundles for one image.
    pub bundles: u32,
    /// Longest bundle.
    pub bundle_bytes: u64,
    /// Longest wait for the verifier, milliseconds.
    pub budget_ms: u32,
}

impl Default for PolicyLimits {
    fn default() -> Self {
        Self { bundles: 64, bundle_bytes: 16 << 20, budget_ms: 2000 }
    }
}

/// Who can be believed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, tag = "kind", rename_all = "snake_case")]
pub enum Trust {
    /// A managed public key.
    Key {
        /// PEM of the SubjectPublicKeyInfo.
        key: String,
        /// Whether a transparency log entry is asked for.
        tlog: TlogRule,
        /// Sigstore trusted_root.json; required when `tlog` is.
        #[serde(default)]
        trusted_root: Option<String>,
        /// The key is believed from here on.
        #[serde(default, with = "time_text_option")]
        not_before: Option<UnixSeconds>,
        /// The key is believed up to here.
        #[serde(default, with = "time_text_option")]
        not_after: Option<UnixSeconds>,
    },
    /// Certificates of a sigstore trust root.
    Keyless {
        /// Sigstore trusted_root.json.
        trusted_root: String,
    },
}

/// Whether a transparency log entry is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TlogRule {
    /// An entry with a proof is required.
    Require,
    /// None is asked for; then there is no verified time, and `max_age` cannot be satisfied.
    Off,
}

/// Which attestation satisfies.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Need {
    /// Name in `trust`.
    pub trust: String,
    /// Predicate types, any one of them, compared exactly.
    pub predicate: Vec<String>,
    /// Subject alternative name of the certificate, compared exactly; for keyless trust.
    #[serde(default)]
    pub identity: Option<String>,
    /// OIDC issuer of the certificate, compared exactly; for keyless trust.
    #[serde(default)]
    pub issuer: Option<String>,
    /// Greatest age by the verified time of signing, seconds.
    #[serde(default)]
    pub max_age_seconds: Option<u64>,
}

/// What images of certain names need.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Patterns of image names: segments separated by `/`, `*` is any one segment, a final `**` any
    /// number of them.
    pub images: Vec<String>,
    /// Names in `need`; each must be satisfied. May be empty only where `digests` is not.
    #[serde(default)]
    pub require: Vec<String>,
    /// Digests (manifest or index) that the rule is for; empty is any. Whoever signs the policy vouches
    /// for them: with an empty `require` they run without an attestation.
    #[serde(default)]
    pub digests: Vec<Digest>,
}

/// Which containers of other clients of containerd (kubelet, `ctr`) control may lease, for whom.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClaimRule {
    /// containerd namespace, exactly.
    pub namespace: Namespace,
    /// Kubernetes namespaces, exactly; required in containerd namespace [`CRI_NAMESPACE`], the only one
    /// that pods are read in, and impossible elsewhere.
    #[serde(default)]
    pub kubernetes: Vec<String>,
    /// Whose they are. None: whoever the pod's ticket says.
    #[serde(default)]
    pub org: Option<OrgId>,
    /// What network they have.
    #[serde(default)]
    pub network: ClaimNetwork,
    /// The most that one container may ask for, and what one gets that asks for nothing.
    pub most: ClaimResources,
    /// What such a container may have of containerd's default capabilities; all of them unless it is said,
    /// but never `CAP_NET_RAW` together with a pod's network.
    #[serde(default = "default_capabilities")]
    pub capabilities: Vec<String>,
    /// Such a container is killed after this many seconds; none is never.
    #[serde(default)]
    pub max_runtime_seconds: Option<u32>,
}

fn default_capabilities() -> Vec<String> {
    DEFAULT_CAPABILITIES.map(str::to_owned).to_vec()
}

/// Network of a claimed container.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClaimNetwork {
    /// A loopback device that a pod's containers share, and nothing else.
    #[default]
    None,
    /// What the cluster's CNI plugins gave the pod.
    Pod,
}

/// Limits of a claimed container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClaimResources {
    /// Thousandths of a core.
    pub cpu_millis: u32,
    /// Bytes.
    pub memory_bytes: u64,
    /// Tasks.
    pub pids: u32,
    /// Writable space of the root file system, bytes; on disk, at least 4 MiB.
    pub scratch_bytes: u64,
}

/// What is refused whatever else holds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Deny {
    /// Image digests.
    pub digests: Vec<Digest>,
}

/// Why a document is not a policy.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// Too long.
    #[error("policy is {found} bytes long, at most {POLICY_BYTES_MAX} are allowed")]
    TooLarge {
        /// Bytes found.
        found: usize,
    },
    /// Not UTF-8.
    #[error("policy is not UTF-8")]
    NotText(#[source] std::str::Utf8Error),
    /// Not TOML, or not of this shape.
    #[error("policy is not a valid document")]
    Toml(#[source] Box<toml::de::Error>),
    /// TOML of the right shape that says something impossible.
    #[error("{at}: {problem}")]
    Invalid {
        /// Which entry.
        at: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The envelope or its signature.
    #[error("policy is not signed by the pinned policy key")]
    Envelope(#[source] EnvelopeError),
}

impl Policy {
    /// Reads a document and checks that it holds together.
    pub fn parse(document: &[u8]) -> Result<Self, PolicyError> {
        if document.len() > POLICY_BYTES_MAX {
            return Err(PolicyError::TooLarge { found: document.len() });
        }
        let text = std::str::from_utf8(document).map_err(PolicyError::NotText)?;
        let policy: Self =
            toml::from_str(text).map_err(|error| PolicyError::Toml(Box::new(error)))?;
        policy.check()?;
        Ok(policy)
    }

    /// The rule that decides about an image of this name, known by any of these digests.
    pub fn rule_for(&self, image: &str, digests: &[Digest]) -> Option<&Rule> {
        self.rule.iter().find(|rule| {
            rule.images.iter().any(|pattern| pattern_matches(pattern, image))
                && (rule.digests.is_empty() || digests.iter().any(|one| rule.digests.contains(one)))
        })
    }

    /// The first claim rule for a container in this containerd namespace, of a pod in this Kubernetes
    /// namespace, if it is of one.
    pub fn claim_for(&self, namespace: &Namespace, kubernetes: Option<&str>) -> Option<&ClaimRule> {
        self.claim.iter().find(|rule| {
            rule.namespace == *namespace
                && kubernetes.map_or(rule.kubernetes.is_empty(), |name| {
                    rule.kubernetes.iter().any(|known| known == name)
                })
        })
    }

    fn check(&self) -> Result<(), PolicyError> {
        let fail = |at: &str, problem: &str| {
            Err(PolicyError::Invalid { at: at.to_owned(), problem: problem.to_owned() })
        };
        if self.version != 1 {
            return fail("version", "only version 1 is known");
        }
        if self.serial == 0 {
            return fail("serial", "must be at least 1");
        }
        if self.rule.is_empty() {
            return fail("rule", "must not be empty: such a policy refuses everything");
        }
        if self.rule.len().max(self.need.len()).max(self.trust.len()) > POLICY_ENTRIES_MAX {
            return fail("rule, need, trust", "at most 256 of each are allowed");
        }
        let limits = &self.limits;
        if limits.bundles == 0 || limits.bundle_bytes == 0 || limits.budget_ms == 0 {
            return fail("limits", "must not be zero");
        }
        for (name, trust) in &self.trust {
            if let Trust::Key { tlog: TlogRule::Require, trusted_root: None, .. } = trust {
                return fail(&format!("trust.{name}"), "tlog = \"require\" needs a trusted_root");
            }
        }
        self.check_needs()?;
        self.check_rules()?;
        self.check_claims()
    }

    fn check_claims(&self) -> Result<(), PolicyError> {
        if self.claim.len() > POLICY_ENTRIES_MAX {
            let problem = format!("at most {POLICY_ENTRIES_MAX} are allowed");
            return Err(PolicyError::Invalid { at: "claim".to_owned(), problem });
        }
        for (index, rule) in self.claim.iter().enumerate() {
            let fail = |problem: &str| {
                Err(PolicyError::Invalid {
                    at: format!("claim {index}"),
                    problem: problem.to_owned(),
                })
            };
            let pods = rule.namespace.as_str() == CRI_NAMESPACE;
            if pods == rule.kubernetes.is_empty() {
                return fail(
                    "kubernetes is for namespace \"k8s.io\", and must list at least one there",
                );
            }
            if rule.kubernetes.iter().any(|name| !is_label(name)) {
                return fail("kubernetes lists namespaces exactly, without patterns");
            }
            if !pods && (rule.network == ClaimNetwork::Pod || rule.org.is_none()) {
                return fail("only pods have a pod's network or a ticket: name an org");
            }
            let known = |name: &String| DEFAULT_CAPABILITIES.contains(&name.as_str());
            if !rule.capabilities.iter().all(known) || !rule.capabilities.is_sorted_by(|a, b| a < b)
            {
                return fail("capabilities are some of containerd's default ones, sorted");
            }
            let most = &rule.most;
            let zero = most.cpu_millis == 0 || most.memory_bytes == 0 || most.pids == 0;
            if zero || rule.max_runtime_seconds == Some(0) {
                return fail("limits must not be zero");
            }
            if most.scratch_bytes < SCRATCH_DISK_BYTES_MIN {
                return fail("scratch_bytes must be at least 4 MiB");
            }
        }
        Ok(())
    }

    fn check_needs(&self) -> Result<(), PolicyError> {
        for (name, need) in &self.need {
            let fail = |problem: &str| {
                Err(PolicyError::Invalid {
                    at: format!("need.{name}"),
                    problem: problem.to_owned(),
                })
            };
            if need.predicate.is_empty() || need.predicate.iter().any(String::is_empty) {
                return fail("predicate must list at least one type");
            }
            let filled = |text: &Option<String>| text.as_ref().is_some_and(|text| !text.is_empty());
            match self.trust.get(&need.trust) {
                None => return fail("trust names no entry of [trust]"),
                Some(Trust::Keyless { .. }) => {
                    if !filled(&need.identity) || !filled(&need.issuer) {
                        return fail("keyless trust needs both identity and issuer");
                    }
                }
                Some(Trust::Key { tlog, .. }) => {
                    if need.identity.is_some() || need.issuer.is_some() {
                        return fail("identity and issuer are for keyless trust");
                    }
                    if need.max_age_seconds.is_some() && *tlog == TlogRule::Off {
                        return fail("max_age_seconds needs a verified time: tlog = \"require\"");
                    }
                }
            }
        }
        Ok(())
    }

    fn check_rules(&self) -> Result<(), PolicyError> {
        for (index, rule) in self.rule.iter().enumerate() {
            let fail = |problem: &str| {
                Err(PolicyError::Invalid {
                    at: format!("rule {index}"),
                    problem: problem.to_owned(),
                })
            };
            if rule.images.is_empty() || (rule.require.is_empty() && rule.digests.is_empty()) {
                return fail("images must not be empty, nor require where no digests are listed");
            }
            if rule.images.iter().any(|pattern| !pattern_is_valid(pattern)) {
                return fail(
                    "a pattern is segments separated by /, with * for one and a final ** for any",
                );
            }
            if rule.require.iter().any(|name| !self.need.contains_key(name)) {
                return fail("require names no entry of [need]");
            }
        }
        Ok(())
    }
}

/// A name as Kubernetes gives its namespaces (RFC 1123 label).
fn is_label(name: &str) -> bool {
    let inner = name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    inner && !name.is_empty() && name.len() <= 63 && !name.starts_with('-') && !name.ends_with('-')
}

fn pattern_is_valid(pattern: &str) -> bool {
    let segments: Vec<_> = pattern.split('/').collect();
    let last = segments.len() - 1;
    segments.iter().enumerate().all(|(index, segment)| match *segment {
        "" => index == 1 && pattern.starts_with("oci:/"),
        "*" => true,
        "**" => index == last && last > 0,
        literal => !literal.contains('*'),
    })
}

/// Whether a pattern covers an image name.
fn pattern_matches(pattern: &str, image: &str) -> bool {
    let mut wanted = pattern.split('/');
    let mut found = image.split('/');
    loop {
        match (wanted.next(), found.next()) {
            (Some("**"), Some(_)) | (None, None) => return true,
            (Some("*"), Some(segment)) if !segment.is_empty() => {}
            (Some(literal), Some(segment)) if literal == segment => {}
            (_, _) => return false,
        }
    }
}

/// A policy whose signature has been checked. Only [`SignedPolicy::verify`] makes one.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SignedPolicy {
    /// The document.
    pub policy: Policy,
    /// SHA-256 of its bytes.
    pub sha256: Digest,
}

impl SignedPolicy {
    /// Reads an envelope that the policy key must have signed.
    pub fn verify(envelope: &[u8], key: &VerifyingKey) -> Result<Self, PolicyError> {
        let envelope = Envelope::parse(envelope).map_err(PolicyError::Envelope)?;
        let document = envelope.verify(POLICY_TYPE, key).map_err(PolicyError::Envelope)?;
        Ok(Self { policy: Policy::parse(&document)?, sha256: Digest::of(&document) })
    }
}

/// Signs a document after checking that it is a policy.
pub fn sign(document: &[u8], key: &SigningKey) -> Result<Envelope, PolicyError> {
    Policy::parse(document)?;
    Ok(Envelope::sign(POLICY_TYPE, document, key))
}

/// TOML's own date-time, with an offset.
mod time_text {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use crate::clock::UnixSeconds;

    pub(super) fn read<E: serde::de::Error>(
        value: toml::value::Datetime,
    ) -> Result<UnixSeconds, E> {
        let format = time::format_description::well_known::Rfc3339;
        time::OffsetDateTime::parse(&value.to_string(), &format)
            .map(|time| UnixSeconds(time.unix_timestamp()))
            .map_err(|_error| {
                E::custom("expected a date and time with an offset, such as 2027-01-01T00:00:00Z")
            })
    }

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
    pub(super) fn serialize<S: Serializer>(
        time: &UnixSeconds,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        let value: toml::value::Datetime =
            time.to_string().parse().map_err(serde::ser::Error::custom)?;
        value.serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<UnixSeconds, D::Error> {
        read(toml::value::Datetime::deserialize(deserializer)?)
    }
}

/// As [`time_text`], for what may be absent.
mod time_text_option {
    use serde::{Deserialize, Deserializer, Serializer};

    use crate::clock::UnixSeconds;

    #[allow(clippy::ref_option, clippy::allow_attributes, reason = "serde's signature")]
    pub(super) fn serialize<S: Serializer>(
        time: &Option<UnixSeconds>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match time {
            Some(time) => super::time_text::serialize(time, serializer),
            None => serializer.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<UnixSeconds>, D::Error> {
        let value = Option::<toml::value::Datetime>::deserialize(deserializer)?;
        value.map(super::time_text::read).transpose()
    }
}

#[cfg(test)]
mod tests;

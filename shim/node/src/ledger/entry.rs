//! One entry of the ledger as a pure state machine: what a lease has been used for.
//!
//! granted -> used -> started -> ended, with "revoked" as a mark that may come at any time and forbids
//! every step but the end. No step goes back, one lease starts one container once. Inputs are
//! [`Step`]s, the output is the next entry or a refusal; no files, no clock.

use nimbus_api::clock::BootNanos;
use nimbus_api::id::ContainerKey;
use nimbus_api::lease::LeaseClaims;
use nimbus_api::{Digest, Refusal, RefusalCode};
use nimbus_hooks::facts::LeaseUse;
use serde::{Deserialize, Serialize};

use crate::claims::sandbox::Running;

/// The version of [`Entry`].
pub const ENTRY_VERSION: u32 = 1;

/// What the node knows of one lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// [`ENTRY_VERSION`].
    pub version: u32,
    /// The verified claims, of the newest extension.
    pub claims: LeaseClaims,
    /// How far it is.
    pub stage: Stage,
    /// What it is used for, from `used` on.
    pub usage: Option<Usage>,
    /// The process that others enter namespaces of: a pod's sandbox, once it was started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub running: Option<Running>,
    /// The deadline by extensions that came before the lease was used.
    pub extended: Option<BootNanos>,
    /// Control took it back.
    pub revoked: Option<Revoked>,
    /// How it ended.
    pub end: Option<End>,
    /// Its Finished event is in the spool.
    pub reported: bool,
}

/// How far a lease is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// It came.
    Granted,
    /// A container was admitted under it.
    Used,
    /// The container's process was started.
    Started,
    /// Nothing will be started under it (again), nothing runs under it.
    Ended,
}

/// What a lease is used for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Usage {
    /// Which container.
    pub container: ContainerKey,
    /// SHA-256 of its `config.json`.
    pub config_sha256: Digest,
    /// SHA-256 of `plan`.
    pub plan_sha256: Digest,
    /// The plan's JSON, byte for byte what was handed over.
    pub plan: String,
    /// When it is killed, on the clock of `boot_id`.
    pub deadline: BootNanos,
    /// Which boot of the machine.
    pub boot_id: String,
}

/// Why control took a lease back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Revoked {
    /// Why.
    pub code: RefusalCode,
    /// In words.
    pub message: String,
}

/// How a use of a lease ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct End {
    /// As from wait; none when nothing ran.
    pub exit_status: Option<u32>,
    /// The kernel killed it for memory.
    pub oom_killed: bool,
    /// Why we ended it; none when it ended by itself.
    pub reason: Option<RefusalCode>,
    /// In words.
    pub message: String,
}

/// What may happen to an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// A container is admitted.
    Use(Box<Usage>),
    /// Its process runs; named where others will enter its namespaces.
    Start(Option<Running>),
    /// A new token of the same lease moved the deadline.
    Extend {
        /// The new claims.
        claims: Box<LeaseClaims>,
        /// The new deadline.
        deadline: BootNanos,
    },
    /// Control takes it back.
    Revoke(Revoked),
    /// It is over.
    End(End),
    /// The end is in the spool.
    Report,
}

impl Entry {
    /// A lease that just came.
    pub const fn granted(claims: LeaseClaims) -> Self {
        Self {
            version: ENTRY_VERSION,
            claims,
            stage: Stage::Granted,
            usage: None,
            running: None,
            extended: None,
            revoked: None,
            end: None,
            reported: false,
        }
    }

    /// The entry after a step, or why the step is not possible.
    pub fn after(&self, step: Step) -> Result<Self, Refusal> {
        let mut next = self.clone();
        match step {
            Step::Use(usage) => next.take_into_use(*usage)?,
            Step::Start(running) => {
                if self.stage != Stage::Used {
                    return Err(self.not_in("started"));
                }
                next.running = running;
                next.stage = Stage::Started;
            }
            Step::Extend { claims, deadline } => {
                if self.stage == Stage::Ended || self.revoked.is_some() {
                    return Err(self.not_in("extended"));
                }
                if !self.claims.is_extended_by(&claims) {
                    return Err(Refusal::with(RefusalCode::LeaseReplayed, "other claims"));
                }
                next.claims = *claims;
                match &mut next.usage {
                    Some(usage) => usage.deadline = usage.deadline.max(deadline),
                    None => next.extended = next.extended.max(Some(deadline)),
                }
            }
            Step::Revoke(revoked) => {
                if self.stage != Stage::Ended && self.revoked.is_none() {
                    next.revoked = Some(revoked);
                }
            }
            Step::End(end) => {
                if self.stage != Stage::Ended {
                    next.stage = Stage::Ended;
                    next.end = Some(self.believed(end));
                }
            }
            Step::Report => {
                if self.stage != Stage::Ended {
                    return Err(self.not_in("reported"));
                }
                next.reported = true;
            }
        }
        Ok(next)
    }

    fn take_into_use(&mut self, mut usage: Usage) -> Result<(), Refusal> {
        if self.revoked.is_some() {
            return Err(Refusal::new(RefusalCode::LeaseRevoked));
        }
        match self.stage {
            Stage::Granted => {}
            // The same question again: the answer stands as it was given.
            Stage::Used if self.is_used_for(&usage.container, usage.config_sha256) => {
                return Ok(());
            }
            Stage::Used | Stage::Started => return Err(self.not_in("used again")),
            Stage::Ended => return Err(Refusal::new(RefusalCode::LeaseEnded)),
        }
        usage.deadline = usage.deadline.max(self.extended.unwrap_or(usage.deadline));
        self.usage = Some(usage);
        self.stage = Stage::Used;
        Ok(())
    }

    /// Only control cancels and revokes, and the ledger knows when it did. A shim says
    /// `job.cancelled` too when containerd deletes a task that is being made, which it does when the
    /// agent dies in the middle: passed on, that would be the end of a job that nobody cancelled.
    fn believed(&self, end: End) -> End {
        let controls = |code: RefusalCode| {
            code == RefusalCode::LeaseRevoked || code.as_str().starts_with("job.")
        };
        match end.reason {
            Some(code) if controls(code) && self.revoked.is_none() => {
                let found = format!("it was ended as {code}, which control did not ask for");
                let refusal = Refusal::with(RefusalCode::NodeLost, found);
                End { reason: Some(refusal.code), message: refusal.to_string(), ..end }
            }
            Some(_) | None => end,
        }
    }

    /// Whether the lease is used for this container with this specification.
    pub fn is_used_for(&self, container: &ContainerKey, config_sha256: Digest) -> bool {
        self.usage.as_ref().is_some_and(|usage| {
            usage.container == *container && usage.config_sha256 == config_sha256
        })
    }

    /// Whether a container may be running under it.
    pub const fn is_live(&self) -> bool {
        matches!(self.stage, Stage::Used | Stage::Started)
    }

    /// As a fact for admission.
    pub fn as_fact(&self) -> LeaseUse {
        if self.revoked.is_some() {
            return LeaseUse::Revoked;
        }
        match (&self.stage, &self.usage) {
            (Stage::Ended, _) => LeaseUse::Ended,
            (_, Some(usage)) => LeaseUse::Used {
                container: usage.container.clone(),
                config_sha256: usage.config_sha256,
            },
            (_, None) => LeaseUse::Unused,
        }
    }

    fn not_in(&self, wanted: &str) -> Refusal {
        let found = format!("cannot be {wanted} while {:?}", self.stage);
        Refusal::with(RefusalCode::LeaseReplayed, found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;
    use proptest::prelude::*;

    fn usage(container: u8, deadline: u64) -> Usage {
        Usage {
            container: testing::container(&format!("c{container}")),
            config_sha256: Digest::of(&[container]),
            plan_sha256: Digest::of(b"p"),
            plan: "{}".to_owned(),
            deadline: BootNanos(deadline),
            boot_id: "b".to_owned(),
        }
    }

    fn end() -> End {
        End { exit_status: Some(0), oom_killed: false, reason: None, message: String::new() }
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0_u8..3, 0_u64..100).prop_map(|(c, d)| Step::Use(Box::new(usage(c, d)))),
            Just(Step::Start(None)),
            (any::<bool>(), 0_u64..100).prop_map(|(same, deadline)| {
                let mut claims = testing::claims();
                claims.exp.0 += 100;
                if !same {
                    claims.attempt += 1;
                }
                Step::Extend { claims: Box::new(claims), deadline: BootNanos(deadline) }
            }),
            Just(Step::Revoke(Revoked { code: RefusalCode::LeaseRevoked, message: String::new() })),
            Just(Step::End(end())),
            Just(Step::Report),
        ]
    }

    proptest! {
        #[test]
        fn no_way_leads_back_and_one_lease_has_one_container(
            steps in prop::collection::vec(step(), 0..40),
        ) {
            let mut entry = Entry::granted(testing::claims());
            for step in steps {
                let Ok(next) = entry.after(step.clone()) else { continue };
                prop_assert!(next.stage >= entry.stage, "{step:?}: {entry:?}");
                prop_assert!(!entry.reported || next.reported);
                if let Some(before) = &entry.usage {
                    let after = next.usage.as_ref().unwrap();
                    prop_assert_eq!(&before.container, &after.container);
                    prop_assert_eq!(before.plan_sha256, after.plan_sha256);
                    prop_assert!(after.deadline >= before.deadline);
                }
                if entry.revoked.is_some() {
                    prop_assert_eq!(&next.revoked, &entry.revoked);
                    prop_assert!(next.stage == entry.stage || next.stage != Stage::Used);
                }
                if entry.end.is_some() {
                    prop_assert_eq!(&next.end, &entry.end);
                }
                prop_assert_eq!(next.usage.is_some(), next.usage.is_some() && next.stage != Stage::Granted);
                entry = next;
            }
        }
    }

    #[test]
    fn the_same_question_gets_the_first_answer_and_a_started_lease_none() {
        let used =
            Entry::granted(testing::claims()).after(Step::Use(Box::new(usage(1, 5)))).unwrap();
        let again = used.after(Step::Use(Box::new(usage(1, 9)))).unwrap();
        assert_eq!(again, used);
        let other = used.after(Step::Use(Box::new(usage(2, 5)))).unwrap_err();
        assert_eq!(other.code, RefusalCode::LeaseReplayed);
        let started = used.after(Step::Start(None)).unwrap();
        let twice = started.after(Step::Use(Box::new(usage(1, 5)))).unwrap_err();
        assert_eq!(twice.code, RefusalCode::LeaseReplayed);
    }

    #[test]
    fn a_cancellation_that_control_did_not_ask_for_is_a_loss() {
        let ended = |entry: &Entry, code| {
            let end = End { reason: Some(code), ..end() };
            entry.after(Step::End(end)).unwrap().end.unwrap().reason
        };
        let granted = Entry::granted(testing::claims());
        let codes = [RefusalCode::JobCancelled, RefusalCode::JobRuntime, RefusalCode::LeaseRevoked];
        let revoked = Revoked { code: RefusalCode::JobCancelled, message: String::new() };
        let revoked = granted.after(Step::Revoke(revoked)).unwrap();
        for code in codes {
            assert_eq!(ended(&granted, code), Some(RefusalCode::NodeLost));
            assert_eq!(ended(&revoked, code), Some(code));
        }
        assert_eq!(ended(&granted, RefusalCode::LeaseEnded), Some(RefusalCode::LeaseEnded));
        assert_eq!(ended(&granted, RefusalCode::ImageDenied), Some(RefusalCode::ImageDenied));
    }

    #[test]
    fn an_extension_before_the_use_counts() {
        let mut claims = testing::claims();
        claims.exp.0 += 1;
        let step = Step::Extend { claims: Box::new(claims), deadline: BootNanos(50) };
        let extended = Entry::granted(testing::claims()).after(step).unwrap();
        let used = extended.after(Step::Use(Box::new(usage(1, 5)))).unwrap();
        assert_eq!(used.usage.unwrap().deadline, BootNanos(50));
    }
}

//! The policy: are the image's attestations enough.
//!
//! Default deny. Every need of the first rule that covers the image's name (and its digest, where the
//! rule lists any) must be satisfied by at least one verified attestation that names it, is about this image, has one of its predicate
//! types, is young enough and from a key that is believed for its time. Bundles that satisfy nothing
//! cost nothing: acceptance is existential.

use nimbus_api::clock::UnixSeconds;
use nimbus_api::lease::{LeasedImage, LeasedPolicy};
use nimbus_api::policy::{Need, Rule, SignedPolicy, Trust};
use nimbus_api::verify::{BundleOutcome, VerifiedAttestation};
use nimbus_api::{Digest, Refusal, RefusalCode};

use crate::FLOOR_TOLERANCE_SECONDS;
use crate::facts::{AttestationFact, Facts, MeasuredImage, PolicyFact};

/// What a policy has granted.
#[derive(Debug)]
pub(crate) struct Granted {
    /// Digest of each bundle that satisfied a need, each once.
    pub(crate) attestations: Vec<Digest>,
    pub(crate) serial: u64,
}

/// Whether an image may be fetched for a lease at all: what the policy has no rule for, denies, or
/// cannot grant for want of any bundle is refused before its registry is spoken to. Grants nothing.
/// Of the digests that a rule may list, only the one that the lease names is known here.
pub fn may_fetch(policy: &PolicyFact, image: &LeasedImage, bundles: usize) -> Result<(), Refusal> {
    let policy = &signed(policy)?.policy;
    if policy.deny.digests.contains(&image.digest) {
        return Err(Refusal::with(RefusalCode::ImageDenied, image.digest));
    }
    let Some(rule) = policy.rule_for(&image.name, &[image.digest]) else {
        return Err(Refusal::with(RefusalCode::PolicyNoMatch, &image.name));
    };
    if !vouches(rule) && bundles == 0 {
        return Err(Refusal::with(RefusalCode::ImageUnattested, "no bundle came with the job"));
    }
    Ok(())
}

/// Whether the policy itself vouches for the images of a rule: it lists their digests and asks for
/// nothing besides.
fn vouches(rule: &Rule) -> bool {
    rule.require.is_empty() && !rule.digests.is_empty()
}

pub(crate) fn signed(policy: &PolicyFact) -> Result<&SignedPolicy, Refusal> {
    match policy {
        PolicyFact::Missing => Err(RefusalCode::PolicyMissing.into()),
        PolicyFact::Refused(refusal) => Err(refusal.clone()),
        PolicyFact::Verified(signed) => Ok(signed),
    }
}

pub(crate) fn check(
    facts: &Facts,
    image: &MeasuredImage,
    leased: Option<&LeasedPolicy>,
) -> Result<Granted, Refusal> {
    let signed = signed(&facts.policy)?;
    let policy = &signed.policy;
    let now = facts.clock.unix;
    if policy.not_after <= now {
        let found = format!("it ended at {}, it is {now} here", policy.not_after);
        return Err(Refusal::with(RefusalCode::PolicyExpired, found));
    }
    check_leased(signed, leased)?;
    let denied = &policy.deny.digests;
    if denied.contains(&image.digest) || denied.contains(&image.manifest) {
        return Err(Refusal::with(RefusalCode::ImageDenied, image.digest));
    }
    let Some(rule) = policy.rule_for(&image.name, &[image.digest, image.manifest]) else {
        return Err(Refusal::with(RefusalCode::PolicyNoMatch, &image.name));
    };
    if vouches(rule) {
        return Ok(Granted { attestations: Vec::new(), serial: policy.serial });
    }
    let outcomes = match &facts.attestations {
        AttestationFact::Unavailable(refusal) => return Err(refusal.clone()),
        AttestationFact::Outcomes(outcomes) => outcomes,
    };
    if outcomes.len() > usize::try_from(policy.limits.bundles).unwrap_or(usize::MAX) {
        let found = format!("{} bundles, at most {}", outcomes.len(), policy.limits.bundles);
        return Err(Refusal::with(RefusalCode::VerifyTooLarge, found));
    }
    let mut attestations = Vec::new();
    for name in &rule.require {
        let Some(need) = policy.need.get(name) else {
            return Err(Refusal::with(RefusalCode::PolicyInvalid, format!("no need {name:?}")));
        };
        let Some(trust) = policy.trust.get(&need.trust) else {
            let found = format!("no trust {:?}", need.trust);
            return Err(Refusal::with(RefusalCode::PolicyInvalid, found));
        };
        let wanted = Wanted { name, need, trust, image, now };
        let bundle = wanted.satisfied_by(outcomes)?;
        if !attestations.contains(&bundle) {
            attestations.push(bundle);
        }
    }
    if attestations.is_empty() {
        // A rule that lists no digest and asks for nothing does not pass Policy::parse; it would grant
        // everything.
        return Err(Refusal::with(RefusalCode::PolicyInvalid, "a rule requires nothing"));
    }
    Ok(Granted { attestations, serial: policy.serial })
}

/// A lease that was made under a policy holds under that policy only.
fn check_leased(signed: &SignedPolicy, leased: Option<&LeasedPolicy>) -> Result<(), Refusal> {
    let Some(leased) = leased else { return Ok(()) };
    if leased.serial != signed.policy.serial || leased.sha256 != signed.sha256 {
        let found = format!(
            "leased under serial {} ({}), here is {} ({})",
            leased.serial, leased.sha256, signed.policy.serial, signed.sha256
        );
        return Err(Refusal::with(RefusalCode::LeaseWrongPolicy, found));
    }
    Ok(())
}

struct Wanted<'a> {
    name: &'a str,
    need: &'a Need,
    trust: &'a Trust,
    image: &'a MeasuredImage,
    now: UnixSeconds,
}

impl Wanted<'_> {
    /// The first bundle that satisfies the need, or why the most promising one does not.
    fn satisfied_by(&self, outcomes: &[BundleOutcome]) -> Result<Digest, Refusal> {
        let mut told: Option<Refusal> = None;
        for outcome in outcomes {
            let refusal = match outcome {
                BundleOutcome::Verified(attestation) => match self.judge(attestation) {
                    Ok(()) => return Ok(attestation.bundle),
                    Err(refusal) => refusal,
                },
                BundleOutcome::Rejected { bundle: _, refusal } => refusal.clone(),
            };
            if told.as_ref().is_none_or(|told| rank(refusal.code) < rank(told.code)) {
                told = Some(refusal);
            }
        }
        let Some(told) = told else {
            let found = format!("need {:?} of the policy", self.name);
            return Err(Refusal::with(RefusalCode::ImageUnattested, found));
        };
        let detail = match told.detail() {
            "" => format!("need {:?}", self.name),
            detail => format!("need {:?}: {detail}", self.name),
        };
        Err(Refusal::with(told.code, detail))
    }

    fn judge(&self, attestation: &VerifiedAttestation) -> Result<(), Refusal> {
        if attestation.subject != self.image.digest && attestation.subject != self.image.manifest {
            let found = format!("it is about {}", attestation.subject);
            return Err(Refusal::with(RefusalCode::ImageWrongSubject, found));
        }
        if !attestation.needs.iter().any(|name| name == self.name) {
            let found = "a bundle verifies, but for another need";
            return Err(Refusal::with(RefusalCode::ImageUnattested, found));
        }
        if !self.need.predicate.contains(&attestation.predicate_type) {
            let found = format!("found {:?}", attestation.predicate_type);
            return Err(Refusal::with(RefusalCode::ImageWrongPredicate, found));
        }
        self.judge_key_window(attestation)?;
        self.need.max_age_seconds.map_or(Ok(()), |most| self.judge_age(attestation, most))
    }

    /// Asked at every decision: the verifier's answer may be older than the end of the key.
    fn judge_key_window(&self, attestation: &VerifiedAttestation) -> Result<(), Refusal> {
        let (not_before, not_after) = match self.trust {
            Trust::Key { not_before, not_after, .. } => (not_before, not_after),
            Trust::Keyless { .. } => return Ok(()),
        };
        let at = attestation.signed_at.unwrap_or(self.now);
        if not_before.is_some_and(|bound| at < bound) || not_after.is_some_and(|bound| at > bound) {
            let found = format!("the key is not believed for {at}");
            return Err(Refusal::with(RefusalCode::ImageUntrustedSigner, found));
        }
        Ok(())
    }

    /// A time that nobody vouches for, or one that is still to come, is no age.
    fn judge_age(&self, attestation: &VerifiedAttestation, most: u64) -> Result<(), Refusal> {
        let stale = |found: String| Err(Refusal::with(RefusalCode::ImageAttestationStale, found));
        let Some(signed_at) = attestation.signed_at else {
            return stale("no log or timestamp authority vouches for its time".to_owned());
        };
        let age = self.now.0.saturating_sub(signed_at.0);
        if age < -FLOOR_TOLERANCE_SECONDS {
            return stale(format!("signed at {signed_at}, it is {} here", self.now));
        }
        match u64::try_from(age.max(0)) {
            Ok(age) if age <= most => Ok(()),
            Ok(_) | Err(_) => {
                stale(format!("signed at {signed_at}, at most {most} s ago is allowed"))
            }
        }
    }
}

/// Which refusal tells most: the lower, the nearer its bundle came to being enough.
fn rank(code: RefusalCode) -> usize {
    const ORDER: [RefusalCode; 6] = [
        RefusalCode::ImageAttestationStale,
        RefusalCode::ImageBundleInvalid,
        RefusalCode::ImageWrongSubject,
        RefusalCode::ImageUntrustedSigner,
        RefusalCode::ImageWrongPredicate,
        RefusalCode::ImageUnattested,
    ];
    ORDER.iter().position(|known| *known == code).unwrap_or(ORDER.len())
}

//! The filter: the one that the lease names, or nothing.

use nimbus_api::lease::LeasedSeccomp;
use nimbus_api::{Digest, Refusal, RefusalCode};

use crate::facts::SeccompFact;

/// The filter of a plan.
#[derive(Debug)]
pub(crate) struct Filter<'a> {
    pub(crate) profile: &'a str,
    pub(crate) program_sha256: Digest,
    pub(crate) instructions: u32,
}

pub(crate) fn check<'a>(
    fact: &'a SeccompFact,
    leased: &LeasedSeccomp,
) -> Result<Filter<'a>, Refusal> {
    let (profile, profile_sha256, program_sha256, instructions) = match fact {
        SeccompFact::Unavailable(refusal) => return Err(refusal.clone()),
        SeccompFact::Compiled { profile, profile_sha256, program_sha256, instructions } => {
            (profile, *profile_sha256, *program_sha256, *instructions)
        }
    };
    if *profile != leased.profile {
        let found = format!("seccomp profile {:?}, compiled is {profile:?}", leased.profile);
        return Err(Refusal::with(RefusalCode::LeaseUnsupported, found));
    }
    if leased.sha256.is_some_and(|expected| expected != profile_sha256) {
        let found = format!("this node's seccomp profile {profile:?} is {profile_sha256}");
        return Err(Refusal::with(RefusalCode::LeaseUnsupported, found));
    }
    if instructions == 0 {
        return Err(Refusal::with(RefusalCode::LeaseUnsupported, "the seccomp program is empty"));
    }
    Ok(Filter { profile, program_sha256, instructions })
}

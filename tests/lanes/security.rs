//! Lane `security`: everything that must be refused, through containerd or `nimbusctl`, each with its
//! code, with nothing having run and nothing left.
//!
//! Attacks through containerd are a container that the node agent made with exactly one thing
//! changed, under a lease signed with control's own stolen keys. The first case shows that with
//! nothing changed it lacks nothing but a grant; [`granted`] shows that it runs when it has one.
#![forbid(unsafe_code)]

#[path = "security/attestations.rs"]
mod attestations;
#[path = "security/certificates.rs"]
mod certificates;
#[path = "security/control.rs"]
mod control;
#[path = "security/granted.rs"]
mod granted;
#[path = "security/images.rs"]
mod images;
#[path = "security/leases.rs"]
mod leases;
#[path = "security/policies.rs"]
mod policies;
#[path = "security/seccomp.rs"]
mod seccomp;
#[path = "security/specs.rs"]
mod specs;
#[path = "security/stolen.rs"]
mod stolen;

use std::process::ExitCode;

use nimbus_api::RefusalCode;
use nimbus_tests::raw::Wish;
use nimbus_tests::specimen::Attack;
use nimbus_tests::{Lab, Outcome, Setting, cases, lane};

fn main() -> ExitCode {
    let mut all = cases![shared[the_specimen_lacks_nothing_but_a_grant]];
    all.extend(attestations::cases());
    all.extend(leases::cases());
    all.extend(specs::cases());
    all.extend(granted::cases());
    all.extend(seccomp::cases());
    all.extend(images::cases());
    all.extend(policies::cases());
    all.extend(certificates::cases());
    all.extend(control::cases());
    all.extend(stolen::cases());
    lane::main("security", &all)
}

/// A lab whose policy has not been applied.
fn without_policy() -> Setting {
    Setting { policy: false, ..Setting::default() }
}

/// A lease that verifies but never came to the agent in a grant is refused last of all, so whatever
/// else an attack is refused for is what was changed.
fn the_specimen_lacks_nothing_but_a_grant(lab: &mut Lab) -> Outcome {
    let attack = lab.specimen()?.attack()?;
    let wish = sealed(lab, &attack)?;
    lab.try_start(&wish)?.expect_refused(RefusalCode::LeaseMissing)
}

/// The container that an attack wishes for, with its claims signed.
fn sealed(lab: &Lab, attack: &Attack) -> Result<Wish, nimbus_tests::Failure> {
    let spec = attack.sealed(&lab.stolen()?)?;
    Ok(Wish { id: attack.id.clone(), spec, ..Wish::default() })
}

/// Spoils a good attack in one way and expects this code.
fn refused(
    lab: &mut Lab,
    code: RefusalCode,
    spoil: impl FnOnce(&mut Attack) -> Outcome,
) -> Outcome {
    let mut attack = lab.specimen()?.attack()?;
    spoil(&mut attack)?;
    let wish = sealed(lab, &attack)?;
    lab.try_start(&wish)?.expect_refused(code)
}

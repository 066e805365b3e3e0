//! Attacks under a lease that was granted: the attacker has control itself in his hands (see
//! [`nimbus_tests::stolen_control`]) and is faster than the node agent (see [`nimbus_tests::gate`]).

use std::fs;

use nimbus_api::RefusalCode;
use nimbus_tests::lane::Case;
use nimbus_tests::raw::{Tried, Wish};
use nimbus_tests::specimen::{Attack, RAN, Specimen};
use nimbus_tests::stolen_control::StolenControl;
use nimbus_tests::wait::until;
use nimbus_tests::{Failure, Lab, Outcome, Setting, cases, ensure};

use crate::sealed;

pub(crate) fn cases() -> Vec<Case> {
    cases![own(gated)[
        the_specimen_runs_when_it_is_granted_and_only_once,
        an_older_attempt_is_refused,
        a_clients_snapshot_is_never_used,
        what_is_merely_unset_is_set,
    ]]
}

fn gated() -> Setting {
    Setting { gate: true, ..Setting::default() }
}

/// How an attack's program says that it found everything as it should be.
fn ran() -> Result<u32, Failure> {
    Ok(u32::try_from(RAN)?)
}

/// A lab whose control was stolen and whose node agent is held off from containerd.
struct Heist<'a> {
    lab: &'a mut Lab,
    specimen: Specimen,
    control: StolenControl,
}

impl<'a> Heist<'a> {
    fn of(lab: &'a mut Lab) -> Result<Self, Failure> {
        let specimen = lab.specimen()?;
        let control = lab.steal_control()?;
        lab.gate()?.hold();
        Ok(Self { lab, specimen, control })
    }

    /// A good attack; its lease counts from a heartbeat that the node sent to the thief.
    fn attack(&self) -> Result<Attack, Failure> {
        let mut attack = self.specimen.attack()?;
        attack.claims.nonce = self.control.nonce()?;
        Ok(attack)
    }

    /// Grants an attack's lease and waits until the node has it; the container that it is for.
    fn grant(&mut self, attack: &Attack) -> Result<Wish, Failure> {
        let bundle = self.lab.hello()?.attested(self.lab.keys())?;
        let token = self.lab.stolen()?.sign(&attack.claims)?;
        self.control.grant(&token, attack.job(vec![bundle])?)?;
        let entry = self.lab.ledger_entry(&attack.claims.lease_id);
        until("the node to take the grant", || Ok(entry.exists().then_some(())))?;
        sealed(self.lab, attack)
    }

    fn run(&mut self, attack: &Attack) -> Result<Tried, Failure> {
        let wish = self.grant(attack)?;
        self.lab.try_start(&wish)
    }

    /// Lets the agent go on; what it was held off from must come to nothing.
    fn end(self, attack: &Attack) -> Outcome {
        self.lab.gate()?.release();
        self.control.finished(&attack.claims.lease_id)?;
        self.lab.nothing_left_of(&attack.id)
    }
}

/// The control of every attack of this lane, and its end: used up is used up.
fn the_specimen_runs_when_it_is_granted_and_only_once(lab: &mut Lab) -> Outcome {
    let mut heist = Heist::of(lab)?;
    let attack = heist.attack()?;
    let wish = heist.grant(&attack)?;
    heist.lab.try_start(&wish)?.expect_ran(ran()?)?;
    heist.lab.try_start(&wish)?.expect_refused(RefusalCode::LeaseEnded)?;
    heist.end(&attack)
}

fn an_older_attempt_is_refused(lab: &mut Lab) -> Outcome {
    let mut heist = Heist::of(lab)?;
    let mut newer = heist.attack()?;
    newer.claims.attempt = 2;
    heist.run(&newer)?.expect_ran(ran()?)?;
    let mut older = heist.attack()?;
    older.claims.job = newer.claims.job.clone();
    heist.run(&older)?.expect_refused(RefusalCode::LeaseStale)?;
    heist.end(&older)
}

/// The poisoned snapshot of P 0.3: containerd has other files for this image than were attested and
/// hands them over as the rootfs. The job sees the attested ones all the same.
fn a_clients_snapshot_is_never_used(lab: &mut Lab) -> Outcome {
    let poisoned = lab.path("files/poisoned");
    fs::create_dir_all(poisoned.join("etc"))?;
    fs::write(poisoned.join("etc/which"), "poison")?;
    let mut heist = Heist::of(lab)?;
    let mut attack = heist.attack()?;
    let script = format!("grep -q '^hello' /etc/which && exit {RAN}");
    attack.program(&["/bin/sh", "-c", &script])?;
    let mut wish = heist.grant(&attack)?;
    wish.rootfs = Some(poisoned.display().to_string());
    heist.lab.try_start(&wish)?.expect_ran(ran()?)?;
    ensure!(fs::read_dir(&poisoned)?.count() == 1, "something was written to the snapshot");
    heist.end(&attack)
}

fn what_is_merely_unset_is_set(lab: &mut Lab) -> Outcome {
    let mut heist = Heist::of(lab)?;
    let mut attack = heist.attack()?;
    attack.remove("/process", "noNewPrivileges");
    attack.remove("/linux", "seccomp");
    attack.remove("/linux", "maskedPaths");
    attack.remove("/linux", "readonlyPaths");
    let script = format!(
        "grep -q '^NoNewPrivs:.1' /proc/self/status && grep -q '^Seccomp:.2' /proc/self/status && \
         ! head -c 1 /proc/kcore 2>/dev/null | grep -q . && ! echo x 2>/dev/null >/proc/sysrq-trigger && exit {RAN}"
    );
    attack.program(&["/bin/sh", "-c", &script])?;
    heist.run(&attack)?.expect_ran(ran()?)?;
    heist.end(&attack)
}

//! Control is fully in the attacker's hands: its keys, its store, its policies. Rule 11: still no
//! unattested image starts.

use nimbus_api::proto::node::v1::Finished;
use nimbus_api::proto::node::v1::control_message::Kind as ToNode;
use nimbus_api::{Digest, RefusalCode};
use nimbus_tests::images::Published;
use nimbus_tests::lab::Submission;
use nimbus_tests::lane::Case;
use nimbus_tests::policy::Keys;
use nimbus_tests::raw::Wish;
use nimbus_tests::specimen::{Attack, RAN, Specimen};
use nimbus_tests::stolen_control::StolenControl;
use nimbus_tests::wait::until;
use nimbus_tests::{Failure, Lab, Outcome, cases, ensure};

pub(crate) fn cases() -> Vec<Case> {
    cases![own[
        with_controls_keys_still_no_unattested_image_starts,
        with_controls_policy_still_no_unattested_image_starts,
        with_controls_store_turned_back_the_policy_is_not,
        with_control_itself_stolen_no_unattested_image_starts,
    ]]
}

/// The attacker has stolen control's keys and signs a perfect lease for an image that the node has,
/// but that nobody attested.
fn with_controls_keys_still_no_unattested_image_starts(lab: &mut Lab) -> Outcome {
    // The node fetches the image for a job that is refused for want of an attestation, or that
    // control refuses; either way the attacker's own lease comes next.
    let image = lab.unattested("stolen")?;
    let submission = Submission::of(&image, vec![], &["/bin/true"]);
    lab.outcome(&submission)?.expect_refused(RefusalCode::ImageUnattested)?;
    let mut attack = lab.specimen()?.attack()?;
    for leased in &mut attack.claims.images {
        leased.name.clone_from(&image.name);
        leased.digest = image.digest;
    }
    let spec = attack.sealed(&lab.stolen()?)?;
    let wish = Wish { id: attack.id, spec, ..Wish::default() };
    let tried = lab.try_start(&wish)?;
    let unattested = tried.expect_refused(RefusalCode::ImageUnattested);
    unattested.or_else(|_other| tried.expect_refused(RefusalCode::ImageMissing))
}

/// The attacker makes control hand out a policy that believes his key, attests his image with it and
/// submits it: control agrees, the node does not.
fn with_controls_policy_still_no_unattested_image_starts(lab: &mut Lab) -> Outcome {
    let specimen = lab.specimen()?;
    let own = Keys::generate()?;
    let layouts = lab.path("layouts").display().to_string();
    let document = own.document(lab.serial() + 1, lab.registry(), &layouts)?;
    let envelope = nimbus_api::policy::sign(document.as_bytes(), &own.policy)?;
    lab.apply_envelope(&envelope.to_json())?;
    let image = lab.unattested("evil")?;
    let bundle = image.attested(&own)?;
    let mut submission = Submission::of(&image, vec![bundle], &["/bin/true"]);
    submission.max_attempts = Some(1);
    let ended = lab.outcome(&submission)?;
    ensure!(ended.state == "DEAD", "found {}", ended.job);
    // The lease names the attacker's policy; the node has kept the owner's.
    let codes = [
        RefusalCode::LeaseWrongPolicy,
        RefusalCode::PolicyBadSignature,
        RefusalCode::ImageUntrustedSigner,
    ];
    ensure!(ended.code.is_some_and(|code| codes.contains(&code)), "found {}", ended.job);
    // A lease that names the owner's policy does not help either: the image may be in the node's
    // store now, with the attacker's attestation.
    let mut attack = specimen.attack()?;
    for leased in &mut attack.claims.images {
        leased.name.clone_from(&image.name);
        leased.digest = image.digest;
    }
    let spec = attack.sealed(&lab.stolen()?)?;
    let wish = Wish { id: attack.id, spec, ..Wish::default() };
    let tried = lab.try_start(&wish)?;
    let codes = [
        RefusalCode::ImageUntrustedSigner,
        RefusalCode::ImageWrongSubject,
        RefusalCode::ImageUnattested,
        RefusalCode::ImageMissing,
    ];
    let refused = codes.iter().any(|code| tried.expect_refused(*code).is_ok());
    ensure!(refused, "found {tried:?}");
    Ok(())
}

/// Control's store is put back to a time when a laxer policy was in force. No job runs in between:
/// a store that lacks events which it had acknowledged does not take the node's session again.
fn with_controls_store_turned_back_the_policy_is_not(lab: &mut Lab) -> Outcome {
    lab.kill_control()?;
    lab.save_control()?;
    lab.start_control()?;
    lab.wait_connected()?;
    lab.apply_policy()?;
    let serial = lab.serial();
    until("the node to have the stricter policy", || {
        Ok((lab.policy_serial_of_node()? == serial).then_some(()))
    })?;
    lab.kill_control()?;
    lab.restore_control()?;
    lab.start_control()?;
    lab.wait_connected()?;
    let mut submission = lab.good(&["/bin/true"])?;
    submission.max_attempts = Some(1);
    lab.outcome(&submission)?.expect_refused(RefusalCode::LeaseWrongPolicy)
}

/// Control is the attacker's own program, in session with the node. Granted as they should be, an
/// attested image runs; every way that he has of getting another one started is tried next.
fn with_control_itself_stolen_no_unattested_image_starts(lab: &mut Lab) -> Outcome {
    let (good, evil) = (lab.hello()?, lab.unattested("evil")?);
    let attested = good.attested(lab.keys())?;
    let own = Keys::generate()?;
    let policies = Policies::of(lab, &own)?;
    // Caught under the owner's present policy, which its lease names.
    let specimen = lab.specimen()?;
    let control = lab.steal_control()?;
    let mut thief = Thief { lab, specimen, control };

    let end = thief.grant(&good, vec![attested.clone()], |_attack| Ok(()))?;
    ensure!(end.exit_code == Some(RAN), "the attested image did not run: {end:?}");

    thief.refused(&evil, vec![], RefusalCode::ImageUnattested)?;
    thief.refused(&evil, vec![evil.attested(&own)?], RefusalCode::ImageUntrustedSigner)?;
    thief.refused(&evil, vec![attested.clone()], RefusalCode::ImageWrongSubject)?;
    // A lease that passes the bad image off under the good one's name, or names no policy at all.
    let renamed = Published { name: good.name.clone(), digest: evil.digest };
    thief.refused(&renamed, vec![attested], RefusalCode::ImageFetchFailed)?;
    let end = thief.grant(&evil, vec![evil.attested(&own)?], |attack| {
        attack.claims.policy = None;
        Ok(())
    })?;
    refused_with(&end, RefusalCode::ImageUntrustedSigner)?;

    // Policies that believe the attacker's key: the owner's signature is what they lack.
    let serial = thief.lab.policy_serial_of_node()?;
    for policy in policies.0 {
        let digest = Digest::of(&policy.document);
        thief.control.say(ToNode::Policy(policy.envelope))?;
        let end = thief.grant(&evil, vec![evil.attested(&own)?], |attack| {
            if let Some(named) = &mut attack.claims.policy {
                (named.serial, named.sha256) = (policy.serial, digest);
            }
            Ok(())
        })?;
        refused_with(&end, RefusalCode::LeaseWrongPolicy)?;
        thief.refused(&evil, vec![evil.attested(&own)?], RefusalCode::ImageUntrustedSigner)?;
        let now = thief.lab.policy_serial_of_node()?;
        ensure!(now == serial, "the node has policy {now} now, it had {serial}");
    }
    Ok(())
}

/// A policy as the attacker has the node be sent it.
struct SentPolicy {
    serial: u64,
    document: Vec<u8>,
    envelope: Vec<u8>,
}

/// Policies that are not the owner's, or are not the owner's present one.
struct Policies(Vec<SentPolicy>);

impl Policies {
    /// Signed by the attacker, not signed, with the owner's signature of another, and the owner's own
    /// of an earlier time.
    fn of(lab: &mut Lab, own: &Keys) -> Result<Self, Failure> {
        let layouts = lab.path("layouts").display().to_string();
        let newer = lab.serial() + 100;
        let document = own.document(newer, lab.registry(), &layouts)?.into_bytes();
        let signed = nimbus_api::policy::sign(&document, &own.policy)?;
        let owners = lab.keys().document(lab.serial(), lab.registry(), &layouts)?.into_bytes();
        let by_owner = nimbus_api::policy::sign(&owners, &lab.keys().policy)?;
        let mut envelope: serde_json::Value = serde_json::from_slice(&signed.to_json())?;
        let genuine: serde_json::Value = serde_json::from_slice(&by_owner.to_json())?;
        let mut sent = vec![SentPolicy {
            serial: newer,
            document: document.clone(),
            envelope: signed.to_json(),
        }];
        for signatures in [serde_json::json!([]), genuine["signatures"].clone()] {
            envelope["signatures"] = signatures;
            let envelope = envelope.to_string().into_bytes();
            sent.push(SentPolicy { serial: newer, document: document.clone(), envelope });
        }
        // The node moves on; what was the owner's policy until now is one that was rolled back.
        let before = lab.serial();
        lab.apply_policy()?;
        let serial = lab.serial();
        until("the node to have the newer policy", || {
            Ok((lab.policy_serial_of_node()? == serial).then_some(()))
        })?;
        sent.push(SentPolicy { serial: before, document: owners, envelope: by_owner.to_json() });
        Ok(Self(sent))
    }
}

/// Who has control.
struct Thief<'a> {
    lab: &'a mut Lab,
    specimen: Specimen,
    control: StolenControl,
}

impl Thief<'_> {
    /// Grants a perfect lease for an image, but for one thing; how it ended.
    fn grant(
        &mut self,
        image: &Published,
        bundles: Vec<Vec<u8>>,
        change: impl FnOnce(&mut Attack) -> Outcome,
    ) -> Result<Finished, Failure> {
        let mut attack = self.specimen.attack()?;
        attack.claims.nonce = self.control.nonce()?;
        for leased in &mut attack.claims.images {
            leased.name.clone_from(&image.name);
            leased.digest = image.digest;
        }
        change(&mut attack)?;
        self.lab.remember(&attack.id);
        let lease = &attack.claims.lease_id;
        let token = self.lab.stolen()?.sign(&attack.claims)?;
        self.control.grant(&token, attack.job(bundles)?)?;
        let end = self.control.finished(lease)?;
        ensure!(
            self.control.has_started(lease) == end.exit_code.is_some(),
            "started and ended do not agree: {end:?}"
        );
        self.lab.nothing_left_of(&attack.id)?;
        Ok(end)
    }

    fn refused(
        &mut self,
        image: &Published,
        bundles: Vec<Vec<u8>>,
        code: RefusalCode,
    ) -> Outcome {
        refused_with(&self.grant(image, bundles, |_attack| Ok(()))?, code)
    }
}

fn refused_with(end: &Finished, code: RefusalCode) -> Outcome {
    ensure!(
        end.exit_code.is_none() && end.reason == code.as_str(),
        "expected {code}, found {end:?}"
    );
    Ok(())
}

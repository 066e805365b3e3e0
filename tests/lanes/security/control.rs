//! What control has is in the attacker's hands: its keys, its store, its policies. Rule 11: still no
//! unattested image starts. [`crate::stolen`] has control itself stolen.

use nimbus_api::RefusalCode;
use nimbus_tests::lab::Submission;
use nimbus_tests::lane::Case;
use nimbus_tests::policy::Keys;
use nimbus_tests::raw::Wish;
use nimbus_tests::wait::until;
use nimbus_tests::{Lab, Outcome, cases, ensure};

pub(crate) fn cases() -> Vec<Case> {
    cases![own[
        with_controls_keys_still_no_unattested_image_starts,
        with_controls_policy_still_no_unattested_image_starts,
        with_controls_store_turned_back_the_policy_is_not,
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

//! Images whose attestation is missing, damaged, foreign, old or of another kind.

use nimbus_api::RefusalCode;
use nimbus_forge::mutate::{duplicate_key, two_signatures, unknown_field};
use nimbus_forge::{Bundle, SLSA_PROVENANCE, bundle_with_key, provenance, statement};
use nimbus_tests::images::{Published, busybox_with};
use nimbus_tests::lab::Submission;
use nimbus_tests::lane::Case;
use nimbus_tests::mint::at;
use nimbus_tests::policy::MAX_AGE_SECONDS;
use nimbus_tests::{Failure, Lab, Outcome, cases, ensure};

pub(crate) fn cases() -> Vec<Case> {
    cases![
        shared[
            an_image_without_attestation_is_refused,
            a_tampered_attestation_is_refused,
            an_attestation_of_another_image_is_refused,
            an_attestation_by_a_stranger_is_refused,
            an_attestation_of_another_kind_is_refused,
            an_old_attestation_is_refused,
            an_attestation_without_a_vouched_time_is_no_young_one,
            an_image_that_no_rule_covers_is_refused,
            a_bundle_cut_short_is_refused,
            a_bundle_with_a_key_twice_is_refused,
            a_bundle_with_an_unknown_field_is_refused,
            a_bundle_with_two_signatures_is_refused,
            a_bundle_beyond_the_limit_is_refused,
            a_good_bundle_among_bad_ones_is_enough,
        ]
    ]
}

fn submitted(lab: &mut Lab, image: &Published, bundle: Vec<u8>, code: RefusalCode) -> Outcome {
    let submission = Submission::of(image, vec![bundle], &["/bin/true"]);
    lab.outcome(&submission)?.expect_refused(code)
}

fn bundle(lab: &Lab, image: &Published) -> Result<Bundle, Failure> {
    let statement = statement(&image.name, &image.digest, SLSA_PROVENANCE, &provenance());
    Ok(bundle_with_key(&lab.keys().release, &statement)?)
}

fn an_image_without_attestation_is_refused(lab: &mut Lab) -> Outcome {
    let image = lab.unattested("none")?;
    let submission = Submission::of(&image, vec![], &["/bin/true"]);
    lab.outcome(&submission)?.expect_refused(RefusalCode::ImageUnattested)
}

fn a_tampered_attestation_is_refused(lab: &mut Lab) -> Outcome {
    let image = lab.unattested("tampered")?;
    let bundle = image.tampered(lab.keys())?;
    submitted(lab, &image, bundle, RefusalCode::ImageBundleInvalid)
}

fn an_attestation_of_another_image_is_refused(lab: &mut Lab) -> Outcome {
    let image = lab.unattested("other")?;
    let bundle = lab.hello()?.attested(lab.keys())?;
    submitted(lab, &image, bundle, RefusalCode::ImageWrongSubject)
}

fn an_attestation_by_a_stranger_is_refused(lab: &mut Lab) -> Outcome {
    let image = lab.unattested("stranger")?;
    let bundle = image.by_a_stranger(lab.keys())?;
    submitted(lab, &image, bundle, RefusalCode::ImageUntrustedSigner)
}

fn an_attestation_of_another_kind_is_refused(lab: &mut Lab) -> Outcome {
    let image = lab.unattested("kind")?;
    let bundle = image.of_another_kind(lab.keys())?;
    submitted(lab, &image, bundle, RefusalCode::ImageWrongPredicate)
}

fn an_old_attestation_is_refused(lab: &mut Lab) -> Outcome {
    let image = lab.publish("fresh/old", &busybox_with("old")?)?;
    let bundle = image.logged(lab.keys(), at(-MAX_AGE_SECONDS - 600))?;
    submitted(lab, &image, bundle, RefusalCode::ImageAttestationStale)
}

fn an_attestation_without_a_vouched_time_is_no_young_one(lab: &mut Lab) -> Outcome {
    let image = lab.publish("fresh/unlogged", &busybox_with("unlogged")?)?;
    let bundle = image.attested(lab.keys())?;
    let submission = Submission::of(&image, vec![bundle], &["/bin/true"]);
    let ended = lab.outcome(&submission)?;
    let refused =
        ended.state == "DEAD" && ended.code.is_some_and(|code| code.as_str().starts_with("image."));
    ensure!(refused, "expected an image.* refusal, found {}", ended.job);
    Ok(())
}

fn an_image_that_no_rule_covers_is_refused(lab: &mut Lab) -> Outcome {
    let image = lab.publish("elsewhere/hello", &busybox_with("elsewhere")?)?;
    let bundle = image.attested(lab.keys())?;
    submitted(lab, &image, bundle, RefusalCode::PolicyNoMatch)
}

fn a_bundle_cut_short_is_refused(lab: &mut Lab) -> Outcome {
    let image = lab.unattested("short")?;
    let mut bytes = image.attested(lab.keys())?;
    bytes.truncate(bytes.len() / 2);
    submitted(lab, &image, bytes, RefusalCode::ImageBundleInvalid)
}

fn a_bundle_with_a_key_twice_is_refused(lab: &mut Lab) -> Outcome {
    let image = lab.unattested("twice")?;
    let bytes = duplicate_key(&bundle(lab, &image)?);
    submitted(lab, &image, bytes, RefusalCode::ImageBundleInvalid)
}

fn a_bundle_with_an_unknown_field_is_refused(lab: &mut Lab) -> Outcome {
    let image = lab.unattested("unknown")?;
    let bytes = unknown_field(&bundle(lab, &image)?).to_json();
    submitted(lab, &image, bytes, RefusalCode::ImageBundleInvalid)
}

fn a_bundle_with_two_signatures_is_refused(lab: &mut Lab) -> Outcome {
    let image = lab.unattested("two-signatures")?;
    let bytes = two_signatures(&bundle(lab, &image)?).to_json();
    submitted(lab, &image, bytes, RefusalCode::ImageBundleInvalid)
}

fn a_bundle_beyond_the_limit_is_refused(lab: &mut Lab) -> Outcome {
    let image = lab.unattested("large")?;
    let mut bytes = image.attested(lab.keys())?;
    bytes.resize(4 << 20, b' ');
    let submission = Submission::of(&image, vec![bytes], &["/bin/true"]);
    let said = lab.try_submit(&submission)?;
    ensure!(said.refusal() == Some(RefusalCode::RequestTooLarge), "found {said:?}");
    Ok(())
}

fn a_good_bundle_among_bad_ones_is_enough(lab: &mut Lab) -> Outcome {
    let image = lab.unattested("among")?;
    let bundles = vec![
        image.by_a_stranger(lab.keys())?,
        image.tampered(lab.keys())?,
        image.attested(lab.keys())?,
        b"{}".to_vec(),
    ];
    let submission = Submission::of(&image, bundles, &["/bin/true"]);
    lab.outcome(&submission)?.expect_exit(0)
}

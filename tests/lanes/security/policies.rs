//! Policies that are absent, unsigned, foreign, old, expired or unreadable.

use std::thread::sleep;
use std::time::Duration;

use nimbus_api::dsse::SigningKey;
use nimbus_api::{Refusal, RefusalCode};
use nimbus_tests::lane::Case;
use nimbus_tests::mint::at;
use nimbus_tests::{Failure, Lab, Outcome, cases, ensure};

use crate::without_policy;

pub(crate) fn cases() -> Vec<Case> {
    cases![
        shared[
            a_policy_that_is_unsigned_is_not_applied,
            a_policy_that_is_cut_short_is_not_applied,
            a_policy_with_a_key_twice_is_not_applied,
            a_policy_with_an_unknown_field_is_not_applied,
            a_policy_beyond_the_limit_is_not_applied,
            a_policy_of_a_lower_serial_is_not_applied,
        ]
        own(without_policy)[
            without_a_policy_nothing_starts,
            a_first_policy_by_a_stranger_starts_nothing,
            under_an_expired_policy_nothing_starts,
        ]
    ]
}

/// The present policy with the next serial, signed.
fn next(lab: &Lab) -> Result<String, Failure> {
    let layouts = lab.path("layouts").display().to_string();
    let document = lab.keys().document(lab.serial() + 1, lab.registry(), &layouts)?;
    let envelope = nimbus_api::policy::sign(document.as_bytes(), &lab.keys().policy)?;
    Ok(String::from_utf8(envelope.to_json())?)
}

fn not_applied(lab: &Lab, envelope: &[u8], codes: &[RefusalCode]) -> Outcome {
    let Err(failure) = lab.apply_envelope(envelope) else {
        return Err(Failure::new("the policy was applied"));
    };
    let code = Refusal::code_in(failure.text());
    ensure!(code.is_some_and(|code| codes.contains(&code)), "found {}", failure.text());
    Ok(())
}

fn a_policy_that_is_unsigned_is_not_applied(lab: &mut Lab) -> Outcome {
    let layouts = lab.path("layouts").display().to_string();
    let document = lab.keys().document(lab.serial() + 1, lab.registry(), &layouts)?;
    not_applied(lab, document.as_bytes(), &[RefusalCode::PolicyInvalid])
}

fn a_policy_that_is_cut_short_is_not_applied(lab: &mut Lab) -> Outcome {
    let mut envelope = next(lab)?;
    envelope.truncate(envelope.len() / 2);
    not_applied(lab, envelope.as_bytes(), &[RefusalCode::PolicyInvalid])
}

fn a_policy_with_a_key_twice_is_not_applied(lab: &mut Lab) -> Outcome {
    let envelope = next(lab)?.replacen('{', "{\"payloadType\":\"x\",", 1);
    not_applied(lab, envelope.as_bytes(), &[RefusalCode::PolicyInvalid])
}

fn a_policy_with_an_unknown_field_is_not_applied(lab: &mut Lab) -> Outcome {
    let envelope = next(lab)?.replacen('{', "{\"more\":1,", 1);
    not_applied(lab, envelope.as_bytes(), &[RefusalCode::PolicyInvalid])
}

fn a_policy_beyond_the_limit_is_not_applied(lab: &mut Lab) -> Outcome {
    let document = format!("# {}\n", "x".repeat(2 << 20));
    let envelope = nimbus_api::dsse::Envelope::sign(
        nimbus_api::policy::POLICY_TYPE,
        document.as_bytes(),
        &lab.keys().policy,
    );
    let codes = [RefusalCode::PolicyInvalid, RefusalCode::RequestTooLarge];
    not_applied(lab, &envelope.to_json(), &codes)
}

fn a_policy_of_a_lower_serial_is_not_applied(lab: &mut Lab) -> Outcome {
    let layouts = lab.path("layouts").display().to_string();
    let document = lab.keys().document(lab.serial(), lab.registry(), &layouts)?;
    let document = document.replacen("id = \"lab\"", "id = \"another\"", 1);
    let envelope = nimbus_api::policy::sign(document.as_bytes(), &lab.keys().policy)?;
    not_applied(lab, &envelope.to_json(), &[RefusalCode::PolicyRolledBack])
}

/// A good submission that must not run.
fn nothing_starts(lab: &mut Lab, codes: &[RefusalCode]) -> Outcome {
    let mut submission = lab.good(&["/bin/true"])?;
    submission.max_attempts = Some(1);
    let ended = lab.outcome(&submission)?;
    ensure!(ended.state == "DEAD", "found {}", ended.job);
    ensure!(ended.code.is_some_and(|code| codes.contains(&code)), "found {}", ended.job);
    Ok(())
}

fn without_a_policy_nothing_starts(lab: &mut Lab) -> Outcome {
    nothing_starts(lab, &[RefusalCode::PolicyMissing])
}

fn a_first_policy_by_a_stranger_starts_nothing(lab: &mut Lab) -> Outcome {
    let layouts = lab.path("layouts").display().to_string();
    let document = lab.keys().document(1, lab.registry(), &layouts)?;
    let envelope = nimbus_api::policy::sign(document.as_bytes(), &SigningKey::generate())?;
    lab.apply_envelope(&envelope.to_json())?;
    nothing_starts(lab, &[RefusalCode::PolicyBadSignature, RefusalCode::PolicyMissing])
}

fn under_an_expired_policy_nothing_starts(lab: &mut Lab) -> Outcome {
    let layouts = lab.path("layouts").display().to_string();
    let end = at(3);
    let document = lab.keys().document_until(1, end, lab.registry(), &layouts)?;
    let envelope = nimbus_api::policy::sign(document.as_bytes(), &lab.keys().policy)?;
    lab.apply_envelope(&envelope.to_json())?;
    while at(0) <= end {
        sleep(Duration::from_millis(200));
    }
    nothing_starts(lab, &[RefusalCode::PolicyExpired])
}

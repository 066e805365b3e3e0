//! Leases that are missing, broken, foreign, early, late, used up or for something else.

use nimbus_api::dsse::SigningKey;
use nimbus_api::lease::{LeaseToken, TOKEN_BYTES_MAX};
use nimbus_api::{Digest, RefusalCode};
use nimbus_tests::lane::Case;
use nimbus_tests::mint::{self, at};
use nimbus_tests::raw::Wish;
use nimbus_tests::specimen::{Attack, Specimen};
use nimbus_tests::{Failure, Lab, Outcome, cases};
use serde_json::{Value, json};

use crate::{refused, sealed};

pub(crate) fn cases() -> Vec<Case> {
    cases![
        shared[
            a_container_without_a_lease_is_refused,
            a_text_that_is_no_token_is_refused,
            a_token_cut_short_is_refused,
            a_token_beyond_the_limit_is_refused,
            a_token_with_a_changed_byte_is_refused,
            a_lease_signed_by_a_stranger_is_refused,
            a_lease_of_another_trust_domain_is_refused,
            a_lease_with_an_unknown_claim_is_refused,
            a_lease_with_a_claim_twice_is_refused,
            a_lease_of_another_version_is_refused,
            an_expired_lease_is_refused,
            a_lease_that_is_not_valid_yet_is_refused,
            a_lease_whose_start_time_has_passed_is_refused,
            a_lease_for_another_node_is_refused,
            a_lease_for_another_image_is_refused,
            another_command_under_a_good_lease_is_refused,
            another_environment_under_a_good_lease_is_refused,
            another_user_under_a_good_lease_is_refused,
            a_lease_that_echoes_no_heartbeat_is_refused,
            a_lease_used_for_one_container_starts_no_other,
            a_lease_for_more_than_the_node_has_is_refused,
            a_lease_for_nothing_is_refused,
        ]
        own[
            a_lease_of_an_earlier_run_of_the_agent_is_refused,
            a_clock_that_was_set_back_is_noticed,
            nothing_starts_while_the_agent_is_stopped,
        ]
    ]
}

/// Tries to start the attack under this token.
fn under(lab: &mut Lab, attack: &Attack, token: &LeaseToken, code: RefusalCode) -> Outcome {
    let wish = Wish { id: attack.id.clone(), spec: attack.with_token(token)?, ..Wish::default() };
    lab.try_start(&wish)?.expect_refused(code)
}

/// A good attack and the token that it would have.
fn good(lab: &mut Lab) -> Result<(Attack, LeaseToken), Failure> {
    let attack = lab.specimen()?.attack()?;
    let token = lab.stolen()?.sign(&attack.claims)?;
    Ok((attack, token))
}

/// A good attack's claims as JSON, changed.
fn claims(attack: &Attack, change: impl FnOnce(&mut Value)) -> Result<String, Failure> {
    let mut claims = serde_json::to_value(&attack.claims)?;
    change(&mut claims);
    Ok(claims.to_string())
}

fn a_container_without_a_lease_is_refused(lab: &mut Lab) -> Outcome {
    let attack = lab.specimen()?.attack()?;
    let spec = attack.spec.to_string().into_bytes();
    let wish = Wish { id: attack.id, spec, ..Wish::default() };
    lab.try_start(&wish)?.expect_refused(RefusalCode::LeaseMissing)
}

fn a_text_that_is_no_token_is_refused(lab: &mut Lab) -> Outcome {
    let (attack, _token) = good(lab)?;
    let token = LeaseToken::unchecked("let me in".to_owned());
    under(lab, &attack, &token, RefusalCode::LeaseMalformed)
}

fn a_token_cut_short_is_refused(lab: &mut Lab) -> Outcome {
    let (attack, token) = good(lab)?;
    let (body, footer) = token.as_str().rsplit_once('.').unwrap_or_default();
    // At whole groups of base64, which is what is signed behind the prefix.
    let prefix = body.rfind('.').map_or(0, |dot| dot + 1);
    let half = body.get(..prefix + (body.len() - prefix) / 8 * 4).unwrap_or_default();
    let with_footer = LeaseToken::unchecked(format!("{half}.{footer}"));
    under(lab, &attack, &with_footer, RefusalCode::LeaseBadSignature)?;
    let (attack, _token) = good(lab)?;
    let without = LeaseToken::unchecked(half.to_owned());
    under(lab, &attack, &without, RefusalCode::LeaseUnknownKey)
}

fn a_token_beyond_the_limit_is_refused(lab: &mut Lab) -> Outcome {
    let (attack, token) = good(lab)?;
    let filler = "A".repeat(TOKEN_BYTES_MAX);
    let long = LeaseToken::unchecked(format!("{}{filler}", token.as_str()));
    under(lab, &attack, &long, RefusalCode::LeaseTooLarge)
}

fn a_token_with_a_changed_byte_is_refused(lab: &mut Lab) -> Outcome {
    let (attack, token) = good(lab)?;
    // A character in the middle of the body: its claims.
    let at = token.as_str().len() / 3;
    let changed: String = token
        .as_str()
        .char_indices()
        .map(|(index, c)| if index == at { if c == 'A' { 'B' } else { 'A' } } else { c })
        .collect();
    under(lab, &attack, &LeaseToken::unchecked(changed), RefusalCode::LeaseBadSignature)
}

fn a_lease_signed_by_a_stranger_is_refused(lab: &mut Lab) -> Outcome {
    let attack = lab.specimen()?.attack()?;
    let token = lab.stolen()?.sign_with(&attack.claims, &SigningKey::generate())?;
    under(lab, &attack, &token, RefusalCode::LeaseUnknownKey)
}

fn a_lease_of_another_trust_domain_is_refused(lab: &mut Lab) -> Outcome {
    let attack = lab.specimen()?.attack()?;
    let token = lab.stolen()?.in_domain("elsewhere.local")?.sign(&attack.claims)?;
    under(lab, &attack, &token, RefusalCode::LeaseBadSignature)
}

fn a_lease_with_an_unknown_claim_is_refused(lab: &mut Lab) -> Outcome {
    let attack = lab.specimen()?.attack()?;
    let text = claims(&attack, |claims| {
        if let Some(claims) = claims.as_object_mut() {
            claims.insert("privileged".to_owned(), json!(true));
        }
    })?;
    let token = lab.stolen()?.sign_text(&text)?;
    under(lab, &attack, &token, RefusalCode::LeaseMalformed)
}

fn a_lease_with_a_claim_twice_is_refused(lab: &mut Lab) -> Outcome {
    let attack = lab.specimen()?.attack()?;
    let text = claims(&attack, |_claims| {})?.replacen('{', "{\"attempt\":7,", 1);
    let token = lab.stolen()?.sign_text(&text)?;
    under(lab, &attack, &token, RefusalCode::LeaseMalformed)
}

fn a_lease_of_another_version_is_refused(lab: &mut Lab) -> Outcome {
    let attack = lab.specimen()?.attack()?;
    let text = claims(&attack, |claims| {
        if let Some(version) = claims.get_mut("ver") {
            *version = json!(2);
        }
    })?;
    let token = lab.stolen()?.sign_text(&text)?;
    under(lab, &attack, &token, RefusalCode::LeaseVersion)
}

fn an_expired_lease_is_refused(lab: &mut Lab) -> Outcome {
    refused(lab, RefusalCode::LeaseExpired, |attack| {
        attack.expire();
        Ok(())
    })
}

fn a_lease_that_is_not_valid_yet_is_refused(lab: &mut Lab) -> Outcome {
    refused(lab, RefusalCode::LeaseNotYetValid, |attack| {
        attack.claims.nbf = at(300);
        Ok(())
    })
}

fn a_lease_whose_start_time_has_passed_is_refused(lab: &mut Lab) -> Outcome {
    refused(lab, RefusalCode::LeaseStartLate, |attack| {
        attack.claims.start_by = at(-2);
        Ok(())
    })
}

fn a_lease_for_another_node_is_refused(lab: &mut Lab) -> Outcome {
    refused(lab, RefusalCode::LeaseWrongNode, |attack| {
        attack.claims.node = Digest::of(b"another node's key");
        Ok(())
    })
}

fn a_lease_for_another_image_is_refused(lab: &mut Lab) -> Outcome {
    refused(lab, RefusalCode::ImageMissing, |attack| {
        for image in &mut attack.claims.images {
            image.digest = Digest::of(b"an image that was never fetched");
        }
        Ok(())
    })
}

fn another_command_under_a_good_lease_is_refused(lab: &mut Lab) -> Outcome {
    refused(lab, RefusalCode::LeaseWrongProcess, |attack| {
        attack.set("/process/args", json!(["/bin/sh", "-c", "echo mine"]))
    })
}

fn another_environment_under_a_good_lease_is_refused(lab: &mut Lab) -> Outcome {
    refused(lab, RefusalCode::LeaseWrongProcess, |attack| {
        attack.push("/process/env", json!("LD_PRELOAD=/tmp/mine.so"))
    })
}

fn another_user_under_a_good_lease_is_refused(lab: &mut Lab) -> Outcome {
    refused(lab, RefusalCode::LeaseWrongProcess, |attack| {
        attack.set("/process/user/uid", json!(12345))
    })
}

fn a_lease_that_echoes_no_heartbeat_is_refused(lab: &mut Lab) -> Outcome {
    refused(lab, RefusalCode::LeaseUnknownNonce, |attack| {
        attack.claims.nonce = mint::unique()?;
        Ok(())
    })
}

fn a_lease_used_for_one_container_starts_no_other(lab: &mut Lab) -> Outcome {
    let submission = lab.good(&["/bin/sleep", "600"])?;
    let job = lab.submit(&submission)?.job()?;
    let id = lab.wait_running(&job)?;
    let running = Specimen::of(lab, &id)?;
    let copy = running.copy()?;
    let wish =
        Wish { id: copy.id.clone(), spec: copy.with_token(&running.token())?, ..Wish::default() };
    let tried = lab.try_start(&wish)?;
    lab.cancel(&job)?;
    lab.wait_ended(&job)?;
    lab.nothing_left_of(&id)?;
    tried.expect_refused(RefusalCode::LeaseReplayed)
}

fn a_lease_for_more_than_the_node_has_is_refused(lab: &mut Lab) -> Outcome {
    refused(lab, RefusalCode::LeaseResources, |attack| {
        attack.claims.resources.memory_bytes = 1 << 50;
        Ok(())
    })
}

fn a_lease_for_nothing_is_refused(lab: &mut Lab) -> Outcome {
    refused(lab, RefusalCode::LeaseResources, |attack| {
        attack.claims.resources.pids = 0;
        Ok(())
    })
}

fn a_lease_of_an_earlier_run_of_the_agent_is_refused(lab: &mut Lab) -> Outcome {
    let attack = lab.specimen()?.attack()?;
    let wish = sealed(lab, &attack)?;
    lab.stop_node()?;
    lab.start_node()?;
    lab.wait_connected()?;
    lab.try_start(&wish)?.expect_refused(RefusalCode::LeaseUnknownNonce)
}

fn a_clock_that_was_set_back_is_noticed(lab: &mut Lab) -> Outcome {
    // The machine's clock is everybody's; what is moved is the node's memory of the latest lease,
    // a day ahead, which is the same as a clock that went a day back.
    let submission = lab.good(&["/bin/true"])?;
    lab.outcome(&submission)?.expect_exit(0)?;
    lab.stop_node()?;
    lab.raise_clock_floor(at(24 * 3600))?;
    lab.start_node()?;
    lab.wait_connected()?;
    let mut submission = lab.good(&["/bin/true"])?;
    submission.max_attempts = Some(1);
    lab.outcome(&submission)?.expect_refused(RefusalCode::NodeClockBack)
}

fn nothing_starts_while_the_agent_is_stopped(lab: &mut Lab) -> Outcome {
    let attack = lab.specimen()?.attack()?;
    let wish = sealed(lab, &attack)?;
    lab.stop_node()?;
    lab.try_start(&wish)?.expect_refused(RefusalCode::NodeAgentDown)?;
    lab.start_node()?;
    lab.wait_connected()
}

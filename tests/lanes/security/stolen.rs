//! Control itself is the attacker's program, in session with the node (rule 11).

use nimbus_api::proto::node::v1::Finished;
use nimbus_api::proto::node::v1::control_message::Kind as ToNode;
use nimbus_api::{Digest, RefusalCode};
use nimbus_tests::ctl::field;
use nimbus_tests::images::Published;
use nimbus_tests::lane::Case;
use nimbus_tests::policy::Keys;
use nimbus_tests::specimen::{Attack, RAN, Specimen};
use nimbus_tests::stolen_control::StolenControl;
use nimbus_tests::wait::until;
use nimbus_tests::{Failure, Lab, Outcome, cases, ensure};
use serde_json::{Map, Value, json};

pub(crate) fn cases() -> Vec<Case> {
    cases![own[with_control_itself_stolen_no_unattested_image_starts]]
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
        let signatures_of_owner = signatures(&by_owner.to_json())?;
        let mut sent = vec![SentPolicy {
            serial: newer,
            document: document.clone(),
            envelope: signed.to_json(),
        }];
        for signatures in [json!([]), signatures_of_owner] {
            let envelope = with_signatures(&signed.to_json(), signatures)?;
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

fn signatures(envelope: &[u8]) -> Result<Value, Failure> {
    field(&serde_json::from_slice(envelope)?, "signatures")
}

fn with_signatures(envelope: &[u8], signatures: Value) -> Result<Vec<u8>, Failure> {
    let mut envelope: Map<String, Value> = serde_json::from_slice(envelope)?;
    envelope.insert("signatures".to_owned(), signatures);
    Ok(serde_json::to_vec(&envelope)?)
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

    fn refused(&mut self, image: &Published, bundles: Vec<Vec<u8>>, code: RefusalCode) -> Outcome {
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

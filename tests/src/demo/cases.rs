//! What the demo shows, in order.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use nimbus_api::{Digest, RefusalCode};
use nimbus_forge::image::BUSYBOX_PATHS;
use serde_json::json;

use super::{Expected, Happened};
use crate::ctr::{RUNTIME, Said};
use crate::lab::{Ended, Submission};
use crate::mint::{self, at};
use crate::policy::MAX_AGE_SECONDS;
use crate::specimen::Attack;
use crate::{Failure, Lab};

/// One case.
pub(super) struct Case {
    pub(super) name: &'static str,
    pub(super) title: &'static str,
    pub(super) expected: Expected,
    pub(super) run: fn(&mut Lab) -> Result<Happened, Failure>,
}

const fn case(
    name: &'static str,
    title: &'static str,
    expected: Expected,
    run: fn(&mut Lab) -> Result<Happened, Failure>,
) -> Case {
    Case { name, title, expected, run }
}

/// All of them.
pub(super) const CASES: &[Case] = &[
    case("attested", "an attested image runs", Expected::Ran, attested),
    case(
        "unattested",
        "an image without attestation",
        Expected::Refused(RefusalCode::ImageUnattested),
        unattested,
    ),
    case(
        "tampered",
        "an image whose attestation was tampered with",
        Expected::Refused(RefusalCode::ImageBundleInvalid),
        tampered,
    ),
    case(
        "another_digest",
        "an image with the attestation of another",
        Expected::Refused(RefusalCode::ImageWrongSubject),
        another_digest,
    ),
    case(
        "too_old",
        "an image whose attestation is too old",
        Expected::Refused(RefusalCode::ImageAttestationStale),
        too_old,
    ),
    case(
        "stranger",
        "an image that a stranger attested",
        Expected::Refused(RefusalCode::ImageUntrustedSigner),
        stranger,
    ),
    case(
        "no_lease",
        "a plain `ctr run` without a lease",
        Expected::Refused(RefusalCode::LeaseMissing),
        no_lease,
    ),
    case(
        "expired_lease",
        "a lease that has expired",
        Expected::Refused(RefusalCode::LeaseExpired),
        expired_lease,
    ),
    case(
        "another_node",
        "a lease for another node",
        Expected::Refused(RefusalCode::LeaseWrongNode),
        another_node,
    ),
    case(
        "another_command",
        "another command under a good lease",
        Expected::Refused(RefusalCode::LeaseWrongProcess),
        another_command,
    ),
    case(
        "agent_stopped",
        "any start while the node agent is stopped",
        Expected::Refused(RefusalCode::NodeAgentDown),
        agent_stopped,
    ),
];

fn attested(lab: &mut Lab) -> Result<Happened, Failure> {
    let script = "echo hello from $(hostname); id; uname -s";
    let submission = lab.good(&["/bin/sh", "-c", script])?;
    let job = lab.submit(&submission)?.job()?;
    let ended = lab.wait_ended(&job)?;
    ended.expect_exit(0)?;
    Ok(Happened::Ran(lab.output(&job)?))
}

fn unattested(lab: &mut Lab) -> Result<Happened, Failure> {
    let image = lab.unattested("unattested")?;
    submitted(lab, &Submission::of(&image, vec![], &["/bin/true"]))
}

fn tampered(lab: &mut Lab) -> Result<Happened, Failure> {
    let image = lab.unattested("tampered")?;
    let bundle = image.tampered(lab.keys())?;
    submitted(lab, &Submission::of(&image, vec![bundle], &["/bin/true"]))
}

fn another_digest(lab: &mut Lab) -> Result<Happened, Failure> {
    let image = lab.unattested("another-digest")?;
    let bundle = lab.hello()?.attested(lab.keys())?;
    submitted(lab, &Submission::of(&image, vec![bundle], &["/bin/true"]))
}

fn too_old(lab: &mut Lab) -> Result<Happened, Failure> {
    let image = lab.publish("fresh/old", &crate::images::busybox_with("old")?)?;
    let bundle = image.logged(lab.keys(), at(-2 * MAX_AGE_SECONDS))?;
    submitted(lab, &Submission::of(&image, vec![bundle], &["/bin/true"]))
}

fn stranger(lab: &mut Lab) -> Result<Happened, Failure> {
    let image = lab.unattested("stranger")?;
    let bundle = image.by_a_stranger(lab.keys())?;
    submitted(lab, &Submission::of(&image, vec![bundle], &["/bin/true"]))
}

fn no_lease(lab: &mut Lab) -> Result<Happened, Failure> {
    let root = lab.path("files/plain-rootfs");
    fs::create_dir_all(root.join("bin"))?;
    let busybox = BUSYBOX_PATHS.iter().find_map(|path| fs::read(path).ok());
    let program = root.join("bin/busybox");
    fs::write(&program, busybox.ok_or_else(|| Failure::new("no busybox"))?)?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
    let id = format!("plain-{}", mint::unique()?);
    lab.remember(&id);
    let mut command = lab.ctr().command(&["run", "--rm", "--null-io", "--runtime", RUNTIME]);
    command.arg("--rootfs").arg(&root).args([&id, "/bin/busybox", "true"]);
    let said = Said::by(&mut command)?;
    lab.nothing_left_of(&id)?;
    Ok(by_ctr(&said))
}

fn expired_lease(lab: &mut Lab) -> Result<Happened, Failure> {
    attacked(lab, |attack| {
        attack.expire();
        Ok(())
    })
}

fn another_node(lab: &mut Lab) -> Result<Happened, Failure> {
    attacked(lab, |attack| {
        attack.claims.node = Digest::of(b"another node's identity key");
        Ok(())
    })
}

fn another_command(lab: &mut Lab) -> Result<Happened, Failure> {
    attacked(lab, |attack| attack.set("/process/args", json!(["/bin/sh", "-c", "echo mine"])))
}

fn agent_stopped(lab: &mut Lab) -> Result<Happened, Failure> {
    let attack = lab.specimen()?.attack()?;
    let spec = attack.sealed(&lab.stolen()?)?;
    lab.stop_node()?;
    let (_code, said) = lab.refused_by_ctr(&attack.id, &spec, &[])?;
    lab.start_node()?;
    lab.wait_connected()?;
    Ok(by_ctr(&said))
}

/// Submits by nimbusctl and waits for the end.
fn submitted(lab: &mut Lab, submission: &Submission) -> Result<Happened, Failure> {
    let Ended { code, message, job, .. } = lab.outcome(submission)?;
    Ok(match code {
        Some(code) => Happened::Refused { code, text: refusal_text(&message) },
        None => Happened::Failed(format!("it was not refused: {job}")),
    })
}

/// Starts a container by ctr with one thing wrong.
fn attacked(
    lab: &mut Lab,
    spoil: fn(&mut Attack) -> Result<(), Failure>,
) -> Result<Happened, Failure> {
    let mut attack = lab.specimen()?.attack()?;
    spoil(&mut attack)?;
    let spec = attack.sealed(&lab.stolen()?)?;
    let (_code, said) = lab.refused_by_ctr(&attack.id, &spec, &[])?;
    Ok(by_ctr(&said))
}

fn by_ctr(said: &Said) -> Happened {
    said.refusal().map_or_else(
        || Happened::Failed(format!("ctr ended with {:?}: {}", said.code, said.stderr)),
        |code| Happened::Refused { code, text: refusal_text(&said.stderr) },
    )
}

/// From the code's bracket on, on one line.
fn refusal_text(text: &str) -> String {
    let line = text.lines().find(|line| line.contains('[')).unwrap_or(text);
    let from = line.find('[').unwrap_or(0);
    let text = line.get(from..).unwrap_or(line);
    // containerd puts its own word for the status behind the text.
    let suffixes = [": unknown", ": unavailable", ": failed precondition", ": not found"];
    let bare = suffixes.iter().find_map(|suffix| text.trim().strip_suffix(suffix));
    bare.unwrap_or(text.trim()).to_owned()
}

//! Lane `conformance`: what others say is right. Containers beside runc's, see
//! [`nimbus_tests::conformance`]; vectors that nobody here wrote, through the program `nimbus-verify`.
//!
//! The vectors lie beside the repository (`../shared/vectors`), not in it; without them each is reported as
//! skipped. Expectations are those of their README.
#![forbid(unsafe_code)]

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use nimbus_api::Digest;
use nimbus_api::policy::TlogRule;
use nimbus_api::verify::{
    BundleOutcome, Signer, SignerKind, VERIFY_VERSION, VerifyReply, VerifyRequest,
};
use nimbus_forge::SLSA_PROVENANCE;
use nimbus_tests::ctr::Said;
use nimbus_tests::lane::{self, Case};
use nimbus_tests::{Failure, Outcome, ensure, mint};

const IDENTITY: &str = "https://github.com/sigstore-conformance/extremely-dangerous-public-oidc-beacon/.github/workflows/extremely-dangerous-oidc-beacon.yml@refs/heads/main";
const ISSUER: &str = "https://token.actions.githubusercontent.com";
const ACME: &str = "https://github.com/acme/app/.github/workflows/release.yml@refs/heads/main";
/// The sets, and how many cases each must have at least: a set that shrinks is no success.
const SUITE: (&str, usize) = ("sigstore-conformance/bundle-verify", 35);
const ATTESTATIONS: (&str, usize) = ("attestations", 35);

fn main() -> ExitCode {
    let mut cases = suite();
    cases.extend(attestations());
    cases.extend(nimbus_tests::conformance::cases());
    lane::main("conformance", &cases)
}

fn vectors(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/vectors").join(name)
}

/// The paths in a set, sorted; when there is none, one case that says so.
fn entries(set: (&str, usize), wanted: fn(&Path) -> bool) -> Result<Vec<PathBuf>, Case> {
    let (name, least) = set;
    let dir = vectors(name);
    if !dir.is_dir() {
        let text = format!("SKIPPED: the vectors {name} are not here");
        return Err(Case::alone(name, move || Err(Failure::skip(text.clone()))));
    }
    let read = fs::read_dir(&dir).into_iter().flatten().filter_map(Result::ok);
    let mut paths: Vec<_> = read.map(|entry| entry.path()).filter(|path| wanted(path)).collect();
    paths.sort();
    if paths.len() < least {
        let found = paths.len();
        let text = format!("{name} has {found} cases, expected at least {least}");
        return Err(Case::alone(name, move || Err(Failure::new(text.clone()))));
    }
    Ok(paths)
}

fn name_of(path: &Path) -> String {
    path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

fn verify() -> Result<Command, Failure> {
    Ok(Command::new(nimbus_tests::lab::bin_dir()?.join("nimbus-verify")))
}

fn suite() -> Vec<Case> {
    let dirs = match entries(SUITE, Path::is_dir) {
        Ok(dirs) => dirs,
        Err(case) => return vec![case],
    };
    let both = dirs.into_iter().flat_map(|dir| {
        let name = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
        [false, true].map(|by_digest| {
            let (dir, good) = (dir.clone(), !name.ends_with("_fail"));
            let how = if by_digest { "by_digest" } else { "by_path" };
            Case::alone(&format!("sigstore/{name}/{how}"), move || {
                one_of_suite(&dir, by_digest, good)
            })
        })
    });
    both.collect()
}

fn one_of_suite(dir: &Path, by_digest: bool, good: bool) -> Outcome {
    let text = |name: &str, default: &str| {
        let text = fs::read_to_string(dir.join(name));
        text.map_or_else(|_absent| default.to_owned(), |text| text.trim().to_owned())
    };
    let own = dir.join("artifact");
    let artifact = if own.exists() { own } else { vectors(SUITE.0).join("../a.txt") };
    let mut command = verify()?;
    command.args(["verify-bundle", "--legacy", "--bundle"]).arg(dir.join("bundle.sigstore.json"));
    if dir.join("key.pub").exists() {
        command.arg("--key").arg(dir.join("key.pub"));
    } else {
        command.arg("--certificate-identity").arg(text("identity", IDENTITY));
        command.arg("--certificate-oidc-issuer").arg(text("issuer", ISSUER));
    }
    if dir.join("trusted_root.json").exists() {
        command.arg("--trusted-root").arg(dir.join("trusted_root.json"));
    }
    if by_digest {
        command.arg(Digest::of(&fs::read(&artifact)?).to_string());
    } else {
        command.arg(&artifact);
    }
    let said = Said::by(&mut command)?;
    let expected = i32::from(!good);
    ensure!(said.code == Some(expected), "expected exit {expected}, found {said:?}");
    Ok(())
}

fn attestations() -> Vec<Case> {
    let bundle = |path: &Path| {
        let json = path.extension().is_some_and(|extension| extension == "json");
        json && name_of(path) != "trusted_root"
    };
    match entries(ATTESTATIONS, bundle) {
        Ok(files) => files
            .into_iter()
            .map(|file| {
                let name = format!("attestations/{}", name_of(&file));
                Case::alone(&name, move || one_attestation(&file))
            })
            .collect(),
        Err(case) => vec![case],
    }
}

/// Whether a vector must be accepted: by certificate, by key with a log, by key without one.
fn expected(name: &str) -> [bool; 3] {
    match name {
        "multi_subject" => [true, false, false],
        // Its timestamp authority's certificate begins ten months after the timestamp it made (the
        // mock's certificates always begin now): refused by us and by plain sigstore-verify.
        "ok_v1_tsa" => [false, false, false],
        ok if ok.starts_with("ok_") => [true, false, false],
        "pk_ok_tlog" => [false, true, true],
        "pk_ok_notlog" | "pk_tsa_notlog" => [false, false, true],
        // `upper_digest` may go either way; ours takes lower case only. All else is refused.
        _ => [false, false, false],
    }
}

fn one_attestation(file: &Path) -> Outcome {
    let dir = vectors(ATTESTATIONS.0);
    let root = fs::read_to_string(dir.join("trusted_root.json"))?;
    let key = fs::read_to_string(dir.join("key.pub"))?;
    let managed = |tlog, trusted_root| SignerKind::Key {
        key: key.clone(),
        tlog,
        trusted_root,
        not_before: None,
        not_after: None,
    };
    let signers = [
        SignerKind::Keyless {
            trusted_root: root.clone(),
            identity: ACME.to_owned(),
            issuer: ISSUER.to_owned(),
        },
        managed(TlogRule::Require, Some(root)),
        managed(TlogRule::Off, None),
    ];
    let bundle = fs::read(file)?;
    for (how, wanted) in signers.into_iter().zip(expected(&name_of(file))) {
        let reply = ask(&bundle, how.clone())?;
        let accepted = match &reply {
            VerifyReply::Outcomes(outcomes) => {
                matches!(outcomes.as_slice(), [BundleOutcome::Verified(_)])
            }
            VerifyReply::Refused(_) => false,
        };
        ensure!(accepted == wanted, "expected accepted={wanted} with {how:?}, found {reply:?}");
    }
    Ok(())
}

/// What the vectors' statements are.
const PREDICATES: [&str; 2] = [SLSA_PROVENANCE, "https://spdx.dev/Document/v2.3"];

fn ask(bundle: &[u8], how: SignerKind) -> Result<VerifyReply, Failure> {
    let request = VerifyRequest {
        version: VERIFY_VERSION,
        subjects: vec![format!("sha256:{}", "a".repeat(64)).parse()?],
        bundles: vec![BASE64.encode(bundle)],
        signers: vec![Signer {
            need: "vector".to_owned(),
            predicate_types: PREDICATES.map(str::to_owned).to_vec(),
            how,
        }],
        bundle_bytes_max: 16 << 20,
        now: mint::now(),
    };
    let mut command = verify()?;
    let mut child = command.arg("verify").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(&serde_json::to_vec(&request)?)?;
    }
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "nimbus-verify ended with {}", output.status);
    Ok(serde_json::from_slice(&output.stdout)?)
}

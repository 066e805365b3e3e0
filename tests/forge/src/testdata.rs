//! The set of bundles that `hooks/verify/testdata` holds.
//!
//! A file's name says what must come of it: the part before the first `-` is `ok` or the refusal
//! code without `image.`; the part after it tells the cases apart. All are about
//! [`IMAGE`] and are judged by the signers that the test beside them names.

use std::fs;
use std::path::Path;

use nimbus_api::Digest;
use nimbus_api::clock::UnixSeconds;
use nimbus_forge::fulcio::AUTHORITY_SECONDS;
use nimbus_forge::{
    ForgeError, Identity, KeyPair, SLSA_PROVENANCE, TestCa, TestLog, bundle_with_key, mutate,
    provenance, statement,
};

/// The image that the bundles are about, in 64 hex digits.
const IMAGE: &str = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
/// Another image.
const OTHER: &str = "sha256:bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";
/// When everything was signed: 2026-01-10T10:00:00Z.
const SIGNED_AT: UnixSeconds = UnixSeconds(1_768_039_200);

/// Writes all of it; returns how many bundles.
pub(crate) fn write(dir: &Path) -> Result<usize, ForgeError> {
    fs::create_dir_all(dir).map_err(write_error(dir))?;
    let key = KeyPair::from_seed("release")?;
    let log = TestLog::new(KeyPair::from_seed("log")?);
    let ca = TestCa::new("ca", SIGNED_AT)?;
    let mut files: Vec<(String, Vec<u8>)> = vec![
        ("key.pub".to_owned(), key.public_pem()?.into_bytes()),
        ("trusted_root.json".to_owned(), ca.trusted_root(&log)?.into_bytes()),
        // The same authority with a certificate that begins after everything was signed.
        (
            "trusted_root_late_ca.json".to_owned(),
            TestCa::new("ca", late_by(2 * AUTHORITY_SECONDS))?.trusted_root(&log)?.into_bytes(),
        ),
    ];
    let mut bundles = managed(&key)?;
    bundles.extend(logged(&key, &log)?);
    bundles.extend(keyless(&ca, &log)?);
    let count = bundles.len();
    files.extend(bundles.into_iter().map(|(name, bytes)| (format!("{name}.json"), bytes)));
    for (name, bytes) in files {
        let path = dir.join(name);
        fs::write(&path, bytes).map_err(write_error(&path))?;
    }
    Ok(count)
}

fn write_error(path: &Path) -> impl FnOnce(std::io::Error) -> ForgeError {
    let at = path.display().to_string();
    move |source| ForgeError::Io { operation: "write", at, source }
}

type Named = Vec<(&'static str, Vec<u8>)>;

const fn late_by(seconds: i64) -> UnixSeconds {
    UnixSeconds(SIGNED_AT.0 + seconds)
}

fn about(image: &str) -> Result<Vec<u8>, ForgeError> {
    let digest: Digest = image
        .parse()
        .map_err(|_not_a_digest| ForgeError::Unfit(format!("{image} is not a digest")))?;
    Ok(statement("registry.invalid/app", &digest, SLSA_PROVENANCE, &provenance()))
}

/// The good statement with one thing changed in its text.
fn changed(from: &str, to: &str) -> Result<Vec<u8>, ForgeError> {
    let text = String::from_utf8_lossy(&about(IMAGE)?).into_owned();
    Ok(text.replacen(from, to, 1).into_bytes())
}

fn managed(key: &KeyPair) -> Result<Named, ForgeError> {
    let stranger = KeyPair::from_seed("stranger")?;
    let good = bundle_with_key(key, &about(IMAGE)?)?;
    let signed = |payload: Vec<u8>| bundle_with_key(key, &payload).map(|bundle| bundle.to_json());
    let spdx = "https://spdx.dev/Document/v2.3";
    Ok(vec![
        ("ok-key", good.to_json()),
        ("ok-key-other-hint", mutate::with_hint(&good, "some name").to_json()),
        ("bundle_invalid-tampered", mutate::tamper(&good).to_json()),
        ("bundle_invalid-signature", mutate::break_signature(&good).to_json()),
        ("bundle_invalid-two-signatures", mutate::two_signatures(&good).to_json()),
        ("bundle_invalid-both-contents", mutate::both_contents(&good).to_json()),
        ("bundle_invalid-unknown-field", mutate::unknown_field(&good).to_json()),
        ("bundle_invalid-duplicate-key", mutate::duplicate_key(&good)),
        (
            "bundle_invalid-duplicate-key-in-predicate",
            signed(changed("\"builder\":{", "\"builder\":{},\"builder\":{")?)?,
        ),
        (
            "bundle_invalid-not-a-statement",
            signed(changed("https://in-toto.io/Statement/v1", "https://example.invalid/x")?)?,
        ),
        ("wrong_subject-other-image", signed(about(OTHER)?)?),
        ("wrong_subject-other-algorithm", signed(changed("\"sha256\":", "\"sha512\":")?)?),
        ("wrong_predicate-spdx", signed(changed(SLSA_PROVENANCE, spdx)?)?),
        ("untrusted_signer-stranger", bundle_with_key(&stranger, &about(IMAGE)?)?.to_json()),
    ])
}

fn logged(key: &KeyPair, log: &TestLog) -> Result<Named, ForgeError> {
    let good = log.bundle_with_key(key, &about(IMAGE)?, SIGNED_AT)?;
    let rogue = TestLog::new(KeyPair::from_seed("rogue log")?);
    Ok(vec![
        ("ok-logged", good.to_json()),
        ("bundle_invalid-logged-promise", mutate::break_promise(&good).to_json()),
        ("bundle_invalid-logged-time-moved", mutate::move_integrated_time(&good, 3600).to_json()),
        ("bundle_invalid-logged-downgrade", mutate::downgrade(&good).to_json()),
        (
            "bundle_invalid-logged-elsewhere",
            rogue.bundle_with_key(key, &about(IMAGE)?, SIGNED_AT)?.to_json(),
        ),
    ])
}

fn keyless(ca: &TestCa, log: &TestLog) -> Result<Named, ForgeError> {
    let release = Identity::default();
    let other = Identity { san: format!("{}x", release.san), ..release.clone() };
    let sign = |ca: &TestCa, identity: &Identity, at: i64| {
        ca.bundle(log, identity, &about(IMAGE)?, UnixSeconds(at))
    };
    let good = sign(ca, &release, SIGNED_AT.0)?;
    let late = sign(ca, &release, late_by(86_400).0)?;
    let unknown = TestCa::new("unknown ca", SIGNED_AT)?;
    Ok(vec![
        ("ok-keyless", good.to_json()),
        ("bundle_invalid-keyless-tampered", mutate::tamper(&good).to_json()),
        ("untrusted_signer-keyless-logged-after-expiry", late.to_json()),
        ("untrusted_signer-keyless-identity", sign(ca, &other, SIGNED_AT.0)?.to_json()),
        ("untrusted_signer-keyless-unknown-ca", sign(&unknown, &release, SIGNED_AT.0)?.to_json()),
    ])
}

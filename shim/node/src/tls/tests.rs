//! What the module above promises.

use super::*;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType};

struct Ca {
    certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

fn ca() -> Ca {
    let key = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let certificate = params.self_signed(&key).unwrap().der().clone();
    Ca { certificate, issuer: Issuer::new(params, key) }
}

fn leaf(ca: &Ca, uri: &str) -> CertificateDer<'static> {
    let key = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::URI(uri.try_into().unwrap())];
    params.signed_by(&key, &ca.issuer).unwrap().der().clone()
}

fn check(anchor: Anchor, leaf: &CertificateDer<'_>, rest: &[CertificateDer<'_>]) -> bool {
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    let name = ServerName::try_from("127.0.0.1").unwrap();
    ControlVerifier::new(anchor, &provider)
        .verify_server_cert(leaf, rest, &name, &[], UnixTime::now())
        .is_ok()
}

const CONTROL: &str = "spiffe://nimbus.test/control";

#[test]
fn a_join_server_is_believed_only_by_the_hash_of_the_ca_that_signed_it() {
    let (good, other) = (ca(), ca());
    let anchor = Anchor::CaKey(spki_digest(&good.certificate).unwrap());
    let server = leaf(&good, CONTROL);
    assert!(check(anchor.clone(), &server, std::slice::from_ref(&good.certificate)));
    assert!(!check(anchor.clone(), &server, &[]), "the CA must be presented");
    assert!(!check(anchor.clone(), &server, std::slice::from_ref(&other.certificate)));
    // The right CA is shown, but another one signed.
    let forged = leaf(&other, CONTROL);
    let shown = [good.certificate.clone(), other.certificate.clone()];
    assert!(!check(anchor, &forged, &shown));
}

#[test]
fn only_control_of_the_own_domain_is_believed() {
    let good = ca();
    let domain: TrustDomain = "nimbus.test".parse().unwrap();
    let anchor = Anchor::Ca(good.certificate.clone(), domain);
    assert!(check(anchor.clone(), &leaf(&good, CONTROL), &[]));
    for bad in [
        "spiffe://nimbus.test/node/n1",
        "spiffe://other.test/control",
        "spiffe://nimbus.test/x/control",
        "https://nimbus.test/control",
    ] {
        assert!(!check(anchor.clone(), &leaf(&good, bad), &[]), "{bad}");
    }
    assert!(!check(anchor, &leaf(&ca(), CONTROL), &[]));
}

//! Callers without a certificate of the trust domain that is valid now.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::time::Duration;

use nimbus_api::RefusalCode;
use nimbus_tests::certificates::Signer;
use nimbus_tests::ctr::Said;
use nimbus_tests::lane::Case;
use nimbus_tests::mint::at;
use nimbus_tests::{Failure, Lab, Outcome, cases, ensure};

pub(crate) fn cases() -> Vec<Case> {
    cases![
        shared[
            an_expired_certificate_is_refused,
            a_certificate_that_is_not_valid_yet_is_refused,
            a_certificate_by_another_ca_is_refused,
            a_nodes_certificate_is_no_persons,
            there_is_no_plain_text,
        ]
    ]
}

fn list(lab: &Lab, credentials: &Path) -> Result<Said, Failure> {
    lab.ctl().with_credentials(credentials).run(&["--json", "list", "--org", "default"])
}

/// The same certificate, but for one thing, is let in.
fn let_in(lab: &Lab) -> Outcome {
    let good = lab.credentials(Signer::Control, "admin/eve", at(-60), at(600))?;
    list(lab, &good)?.good().map(drop)
}

fn kept_out(lab: &Lab, credentials: &Path) -> Outcome {
    let said = list(lab, credentials)?;
    ensure!(said.code != Some(0) && said.stdout.is_empty(), "found {said:?}");
    Ok(())
}

fn an_expired_certificate_is_refused(lab: &mut Lab) -> Outcome {
    let_in(lab)?;
    let expired = lab.credentials(Signer::Control, "admin/eve", at(-7200), at(-3600))?;
    kept_out(lab, &expired)
}

fn a_certificate_that_is_not_valid_yet_is_refused(lab: &mut Lab) -> Outcome {
    let early = lab.credentials(Signer::Control, "admin/eve", at(3600), at(7200))?;
    kept_out(lab, &early)
}

fn a_certificate_by_another_ca_is_refused(lab: &mut Lab) -> Outcome {
    let foreign = lab.credentials(Signer::Stranger, "admin/eve", at(-60), at(600))?;
    kept_out(lab, &foreign)
}

fn a_nodes_certificate_is_no_persons(lab: &mut Lab) -> Outcome {
    let node = lab.credentials(Signer::Control, "node/lab-node", at(-60), at(600))?;
    let said = list(lab, &node)?;
    let codes = [RefusalCode::RequestForbidden, RefusalCode::RequestUnauthenticated];
    ensure!(said.refusal().is_some_and(|code| codes.contains(&code)), "found {said:?}");
    Ok(())
}

fn there_is_no_plain_text(lab: &mut Lab) -> Outcome {
    let mut connection = TcpStream::connect(lab.api())?;
    connection.set_read_timeout(Some(Duration::from_secs(10)))?;
    connection.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")?;
    let mut answer = Vec::new();
    // A TLS alert and the end of the connection, or the end alone; never an HTTP/2 frame.
    let ended = connection.read_to_end(&mut answer);
    let settings = answer.get(3) == Some(&4) && answer.first() == Some(&0);
    ensure!(!settings, "it speaks HTTP/2 in plain text: {answer:?}, {ended:?}");
    Ok(())
}

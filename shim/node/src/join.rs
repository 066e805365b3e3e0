//! Joining: with a single-use token, a machine gets its certificate from control.
//!
//! The token carries the hash of the CA's key, so the first connection is as good as any later one:
//! no "trust on first use". What comes back is checked against the token and the own key before
//! anything is stored. Joining the same control again keeps the identity key and replaces the rest.

use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use nimbus_api::dsse::VerifyingKey;
use nimbus_api::keys::{KeySet, KeySetError};
use nimbus_api::proto::node::v1::enrollment_client::EnrollmentClient;
use nimbus_api::proto::node::v1::{JoinRequest, JoinResponse};
use nimbus_api::{Digest, RefusalCode};

use crate::identity::{self, Identity, IdentityError, IdentityRecord};
use crate::tls::{self, LinkError};

/// Longest wait for control's answer.
pub const JOIN_SECONDS_MAX: u64 = 30;
/// Longest token.
pub const TOKEN_CHARS_MAX: usize = 512;

/// A join token, checked for shape.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    secret: String,
    ca_key: Digest,
}

impl std::fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "JoinToken(for CA key {})", self.ca_key)
    }
}

/// A text is not a join token. The text is secret and not shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected a join token: nj1.SECRET.HASH, as nimbusctl node token prints it")]
pub struct NotAToken;

impl FromStr for JoinToken {
    type Err = NotAToken;

    fn from_str(text: &str) -> Result<Self, NotAToken> {
        if text.len() > TOKEN_CHARS_MAX {
            return Err(NotAToken);
        }
        let mut parts = text.split('.');
        let (Some("nj1"), Some(secret), Some(hash), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(NotAToken);
        };
        let word = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
        if secret.is_empty() || !secret.bytes().all(word) {
            return Err(NotAToken);
        }
        let ca_key = format!("sha256:{hash}").parse().map_err(|_error| NotAToken)?;
        Ok(Self { secret: secret.to_owned(), ca_key })
    }
}

/// Why a node could not join.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// No connection, or not to the control service that the token names.
    #[error("no trusted connection to the join listener")]
    Link(#[source] LinkError),
    /// Control said no.
    #[error("control refused: {message}")]
    Refused {
        /// The code, when it said one.
        code: Option<RefusalCode>,
        /// Its words.
        message: String,
    },
    /// Control's answer does not hold together.
    #[error("control's answer cannot be used: {0}")]
    Answer(String),
    /// The key set is not signed by the root that came with it.
    #[error("control's key set cannot be used")]
    KeySet(#[source] KeySetError),
    /// The data directory belongs to a node of another control service.
    #[error(
        "the data directory is of a node of another control service: its spool and the key sets it \
         has seen mean nothing here; join with an empty data_dir"
    )]
    OtherRoot,
    /// Key, certificate or files.
    #[error("cannot make or keep the identity")]
    Identity(#[source] IdentityError),
}

/// Joins and stores what control gave. The data directory must exist and be locked by the caller.
/// Also gives the signed key set that came along, to be stored with the trust state.
pub async fn join(
    data_dir: &Path,
    control: &str,
    token: &JoinToken,
) -> Result<(Identity, Vec<u8>), JoinError> {
    // One that cannot be read is no reason not to join again.
    let before = Identity::load(data_dir).unwrap_or(None);
    let key = identity::load_or_make_key(data_dir).map_err(JoinError::Identity)?;
    let csr = identity::certificate_request(&key).map_err(JoinError::Identity)?;
    let channel = tls::connect_to_join(control, token.ca_key).await.map_err(JoinError::Link)?;
    let mut request = tonic::Request::new(JoinRequest { secret: token.secret.clone(), csr });
    request.set_timeout(Duration::from_secs(JOIN_SECONDS_MAX));
    let answer = EnrollmentClient::new(channel).join(request).await.map_err(|status| {
        let message = status.message().to_owned();
        JoinError::Refused { code: nimbus_api::Refusal::code_in(&message), message }
    })?;
    let answer = answer.into_inner();
    let key_set = answer.key_set.clone();
    let record = record(answer, token)?;
    if before.is_some_and(|before| before.record.root_key != record.root_key) {
        return Err(JoinError::OtherRoot);
    }
    let identity = Identity::of(record, key).map_err(JoinError::Identity)?;
    identity.save(data_dir).map_err(JoinError::Identity)?;
    Ok((identity, key_set))
}

/// Checks an answer against the token.
fn record(answer: JoinResponse, token: &JoinToken) -> Result<IdentityRecord, JoinError> {
    let bad = |what: &dyn std::fmt::Display| JoinError::Answer(what.to_string());
    let certificate = answer.certificate.ok_or_else(|| bad(&"no certificate"))?;
    let ca = identity::certificates(&certificate.ca_pem).map_err(JoinError::Identity)?;
    let ca_key = ca.first().and_then(tls::spki_digest);
    if ca_key != Some(token.ca_key) {
        return Err(bad(&"the CA is not the one that the token names"));
    }
    let root: [u8; 32] =
        answer.root_key.as_slice().try_into().map_err(|_wrong| bad(&"root key is not 32 bytes"))?;
    let root_key = VerifyingKey::from_bytes(root);
    let keys = KeySet::verify(&answer.key_set, &root_key).map_err(JoinError::KeySet)?;
    let trust_domain = answer.trust_domain.parse().map_err(|error| bad(&error))?;
    if keys.trust_domain != trust_domain {
        return Err(bad(&"the key set is of another trust domain"));
    }
    Ok(IdentityRecord {
        version: 1,
        node: answer.node.parse().map_err(|error| bad(&error))?,
        trust_domain,
        chain_pem: certificate.chain_pem,
        ca_pem: certificate.ca_pem,
        root_key,
        api_address: answer.api_address,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn no_text_panics_the_parser(text in "\\PC{0,200}") {
            let _unused = text.parse::<JoinToken>();
        }
    }

    #[test]
    fn a_token_is_read_and_not_printed() {
        let hash = Digest::of(b"ca").hex();
        let token: JoinToken = format!("nj1.c2VjcmV0.{hash}").parse().unwrap();
        assert_eq!(token.secret, "c2VjcmV0");
        assert_eq!(token.ca_key, Digest::of(b"ca"));
        assert!(!format!("{token:?}").contains("c2VjcmV0"));
    }

    #[test]
    fn malformed_tokens_are_refused() {
        let hash = Digest::of(b"ca").hex();
        for bad in [
            String::new(),
            format!("nj2.a.{hash}"),
            format!("nj1..{hash}"),
            format!("nj1.a.{hash}.x"),
            format!("nj1.a b.{hash}"),
            "nj1.a.00".to_owned(),
            format!("nj1.{}.{hash}", "a".repeat(TOKEN_CHARS_MAX)),
        ] {
            assert_eq!(bad.parse::<JoinToken>(), Err(NotAToken), "{bad}");
        }
    }
}

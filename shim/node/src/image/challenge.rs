//! The `WWW-Authenticate: Bearer` challenge of a registry, and the token that answers it.
//!
//! Only anonymous pull tokens are asked for; credentials for registries are not there yet.

use nimbus_api::strict_json::{self, Limits};
use serde::Deserialize;

/// Longest challenge.
const CHALLENGE_BYTES_MAX: usize = 4096;
/// Longest answer of a token service.
pub(super) const TOKEN_ANSWER_BYTES_MAX: usize = 64 << 10;

/// Where a token is to be had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Challenge {
    pub(super) realm: String,
    pub(super) service: Option<String>,
}

#[derive(Deserialize)]
struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
}

impl Challenge {
    /// None when it is not a bearer challenge that names a realm.
    pub(super) fn parse(header: &str) -> Option<Self> {
        if header.len() > CHALLENGE_BYTES_MAX {
            return None;
        }
        let (scheme, mut rest) = header.trim().split_once(' ')?;
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let (mut realm, mut service) = (None, None);
        loop {
            let (name, after) = rest.split_once('=')?;
            let (value, after) = value(after)?;
            match name.trim().to_ascii_lowercase().as_str() {
                "realm" => realm = Some(value),
                "service" => service = Some(value),
                _ => {}
            }
            let after = after.trim_start();
            match after.strip_prefix(',') {
                Some(more) => rest = more,
                None if after.is_empty() => break,
                None => return None,
            }
        }
        Some(Self { realm: realm?, service })
    }
}

/// A token or a quoted string, and what follows it.
fn value(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.trim_start().strip_prefix('"') else {
        let end = text.find([',', ' ']).unwrap_or(text.len());
        let (value, after) = text.split_at_checked(end)?;
        return (!value.is_empty()).then(|| (value.to_owned(), after));
    };
    let mut value = String::new();
    let mut escaped = false;
    for (at, c) in quoted.char_indices() {
        match c {
            _ if escaped => {
                value.push(c);
                escaped = false;
            }
            '\\' => escaped = true,
            '"' => return Some((value, quoted.get(at + 1..)?)),
            c => value.push(c),
        }
    }
    None
}

/// The token in a token service's answer.
pub(super) fn token(answer: &[u8]) -> Option<String> {
    let answer: TokenAnswer =
        strict_json::parse(answer, Limits::bytes(TOKEN_ANSWER_BYTES_MAX)).ok()?;
    answer
        .token
        .or(answer.access_token)
        .filter(|token| !token.is_empty() && token.bytes().all(|b| b.is_ascii_graphic()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn challenges_of_real_registries_are_read() {
        let header = r#"Bearer realm="https://auth.example/token",service="registry.example",scope="repository:a/b:pull,push""#;
        let expected = Challenge {
            realm: "https://auth.example/token".to_owned(),
            service: Some("registry.example".to_owned()),
        };
        assert_eq!(Challenge::parse(header), Some(expected));
        assert_eq!(
            Challenge::parse(r#"bearer service=x, realm="a\"b""#),
            Some(Challenge { realm: "a\"b".to_owned(), service: Some("x".to_owned()) })
        );
    }

    #[test]
    fn other_schemes_and_broken_challenges_are_none() {
        for bad in [
            "",
            "Bearer",
            "Basic realm=\"x\"",
            "Bearer service=x",
            "Bearer realm=\"x",
            "Bearer realm=\"x\" y",
        ] {
            assert_eq!(Challenge::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_token_has_either_name_and_no_line_breaks() {
        assert_eq!(token(br#"{"token":"a.b","expires_in":300}"#).as_deref(), Some("a.b"));
        assert_eq!(token(br#"{"access_token":"c"}"#).as_deref(), Some("c"));
        assert_eq!(token(br#"{"token":"a\r\nb"}"#), None);
        assert_eq!(token(br"{}"), None);
    }

    proptest! {
        #[test]
        fn no_challenge_panics_the_parser(header in "(Bearer )?[ -~]{0,60}") {
            let _unused = Challenge::parse(&header);
        }
    }
}

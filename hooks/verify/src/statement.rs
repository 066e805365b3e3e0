//! The in-toto statement in a DSSE payload, read strictly.
//!
//! Source: in-toto attestation framework, Statement v1 and v0.1. Unknown fields are allowed, as the
//! framework demands; duplicate keys are not, at any depth, the predicate included.
//!
//! Only digests under `sha256` in 64 lower-case hex digits count: a digest in capitals is about no
//! image of ours.

use nimbus_api::Digest;
use nimbus_api::error::Chain;
use nimbus_api::strict_json::{self, Limits};
use serde_json::Value;

use crate::rejection::Rejection;

/// Payload type of a statement.
pub const PAYLOAD_TYPE: &str = "application/vnd.in-toto+json";
/// Statement types that are read.
pub const STATEMENT_TYPES: [&str; 2] =
    ["https://in-toto.io/Statement/v1", "https://in-toto.io/Statement/v0.1"];
/// Most subjects of one statement.
pub const SUBJECTS_MAX: usize = 1024;
/// Most digests of one subject.
pub const DIGESTS_MAX: usize = 32;

/// What a statement says. Nobody has vouched for it yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Statement {
    /// Digests under `sha256`, in the order of the subjects.
    pub(crate) subjects: Vec<Digest>,
    /// Never empty.
    pub(crate) predicate_type: String,
}

impl Statement {
    pub(crate) fn parse(payload: &[u8]) -> Result<Self, Rejection> {
        let value = strict_json::value(payload, Limits::bytes(payload.len())).map_err(|error| {
            Rejection::invalid(format!("the signed statement: {}", Chain(&error)))
        })?;
        let text = |field| value.get(field).and_then(Value::as_str).unwrap_or_default();
        if !STATEMENT_TYPES.contains(&text("_type")) {
            let found = text("_type");
            return Err(Rejection::invalid(format!("not an in-toto statement but {found:?}")));
        }
        let predicate_type = text("predicateType").to_owned();
        if predicate_type.is_empty() {
            return Err(Rejection::invalid("the statement has no predicate type"));
        }
        Ok(Self { subjects: subjects(value.get("subject"))?, predicate_type })
    }

    /// The first of these images that the statement is about.
    pub(crate) fn about(&self, images: &[Digest]) -> Option<Digest> {
        images.iter().find(|image| self.subjects.contains(image)).copied()
    }
}

fn subjects(field: Option<&Value>) -> Result<Vec<Digest>, Rejection> {
    let Some(list) = field.and_then(Value::as_array) else {
        return Err(Rejection::invalid("the statement has no list of subjects"));
    };
    if list.is_empty() || list.len() > SUBJECTS_MAX {
        let detail = format!("{} subjects, 1 to {SUBJECTS_MAX} may be", list.len());
        return Err(Rejection::invalid(detail));
    }
    let mut found = Vec::new();
    for subject in list {
        let Some(digests) = subject.get("digest").and_then(Value::as_object) else {
            return Err(Rejection::invalid("a subject has no digests"));
        };
        if digests.len() > DIGESTS_MAX {
            let detail =
                format!("{} digests of one subject, at most {DIGESTS_MAX} may be", digests.len());
            return Err(Rejection::invalid(detail));
        }
        let sha256 = digests.get("sha256").and_then(Value::as_str);
        found.extend(sha256.and_then(|hex| format!("sha256:{hex}").parse::<Digest>().ok()));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn statement(subject: &Value) -> Vec<u8> {
        json!({"_type": STATEMENT_TYPES[0], "subject": subject, "predicateType": "p", "predicate": {}})
            .to_string()
            .into_bytes()
    }

    #[test]
    fn a_digest_in_capitals_or_under_another_algorithm_is_about_nothing() {
        let image = Digest::of(b"x");
        let about = |digest: Value| {
            Statement::parse(&statement(&json!([{"name": "n", "digest": digest}])))
                .unwrap()
                .about(&[image])
        };
        assert_eq!(about(json!({"sha256": image.hex()})), Some(image));
        assert_eq!(about(json!({"sha256": image.hex().to_uppercase()})), None);
        assert_eq!(about(json!({"sha512": image.hex()})), None);
        assert_eq!(about(json!({"sha256": [image.hex()]})), None);
    }

    #[test]
    fn too_many_subjects_or_digests_are_refused() {
        let subject = json!({"digest": {"sha256": Digest::of(b"x").hex()}});
        assert!(Statement::parse(&statement(&json!(vec![subject.clone(); SUBJECTS_MAX]))).is_ok());
        assert!(Statement::parse(&statement(&json!(vec![subject; SUBJECTS_MAX + 1]))).is_err());
        let digests: serde_json::Map<_, _> =
            (0..=DIGESTS_MAX).map(|n| (n.to_string(), json!("x"))).collect();
        assert!(Statement::parse(&statement(&json!([{"digest": digests}]))).is_err());
        assert!(Statement::parse(&statement(&json!([]))).is_err());
    }

    proptest! {
        #[test]
        fn no_payload_panics_the_parser(payload: Vec<u8>) {
            let _unused = Statement::parse(&payload);
        }
    }
}

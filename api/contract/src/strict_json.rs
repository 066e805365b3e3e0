//! JSON from somebody we do not trust: no duplicate keys at any depth, no trailing bytes, bounded
//! size and depth.
//!
//! Two parsers that see two documents in one text are how signatures over one thing get read as
//! another; so a document that could be read in two ways is refused before anybody reads it. What
//! this accepts, `serde_json` reads in exactly one way.

use std::fmt;

use serde::de::{DeserializeOwned, DeserializeSeed, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

/// Limits of one document.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Longest text.
    pub bytes: usize,
    /// Deepest nesting of arrays and objects.
    pub depth: usize,
}

/// Deepest nesting that any of our documents needs; serde_json's own limit is 128.
pub const DEPTH_MAX: usize = 64;

impl Limits {
    /// This many bytes, at the usual depth.
    pub const fn bytes(bytes: usize) -> Self {
        Self { bytes, depth: DEPTH_MAX }
    }
}

/// Why a text was refused.
#[derive(Debug, thiserror::Error)]
pub enum StrictJsonError {
    /// Longer than allowed.
    #[error("document is {found} bytes long, at most {limit} are allowed")]
    TooLarge {
        /// Bytes found.
        found: usize,
        /// Bytes allowed.
        limit: usize,
    },
    /// Not UTF-8, not JSON, a duplicate key, too deep or trailing bytes.
    #[error("document is not strict JSON")]
    Malformed(#[source] serde_json::Error),
    /// JSON, but not of the expected shape.
    #[error("document does not have the expected shape")]
    Shape(#[source] serde_json::Error),
}

impl StrictJsonError {
    /// Whether a key stood twice in one object.
    pub fn is_duplicate_key(&self) -> bool {
        match self {
            Self::Malformed(source) => source.to_string().starts_with(DUPLICATE_KEY),
            Self::TooLarge { .. } | Self::Shape(_) => false,
        }
    }
}

const DUPLICATE_KEY: &str = "duplicate key";

/// Reads a document into a value.
pub fn value(text: &[u8], limits: Limits) -> Result<Value, StrictJsonError> {
    if text.len() > limits.bytes {
        return Err(StrictJsonError::TooLarge { found: text.len(), limit: limits.bytes });
    }
    let mut parser = serde_json::Deserializer::from_slice(text);
    let value = Strict { depth_left: limits.depth }
        .deserialize(&mut parser)
        .map_err(StrictJsonError::Malformed)?;
    parser.end().map_err(StrictJsonError::Malformed)?;
    Ok(value)
}

/// Reads a document into a type; its `deny_unknown_fields` decides about unknown fields.
pub fn parse<T: DeserializeOwned>(text: &[u8], limits: Limits) -> Result<T, StrictJsonError> {
    value(text, limits)?;
    serde_json::from_slice(text).map_err(StrictJsonError::Shape)
}

#[derive(Clone, Copy)]
struct Strict {
    depth_left: usize,
}

impl Strict {
    fn deeper<E: serde::de::Error>(self) -> Result<Self, E> {
        match self.depth_left.checked_sub(1) {
            Some(depth_left) => Ok(Self { depth_left }),
            None => Err(E::custom("nested too deep")),
        }
    }
}

impl<'de> DeserializeSeed<'de> for Strict {
    type Value = Value;

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value, E> {
        serde_json::Number::from_f64(value)
            .map(Value::Number)
            .ok_or_else(|| E::custom("not a number"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let inner = self.deeper()?;
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(inner)? {
            list.push(item);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let inner = self.deeper()?;
        let mut map = serde_json::Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            if map.contains_key(&key) {
                return Err(A::Error::custom(format!("{DUPLICATE_KEY} {key:?}")));
            }
            let item = entries.next_value_seed(inner)?;
            map.insert(key, item);
        }
        Ok(Value::Object(map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMITS: Limits = Limits { bytes: 4096, depth: 8 };

    proptest! {
        #[test]
        fn no_text_panics_the_parser(text: Vec<u8>) {
            let _unused = value(&text, LIMITS);
        }

        #[test]
        fn what_is_accepted_reads_the_same_with_serde_json(text in r#"[\[\]{}:,"a1 .e-]{0,40}"#) {
            if let Ok(read) = value(text.as_bytes(), LIMITS) {
                prop_assert_eq!(read, serde_json::from_str::<Value>(&text).unwrap());
            }
        }
    }

    #[test]
    fn a_duplicate_key_is_refused_at_any_depth() {
        for bad in [r#"{"a":1,"a":1}"#, r#"[{"b":{"a":1,"\u0061":2}}]"#] {
            let error = value(bad.as_bytes(), LIMITS).unwrap_err();
            assert!(error.is_duplicate_key(), "{bad}: {error}");
        }
    }

    #[test]
    fn depth_size_and_trailing_bytes_are_limited() {
        assert!(value(b"[[[[[[[[1]]]]]]]]", LIMITS).is_ok());
        assert!(value(b"[[[[[[[[[1]]]]]]]]]", LIMITS).is_err());
        assert!(value(b"{} {}", LIMITS).is_err());
        assert!(matches!(
            value(&[b' '; 4097], LIMITS),
            Err(StrictJsonError::TooLarge { found: 4097, limit: 4096 })
        ));
    }
}

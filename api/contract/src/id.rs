//! Names and numbers that must not be mixed up, each a type of its own.
//!
//! Every textual id is 1 to [`ID_BYTES_MAX`] bytes of `[a-z0-9]` and inner `-`, `_`, `.`, so that
//! it can stand in a path, a cgroup name, a SPIFFE id and a log line without escaping.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Longest textual id.
pub const ID_BYTES_MAX: usize = 76;

/// Why a text is not an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "expected a {kind} of 1 to {ID_BYTES_MAX} characters of [A-Za-z0-9] and inner -_., found {found:?}"
)]
pub struct IdError {
    kind: &'static str,
    found: String,
}

fn check(kind: &'static str, text: &str, capitals: bool) -> Result<(), IdError> {
    let word = |b: u8| {
        b.is_ascii_digit() || b.is_ascii_lowercase() || (capitals && b.is_ascii_uppercase())
    };
    let bytes = text.as_bytes();
    let edges = bytes.first().is_some_and(|b| word(*b)) && bytes.last().is_some_and(|b| word(*b));
    let inner = bytes.iter().all(|b| word(*b) || matches!(b, b'-' | b'_' | b'.'));
    if edges && inner && bytes.len() <= ID_BYTES_MAX && !text.contains("..") {
        return Ok(());
    }
    Err(IdError { kind, found: text.chars().take(ID_BYTES_MAX + 4).collect() })
}

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident, $kind:literal, capitals: $capitals:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(String);

        impl $name {
            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                check($kind, text, $capitals)?;
                Ok(Self(text.to_owned()))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

text_id!(
    /// A tenant.
    OrgId, "org", capitals: false
);
text_id!(
    /// What a tenant asked to run, unique in the trust domain.
    JobId, "job", capitals: false
);
text_id!(
    /// One lease.
    LeaseId, "lease", capitals: false
);
text_id!(
    /// A node's name; its [`NodeThumbprint`] is what leases name.
    NodeId, "node", capitals: false
);
text_id!(
    /// A SPIFFE trust domain.
    TrustDomain, "trust domain", capitals: false
);
text_id!(
    /// Which key signed, an index into the key set.
    KeyId, "key id", capitals: false
);
text_id!(
    /// A containerd namespace.
    Namespace, "namespace", capitals: true
);
text_id!(
    /// A containerd container id.
    ContainerId, "container id", capitals: true
);

/// SHA-256 of the SubjectPublicKeyInfo (DER) of a node's long-lived identity key.
pub type NodeThumbprint = crate::Digest;

/// One container of one containerd.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ContainerKey {
    /// containerd namespace.
    pub namespace: Namespace,
    /// Container id in it.
    pub id: ContainerId,
}

impl fmt::Display for ContainerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn an_accepted_id_is_always_one_safe_path_component(text in "\\PC{0,90}") {
            if let Ok(id) = text.parse::<ContainerId>() {
                prop_assert!(!id.as_str().contains('/') && !id.as_str().contains(".."));
                prop_assert!(!id.as_str().starts_with(['.', '-']));
            }
        }
    }

    #[test]
    fn dots_slashes_and_empty_are_refused() {
        for bad in ["", ".", "..", "a/b", "a..b", "-a", "a-", "ä", "a b", &"a".repeat(77)] {
            assert!(bad.parse::<ContainerId>().is_err(), "{bad}");
        }
        assert!("Org".parse::<OrgId>().is_err());
        assert!("k8s.io".parse::<Namespace>().is_ok());
    }
}

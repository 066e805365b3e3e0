//! Makes what tests and the demo need: keys, attestations, a transparency log, images, good and
//! bad on purpose.
//!
//! Inputs: names, digests, trees in memory, the time that a log is to vouch for. Outputs: bundles
//! (sigstore v0.3 JSON), `trusted_root.json`, OCI images as blobs, a layout directory, or pushed to
//! a registry over plain HTTP on loopback. Images are reproducible byte for byte; keys are when
//! they come from a seed; ECDSA signatures are not (their nonce is random).
//!
//! Deliberately absent: verification (that would be a second verifier to keep honest), TLS, any
//! other algorithm than ECDSA P-256 with SHA-256.
#![forbid(unsafe_code)]

pub mod bundle;
pub mod fulcio;
pub mod image;
pub mod keys;
pub mod log;
pub mod mutate;
pub mod push;

pub use bundle::{Bundle, SLSA_PROVENANCE, bundle_with_key, provenance, statement};
pub use fulcio::{Identity, TestCa};
pub use image::{Image, ImageBuilder, Layer, busybox_image, busybox_layer};
pub use keys::KeyPair;
pub use log::TestLog;

/// Why something could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ForgeError {
    /// Key generation, signing or a key file.
    #[error("cannot {operation}")]
    Crypto {
        /// What was tried.
        operation: &'static str,
    },
    /// A certificate.
    #[error("cannot make a certificate")]
    Certificate(#[source] rcgen::Error),
    /// A file or a connection.
    #[error("cannot {operation} {at}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// Path or address.
        at: String,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// JSON that is not what it should be.
    #[error("not the expected JSON")]
    Json(#[source] serde_json::Error),
    /// The registry said no.
    #[error("registry answered {status} to {request}")]
    Registry {
        /// Method and path.
        request: String,
        /// First line of the answer.
        status: String,
    },
    /// Something that was asked for cannot be expressed.
    #[error("{0}")]
    Unfit(String),
}

impl ForgeError {
    pub(crate) fn io(
        operation: &'static str,
        at: impl std::fmt::Display,
    ) -> impl FnOnce(std::io::Error) -> Self {
        let at = at.to_string();
        move |source| Self::Io { operation, at, source }
    }

    pub(crate) const fn crypto(operation: &'static str) -> Self {
        Self::Crypto { operation }
    }
}

//! How far a bundle got with a signer, which decides the one refusal that is told.

use std::fmt;

use nimbus_api::{Refusal, RefusalCode};

/// The steps, in the order of getting further.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Reached {
    /// No signer was tried.
    Nothing,
    /// It is not this signer's.
    Stranger,
    /// It says it is this signer's (key hint, certificate), or cannot be read at all; but it is
    /// damaged, changed or forged.
    Broken,
    /// The signature is this signer's, but made outside the window in which the key is believed.
    KeyWindow,
    /// Signed by this signer, about another image.
    OtherSubject,
    /// Signed by this signer about this image, of another kind.
    OtherPredicate,
}

/// Why a signer does not vouch for a bundle.
#[derive(Debug, Clone)]
pub(crate) struct Rejection {
    pub(crate) reached: Reached,
    detail: String,
}

impl Rejection {
    pub(crate) fn new(reached: Reached, detail: impl fmt::Display) -> Self {
        Self { reached, detail: detail.to_string() }
    }

    /// Damaged, changed or forged.
    pub(crate) fn invalid(detail: impl fmt::Display) -> Self {
        Self::new(Reached::Broken, detail)
    }

    pub(crate) fn refusal(&self) -> Refusal {
        let code = match self.reached {
            Reached::Nothing | Reached::Stranger | Reached::KeyWindow => {
                RefusalCode::ImageUntrustedSigner
            }
            Reached::Broken => RefusalCode::ImageBundleInvalid,
            Reached::OtherSubject => RefusalCode::ImageWrongSubject,
            Reached::OtherPredicate => RefusalCode::ImageWrongPredicate,
        };
        Refusal::with(code, &self.detail)
    }
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.detail)
    }
}

//! Short ways to say no, and to carry a refusal through `std::io`.

use std::fmt::Display;
use std::io;

use nimbus_api::error::Chain;
use nimbus_api::{Refusal, RefusalCode};

pub(super) fn hostile(detail: impl Display) -> Refusal {
    Refusal::with(RefusalCode::ImageLayerHostile, detail)
}

pub(super) fn too_large(detail: impl Display) -> Refusal {
    Refusal::with(RefusalCode::ImageTooLarge, detail)
}

pub(super) fn malformed(detail: impl Display) -> Refusal {
    Refusal::with(RefusalCode::ImageMalformed, detail)
}

pub(super) fn mismatch(detail: impl Display) -> Refusal {
    Refusal::with(RefusalCode::ImageDigestMismatch, detail)
}

pub(super) fn tampered(detail: impl Display) -> Refusal {
    Refusal::with(RefusalCode::ImageRootfsMismatch, detail)
}

pub(super) fn unfetched(detail: impl Display) -> Refusal {
    Refusal::with(RefusalCode::ImageFetchFailed, detail)
}

/// The store's own disk failed.
pub(super) fn internal(doing: &str, error: impl Into<io::Error>) -> Refusal {
    let error = error.into();
    Refusal::with(RefusalCode::NodeInternal, format!("image store: {doing}: {error}"))
}

/// What a reader said: a refusal that was carried through it, or that its bytes make no sense.
pub(super) fn read_failed(doing: &str, error: io::Error) -> Refusal {
    match error.downcast::<Refusal>() {
        Ok(refusal) => refusal,
        Err(error) => malformed(format!("{doing}: {}", Chain(&error))),
    }
}

/// Bytes of a stranger for a person's eyes.
pub(super) fn shown(bytes: &[u8]) -> String {
    const SHOWN_BYTES: usize = 120;
    let cut = bytes.get(..SHOWN_BYTES).unwrap_or(bytes);
    let mut text = cut.escape_ascii().to_string();
    if cut.len() < bytes.len() {
        text.push_str("...");
    }
    text
}

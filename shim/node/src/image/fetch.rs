//! Fetching by digest, whatever the bytes come over: capped, hashed and counted as they come.
//!
//! A transport only moves bytes; that they are the right ones is decided here, once for all
//! transports. Nothing is parsed before its digest was checked.

use std::fs::File;
use std::io::Write;
use std::time::Duration;

use nimbus_api::{Digest, Refusal};
use sha2::{Digest as _, Sha256};

use super::document::BlobRef;
use super::limits::Deadline;
use super::refuse::{internal, mismatch, too_large};

/// Waits before the second try; doubled before each further one.
const FIRST_WAIT: Duration = Duration::from_millis(200);

/// What is to be fetched: registries keep manifests and other blobs apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wanted {
    Manifest,
    Blob,
}

/// Why bytes did not come.
#[derive(Debug)]
pub(super) enum TransportError {
    /// It may work another time.
    Transient(Refusal),
    /// It will not.
    Final(Refusal),
}

impl From<Refusal> for TransportError {
    fn from(refusal: Refusal) -> Self {
        Self::Final(refusal)
    }
}

/// Moves the bytes of one blob into a sink.
pub(super) trait Transport {
    fn get(
        &mut self,
        wanted: Wanted,
        digest: &Digest,
        sink: &mut dyn Sink,
        deadline: &Deadline,
    ) -> Result<(), TransportError>;
}

/// Takes the bytes of one blob, and refuses when there are too many.
pub(super) trait Sink {
    fn push(&mut self, bytes: &[u8]) -> Result<(), Refusal>;
}

/// How long a blob may or must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Length {
    AtMost(u64),
    Exactly(u64),
}

/// Fetches a short blob into memory.
pub(super) fn to_memory(
    transport: &mut dyn Transport,
    what: (Wanted, Digest, Length),
    tries: u32,
    deadline: &Deadline,
) -> Result<Vec<u8>, Refusal> {
    let (wanted, digest, length) = what;
    with_tries(tries, deadline, || {
        let mut sink = Checked::new(Vec::new(), digest, length);
        transport.get(wanted, &digest, &mut sink, deadline)?;
        Ok(sink.finish()?)
    })
}

/// Fetches a blob into an empty file.
pub(super) fn to_file(
    transport: &mut dyn Transport,
    blob: &BlobRef,
    file: &File,
    tries: u32,
    deadline: &Deadline,
) -> Result<(), Refusal> {
    with_tries(tries, deadline, || {
        rustix::fs::ftruncate(file, 0)
            .and_then(|()| rustix::fs::seek(file, rustix::fs::SeekFrom::Start(0)))
            .map_err(|error| internal("emptying a file", error))?;
        let mut sink = Checked::new(file, blob.digest, Length::Exactly(blob.size));
        transport.get(Wanted::Blob, &blob.digest, &mut sink, deadline)?;
        sink.finish()?;
        Ok(())
    })
}

fn with_tries<T>(
    tries: u32,
    deadline: &Deadline,
    mut once: impl FnMut() -> Result<T, TransportError>,
) -> Result<T, Refusal> {
    let mut wait = FIRST_WAIT;
    let mut left = tries;
    loop {
        deadline.check()?;
        left = left.saturating_sub(1);
        match once() {
            Ok(done) => return Ok(done),
            Err(TransportError::Transient(refusal)) if left == 0 => return Err(refusal),
            Err(TransportError::Final(refusal)) => return Err(refusal),
            Err(TransportError::Transient(refusal)) => {
                tracing::debug!(%refusal, left, "trying again");
                std::thread::sleep(wait.min(deadline.remaining()));
                wait = wait.saturating_mul(2);
            }
        }
    }
}

struct Checked<W> {
    out: W,
    expected: Digest,
    length: Length,
    hasher: Sha256,
    bytes: u64,
}

impl<W: Write> Checked<W> {
    fn new(out: W, expected: Digest, length: Length) -> Self {
        Self { out, expected, length, hasher: Sha256::new(), bytes: 0 }
    }

    fn finish(self) -> Result<W, Refusal> {
        let found = Digest::from_bytes(self.hasher.finalize().into());
        if let Length::Exactly(size) = self.length
            && size != self.bytes
        {
            return Err(mismatch(format!(
                "{} of {size} bytes came for {}",
                self.bytes, self.expected
            )));
        }
        if found != self.expected {
            return Err(mismatch(format!("expected {}, found {found}", self.expected)));
        }
        Ok(self.out)
    }
}

impl<W: Write> Sink for Checked<W> {
    fn push(&mut self, bytes: &[u8]) -> Result<(), Refusal> {
        let total = self.bytes.saturating_add(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
        match self.length {
            Length::AtMost(limit) if total > limit => {
                return Err(too_large(format!("{} has more than {limit} bytes", self.expected)));
            }
            Length::Exactly(size) if total > size => {
                return Err(mismatch(format!("more than {size} bytes came for {}", self.expected)));
            }
            Length::AtMost(_) | Length::Exactly(_) => {}
        }
        self.hasher.update(bytes);
        self.out.write_all(bytes).map_err(|error| internal("writing a blob", error))?;
        self.bytes = total;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nimbus_api::RefusalCode;

    /// Sends these bytes, after this many failures.
    struct Script {
        failures: u32,
        bytes: &'static [u8],
    }

    impl Transport for Script {
        fn get(
            &mut self,
            _: Wanted,
            _: &Digest,
            sink: &mut dyn Sink,
            _: &Deadline,
        ) -> Result<(), TransportError> {
            sink.push(self.bytes)?;
            if self.failures > 0 {
                self.failures -= 1;
                return Err(TransportError::Transient(RefusalCode::ImageFetchFailed.into()));
            }
            Ok(())
        }
    }

    fn fetch(failures: u32, length: Length, digest: Digest) -> Result<Vec<u8>, Refusal> {
        let mut script = Script { failures, bytes: b"hello" };
        to_memory(&mut script, (Wanted::Blob, digest, length), 2, &Deadline::after(60))
    }

    #[test]
    fn a_transfer_is_tried_again_but_not_for_ever() {
        let hello = Digest::of(b"hello");
        assert_eq!(fetch(1, Length::Exactly(5), hello), Ok(b"hello".to_vec()));
        let refusal = fetch(2, Length::Exactly(5), hello).unwrap_err();
        assert_eq!(refusal.code, RefusalCode::ImageFetchFailed);
    }

    #[test]
    fn wrong_bytes_and_wrong_lengths_are_refused() {
        let hello = Digest::of(b"hello");
        for (length, digest, code) in [
            (Length::AtMost(5), Digest::of(b"other"), RefusalCode::ImageDigestMismatch),
            (Length::AtMost(4), hello, RefusalCode::ImageTooLarge),
            (Length::Exactly(4), hello, RefusalCode::ImageDigestMismatch),
            (Length::Exactly(6), hello, RefusalCode::ImageDigestMismatch),
        ] {
            assert_eq!(fetch(0, length, digest).unwrap_err().code, code);
        }
    }
}

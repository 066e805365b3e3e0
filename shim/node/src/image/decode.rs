//! A compressed layer as a stream of its uncompressed bytes: counted, limited and hashed on the way.

use std::fs::File;
use std::io::{self, BufReader, Read};

use flate2::bufread::MultiGzDecoder;
use nimbus_api::{Digest, Refusal};
use sha2::{Digest as _, Sha256};

use super::limits::Deadline;
use super::refuse::{internal, too_large};

const BUFFER_BYTES: usize = 256 << 10;
/// Largest window a zstd frame may ask for, as a power of two: 128 MiB, what `zstd --ultra` needs.
const ZSTD_WINDOW_LOG_MAX: u32 = 27;

/// How a layer is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Compression {
    None,
    Gzip,
    Zstd,
}

/// Opens the uncompressed stream. Everything behind the first member or frame is read too.
pub(super) fn open(file: File, compression: Compression) -> Result<Box<dyn Read>, Refusal> {
    let file = BufReader::with_capacity(BUFFER_BYTES, file);
    Ok(match compression {
        Compression::None => Box::new(file),
        Compression::Gzip => {
            Box::new(BufReader::with_capacity(BUFFER_BYTES, MultiGzDecoder::new(file)))
        }
        Compression::Zstd => {
            let failed = |error| internal("preparing zstd", error);
            let mut decoder = zstd::Decoder::with_buffer(file).map_err(failed)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG_MAX).map_err(failed)?;
            Box::new(BufReader::with_capacity(BUFFER_BYTES, decoder))
        }
    })
}

/// Counts and hashes what passes, and stops at a limit or a deadline.
pub(super) struct Measured<R> {
    inner: R,
    hasher: Sha256,
    bytes: u64,
    limit: u64,
    deadline: Deadline,
}

impl<R: Read> Measured<R> {
    pub(super) fn new(inner: R, limit: u64, deadline: Deadline) -> Self {
        Self { inner, hasher: Sha256::new(), bytes: 0, limit, deadline }
    }

    pub(super) fn finish(self) -> (Digest, u64) {
        (Digest::from_bytes(self.hasher.finalize().into()), self.bytes)
    }
}

impl<R: Read> Read for Measured<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.deadline.check().map_err(io::Error::other)?;
        let read = self.inner.read(buffer)?;
        self.bytes = self.bytes.saturating_add(u64::try_from(read).unwrap_or(u64::MAX));
        if self.bytes > self.limit {
            return Err(io::Error::other(too_large(format!(
                "a layer unpacks to more than the {} bytes that are left",
                self.limit
            ))));
        }
        self.hasher.update(buffer.get(..read).unwrap_or_default());
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nimbus_api::RefusalCode;

    #[test]
    fn what_passes_is_hashed_and_limited() {
        let mut within = Measured::new(&b"hello"[..], 5, Deadline::after(60));
        let mut read = Vec::new();
        within.read_to_end(&mut read).unwrap();
        assert_eq!(within.finish(), (Digest::of(b"hello"), 5));

        let mut over = Measured::new(&b"hello"[..], 4, Deadline::after(60));
        let error = over.read_to_end(&mut Vec::new()).unwrap_err();
        assert_eq!(error.downcast::<Refusal>().unwrap().code, RefusalCode::ImageTooLarge);
    }
}

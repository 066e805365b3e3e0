//! Files: bounded reads, and writes that overwrite nothing secret.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use nimbus_api::{Refusal, RefusalCode};

use crate::error::CtlError;

/// Reads at most `limit` bytes; more is refused.
pub(crate) fn read(path: &Path, limit: usize) -> Result<Vec<u8>, CtlError> {
    let failed = |source| CtlError::File { what: "read", path: path.to_owned(), source };
    let file = File::open(path).map_err(failed)?;
    let mut bytes = Vec::new();
    let bound = u64::try_from(limit).unwrap_or(u64::MAX).saturating_add(1);
    file.take(bound).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() > limit {
        let found = format!("{} is longer than {limit} bytes", path.display());
        return Err(CtlError::Refused(Refusal::with(RefusalCode::RequestTooLarge, found)));
    }
    Ok(bytes)
}

/// Reads text.
pub(crate) fn read_text(path: &Path, limit: usize) -> Result<String, CtlError> {
    let bytes = read(path, limit)?;
    String::from_utf8(bytes).map_err(|error| {
        let source = std::io::Error::new(std::io::ErrorKind::InvalidData, error);
        CtlError::File { what: "read", path: path.to_owned(), source }
    })
}

/// Writes a file that may be overwritten.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<(), CtlError> {
    create(path, bytes, OpenOptions::new().write(true).create(true).truncate(true))
}

/// Writes a file that must not exist yet, readable by its owner only.
pub(crate) fn write_secret(path: &Path, bytes: &[u8]) -> Result<(), CtlError> {
    create(path, bytes, OpenOptions::new().write(true).create_new(true).mode(0o600))
}

/// Writes a public file that must not exist yet.
pub(crate) fn write_new(path: &Path, bytes: &[u8]) -> Result<(), CtlError> {
    create(path, bytes, OpenOptions::new().write(true).create_new(true))
}

fn create(path: &Path, bytes: &[u8], options: &OpenOptions) -> Result<(), CtlError> {
    let failed = |source| CtlError::File { what: "write", path: path.to_owned(), source };
    let mut file = options.open(path).map_err(failed)?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_its_owners_only_and_never_overwritten() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        write_secret(&path, b"1").unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(write_secret(&path, b"2").is_err());
        assert_eq!(read(&path, 1).unwrap(), b"1");
    }

    #[test]
    fn a_long_file_is_refused_and_not_cut() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("long");
        write(&path, b"12345").unwrap();
        assert!(matches!(
            read(&path, 4),
            Err(CtlError::Refused(refusal)) if refusal.code == RefusalCode::RequestTooLarge
        ));
    }
}

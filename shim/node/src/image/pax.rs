//! PAX extended headers, read strictly by their lengths.
//!
//! Only keys that change what an entry is are kept. A key that appears twice, or whose value does
//! not parse, is refused: two readers of one archive must not see two archives. Sparse files are
//! refused for the same reason (three incompatible encodings exist).

use std::collections::BTreeMap;

use nimbus_api::Refusal;

use super::limits::ImageLimits;
use super::refuse::{hostile, shown, too_large};

const XATTR: &[u8] = b"SCHILY.xattr.";
const SPARSE: &[u8] = b"GNU.sparse.";
const NANOS_DIGITS: usize = 9;

/// A point in time as archives know it, seconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Mtime {
    pub(super) seconds: i64,
    pub(super) nanos: u32,
}

/// Name and value of an extended attribute.
pub(super) type Xattr = (Vec<u8>, Vec<u8>);

/// What an extended header says about the entry after it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Pax {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u64>,
    pub(super) gid: Option<u64>,
    pub(super) mtime: Option<Mtime>,
    pub(super) xattrs: Vec<Xattr>,
}

impl Pax {
    pub(super) fn parse(text: &[u8], limits: &ImageLimits) -> Result<Self, Refusal> {
        let mut pax = Self::default();
        for (key, value) in records(text)? {
            pax.set(key, value, limits)?;
        }
        Ok(pax)
    }

    /// A global header may hold a comment (git writes one); anything else would change entries for
    /// some readers and not for others.
    pub(super) fn check_global(text: &[u8]) -> Result<(), Refusal> {
        match records(text)?.into_keys().find(|key| *key != b"comment") {
            None => Ok(()),
            Some(key) => Err(hostile(format!("a global PAX header sets {}", shown(key)))),
        }
    }

    fn set(&mut self, key: &[u8], value: &[u8], limits: &ImageLimits) -> Result<(), Refusal> {
        let bad = || hostile(format!("PAX {} is {}", shown(key), shown(value)));
        match key {
            b"path" => self.path = Some(value.to_vec()),
            b"linkpath" => self.link = Some(value.to_vec()),
            b"size" => self.size = Some(decimal(value).ok_or_else(bad)?),
            b"uid" => self.uid = Some(decimal(value).ok_or_else(bad)?),
            b"gid" => self.gid = Some(decimal(value).ok_or_else(bad)?),
            b"mtime" => self.mtime = Some(mtime(value).ok_or_else(bad)?),
            key if key.starts_with(SPARSE) => {
                return Err(hostile("a sparse file; sparse archives are not read"));
            }
            key if key.starts_with(XATTR) => {
                if self.xattrs.len() >= limits.xattrs || value.len() > limits.xattr_bytes {
                    return Err(too_large(format!(
                        "more than {} extended attributes, or one over {} bytes",
                        limits.xattrs, limits.xattr_bytes
                    )));
                }
                let name = key.get(XATTR.len()..).unwrap_or(b"");
                self.xattrs.push((name.to_vec(), value.to_vec()));
            }
            // Names of users and groups, access times, comments, vendors' notes: nothing that is
            // unpacked.
            _ => {}
        }
        Ok(())
    }
}

/// `"%d %s=%s\n"`, where the number is the length of the whole record.
fn records(mut text: &[u8]) -> Result<BTreeMap<&[u8], &[u8]>, Refusal> {
    let mut found = BTreeMap::new();
    while !text.is_empty() {
        let (key, value, rest) =
            record(text).ok_or_else(|| hostile("a PAX header that cannot be read"))?;
        if found.insert(key, value).is_some() {
            return Err(hostile(format!("a PAX header sets {} twice", shown(key))));
        }
        text = rest;
    }
    Ok(found)
}

fn record(text: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = text.iter().take(20).position(|b| *b == b' ')?;
    let length = usize::try_from(decimal(text.get(..space)?)?).ok()?;
    let body = text.get(space + 1..length)?.strip_suffix(b"\n")?;
    let equals = body.iter().position(|b| *b == b'=')?;
    let key = body.get(..equals).filter(|key| !key.is_empty())?;
    Some((key, body.get(equals + 1..)?, text.get(length..)?))
}

fn decimal(text: &[u8]) -> Option<u64> {
    let digits = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    if digits { std::str::from_utf8(text).ok()?.parse().ok() } else { None }
}

fn mtime(text: &[u8]) -> Option<Mtime> {
    let (negative, text) = match text.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let mut parts = text.splitn(2, |b| *b == b'.');
    let seconds = i64::try_from(decimal(parts.next()?)?).ok()?;
    let mut nanos = 0;
    if let Some(fraction) = parts.next() {
        if !fraction.iter().all(u8::is_ascii_digit) {
            return None;
        }
        for at in 0..NANOS_DIGITS {
            nanos = nanos * 10 + u32::from(fraction.get(at).map_or(0, |b| b - b'0'));
        }
    }
    match (negative, nanos) {
        (false, _) => Some(Mtime { seconds, nanos }),
        (true, 0) => Some(Mtime { seconds: -seconds, nanos }),
        (true, _) => Some(Mtime { seconds: -seconds - 1, nanos: 1_000_000_000 - nanos }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(text: &[u8]) -> Result<Pax, Refusal> {
        Pax::parse(text, &ImageLimits::default())
    }

    #[test]
    fn what_tars_write_is_read() {
        let text = b"12 path=a/b\n16 linkpath=x\ny\n30 mtime=1700000000.123456789\n11 uid=070\n22 SCHILY.xattr.u.a=\n\n";
        let pax = parse(text).unwrap();
        assert_eq!(pax.path.as_deref(), Some(&b"a/b"[..]));
        assert_eq!(pax.link.as_deref(), Some(&b"x\ny"[..]));
        assert_eq!(pax.mtime, Some(Mtime { seconds: 1_700_000_000, nanos: 123_456_789 }));
        assert_eq!(pax.uid, Some(70));
        assert_eq!(pax.xattrs, [(b"u.a".to_vec(), b"\n".to_vec())]);
    }

    #[test]
    fn times_before_1970_borrow_from_the_seconds() {
        assert_eq!(mtime(b"-1.25"), Some(Mtime { seconds: -2, nanos: 750_000_000 }));
        assert_eq!(mtime(b"-3"), Some(Mtime { seconds: -3, nanos: 0 }));
        assert_eq!(mtime(b"1e9"), None);
        assert_eq!(mtime(b"9223372036854775808"), None);
    }

    #[test]
    fn headers_that_can_be_read_in_two_ways_are_refused() {
        for bad in [
            &b"10 path=a\n10 path=b\n"[..],
            b"11 path=a\n",
            b"8 path=a\n",
            b"10 path=a",
            b"10 size=+\n",
            b"x",
            b"4 =\n",
            b"22 GNU.sparse.major=1\n",
            b"18446744073709551615 a=b\n",
        ] {
            assert!(parse(bad).is_err(), "{}", shown(bad));
        }
        assert!(Pax::check_global(b"13 comment=x\n").is_ok());
        assert!(Pax::check_global(b"10 path=a\n").is_err());
    }

    proptest! {
        #[test]
        fn no_header_panics_the_parser(text: Vec<u8>) {
            let _unused = parse(&text);
        }

        #[test]
        fn a_written_record_reads_back(value in proptest::collection::vec(any::<u8>(), 0..200)) {
            let body = [b" path=", &value[..], b"\n"].concat();
            let mut length = body.len() + 1;
            while length != body.len() + length.to_string().len() {
                length = body.len() + length.to_string().len();
            }
            let text = [length.to_string().as_bytes(), &body].concat();
            prop_assert_eq!(parse(&text).unwrap().path, Some(value));
        }
    }
}

//! Amounts as people write them: `500m` of a core, `256MiB`, `10m` of time, `1000:1000`.

const KIB: u64 = 1 << 10;
const KILO: u64 = 1000;
/// Unit names with their bytes; the longest that fits is taken.
const SIZES: [(&str, u64); 13] = [
    ("KiB", KIB),
    ("MiB", KIB * KIB),
    ("GiB", KIB * KIB * KIB),
    ("TiB", KIB * KIB * KIB * KIB),
    ("kB", KILO),
    ("MB", KILO * KILO),
    ("GB", KILO * KILO * KILO),
    ("TB", KILO * KILO * KILO * KILO),
    ("Ki", KIB),
    ("Mi", KIB * KIB),
    ("Gi", KIB * KIB * KIB),
    ("B", 1),
    ("", 1),
];
const DURATIONS: [(&str, u64); 4] = [("h", 3600), ("m", 60), ("s", 1), ("", 1)];

fn with_unit(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at_checked(digits)?;
    let factor = units.iter().find(|(name, _)| *name == unit.trim_start())?.1;
    number.parse::<u64>().ok()?.checked_mul(factor)
}

/// Bytes.
pub(crate) fn size(text: &str) -> Result<u64, String> {
    with_unit(text.trim(), &SIZES)
        .filter(|bytes| *bytes > 0)
        .ok_or_else(|| "expected a size such as 64MiB, 1GiB or 1048576".to_owned())
}

/// Whole seconds.
pub(crate) fn seconds(text: &str) -> Result<u32, String> {
    with_unit(text.trim(), &DURATIONS)
        .and_then(|seconds| u32::try_from(seconds).ok())
        .filter(|seconds| *seconds > 0)
        .ok_or_else(|| "expected a time such as 90s, 10m, 2h or 90".to_owned())
}

/// Thousandths of a core.
pub(crate) fn cpu(text: &str) -> Result<u32, String> {
    let wrong = || "expected an amount of CPU such as 500m, 2 or 1.5".to_owned();
    let text = text.trim();
    let millis = text.strip_suffix('m').map_or_else(|| cores(text), whole);
    millis.filter(|millis| *millis > 0).ok_or_else(wrong)
}

/// `2` or `1.5`, in thousandths.
fn cores(text: &str) -> Option<u32> {
    let (cores, part) = text.split_once('.').unwrap_or((text, "0"));
    let scale = [1000, 100, 10, 1].get(part.len()).filter(|_| !part.is_empty())?;
    let part = whole(part)?.checked_mul(*scale)?;
    whole(cores)?.checked_mul(1000)?.checked_add(part)
}

fn whole(text: &str) -> Option<u32> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    text.parse().ok().filter(|_: &u32| digits)
}

/// A numeric user and group. Names are not taken: whose `/etc/passwd` would they be read in?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

/// `UID[:GID]`; the group is the user's number when it is left out.
pub(crate) fn user(text: &str) -> Result<User, String> {
    let (uid, gid) = text.split_once(':').unwrap_or((text, text));
    match (whole(uid), whole(gid)) {
        (Some(uid), Some(gid)) if uid.max(gid) < 1 << 31 => Ok(User { uid, gid }),
        _ => Err("expected UID or UID:GID, both numbers below 2147483648".to_owned()),
    }
}

/// `KEY=VALUE`.
pub(crate) fn env(text: &str) -> Result<String, String> {
    match text.split_once('=') {
        Some((key, _)) if !key.is_empty() && !text.contains('\0') => Ok(text.to_owned()),
        _ => Err("expected KEY=VALUE".to_owned()),
    }
}

/// Bytes for people.
pub(crate) fn show_size(bytes: u64) -> String {
    let units = [("GiB", KIB * KIB * KIB), ("MiB", KIB * KIB), ("KiB", KIB)];
    match units.iter().find(|(_, factor)| bytes >= *factor && bytes.is_multiple_of(*factor)) {
        Some((unit, factor)) => format!("{}{unit}", bytes / factor),
        None => format!("{bytes}B"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_times_and_shares_read_as_people_write_them() {
        for (text, bytes) in
            [("64MiB", 64 << 20), ("1GiB", 1 << 30), ("5 kB", 5000), ("7", 7), ("2Gi", 2 << 30)]
        {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for (text, expected) in [("10m", 600), ("90s", 90), ("2h", 7200), ("45", 45)] {
            assert_eq!(seconds(text), Ok(expected), "{text}");
        }
        for (text, expected) in [("500m", 500), ("2", 2000), ("1.5", 1500), ("0.25", 250)] {
            assert_eq!(cpu(text), Ok(expected), "{text}");
        }
        assert_eq!(user("7"), Ok(User { uid: 7, gid: 7 }));
        assert_eq!(user("7:8"), Ok(User { uid: 7, gid: 8 }));
    }

    #[test]
    fn nonsense_and_what_does_not_fit_are_refused() {
        for bad in ["", "x", "0", "-1", "1XB", "99999999999TiB", "1.5GiB", "MiB"] {
            assert!(size(bad).is_err(), "{bad}");
        }
        for bad in ["", "1d", "0s", "-1", "99999999h", "m"] {
            assert!(seconds(bad).is_err(), "{bad}");
        }
        for bad in ["", "m", "0", "1.2345", "+1", "1.", ".5", "9999999"] {
            assert!(cpu(bad).is_err(), "{bad}");
        }
        for bad in ["", "root", "1:", ":1", "2147483648", "1:2:3", "+1"] {
            assert!(user(bad).is_err(), "{bad}");
        }
        assert!(env("=x").is_err() && env("x").is_err() && env("x=").is_ok());
    }

    #[test]
    fn sizes_are_shown_in_the_largest_whole_unit() {
        assert_eq!(show_size(64 << 20), "64MiB");
        assert_eq!(show_size(1025), "1025B");
    }
}

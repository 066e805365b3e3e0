//! The formats of cgroup files and `/proc/<pid>/net/dev`, as texts: lenient, because a figure that
//! cannot be read is no reason to give none of the others.

use std::fs;
use std::path::Path;

use crate::cgroup::field;

/// Most entries of one list: devices, interfaces, page sizes.
const ENTRIES_MAX: usize = 1024;

/// A file of `name number` lines; empty when it is not there.
pub(super) struct Flat(String);

impl Flat {
    pub(super) fn read(dir: Option<&Path>, name: &str) -> Self {
        Self(dir.map(|dir| text(dir, name)).unwrap_or_default())
    }

    /// The number behind a name; zero when it is not there.
    pub(super) fn get(&self, name: &str) -> u64 {
        self.find(name).unwrap_or(0)
    }

    pub(super) fn find(&self, name: &str) -> Option<u64> {
        field(&self.0, name)
    }
}

/// A file; empty when it cannot be read.
pub(super) fn text(dir: &Path, name: &str) -> String {
    fs::read_to_string(dir.join(name)).unwrap_or_default()
}

/// A file of one number.
pub(super) fn number(dir: &Path, name: &str) -> u64 {
    limit(text(dir, name).trim())
}

/// A number or `max`.
fn limit(text: &str) -> u64 {
    if text == "max" { u64::MAX } else { text.parse().unwrap_or(0) }
}

/// `8:0` as two numbers.
fn device(text: &str) -> Option<(u64, u64)> {
    let (major, minor) = text.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// One line of a v1 `blkio` file.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Blkio<'a> {
    pub(super) device: (u64, u64),
    /// Empty in files that do not tell operations apart.
    pub(super) op: &'a str,
    pub(super) value: u64,
}

/// Lines of `8:0 Read 123` or `8:0 123`. The sum of all devices at the end has no device.
pub(super) fn blkio(text: &str) -> impl Iterator<Item = Blkio<'_>> {
    let line = |line| -> Option<Blkio<'_>> {
        let words: Vec<&str> = str::split_ascii_whitespace(line).collect();
        let (at, op, value) = match words.as_slice() {
            [at, op, value] => (*at, *op, *value),
            [at, value] => (*at, "", *value),
            _ => return None,
        };
        Some(Blkio { device: device(at)?, op, value: value.parse().ok()? })
    };
    text.lines().filter_map(line).take(ENTRIES_MAX)
}

/// Lines that begin with a name and go on with `key=value` words (`io.stat`, `rdma.*`, pressure).
pub(super) fn nested(text: &str) -> impl Iterator<Item = (&str, Keyed<'_>)> {
    let line = text.lines().filter_map(|line| line.split_once(' '));
    let keyed = line.filter(|(_, rest)| rest.contains('='));
    keyed.map(|(name, rest)| (name, Keyed(rest))).take(ENTRIES_MAX)
}

/// Words of `key=value`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Keyed<'a>(&'a str);

impl Keyed<'_> {
    fn find(&self, key: &str) -> Option<&str> {
        let mut words = self.0.split_ascii_whitespace().filter_map(|word| word.split_once('='));
        words.find(|(found, _)| *found == key).map(|(_, value)| value)
    }

    pub(super) fn get(&self, key: &str) -> u64 {
        self.find(key).map_or(0, limit)
    }

    pub(super) fn float(&self, key: &str) -> f64 {
        self.find(key).and_then(|value| value.parse().ok()).unwrap_or(0.0)
    }
}

/// The device that a line is of, where lines begin with one.
pub(super) fn device_of(name: &str) -> Option<(u64, u64)> {
    device(name)
}

/// The page sizes that a group of `hugetlb.` files is of, sorted: the middle of the names that end so.
pub(super) fn page_sizes(dir: &Path, suffix: &str) -> Vec<String> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let mut sizes: Vec<String> = entries
        .filter_map(|entry| {
            let name = entry.ok()?.file_name().into_string().ok()?;
            let size = name.strip_prefix("hugetlb.")?.strip_suffix(suffix)?.strip_suffix('.')?;
            // `2MB.rsvd` is another account of the same pages.
            (!size.contains('.')).then(|| size.to_owned())
        })
        .take(ENTRIES_MAX)
        .collect();
    sizes.sort();
    sizes
}

/// One interface of `/proc/<pid>/net/dev`: bytes, packets, errors and drops, received and sent.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Interface<'a> {
    pub(super) name: &'a str,
    pub(super) received: [u64; 4],
    pub(super) sent: [u64; 4],
}

fn interface(line: &str) -> Option<Interface<'_>> {
    let (name, figures) = line.split_once(':')?;
    let figures: Vec<u64> =
        figures.split_ascii_whitespace().filter_map(|word| word.parse().ok()).collect();
    let received = figures.get(0..4)?.try_into().ok()?;
    let sent = figures.get(8..12)?.try_into().ok()?;
    Some(Interface { name: name.trim(), received, sent })
}

/// The interfaces of a network namespace; two lines of headings have no colon.
pub(super) fn interfaces(net_dev: &str) -> impl Iterator<Item = Interface<'_>> {
    net_dev.lines().filter_map(interface).take(ENTRIES_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn no_text_panics_a_parser(text in "([a-z0-9:=. \\n]|max|8:0|\\PC){0,200}") {
            blkio(&text).for_each(drop);
            interfaces(&text).for_each(drop);
            for (name, keyed) in nested(&text) {
                device_of(name);
                keyed.get("a");
                keyed.float("a");
            }
            Flat(text).get("a");
        }
    }

    #[test]
    fn lines_of_either_kind_of_blkio_file_are_read_and_sums_are_not() {
        let read: Vec<_> = blkio("8:0 Read 1\n8:0 2\nTotal 3\n8:x Read 1\n8:0 Read x\n").collect();
        let one = |op, value| Blkio { device: (8, 0), op, value };
        assert_eq!(read, [one("Read", 1), one("", 2)]);
    }
}

//! What the options of a mount mean. Pure.
//!
//! Flags of the mount itself and flags of the file system are kept apart, because the first belong to
//! one mount and the second to everybody who has the file system mounted. What is no flag goes to the
//! file system by its name, which refuses what it does not know.
#![forbid(unsafe_code)]

use rustix::mount::{MountAttrFlags, MountPropagationFlags};

/// Options, sorted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Options {
    /// Attributes of the mount that are set.
    pub(crate) set: u32,
    /// Attributes that are cleared.
    pub(crate) clear: u32,
    /// The same for everything below as well.
    pub(crate) set_below: u32,
    pub(crate) clear_below: u32,
    /// In order.
    pub(crate) propagation: Vec<MountPropagationFlags>,
    pub(crate) bind: bool,
    /// With what is mounted below it.
    pub(crate) recursive: bool,
    /// Parameters of the file system: a name, and a value unless it is a flag.
    pub(crate) parameters: Vec<(String, Option<String>)>,
}

impl Options {
    /// Whether the mount is read-only.
    pub(crate) const fn read_only(&self) -> bool {
        (self.set | self.set_below) & READ_ONLY != 0
    }
}

/// The attribute that keeps everybody from writing.
pub(crate) const READ_ONLY: u32 = MountAttrFlags::MOUNT_ATTR_RDONLY.bits();
const NOSUID: u32 = MountAttrFlags::MOUNT_ATTR_NOSUID.bits();
const NODEV: u32 = MountAttrFlags::MOUNT_ATTR_NODEV.bits();
const NOEXEC: u32 = MountAttrFlags::MOUNT_ATTR_NOEXEC.bits();
const NODIRATIME: u32 = MountAttrFlags::MOUNT_ATTR_NODIRATIME.bits();
const NOSYMFOLLOW: u32 = MountAttrFlags::MOUNT_ATTR_NOSYMFOLLOW.bits();
/// The three bits of one choice.
const ATIME: u32 = MountAttrFlags::MOUNT_ATTR__ATIME.bits();
const NOATIME: u32 = MountAttrFlags::MOUNT_ATTR_NOATIME.bits();
const STRICTATIME: u32 = MountAttrFlags::MOUNT_ATTR_STRICTATIME.bits();

/// Names of attributes: which bits are set, which are cleared first.
const ATTRIBUTES: [(&str, u32, u32); 16] = [
    ("ro", READ_ONLY, 0),
    ("rw", 0, READ_ONLY),
    ("nosuid", NOSUID, 0),
    ("suid", 0, NOSUID),
    ("nodev", NODEV, 0),
    ("dev", 0, NODEV),
    ("noexec", NOEXEC, 0),
    ("exec", 0, NOEXEC),
    ("nodiratime", NODIRATIME, 0),
    ("diratime", 0, NODIRATIME),
    ("nosymfollow", NOSYMFOLLOW, 0),
    ("symfollow", 0, NOSYMFOLLOW),
    ("relatime", 0, ATIME),
    ("noatime", NOATIME, ATIME),
    ("strictatime", STRICTATIME, ATIME),
    ("norelatime", STRICTATIME, ATIME),
];

/// Sorts options.
pub(crate) fn parse(options: &[String]) -> Options {
    let mut found = Options::default();
    for option in options {
        if let Some((_, set, clear)) = ATTRIBUTES.iter().find(|(name, ..)| name == option) {
            turn(&mut found.set, &mut found.clear, *set, *clear);
            continue;
        }
        let below = option.strip_prefix('r');
        if let Some((_, set, clear)) =
            ATTRIBUTES.iter().find(|(name, ..)| below == Some(name) && option != "rw")
        {
            turn(&mut found.set_below, &mut found.clear_below, *set, *clear);
            continue;
        }
        match option.as_str() {
            "defaults" | "" => {}
            "bind" => found.bind = true,
            "rbind" => (found.bind, found.recursive) = (true, true),
            name => match propagation(name) {
                Some(flags) => found.propagation.push(flags),
                None => found.parameters.push(match name.split_once('=') {
                    Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
                    None => (name.to_owned(), None),
                }),
            },
        }
    }
    found
}

/// The later of two options that contradict each other holds.
const fn turn(all_set: &mut u32, all_clear: &mut u32, set: u32, clear: u32) {
    *all_set = (*all_set & !clear) | set;
    *all_clear = (*all_clear & !set) | clear;
}

/// How mounts travel, by name.
pub(crate) fn propagation(name: &str) -> Option<MountPropagationFlags> {
    let below = MountPropagationFlags::REC;
    Some(match name {
        "private" => MountPropagationFlags::PRIVATE,
        "rprivate" => MountPropagationFlags::PRIVATE | below,
        "slave" => MountPropagationFlags::DOWNSTREAM,
        "rslave" => MountPropagationFlags::DOWNSTREAM | below,
        "shared" => MountPropagationFlags::SHARED,
        "rshared" => MountPropagationFlags::SHARED | below,
        "unbindable" => MountPropagationFlags::UNBINDABLE,
        "runbindable" => MountPropagationFlags::UNBINDABLE | below,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(options: &[&str]) -> Options {
        parse(&options.iter().map(|one| (*one).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn flags_of_the_mount_and_of_the_file_system_are_kept_apart() {
        let found = of(&["nosuid", "strictatime", "mode=755", "newinstance", "defaults"]);
        assert_eq!((found.set, found.clear), (NOSUID | STRICTATIME, ATIME));
        let names: Vec<_> = found.parameters.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["mode", "newinstance"]);
        assert!(!found.bind && !found.read_only() && found.propagation.is_empty());
    }

    #[test]
    fn the_later_of_two_that_contradict_holds_and_recursive_ones_are_of_their_own() {
        assert_eq!(of(&["ro", "rw"]).set, 0);
        assert_eq!(of(&["rw", "ro"]).clear, 0);
        assert!(of(&["rw", "ro"]).read_only());
        let found = of(&["rbind", "rro", "rprivate"]);
        assert_eq!((found.set, found.set_below, found.recursive), (0, READ_ONLY, true));
        assert_eq!(found.propagation.len(), 1);
        // Not `r` and `w`, nor `r` and `elatime`.
        assert_eq!(of(&["rw"]).set_below, 0);
        assert_eq!(of(&["relatime"]).clear, ATIME);
    }
}

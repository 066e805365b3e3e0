//! Unpacks one layer into one directory, which overlayfs then stacks as it is.
//!
//! Every path is resolved from the layer's root descriptor with `openat2`, beneath it and through
//! no symbolic link (rule 6). An entry below a symbolic link is refused: of the same layer because
//! that is how layers escape, of a lower layer because a directory of its own would silently shadow
//! the link. Hard links lead to entries of the same layer only; builders write no others.
//!
//! OCI whiteouts become overlayfs's: a character device 0:0, or `trusted.overlay.opaque`. They say
//! something of lower layers only, wherever in the archive they stand, and so they are noted first
//! and made last: only where lower layers have something that neither another whiteout nor an entry
//! of this layer has hidden, so that none ever shows, and nothing is there for the sake of a whiteout
//! below it. A directory that a layer implies but does not list has the attributes of the one below
//! it, if that is not hidden, else 0755, root, 1970; that is decided last as well.
//!
//! Kept: numeric owners below 2^31, all mode bits (set-user-id too: jobs run with no_new_privs on a
//! nosuid mount, where it does nothing), times, `user.*` attributes. A later entry of the same path
//! replaces an earlier one, except that directories merge.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::io::{Read, Write};
use std::ops::Bound;
use std::os::fd::{AsFd, OwnedFd};

use nimbus_api::Refusal;
use rustix::fs::{self, AtFlags, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid};
use rustix::io::Errno;

use super::archive::{Attributes, Entry, EntryKind, MODE_BITS};
use super::files::{BELOW, PRIVATE_DIR, PRIVATE_FILE, file_type, lstat, open_dir};
use super::limits::{Deadline, ImageLimits};
use super::merged::{Found, Stack, set_opaque};
use super::path::{LayerPath, ancestors};
use super::pax::Mtime;
use super::refuse::{hostile, internal, malformed, read_failed, shown, too_large};
use super::tree;

const IMPLIED_MODE: u32 = 0o755;
const COPY_BYTES: usize = 128 << 10;

/// How much of what lower layers have at a path is gone; the greater says more.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Whiteout {
    /// What is in the directory.
    Content,
    All,
}

/// One layer being unpacked.
pub(super) struct Unpacker<'a> {
    root: OwnedFd,
    lower: &'a Stack,
    limits: &'a ImageLimits,
    deadline: Deadline,
    entries: u64,
    /// Times of directories by inode, set when nothing more is put into them.
    times: HashMap<u64, Mtime>,
    /// What whiteouts take away from lower layers, by path.
    whiteouts: BTreeMap<Vec<u8>, Whiteout>,
    /// Directories in the place of something that this layer had put there.
    replaced: BTreeSet<Vec<u8>>,
    /// Directories that were made because something is in them.
    implied: BTreeSet<Vec<u8>>,
    /// What their names took, whatever has become of them.
    implied_bytes: u64,
    /// Those of them that were listed later.
    listed: BTreeSet<Vec<u8>>,
    /// The directory that the last entry was in.
    last_parent: Option<(Vec<u8>, OwnedFd)>,
    buffer: Vec<u8>,
}

impl<'a> Unpacker<'a> {
    /// `root` is an empty directory.
    pub(super) fn new(
        root: OwnedFd,
        lower: &'a Stack,
        limits: &'a ImageLimits,
        deadline: Deadline,
    ) -> Result<Self, Refusal> {
        let mut unpacker = Self {
            root,
            lower,
            limits,
            deadline,
            entries: 0,
            times: HashMap::new(),
            whiteouts: BTreeMap::new(),
            replaced: BTreeSet::new(),
            implied: BTreeSet::new(),
            implied_bytes: 0,
            listed: BTreeSet::new(),
            last_parent: None,
            buffer: vec![0; COPY_BYTES],
        };
        let below = lower.top().map(fs::fstat).transpose();
        let below = below.map_err(|error| internal("reading a layer's root", error))?;
        let root = open_dir(&unpacker.root, b".")
            .map_err(|error| internal("opening a layer's root", error))?;
        unpacker.imply(root.as_fd(), below.as_ref())?;
        Ok(unpacker)
    }

    /// Makes one entry; `data` has exactly its bytes.
    pub(super) fn apply(&mut self, entry: &Entry, data: &mut dyn Read) -> Result<(), Refusal> {
        self.count_entry()?;
        match &entry.kind {
            EntryKind::Directory => self.directory(entry),
            EntryKind::File { size } => self.file(entry, *size, data),
            EntryKind::Symlink { target } => self.symlink(entry, target),
            EntryKind::HardLink { target } => self.hard_link(entry, target),
            EntryKind::Fifo => self.fifo(entry),
            EntryKind::Whiteout => self.whiteout(&entry.path, Whiteout::All),
            EntryKind::Opaque => self.whiteout(&entry.path, Whiteout::Content),
        }
    }

    /// Makes the whiteouts, gives implied directories their attributes and sets the times of all; the
    /// number of entries.
    pub(super) fn finish(mut self) -> Result<u64, Refusal> {
        self.make_whiteouts()?;
        self.dress_implied()?;
        self.last_parent = None;
        let times = &self.times;
        tree::for_each_directory(&self.root, self.limits.depth, &mut |dir, stat| {
            let mtime = times.get(&stat.st_ino).copied().unwrap_or_default();
            fs::futimens(dir, &timestamps(mtime))
        })
        .map_err(|error| internal("setting times", error))?;
        Ok(self.entries)
    }

    fn count_entry(&mut self) -> Result<(), Refusal> {
        self.entries += 1;
        if self.entries > self.limits.entries {
            return Err(too_large(format!(
                "a layer has more than {} entries",
                self.limits.entries
            )));
        }
        self.deadline.check()
    }

    fn directory(&mut self, entry: &Entry) -> Result<(), Refusal> {
        let failed = |error: Errno| made(&entry.path, error);
        let dir = if entry.path.is_root() {
            open_dir(&self.root, b".").map_err(failed)?
        } else {
            let (parent_path, name) = entry.path.split();
            let parent = self.parent(parent_path)?;
            match lstat(&parent, name).map_err(failed)? {
                Some(stat) if file_type(&stat) == FileType::Directory => {
                    open_dir(&parent, name).map_err(failed)?
                }
                other => self.new_directory(parent.as_fd(), &entry.path, other.is_some())?,
            }
        };
        if self.implied.contains(entry.path.as_bytes()) {
            self.listed.insert(entry.path.as_bytes().to_vec());
        }
        self.dress_directory(dir.as_fd(), &entry.attributes).map_err(failed)
    }

    /// Makes a directory where none is; `instead` of something that this layer had put there, and
    /// which hides what lower layers have.
    fn new_directory(
        &mut self,
        parent: impl AsFd,
        path: &LayerPath,
        instead: bool,
    ) -> Result<OwnedFd, Refusal> {
        let failed = |error: Errno| made(path, error);
        let (_, name) = path.split();
        if instead {
            fs::unlinkat(&parent, name, AtFlags::empty()).map_err(failed)?;
        }
        fs::mkdirat(&parent, name, PRIVATE_DIR).map_err(failed)?;
        let dir = open_dir(&parent, name).map_err(failed)?;
        if instead {
            set_opaque(&dir).map_err(failed)?;
            self.replaced.insert(path.as_bytes().to_vec());
        }
        Ok(dir)
    }

    fn dress_directory(&mut self, dir: impl AsFd, attributes: &Attributes) -> Result<(), Errno> {
        let dir = dir.as_fd();
        self.times.insert(fs::fstat(dir)?.st_ino, attributes.mtime);
        dress(dir, attributes)
    }

    fn file(&mut self, entry: &Entry, size: u64, data: &mut dyn Read) -> Result<(), Refusal> {
        let failed = |error: Errno| made(&entry.path, error);
        let (parent, name) = self.room_for(&entry.path)?;
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = fs::openat2(&parent, name, flags, PRIVATE_FILE, BELOW).map_err(failed)?;
        let mut file = File::from(fd);
        let mut left = size;
        while left > 0 {
            let read = data
                .read(&mut self.buffer)
                .map_err(|error| read_failed("reading a file", error))?;
            let bytes = self.buffer.get(..read).unwrap_or_default();
            if bytes.is_empty() {
                return Err(malformed(format!("a layer ends inside {}", entry.path.shown())));
            }
            file.write_all(bytes).map_err(|error| made(&entry.path, error))?;
            left = left.saturating_sub(u64::try_from(read).unwrap_or(u64::MAX));
        }
        dress(file.as_fd(), &entry.attributes)
            .and_then(|()| fs::futimens(&file, &timestamps(entry.attributes.mtime)))
            .map_err(failed)
    }

    fn symlink(&mut self, entry: &Entry, target: &[u8]) -> Result<(), Refusal> {
        let (parent, name) = self.room_for(&entry.path)?;
        fs::symlinkat(target, &parent, name)
            .and_then(|()| dress_named(&parent, name, &entry.attributes))
            .map_err(|error| made(&entry.path, error))
    }

    fn fifo(&mut self, entry: &Entry) -> Result<(), Refusal> {
        let (parent, name) = self.room_for(&entry.path)?;
        let mode = Mode::from_raw_mode(entry.attributes.mode);
        fs::mknodat(&parent, name, FileType::Fifo, PRIVATE_FILE, 0)
            .and_then(|()| dress_named(&parent, name, &entry.attributes))
            // It was made a moment ago in a directory that only root can reach: no symbolic link.
            .and_then(|()| fs::chmodat(&parent, name, mode, AtFlags::empty()))
            .map_err(|error| made(&entry.path, error))
    }

    fn hard_link(&mut self, entry: &Entry, target: &LayerPath) -> Result<(), Refusal> {
        let failed = |error: Errno| made(&entry.path, error);
        let shown_link = || format!("{} to {}", entry.path.shown(), target.shown());
        let (target_parent, target_name) = target.split();
        if target_name.is_empty() || *target == entry.path {
            return Err(hostile(format!("a hard link to itself or the root: {}", shown_link())));
        }
        let elsewhere =
            || hostile(format!("a hard link to nothing in the same layer: {}", shown_link()));
        let source = match open_dir(&self.root, dot_if_empty(target_parent)) {
            Ok(dir) => dir,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Err(elsewhere()),
            Err(error) => return Err(failed(error)),
        };
        let stat = lstat(&source, target_name).map_err(failed)?.ok_or_else(elsewhere)?;
        let linkable =
            matches!(file_type(&stat), FileType::RegularFile | FileType::Symlink | FileType::Fifo);
        if !linkable {
            return Err(hostile(format!("a hard link to no file: {}", shown_link())));
        }
        // Of another width on other architectures.
        if u128::from(stat.st_nlink) >= u128::from(self.limits.hard_links) {
            return Err(too_large(format!(
                "a file with more than {} hard links",
                self.limits.hard_links
            )));
        }
        let (parent, name) = self.room_for(&entry.path)?;
        // Making room may have removed the target (a link in place of the directory it is in).
        match fs::linkat(&source, target_name, &parent, name, AtFlags::empty()) {
            Err(Errno::NOENT) => Err(elsewhere()),
            other => other.map_err(failed),
        }
    }

    /// Notes a whiteout.
    fn whiteout(&mut self, path: &LayerPath, what: Whiteout) -> Result<(), Refusal> {
        if path.is_root() {
            return Err(hostile("a layer that hides the whole root below it"));
        }
        let noted = self.whiteouts.entry(path.as_bytes().to_vec()).or_insert(what);
        *noted = what.max(*noted);
        Ok(())
    }

    fn make_whiteouts(&mut self) -> Result<(), Refusal> {
        let mut last: Option<Vec<u8>> = None;
        loop {
            let after = last.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
            let mut rest = self.whiteouts.range::<[u8], _>((after, Bound::Unbounded));
            let Some((path, what)) = rest.next() else { return Ok(()) };
            let (bytes, what) = (path.clone(), *what);
            self.deadline.check()?;
            let path = LayerPath::parse(&bytes, self.limits)?;
            if !self.is_covered(&path, what)? && self.is_below(&path)? {
                match what {
                    Whiteout::All => self.hide(&path)?,
                    Whiteout::Content => self.hide_content(&path)?,
                }
            }
            last = Some(bytes);
        }
    }

    /// Whether this layer has put something else than a directory where the whiteout would be.
    fn is_covered(&self, path: &LayerPath, what: Whiteout) -> Result<bool, Refusal> {
        let dir = match what {
            Whiteout::All => path.split().0,
            Whiteout::Content => path.as_bytes(),
        };
        match open_dir(&self.root, dot_if_empty(dir)) {
            Ok(_) | Err(Errno::NOENT) => Ok(false),
            Err(Errno::NOTDIR | Errno::LOOP) => Ok(true),
            Err(error) => Err(internal(&format!("opening {}", shown(dir)), error)),
        }
    }

    fn dress_implied(&mut self) -> Result<(), Refusal> {
        for path in std::mem::take(&mut self.implied) {
            self.deadline.check()?;
            // Also where it was listed: something was to go through what is there.
            let below = self.directory_below(&LayerPath::parse(&path, self.limits)?)?;
            if self.listed.contains(&path) {
                continue;
            }
            let dir = open_dir(&self.root, &path)
                .map_err(|error| internal(&format!("opening {}", shown(&path)), error))?;
            self.imply(dir.as_fd(), below.as_ref())?;
        }
        Ok(())
    }

    /// `path` is gone, if this layer has not put something else there.
    fn hide(&mut self, path: &LayerPath) -> Result<(), Refusal> {
        let failed = |error: Errno| made(path, error);
        let (parent_path, name) = path.split();
        let parent = self.parent(parent_path)?;
        match lstat(&parent, name).map_err(failed)? {
            None => fs::mknodat(&parent, name, FileType::CharacterDevice, Mode::empty(), 0)
                .map_err(failed),
            Some(stat) if file_type(&stat) == FileType::Directory => self.hide_content(path),
            Some(_) => Ok(()),
        }
    }

    /// Whatever lower layers have in this directory is gone.
    fn hide_content(&mut self, path: &LayerPath) -> Result<(), Refusal> {
        let dir = self.parent(path.as_bytes())?;
        set_opaque(&dir).map_err(|error| made(path, error))
    }

    /// Whether lower layers show something at this path.
    fn is_below(&self, path: &LayerPath) -> Result<bool, Refusal> {
        if self.is_hidden(path.as_bytes()) {
            return Ok(false);
        }
        match self.lower.look_up(path.as_bytes())? {
            Found::Nothing => Ok(false),
            Found::There(..) => Ok(true),
            Found::Through => Err(hostile(format!(
                "a whiteout below a symbolic link or file of a lower layer: {}",
                path.shown()
            ))),
        }
    }

    /// Whether this layer hides what lower layers have in a directory that the path leads through.
    fn is_hidden(&self, path: &[u8]) -> bool {
        ancestors(path).any(|dir| self.replaced.contains(dir) || self.whiteouts.contains_key(dir))
    }

    /// The directory for a new entry, with nothing at the entry's name.
    fn room_for<'p>(&mut self, path: &'p LayerPath) -> Result<(OwnedFd, &'p [u8]), Refusal> {
        let failed = |error: Errno| made(path, error);
        let (parent_path, name) = path.split();
        let parent = self.parent(parent_path)?;
        match lstat(&parent, name).map_err(failed)? {
            None => {}
            Some(stat) if file_type(&stat) == FileType::Directory => {
                tree::remove(&parent, name, self.limits.depth).map_err(failed)?;
                self.forget(path.as_bytes());
            }
            Some(_) => fs::unlinkat(&parent, name, AtFlags::empty()).map_err(failed)?,
        }
        Ok((parent, name))
    }

    /// A directory has gone: so has what is remembered of it.
    fn forget(&mut self, path: &[u8]) {
        self.last_parent = None;
        for remembered in [&mut self.replaced, &mut self.implied, &mut self.listed] {
            remembered.remove(path);
            let below = [path, b"/"].concat();
            let gone: Vec<Vec<u8>> = remembered
                .range(below.clone()..)
                .take_while(|dir| dir.starts_with(&below))
                .cloned()
                .collect();
            for dir in gone {
                remembered.remove(&dir);
            }
        }
    }

    /// Opens a directory of this layer; makes it, and those above it, when they are only implied.
    fn parent(&mut self, path: &[u8]) -> Result<OwnedFd, Refusal> {
        if let Some((last, dir)) = &self.last_parent
            && last == path
        {
            return dir.try_clone().map_err(|error| internal("duplicating", error));
        }
        let dir = match open_dir(&self.root, dot_if_empty(path)) {
            Ok(dir) => dir,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => self.make_parents(path)?,
            Err(error) => return Err(internal(&format!("opening {}", shown(path)), error)),
        };
        let kept = dir.try_clone().map_err(|error| internal("duplicating", error))?;
        self.last_parent = Some((path.to_vec(), kept));
        Ok(dir)
    }

    fn make_parents(&mut self, path: &[u8]) -> Result<OwnedFd, Refusal> {
        let mut dir =
            open_dir(&self.root, b".").map_err(|error| internal("opening a layer", error))?;
        for part in ancestors(path).chain(std::iter::once(path)) {
            let part = LayerPath::parse(part, self.limits)?;
            let failed = |error: Errno| made(&part, error);
            let (_, name) = part.split();
            dir = match lstat(&dir, name).map_err(failed)? {
                Some(stat) if file_type(&stat) == FileType::Directory => {
                    open_dir(&dir, name).map_err(failed)?
                }
                Some(_) => {
                    return Err(hostile(format!(
                        "an entry below {}, which is a symbolic link or a file",
                        part.shown()
                    )));
                }
                None => {
                    self.count_entry()?;
                    self.remember_implied(&part)?;
                    self.new_directory(&dir, &part, false)?
                }
            };
        }
        Ok(dir)
    }

    fn remember_implied(&mut self, path: &LayerPath) -> Result<(), Refusal> {
        let bytes = u64::try_from(path.as_bytes().len()).unwrap_or(u64::MAX);
        self.implied_bytes = self.implied_bytes.saturating_add(bytes);
        if self.implied_bytes > self.limits.names_bytes {
            return Err(too_large(format!(
                "names of directories that are only implied have more than {} bytes",
                self.limits.names_bytes
            )));
        }
        self.implied.insert(path.as_bytes().to_vec());
        Ok(())
    }

    /// The directory that lower layers have at a path, if any.
    fn directory_below(&self, path: &LayerPath) -> Result<Option<Stat>, Refusal> {
        let gone = self.whiteouts.get(path.as_bytes()) == Some(&Whiteout::All);
        if gone || self.is_hidden(path.as_bytes()) {
            return Ok(None);
        }
        match self.lower.look_up(path.as_bytes())? {
            Found::Nothing => Ok(None),
            Found::There(_, stat) if file_type(&stat) == FileType::Directory => Ok(Some(*stat)),
            Found::There(..) | Found::Through => Err(hostile(format!(
                "an entry below {}, which is a symbolic link or a file of a lower layer",
                path.shown()
            ))),
        }
    }

    /// Gives an implied directory the attributes of the one below it.
    fn imply(&mut self, dir: impl AsFd, below: Option<&Stat>) -> Result<(), Refusal> {
        let mut attributes = Attributes { mode: IMPLIED_MODE, ..Attributes::default() };
        if let Some(stat) = below {
            attributes.uid = stat.st_uid;
            attributes.gid = stat.st_gid;
            attributes.mode = stat.st_mode & MODE_BITS;
            attributes.mtime = Mtime {
                seconds: stat.st_mtime,
                nanos: u32::try_from(stat.st_mtime_nsec).unwrap_or(0),
            };
        }
        self.dress_directory(dir, &attributes)
            .map_err(|error| internal("setting attributes", error))
    }
}

fn dot_if_empty(path: &[u8]) -> &[u8] {
    if path.is_empty() { b"." } else { path }
}

/// Owner before mode: a change of owner clears the set-user-id bit.
fn dress(fd: impl AsFd, attributes: &Attributes) -> Result<(), Errno> {
    let (uid, gid) = (Uid::from_raw(attributes.uid), Gid::from_raw(attributes.gid));
    fs::fchown(&fd, Some(uid), Some(gid))?;
    fs::fchmod(&fd, Mode::from_raw_mode(attributes.mode))?;
    for (name, value) in &attributes.xattrs {
        match fs::fsetxattr(&fd, name.as_slice(), value, fs::XattrFlags::empty()) {
            // What ext4 says when an inode's attributes are full, not the disk.
            Err(Errno::NOSPC) => return Err(Errno::TOOBIG),
            other => other?,
        }
    }
    Ok(())
}

/// Owner and time of what cannot be opened: symbolic links and fifos.
fn dress_named(parent: impl AsFd, name: &[u8], attributes: &Attributes) -> Result<(), Errno> {
    let (uid, gid) = (Uid::from_raw(attributes.uid), Gid::from_raw(attributes.gid));
    fs::chownat(&parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
    fs::utimensat(&parent, name, &timestamps(attributes.mtime), AtFlags::SYMLINK_NOFOLLOW)
}

fn timestamps(mtime: Mtime) -> Timestamps {
    let time = Timespec { tv_sec: mtime.seconds, tv_nsec: i64::from(mtime.nanos) };
    Timestamps { last_access: time, last_modification: time }
}

fn made(path: &LayerPath, error: impl Into<std::io::Error>) -> Refusal {
    let error = error.into();
    if error.kind() == std::io::ErrorKind::ArgumentListTooLong {
        return too_large(format!("attributes of {} cannot be stored", path.shown()));
    }
    internal(&format!("unpacking {}", path.shown()), error)
}

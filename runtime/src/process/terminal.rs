//! A terminal for a process, out of the container's own devpts.
//!
//! `/dev` is the container's to write to: what stands at `/dev/pts/ptmx` is opened without following
//! anything and must be the multiplexer of a devpts, else it is not touched. The end that the process
//! gets is asked of the descriptor, never opened by a name.
#![forbid(unsafe_code)]

use std::os::fd::OwnedFd;

use nimbus_api::runtime::TerminalSize;
use rustix::fs::{
    CWD, FileType, Mode, OFlags, ResolveFlags, Uid, fchown, fstat, fstatfs, major, minor, openat2,
};
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};
use rustix::process::ioctl_tiocsctty;
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use super::channel::Inside;
use super::{At as _, Step};
use crate::report::Stage;

const CONSOLE: &str = "/dev/console";
const MULTIPLEXER: &str = "/dev/pts/ptmx";
/// Major and minor number of a pseudoterminal multiplexer.
const MULTIPLEXER_DEVICE: (u32, u32) = (5, 2);
/// `DEVPTS_SUPER_MAGIC`.
const DEVPTS_MAGIC: u64 = 0x1cd1;

/// Makes a terminal, hands its other end over and makes it this process's own, which leads a session
/// without one. The three are its standard descriptors.
pub(super) fn give(size: TerminalSize, uid: u32, channel: &Inside) -> Step<[OwnedFd; 3]> {
    let master = multiplexer().at(Stage::Terminal)?;
    unlockpt(&master).at(Stage::Terminal)?;
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let own = ioctl_tiocgptpeer(&master, flags).at(Stage::Terminal)?;
    fchown(&own, Some(Uid::from_raw(uid)), None).at(Stage::Terminal)?;
    if size != TerminalSize::default() {
        let TerminalSize { rows, columns } = size;
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&own, size).at(Stage::Terminal)?;
    }
    ioctl_tiocsctty(&own).at(Stage::Terminal)?;
    channel.send_terminal(&master)?;
    let copy = || own.try_clone().at(Stage::Terminal);
    Ok([copy()?, copy()?, own])
}

/// Mounts a terminal over `/dev/console`, by descriptor: what stands at `/dev/pts/0` by then is not asked
/// (CVE-2025-52565). For the first process, before anything of the container's has run.
pub(super) fn make_console([terminal, ..]: &[OwnedFd; 3]) -> Step {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    let direct = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let clone = open_tree(terminal, "", flags).at(Stage::Terminal)?;
    let place = openat2(CWD, CONSOLE, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), direct);
    crate::mounts::attach(clone, place.at(Stage::Terminal)?).at(Stage::Terminal)
}

fn multiplexer() -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let direct = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    // Looked at before it is opened: opening a device that somebody has put there may do something.
    let seen = openat2(CWD, MULTIPLEXER, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), direct)?;
    check(&seen)?;
    let master = openat2(CWD, MULTIPLEXER, flags, Mode::empty(), direct)?;
    check(&master)?;
    Ok(master)
}

fn check(found: &OwnedFd) -> rustix::io::Result<()> {
    let stat = fstat(found)?;
    let device = (major(stat.st_rdev), minor(stat.st_rdev));
    let character = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice;
    let devpts = u64::try_from(fstatfs(found)?.f_type) == Ok(DEVPTS_MAGIC);
    if character && device == MULTIPLEXER_DEVICE && devpts { Ok(()) } else { Err(Errno::NOTTY) }
}

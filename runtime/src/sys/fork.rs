//! A child that is a copy of this process: whose child it becomes, in which cgroup and in which new
//! namespaces it is born.

use std::io;
use std::mem;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};

use nix::sched::CloneFlags;

/// Links of `/proc/self/task` while this process has one thread: itself, its parent, the thread.
/// The kernel's own number has another width on other architectures.
const TASK_LINKS_SINGLE: u128 = 3;

/// From `linux/sched.h`; libc's own does not hold it.
const CLONE_INTO_CGROUP: u64 = 1 << 33;

/// Which of the two this process is now.
#[derive(Debug)]
pub(crate) enum Fork {
    /// The one that forked.
    Parent(Forked),
    /// The copy.
    Child,
}

/// The copy, as the one that forked knows it.
#[derive(Debug)]
pub(crate) struct Forked {
    /// Its number in the forking process's pid namespace.
    pub(crate) pid: i32,
    /// The process itself.
    pub(crate) pidfd: OwnedFd,
}

/// Whose child the copy becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kin {
    /// This process's.
    Child,
    /// This process's parent's.
    Sibling,
}

/// The flags that mean a new namespace; no other reaches the kernel from a caller.
const NAMESPACES: CloneFlags = CloneFlags::CLONE_NEWPID
    .union(CloneFlags::CLONE_NEWNS)
    .union(CloneFlags::CLONE_NEWNET)
    .union(CloneFlags::CLONE_NEWIPC)
    .union(CloneFlags::CLONE_NEWUTS)
    .union(CloneFlags::CLONE_NEWUSER)
    .union(CloneFlags::CLONE_NEWCGROUP);

/// That this process has one thread, which it has looked up and keeps to (rule 4): what another was in
/// the midst of would stay so in a copy for ever.
#[derive(Debug)]
pub(crate) struct Alone(());

/// Looks it up in `/proc`, which must be this process's own still.
pub(crate) fn alone() -> io::Result<Alone> {
    if u128::from(rustix::fs::stat("/proc/self/task")?.st_nlink) != TASK_LINKS_SINGLE {
        return Err(io::Error::other("this process has more than one thread"));
    }
    Ok(Alone(()))
}

/// Makes a copy of this process, in a cgroup of the unified hierarchy or in this process's own, and in
/// new namespaces of these kinds.
pub(crate) fn fork(
    Alone(()): Alone,
    kin: Kin,
    cgroup: Option<BorrowedFd<'_>>,
    namespaces: CloneFlags,
) -> io::Result<Fork> {
    let mut pidfd: RawFd = -1;
    // SAFETY: clone_args is plain integers, for all of which zero is valid and means "nothing".
    let mut args: libc::clone_args = unsafe { mem::zeroed() };
    let namespaces = (namespaces & NAMESPACES).bits().cast_unsigned();
    args.flags = u64::try_from(libc::CLONE_PIDFD).unwrap_or_default() | u64::from(namespaces);
    args.pidfd = (&raw mut pidfd).addr() as u64;
    match kin {
        Kin::Child => args.exit_signal = u64::try_from(libc::SIGCHLD).unwrap_or_default(),
        // The kernel takes this process's own exit signal then, and refuses any other.
        Kin::Sibling => args.flags |= u64::try_from(libc::CLONE_PARENT).unwrap_or_default(),
    }
    if let Some(cgroup) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = u64::try_from(cgroup.as_raw_fd()).unwrap_or_default();
    }
    // SAFETY: the kernel reads `args` and writes one descriptor to `pidfd`; both outlive the call. No
    // stack, thread or memory is shared (flags that would are masked out): the copy goes on with its own copy of everything. This process
    // has one thread (see [`Alone`]), so nothing in that copy is half done.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of_val(&args)) };
    match i32::try_from(pid) {
        Ok(0) => Ok(Fork::Child),
        Ok(pid) if pid > 0 => {
            // SAFETY: with CLONE_PIDFD and success the kernel has made this descriptor for this
            // process alone, close-on-exec.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok(Fork::Parent(Forked { pid, pidfd }))
        }
        Ok(_) | Err(_) => Err(io::Error::last_os_error()),
    }
}

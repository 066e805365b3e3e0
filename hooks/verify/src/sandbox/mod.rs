//! The process puts itself where a mistake in a parser can do nothing but answer wrongly.
//!
//! Started as root, every layer is mandatory and the first that fails ends the process: private
//! mount, network, IPC and UTS namespaces; root directory is an empty tmpfs that nothing else
//! mounts; user and groups 65534; no capability in any set; no_new_privs; not dumpable; no
//! descriptor but 0 to 2 and none can be added; limits on memory, processor, written bytes;
//! a deadline; dies with its parent; and a seccomp filter that knows only memory, clock, reading
//! and writing ([`filter`]).
//!
//! Started as another user (control does that), the namespaces are tried through a user namespace
//! and left out where the host forbids them; [`Layers`] says which hold. All the others, the filter
//! among them, stay mandatory.
//!
//! The mount namespace and its tmpfs end with the process. Deliberately absent: a way to do without.

mod filter;
pub mod report;

use std::fs;
use std::os::fd::RawFd;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::{self, Gid, Uid};

/// The user and group that the verifier runs as: nobody's.
pub const NOBODY: u32 = 65_534;
/// Longest life, seconds of wall clock and of processor. The caller's own limit is shorter.
pub const DEADLINE_SECONDS: u32 = 30;
/// Most address space.
pub const MEMORY_BYTES_MAX: u64 = 2 << 30;
/// Most bytes written to a file, when stdout is one.
pub const WRITTEN_BYTES_MAX: u64 = 8 << 20;
/// Descriptors 0, 1 and 2 and no other.
const DESCRIPTORS_MAX: u64 = 3;
/// Where the empty root is mounted, in a mount namespace of our own.
const ROOT_AT: &str = "/tmp";
/// The empty root: one inode, one page, read-only.
const ROOT_OPTIONS: &str = "size=4k,nr_inodes=1,mode=0555";

/// What could not be done.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// A system call.
    #[error("sandbox: cannot {step}")]
    Step {
        /// What was tried.
        step: &'static str,
        /// Why not.
        #[source]
        source: Errno,
    },
    /// The list of open descriptors.
    #[error("sandbox: cannot list open descriptors")]
    Descriptors(#[source] std::io::Error),
    /// Capabilities.
    #[error("sandbox: cannot drop capabilities")]
    Capabilities(#[source] caps::errors::CapsError),
    /// They are still there.
    #[error("sandbox: {0} is not in force")]
    NotInForce(&'static str),
    /// The filter.
    #[error("sandbox: cannot install the system call filter")]
    Filter(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Which layers hold. Those not listed here always do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Layers {
    /// Runs as [`NOBODY`].
    pub own_user: bool,
    /// Own mount, network, IPC and UTS namespaces.
    pub namespaces: bool,
    /// The root directory is empty.
    pub empty_root: bool,
}

/// Enters the sandbox for good.
pub fn enter() -> Result<Layers, SandboxError> {
    let layers = confine()?;
    filter::install()?;
    Ok(layers)
}

/// All but the filter, so that [`report`] can show what each half denies.
fn confine() -> Result<Layers, SandboxError> {
    let parent = unistd::getppid();
    // An inherited mask must not hold the deadline back.
    SigSet::from(Signal::SIGALRM).thread_unblock().map_err(step("unblock the deadline"))?;
    unistd::alarm::set(DEADLINE_SECONDS);
    close_descriptors()?;
    let layers = if Uid::effective().is_root() { leave_root()? } else { leave_user() };
    drop_capabilities()?;
    prctl::set_no_new_privs().map_err(step("set no_new_privs"))?;
    prctl::set_dumpable(false).map_err(step("clear dumpable"))?;
    // After the change of user, which clears it.
    prctl::set_pdeathsig(Signal::SIGKILL).map_err(step("set the parent death signal"))?;
    if unistd::getppid() != parent {
        return Err(SandboxError::NotInForce("the parent death signal"));
    }
    limit()?;
    Ok(layers)
}

/// Root's way: namespaces and root directory first, then the rights to make them go.
fn leave_root() -> Result<Layers, SandboxError> {
    unshare(namespaces()).map_err(step("make namespaces"))?;
    empty_root()?;
    // The bounding set needs a capability, so it goes before the user.
    caps::clear(None, caps::CapSet::Bounding).map_err(SandboxError::Capabilities)?;
    let (uid, gid) = (Uid::from_raw(NOBODY), Gid::from_raw(NOBODY));
    unistd::setgroups(&[]).map_err(step("drop groups"))?;
    unistd::setresgid(gid, gid, gid).map_err(step("change group"))?;
    unistd::setresuid(uid, uid, uid).map_err(step("change user"))?;
    if unistd::setresuid(Uid::from_raw(0), Uid::from_raw(0), Uid::from_raw(0)).is_ok() {
        return Err(SandboxError::NotInForce("the change of user"));
    }
    Ok(Layers { own_user: true, namespaces: true, empty_root: true })
}

/// Anybody else's: a user namespace gives the right to the others, where the host allows it.
fn leave_user() -> Layers {
    let namespaces = unshare(CloneFlags::CLONE_NEWUSER | namespaces()).is_ok();
    let empty_root = namespaces && empty_root().is_ok();
    Layers { own_user: false, namespaces, empty_root }
}

fn namespaces() -> CloneFlags {
    CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS
}

fn empty_root() -> Result<(), SandboxError> {
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>)
        .map_err(step("make mounts private"))?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC | MsFlags::MS_RDONLY;
    mount(Some("none"), ROOT_AT, Some("tmpfs"), flags, Some(ROOT_OPTIONS))
        .map_err(step("mount an empty root"))?;
    unistd::chroot(ROOT_AT).map_err(step("enter the empty root"))?;
    unistd::chdir("/").map_err(step("enter the empty root"))
}

fn drop_capabilities() -> Result<(), SandboxError> {
    use caps::CapSet;
    for set in [CapSet::Ambient, CapSet::Inheritable, CapSet::Effective, CapSet::Permitted] {
        caps::clear(None, set).map_err(SandboxError::Capabilities)?;
    }
    for set in [CapSet::Effective, CapSet::Permitted, CapSet::Inheritable] {
        let left = caps::read(None, set).map_err(SandboxError::Capabilities)?;
        if !left.is_empty() {
            return Err(SandboxError::NotInForce("the drop of capabilities"));
        }
    }
    Ok(())
}

fn limit() -> Result<(), SandboxError> {
    let seconds = u64::from(DEADLINE_SECONDS);
    for (resource, most) in [
        (Resource::RLIMIT_AS, MEMORY_BYTES_MAX),
        (Resource::RLIMIT_CPU, seconds),
        (Resource::RLIMIT_FSIZE, WRITTEN_BYTES_MAX),
        (Resource::RLIMIT_NOFILE, DESCRIPTORS_MAX),
        (Resource::RLIMIT_NPROC, 0),
        (Resource::RLIMIT_CORE, 0),
        (Resource::RLIMIT_MEMLOCK, 0),
        (Resource::RLIMIT_MSGQUEUE, 0),
    ] {
        setrlimit(resource, most, most).map_err(step("set a limit"))?;
    }
    Ok(())
}

/// Whatever the caller left open. Nothing of ours is open yet but the listing itself.
fn close_descriptors() -> Result<(), SandboxError> {
    let mut open: Vec<RawFd> = Vec::new();
    for entry in fs::read_dir("/proc/self/fd").map_err(SandboxError::Descriptors)? {
        let name = entry.map_err(SandboxError::Descriptors)?.file_name();
        open.extend(name.to_str().and_then(|name| name.parse::<RawFd>().ok()));
    }
    for descriptor in open.into_iter().filter(|descriptor| *descriptor > 2) {
        match unistd::close(descriptor) {
            // The listing's own descriptor is closed already.
            Ok(()) | Err(Errno::EBADF) => {}
            Err(source) => return Err(SandboxError::Step { step: "close a descriptor", source }),
        }
    }
    Ok(())
}

const fn step(step: &'static str) -> impl Fn(Errno) -> SandboxError {
    move |source| SandboxError::Step { step, source }
}

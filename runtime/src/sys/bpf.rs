//! Device programs of the unified cgroup hierarchy: into the kernel, onto a cgroup.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};

const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_PROG_ATTACH: libc::c_int = 8;
const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;
const BPF_F_ALLOW_MULTI: u32 = 2;
const LICENSE: &CStr = c"Apache-2.0";

/// One instruction, as the kernel lays it out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct Instruction {
    pub(crate) code: u8,
    /// Destination in the low half, source in the high one.
    pub(crate) registers: u8,
    pub(crate) offset: i16,
    pub(crate) immediate: i32,
}

/// The head of `union bpf_attr` for loading; the kernel takes what is missing as zero.
#[repr(C)]
struct LoadAttr {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
}

/// The head of `union bpf_attr` for attaching.
#[repr(C)]
struct AttachAttr {
    target_fd: RawFd,
    attach_bpf_fd: RawFd,
    attach_type: u32,
    attach_flags: u32,
}

/// Hands a device program to the kernel, which verifies it.
pub(crate) fn load_device(program: &[Instruction]) -> io::Result<OwnedFd> {
    let count = u32::try_from(program.len())
        .map_err(|_over| io::Error::from(io::ErrorKind::InvalidInput))?;
    let attr = LoadAttr {
        prog_type: BPF_PROG_TYPE_CGROUP_DEVICE,
        insn_cnt: count,
        insns: program.as_ptr().addr() as u64,
        license: LICENSE.as_ptr().addr() as u64,
    };
    // SAFETY: the kernel reads `attr` up to its size, `insn_cnt` instructions at `insns` and the
    // terminated text at `license`, all of which outlive the call; it writes nothing.
    let fd = unsafe {
        libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &raw const attr, size_of::<LoadAttr>())
    };
    let fd = RawFd::try_from(fd).ok().filter(|fd| *fd >= 0).ok_or_else(io::Error::last_os_error)?;
    // SAFETY: BPF_PROG_LOAD has just made this descriptor for us, close-on-exec.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Attaches a device program to a cgroup, for the cgroup's life; others stay, and all must allow.
pub(crate) fn attach_device(program: impl AsFd, cgroup: impl AsFd) -> io::Result<()> {
    let attr = AttachAttr {
        target_fd: cgroup.as_fd().as_raw_fd(),
        attach_bpf_fd: program.as_fd().as_raw_fd(),
        attach_type: BPF_CGROUP_DEVICE,
        attach_flags: BPF_F_ALLOW_MULTI,
    };
    // SAFETY: the kernel reads `attr` up to its size and writes nothing; both descriptors are
    // borrowed, hence open, over the call.
    let attached = unsafe {
        libc::syscall(libc::SYS_bpf, BPF_PROG_ATTACH, &raw const attr, size_of::<AttachAttr>())
    };
    if attached != 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

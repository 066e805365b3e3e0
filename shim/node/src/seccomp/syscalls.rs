//! Numbers of the system calls, by name and architecture, as of Linux 6.17.
//!
//! Tables of our own, because the ones of libc lag behind the kernel and differ by its version. Both are
//! compiled in everywhere, so that each can be tested on any machine.

mod aarch64;
mod x86_64;

/// The first number that the tables do not know; from 424 on, calls have one number everywhere. From
/// here on the answer is ENOSYS, as that of a kernel without the call, so that programs fall back
/// instead of failing.
pub(super) const FIRST_UNKNOWN: u32 = 470;

/// An architecture that filters can be made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Arch {
    X86_64,
    Aarch64,
}

impl Arch {
    /// All of them.
    pub(super) const ALL: [Self; 2] = [Self::X86_64, Self::Aarch64];

    /// What this program was built for; none when no filter can be made for it.
    pub(super) const fn native() -> Option<Self> {
        if cfg!(target_arch = "x86_64") {
            Some(Self::X86_64)
        } else if cfg!(target_arch = "aarch64") {
            Some(Self::Aarch64)
        } else {
            None
        }
    }

    /// What the kernel calls it: AUDIT_ARCH_* of <linux/audit.h>.
    pub(super) const fn audit(self) -> u32 {
        match self {
            Self::X86_64 => 0xc000_003e,
            Self::Aarch64 => 0xc000_00b7,
        }
    }

    pub(super) const fn table(self) -> &'static [(&'static str, u32)] {
        match self {
            Self::X86_64 => &x86_64::SYSCALLS,
            Self::Aarch64 => &aarch64::SYSCALLS,
        }
    }

    /// The number of a call; none when it does not exist here.
    pub(super) fn number(self, name: &str) -> Option<u32> {
        self.table().iter().find(|(known, _)| *known == name).map(|(_, number)| *number)
    }
}

/// Whether this is a call of any architecture.
pub(super) fn exists(name: &str) -> bool {
    Arch::ALL.iter().any(|arch| arch.number(name).is_some())
}

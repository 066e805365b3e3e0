//! The virtual machines that there are, as a table.
//!
//! Both have the unified cgroup hierarchy and nothing else. Debian 12's has no systemd: nobody has
//! enabled a controller for anybody there, and no other writer of cgroups is about.

use std::process::Command;

use clap::ValueEnum;

use crate::run::{RunError, output};

/// Makes a machine.
pub(super) const SCRIPT: &str = include_str!("image.sh");
/// In every machine: a kernel, what boots it, and what the lanes start.
const COMMON: &str = "linux-image-cloud-amd64,initramfs-tools,udev,kmod,iproute2,procps,\
                      containerd,runc,docker-registry,busybox-static,ca-certificates,strace";

/// A virtual machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Machine {
    /// containerd 1.6, kernel 6.1, no systemd
    Debian12,
    /// containerd 1.7, kernel 6.12, systemd
    Debian13,
}

/// Who is process 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Init {
    Plain,
    Systemd,
}

impl Machine {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Debian12 => "debian12",
            Self::Debian13 => "debian13",
        }
    }

    const fn suite(self) -> &'static str {
        match self {
            Self::Debian12 => "bookworm",
            Self::Debian13 => "trixie",
        }
    }

    const fn init(self) -> Init {
        match self {
            Self::Debian12 => Init::Plain,
            Self::Debian13 => Init::Systemd,
        }
    }

    pub(super) fn has_systemd(self) -> bool {
        self.init() == Init::Systemd
    }

    /// Arguments of [`SCRIPT`], the folder aside.
    pub(super) fn recipe(self) -> [String; 3] {
        let (init, more) = match self.init() {
            Init::Plain => ("plain", ""),
            Init::Systemd => ("systemd", ",systemd-sysv,dbus"),
        };
        [self.suite().to_owned(), init.to_owned(), format!("{COMMON}{more}")]
    }

    /// What the kernel is told.
    pub(super) const fn kernel_arguments(self) -> &'static str {
        match self.init() {
            Init::Plain => {
                "root=/dev/vda rw quiet console=ttyS0 panic=-1 init=/usr/local/sbin/nimbus-init"
            }
            Init::Systemd => {
                "root=/dev/vda rw quiet console=ttyS0 panic=-1 systemd.getty_auto=no \
                 systemd.unified_cgroup_hierarchy=1"
            }
        }
    }

    /// Names a machine by all that it is made from.
    pub(super) fn digest(self) -> Result<String, RunError> {
        let mut command = Command::new("sh");
        command.args(["-c", "printf '%s\\n' \"$@\" | sha256sum", "sh", SCRIPT]);
        command.args(self.recipe());
        let text = output(&mut command)?;
        Ok(text.split_ascii_whitespace().next().unwrap_or_default().chars().take(16).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_machine_has_a_name_of_its_own_and_keeps_it() {
        let digest = |machine: Machine| machine.digest().unwrap();
        assert_eq!(digest(Machine::Debian12), digest(Machine::Debian12));
        assert_ne!(digest(Machine::Debian12), digest(Machine::Debian13));
        assert_eq!(digest(Machine::Debian13).len(), 16);
    }
}

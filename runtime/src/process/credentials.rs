//! Groups, ids and capabilities of a process of the container.
#![forbid(unsafe_code)]

use caps::Capability;
use nimbus_api::runtime::ExecProcess;
use rustix::process::{Gid, Uid};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capability_is_in_bounding_set, clear_ambient_capability_set,
    configure_capability_in_ambient_set, remove_capability_from_bounding_set, set_capabilities,
    set_keep_capabilities, set_thread_groups, set_thread_res_gid, set_thread_res_uid,
};

use crate::error::RuntimeError;
use crate::spec::model::{Capabilities, User};

/// Capabilities that a kernel can have.
const CAPABILITY_BITS: u32 = 64;

/// Who a process is and what it may do as that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Credentials {
    uid: Uid,
    gid: Gid,
    groups: Vec<Gid>,
    sets: Sets,
}

/// The kernel's masks of the five sets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Sets {
    bounding: u64,
    permitted: u64,
    effective: u64,
    inheritable: u64,
    ambient: u64,
}

impl Credentials {
    /// Those of a judged process. Nothing becomes inheritable or ambient, so that a program gets
    /// capabilities by being root's alone.
    pub(crate) fn of(process: &ExecProcess) -> Result<Self, RuntimeError> {
        let mask = mask(process.capabilities.iter().map(String::as_str))?;
        Ok(Self {
            uid: Uid::from_raw(process.uid),
            gid: Gid::from_raw(process.gid),
            groups: process.additional_gids.iter().copied().map(Gid::from_raw).collect(),
            sets: Sets { bounding: mask, permitted: mask, effective: mask, ..Sets::default() },
        })
    }

    /// Those that a specification asks for.
    pub(crate) fn wished(user: &User, sets: &Capabilities) -> Result<Self, RuntimeError> {
        let mask = |names: &[String]| mask(names.iter().map(String::as_str));
        Ok(Self {
            uid: Uid::from_raw(user.uid),
            gid: Gid::from_raw(user.gid),
            groups: user.additional_gids.iter().copied().map(Gid::from_raw).collect(),
            sets: Sets {
                bounding: mask(&sets.bounding)?,
                permitted: mask(&sets.permitted)?,
                effective: mask(&sets.effective)?,
                inheritable: mask(&sets.inheritable)?,
                ambient: mask(&sets.ambient)?,
            },
        })
    }

    /// Takes them on, for good.
    pub(crate) fn assume(&self) -> rustix::io::Result<()> {
        set_thread_groups(&self.groups)?;
        set_thread_res_gid(self.gid, self.gid, self.gid)?;
        for bit in 0..CAPABILITY_BITS {
            let one = CapabilitySet::from_bits_retain(1 << bit);
            match capability_is_in_bounding_set(one) {
                Ok(true) if self.sets.bounding & (1 << bit) == 0 => {
                    remove_capability_from_bounding_set(one)?;
                }
                Ok(_) => {}
                // Beyond the kernel's last.
                Err(rustix::io::Errno::INVAL) => break,
                Err(error) => return Err(error),
            }
        }
        set_keep_capabilities(true)?;
        set_thread_res_uid(self.uid, self.uid, self.uid)?;
        let set = CapabilitySet::from_bits_retain;
        set_capabilities(
            None,
            CapabilitySets {
                effective: set(self.sets.effective),
                permitted: set(self.sets.permitted),
                inheritable: set(self.sets.inheritable),
            },
        )?;
        set_keep_capabilities(false)?;
        clear_ambient_capability_set()?;
        // The kernel refuses others; `runc spec` asks for some all the same, and gets none.
        let ambient = self.sets.ambient & self.sets.inheritable & self.sets.permitted;
        for bit in (0..CAPABILITY_BITS).filter(|bit| ambient & (1 << bit) != 0) {
            configure_capability_in_ambient_set(set(1 << bit), true)?;
        }
        Ok(())
    }
}

/// The kernel's mask of these capabilities.
pub(crate) fn mask<'a>(names: impl IntoIterator<Item = &'a str>) -> Result<u64, RuntimeError> {
    let mut mask = 0;
    for name in names {
        let capability: Capability = name
            .parse()
            .map_err(|_unknown| RuntimeError::unproven(format!("unknown capability {name:?}")))?;
        mask |= capability.bitmask();
    }
    Ok(mask)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_is_no_capability_is_refused_and_not_left_out() {
        assert_eq!(mask(["CAP_CHOWN", "CAP_KILL"]).unwrap(), 0x21);
        assert_eq!(mask([]).unwrap(), 0);
        assert!(mask(["CAP_CHOWN", "CAP_ALL"]).is_err());
    }
}

//! Groups, ids and capabilities of a process of the container.
#![forbid(unsafe_code)]

use caps::Capability;
use nimbus_api::runtime::ExecProcess;
use rustix::process::{Gid, Uid};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capability_is_in_bounding_set, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities, set_keep_capabilities,
    set_thread_groups, set_thread_res_gid, set_thread_res_uid,
};

use crate::error::RuntimeError;

/// Capabilities that a kernel can have.
const CAPABILITY_BITS: u32 = 64;

/// Who a process is and what it may do as that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Credentials {
    uid: Uid,
    gid: Gid,
    groups: Vec<Gid>,
    mask: u64,
}

impl Credentials {
    /// Those of a judged process.
    pub(crate) fn of(process: &ExecProcess) -> Result<Self, RuntimeError> {
        Ok(Self {
            uid: Uid::from_raw(process.uid),
            gid: Gid::from_raw(process.gid),
            groups: process.additional_gids.iter().copied().map(Gid::from_raw).collect(),
            mask: mask(process.capabilities.iter().map(String::as_str))?,
        })
    }

    /// Takes them on, for good. Nothing becomes inheritable or ambient, so that a program gets
    /// capabilities by being root's alone.
    pub(crate) fn assume(&self) -> rustix::io::Result<()> {
        set_thread_groups(&self.groups)?;
        set_thread_res_gid(self.gid, self.gid, self.gid)?;
        for bit in 0..CAPABILITY_BITS {
            let one = CapabilitySet::from_bits_retain(1 << bit);
            match capability_is_in_bounding_set(one) {
                Ok(true) if self.mask & (1 << bit) == 0 => {
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
        let kept = CapabilitySet::from_bits_retain(self.mask);
        set_capabilities(
            None,
            CapabilitySets {
                effective: kept,
                permitted: kept,
                inheritable: CapabilitySet::empty(),
            },
        )?;
        set_keep_capabilities(false)?;
        clear_ambient_capability_set()
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

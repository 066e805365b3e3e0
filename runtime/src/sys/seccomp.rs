//! Seccomp programs: from bytes, into the kernel.
//!
//! A program is `sock_filter` structs in native byte order, at most [`INSTRUCTIONS_MAX`].

use std::io;

/// The kernel's own limit (BPF_MAXINSNS).
pub(crate) const INSTRUCTIONS_MAX: usize = 4096;
/// Bytes of one instruction.
pub(crate) const INSTRUCTION_BYTES: usize = 8;

/// A program that has the shape of one; the kernel judges the rest when it is loaded.
#[derive(Debug, Clone)]
pub(crate) struct Program(Vec<libc::sock_filter>);

/// Bytes that are no program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected 1 to {INSTRUCTIONS_MAX} whole instructions, found {bytes} bytes")]
pub(crate) struct NotAProgram {
    bytes: usize,
}

impl Program {
    /// Reads the bytes of a program.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Result<Self, NotAProgram> {
        let (instructions, rest) = bytes.as_chunks::<INSTRUCTION_BYTES>();
        let count = instructions.len();
        if !rest.is_empty() || count == 0 || count > INSTRUCTIONS_MAX {
            return Err(NotAProgram { bytes: bytes.len() });
        }
        Ok(Self(instructions.iter().copied().map(decode).collect()))
    }

    /// How many instructions it has.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Puts the calling thread, and all that it starts from now on, under the program. The caller
    /// has set no_new_privs.
    pub(crate) fn load(&self) -> io::Result<()> {
        let length = libc::c_ushort::try_from(self.0.len())
            .map_err(|_over| io::Error::from(io::ErrorKind::InvalidInput))?;
        let program = libc::sock_fprog { len: length, filter: self.0.as_ptr().cast_mut() };
        let flags: libc::c_uint = 0;
        // SAFETY: the kernel reads `len` instructions from `filter` and writes none; both describe
        // the vector that `self` keeps alive and unchanged over the call.
        let loaded = unsafe {
            libc::syscall(
                libc::SYS_seccomp,
                libc::SECCOMP_SET_MODE_FILTER,
                flags,
                &raw const program,
            )
        };
        if loaded != 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

fn decode(bytes: [u8; INSTRUCTION_BYTES]) -> libc::sock_filter {
    let [c0, c1, jt, jf, k0, k1, k2, k3] = bytes;
    libc::sock_filter {
        code: u16::from_ne_bytes([c0, c1]),
        jt,
        jf,
        k: u32::from_ne_bytes([k0, k1, k2, k3]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn only_whole_programs_of_lawful_length_are_read(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let lawful = !bytes.is_empty() && bytes.len() % INSTRUCTION_BYTES == 0;
            prop_assert_eq!(Program::from_bytes(&bytes).is_ok(), lawful);
        }
    }

    #[test]
    fn a_program_beyond_the_kernels_limit_is_refused() {
        assert!(Program::from_bytes(&vec![0; 8 * INSTRUCTIONS_MAX]).is_ok());
        assert!(Program::from_bytes(&vec![0; 8 * (INSTRUCTIONS_MAX + 1)]).is_err());
    }

    #[test]
    fn fields_are_read_in_native_order() {
        let mut bytes = 0x06_u16.to_ne_bytes().to_vec();
        bytes.extend([1, 2]);
        bytes.extend(0x7fff_0000_u32.to_ne_bytes());
        let program = Program::from_bytes(&bytes).unwrap();
        let first = program.0[0];
        assert_eq!((first.code, first.jt, first.jf, first.k), (6, 1, 2, 0x7fff_0000));
    }
}

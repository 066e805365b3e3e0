//! Seccomp profiles: from a name and a lease's capabilities to the BPF program of a plan.
//!
//! Inputs: one of our own profiles, text in this folder: `default`, which is containerd's, and
//! `nimbus-strict`, which takes away from it. Output: `sock_filter` structs for the kernel, with their
//! hash. The program is compiled by [`program`], in this process and not in the start of a job
//! (compiling with libseccomp was the largest single cost of a start).
//!
//! Deliberately absent: profiles that a client brings, and architectures other than x86_64 and aarch64
//! (there every profile is refused). Calls of another ABI: a 32-bit one kills the process, one of x32
//! does not exist (`docs/decisions/0015-other-abis.md`).

mod profile;
mod program;
mod syscalls;
#[cfg(test)]
mod tests;

use nimbus_api::lease::{SECCOMP_DEFAULT, SECCOMP_STRICT};
use nimbus_api::{Digest, Refusal, RefusalCode};

pub use profile::ProfileError;
use profile::{Profile, Rule};
use syscalls::Arch;

/// Most instructions that the kernel takes (`BPF_MAXINSNS`).
pub const INSTRUCTIONS_MAX: usize = 4096;
/// Of one.
const INSTRUCTION_BYTES: usize = 8;

const DEFAULT_TEXT: &str = include_str!("default.profile");
const STRICT_TEXT: &str = include_str!("nimbus-strict.profile");

/// A program for the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CompiledFilter {
    /// `sock_filter` structs, native endian.
    pub bytes: Vec<u8>,
    /// SHA-256 of `bytes`.
    pub sha256: Digest,
    /// SHA-256 of the profile's text, for a stricter one behind the text of what it takes from.
    pub profile_sha256: Digest,
    /// How many instructions.
    pub instructions: u32,
}

/// Why a profile does not compile.
#[derive(Debug, thiserror::Error)]
pub enum CompileError {
    /// The text.
    #[error("the profile cannot be read")]
    Profile(#[from] ProfileError),
    /// The length.
    #[error("the program has {found} instructions, at most {INSTRUCTIONS_MAX} are allowed")]
    TooLong {
        /// Instructions found.
        found: usize,
    },
}

/// The program of a named profile for a lease's capabilities. The same input gives the same bytes.
pub fn compile(profile: &str, capabilities: &[String]) -> Result<CompiledFilter, Refusal> {
    let unsupported = |found: String| Refusal::with(RefusalCode::LeaseUnsupported, found);
    let arch = Arch::native()
        .ok_or_else(|| unsupported("no seccomp profile for this architecture".to_owned()))?;
    let source = Source::named(profile)
        .ok_or_else(|| unsupported(format!("no seccomp profile {profile:?} on this node")))?;
    source
        .compile(arch, capabilities)
        .map_err(|error| unsupported(nimbus_api::error::Chain(&error).to_string()))
}

/// The text of a profile.
#[derive(Debug, Clone, Copy)]
struct Source {
    allowed: &'static str,
    /// What is taken away.
    less: &'static str,
}

impl Source {
    fn named(name: &str) -> Option<Self> {
        match name {
            SECCOMP_DEFAULT => Some(Self { allowed: DEFAULT_TEXT, less: "" }),
            SECCOMP_STRICT => Some(Self { allowed: DEFAULT_TEXT, less: STRICT_TEXT }),
            _ => None,
        }
    }

    fn profile(self, arch: Arch) -> Result<Profile, ProfileError> {
        Profile::parse(self.allowed, arch)?.stricter(self.less, arch)
    }

    fn compile(self, arch: Arch, capabilities: &[String]) -> Result<CompiledFilter, CompileError> {
        let profile = self.profile(arch)?;
        let leased = |rule: &&Rule| {
            let needed = rule.capability.as_ref();
            needed.is_none_or(|capability| capabilities.contains(capability))
        };
        let rules: Vec<&Rule> = profile.rules.iter().filter(leased).collect();
        let bytes = program::bytes(arch, &rules, &profile.enosys)?;
        let instructions = bytes.len() / INSTRUCTION_BYTES;
        Ok(CompiledFilter {
            sha256: Digest::of(&bytes),
            bytes,
            profile_sha256: Digest::of([self.allowed, self.less].concat().as_bytes()),
            instructions: u32::try_from(instructions).unwrap_or(u32::MAX),
        })
    }
}

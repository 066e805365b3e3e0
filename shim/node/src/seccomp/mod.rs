//! Seccomp profiles: from a name and a lease's capabilities to the BPF program of a plan.
//!
//! Inputs: one of our own profiles, text in this folder: `default`, which is containerd's, and
//! `nimbus-strict`, which takes away from it. Output: `sock_filter` structs for the kernel, with their
//! hash. The program is compiled with seccompiler, in this process and not in
//! the start of a job (compiling with libseccomp was the largest single cost of a start), and is
//! put behind a short head of our own, because a seccompiler filter knows one answer besides
//! "allow" and ours needs two: EPERM and ENOSYS.
//!
//! Deliberately absent: profiles that a client brings, and architectures other than x86_64 and aarch64
//! (there every profile is refused). Calls of another ABI: a 32-bit one kills the process, one of x32
//! does not exist (`docs/decisions/0015-other-abis.md`).

mod profile;
mod syscalls;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use nimbus_api::lease::{SECCOMP_DEFAULT, SECCOMP_STRICT};
use nimbus_api::{Digest, Refusal, RefusalCode};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, sock_filter,
};

pub use profile::ProfileError;
use profile::{Condition, Profile, Rule, Test};
use syscalls::Arch;

/// Most instructions that the kernel takes (`BPF_MAXINSNS`).
pub const INSTRUCTIONS_MAX: usize = 4096;

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
    /// The compiler.
    #[error("the compiler refused the profile")]
    Backend(#[from] seccompiler::BackendError),
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
        let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
        for rule in &profile.rules {
            let leased = |capability: &String| capabilities.contains(capability);
            if rule.capability.as_ref().is_none_or(leased) {
                let chain = rules.entry(i64::from(rule.number)).or_default();
                chain.extend(conditions_of(rule)?);
            }
        }
        let target = match arch {
            Arch::X86_64 => TargetArch::x86_64,
            Arch::Aarch64 => TargetArch::aarch64,
        };
        let denied = SeccompAction::Errno(EPERM);
        let body: BpfProgram =
            SeccompFilter::new(rules, denied, SeccompAction::Allow, target)?.try_into()?;
        let mut program = head(arch, &profile.enosys);
        program.extend(body);
        if program.len() > INSTRUCTIONS_MAX {
            return Err(CompileError::TooLong { found: program.len() });
        }
        let bytes = to_bytes(&program);
        Ok(CompiledFilter {
            sha256: Digest::of(&bytes),
            bytes,
            profile_sha256: Digest::of([self.allowed, self.less].concat().as_bytes()),
            instructions: u32::try_from(program.len()).unwrap_or(u32::MAX),
        })
    }
}

/// No rule at all is "always" to the compiler, so a rule without conditions adds none.
fn conditions_of(rule: &Rule) -> Result<Option<SeccompRule>, seccompiler::BackendError> {
    if rule.conditions.is_empty() {
        return Ok(None);
    }
    let conditions = rule.conditions.iter().map(condition).collect::<Result<Vec<_>, _>>()?;
    SeccompRule::new(conditions).map(Some)
}

/// The kernel reads these arguments as 32 bits: comparing 64 would let the upper half hide a match.
fn condition(condition: &Condition) -> Result<SeccompCondition, seccompiler::BackendError> {
    let operator = match condition.test {
        Test::Equal => SeccompCmpOp::Eq,
        Test::NotEqual => SeccompCmpOp::Ne,
        Test::Masked(mask) => SeccompCmpOp::MaskedEq(mask.into()),
    };
    let value = condition.value.into();
    SeccompCondition::new(condition.argument, SeccompCmpArgLen::Dword, operator, value)
}

const EPERM: u32 = 1;
const ENOSYS: u32 = 38;
// From <linux/bpf_common.h> and <linux/seccomp.h>.
const LOAD: u16 = 0x20;
const JUMP_EQUAL: u16 = 0x15;
const JUMP_GREATER_EQUAL: u16 = 0x35;
const RETURN: u16 = 0x06;
const RET_ERRNO: u32 = 0x0005_0000;
const NR_OFFSET: u32 = 0;
const ARCH_OFFSET: u32 = 4;

/// ENOSYS for these numbers and for all that the table does not know (calls of the x32 ABI among
/// them). Everything else, and every other architecture, falls through to the compiler's program,
/// which begins with a check of the architecture.
fn head(arch: Arch, enosys: &[u32]) -> BpfProgram {
    let instruction = |code, jt, jf, k| sock_filter { code, jt, jf, k };
    let tests = enosys.len() + 1;
    // From the architecture test over load, tests and answer; from a test to the answer.
    let over = |count: usize| u8::try_from(count).unwrap_or(u8::MAX);
    let mut program = vec![
        instruction(LOAD, 0, 0, ARCH_OFFSET),
        instruction(JUMP_EQUAL, 0, over(tests + 2), arch.audit()),
        instruction(LOAD, 0, 0, NR_OFFSET),
    ];
    for (index, number) in enosys.iter().enumerate() {
        program.push(instruction(JUMP_EQUAL, over(tests - index - 1), 0, *number));
    }
    program.push(instruction(JUMP_GREATER_EQUAL, 0, 1, syscalls::FIRST_UNKNOWN));
    program.push(instruction(RETURN, 0, 0, RET_ERRNO | ENOSYS));
    program
}

fn to_bytes(program: &[sock_filter]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(size_of_val(program));
    for instruction in program {
        bytes.extend_from_slice(&instruction.code.to_ne_bytes());
        bytes.extend_from_slice(&[instruction.jt, instruction.jf]);
        bytes.extend_from_slice(&instruction.k.to_ne_bytes());
    }
    bytes
}

//! The program of a profile: a search tree over the numbers of calls.
//!
//! Input: rules that hold, and the numbers that answer ENOSYS. Output: instructions for the kernel's
//! BPF machine. When a filter is loaded, which is in every start and every exec, the kernel makes machine
//! code of each instruction and runs the filter for every number that there is, with interrupts off: a
//! chain of comparisons takes it longer than all else that a start asks of it, a tree does not.
//!
//! Limits: [`INSTRUCTIONS_MAX`]. Deliberately absent: weights (numbers that are always allowed are
//! looked up in a table of the kernel's and never get here).

use super::profile::{Condition, Rule, Test};
use super::syscalls::{Arch, FIRST_UNKNOWN};
use super::{CompileError, INSTRUCTIONS_MAX};

pub(super) const EPERM: u32 = 1;
pub(super) const ENOSYS: u32 = 38;
// From <linux/bpf_common.h> and <linux/seccomp.h>.
const LOAD: u16 = 0x20;
const AND: u16 = 0x54;
const JUMP: u16 = 0x05;
const JUMP_EQUAL: u16 = 0x15;
const JUMP_GREATER_EQUAL: u16 = 0x35;
const RETURN: u16 = 0x06;
const ALLOW: u32 = 0x7fff_0000;
const ERRNO: u32 = 0x0005_0000;
const KILL_PROCESS: u32 = 0x8000_0000;
const NUMBER_OFFSET: u32 = 0;
const ARCH_OFFSET: u32 = 4;
/// Of the low half of the first argument, as both architectures lay it out, and from one to the next.
const ARGUMENTS_OFFSET: u32 = 16;
const ARGUMENT_BYTES: u32 = 8;

/// A `sock_filter`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Instruction {
    code: u16,
    /// How many to leave out when the comparison holds, and when not.
    jt: u8,
    jf: u8,
    k: u32,
}

const fn instruction(code: u16, jt: u8, jf: u8, k: u32) -> Instruction {
    Instruction { code, jt, jf, k }
}

const fn answer(k: u32) -> Instruction {
    instruction(RETURN, 0, 0, k)
}

/// How a call is answered.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Meaning<'a> {
    Allowed,
    Denied,
    /// As a kernel without the call.
    Unknown,
    /// Allowed when all conditions of one of these hold.
    If(Vec<&'a [Condition]>),
}

/// Numbers from the first one up to the next range's.
#[derive(Debug)]
struct Range<'a> {
    first: u32,
    meaning: Meaning<'a>,
}

/// `sock_filter` structs, native endian.
pub(super) fn bytes(arch: Arch, rules: &[&Rule], enosys: &[u32]) -> Result<Vec<u8>, CompileError> {
    let mut program = vec![
        instruction(LOAD, 0, 0, ARCH_OFFSET),
        // A number means another call there.
        instruction(JUMP_EQUAL, 1, 0, arch.audit()),
        answer(KILL_PROCESS),
        instruction(LOAD, 0, 0, NUMBER_OFFSET),
    ];
    program.extend(tree(&ranges(rules, enosys))?);
    if program.len() > INSTRUCTIONS_MAX {
        return Err(CompileError::TooLong { found: program.len() });
    }
    let mut bytes = Vec::with_capacity(size_of_val(program.as_slice()));
    for Instruction { code, jt, jf, k } in program {
        bytes.extend_from_slice(&code.to_ne_bytes());
        bytes.extend_from_slice(&[jt, jf]);
        bytes.extend_from_slice(&k.to_ne_bytes());
    }
    Ok(bytes)
}

/// What every number means, from zero on without a gap. Numbers that the tables do not know, those of
/// the x32 ABI among them, are the last range.
fn ranges<'a>(rules: &[&'a Rule], enosys: &[u32]) -> Vec<Range<'a>> {
    let mut ranges: Vec<Range<'a>> = Vec::new();
    for first in 0..FIRST_UNKNOWN {
        let meaning = meaning(rules, enosys, first);
        if ranges.last().is_none_or(|last| last.meaning != meaning) {
            ranges.push(Range { first, meaning });
        }
    }
    ranges.push(Range { first: FIRST_UNKNOWN, meaning: Meaning::Unknown });
    ranges
}

fn meaning<'a>(rules: &[&'a Rule], enosys: &[u32], number: u32) -> Meaning<'a> {
    if enosys.contains(&number) {
        return Meaning::Unknown;
    }
    let of = rules.iter().filter(|rule| rule.number == number);
    let ways: Vec<_> = of.map(|rule| rule.conditions.as_slice()).collect();
    if ways.is_empty() {
        Meaning::Denied
    } else if ways.iter().any(|conditions| conditions.is_empty()) {
        Meaning::Allowed
    } else {
        Meaning::If(ways)
    }
}

/// Finds the range of the number that is loaded, and answers.
fn tree(ranges: &[Range<'_>]) -> Result<Vec<Instruction>, CompileError> {
    let (low, high) = ranges.split_at(ranges.len() / 2);
    let (Some(middle), false) = (high.first(), low.is_empty()) else {
        return high.first().map_or(Ok(Vec::new()), |range| leaf(&range.meaning));
    };
    let (low, high) = (tree(low)?, tree(high)?);
    let mut program = match u8::try_from(low.len()) {
        Ok(over) => vec![instruction(JUMP_GREATER_EQUAL, over, 0, middle.first)],
        // A comparison does not jump that far.
        Err(_far) => {
            let over = u32::try_from(low.len()).unwrap_or(u32::MAX);
            vec![instruction(JUMP_GREATER_EQUAL, 0, 1, middle.first), instruction(JUMP, 0, 0, over)]
        }
    };
    program.extend(low);
    program.extend(high);
    Ok(program)
}

fn leaf(meaning: &Meaning<'_>) -> Result<Vec<Instruction>, CompileError> {
    let ways = match meaning {
        Meaning::Allowed => return Ok(vec![answer(ALLOW)]),
        Meaning::Denied => return Ok(vec![answer(ERRNO | EPERM)]),
        Meaning::Unknown => return Ok(vec![answer(ERRNO | ENOSYS)]),
        Meaning::If(ways) => ways,
    };
    let mut program = Vec::new();
    for conditions in ways {
        program.extend(all(conditions)?);
    }
    program.push(answer(ERRNO | EPERM));
    Ok(program)
}

/// Allows when all hold, else goes on behind itself. The kernel reads these arguments as 32 bits:
/// comparing 64 would let the upper half hide a match.
fn all(conditions: &[Condition]) -> Result<Vec<Instruction>, CompileError> {
    let mut program = vec![answer(ALLOW)];
    for condition in conditions.iter().rev() {
        let found = program.len();
        let over = u8::try_from(found).map_err(|_far| CompileError::TooLong { found })?;
        let (mask, jt, jf) = match condition.test {
            Test::Equal => (None, 0, over),
            Test::NotEqual => (None, over, 0),
            Test::Masked(mask) => (Some(mask), 0, over),
        };
        let value = condition.value & mask.unwrap_or(u32::MAX);
        let at = ARGUMENTS_OFFSET + ARGUMENT_BYTES * u32::from(condition.argument);
        let mut test = vec![instruction(LOAD, 0, 0, at)];
        test.extend(mask.map(|mask| instruction(AND, 0, 0, mask)));
        test.push(instruction(JUMP_EQUAL, jt, jf, value));
        test.extend(program);
        program = test;
    }
    Ok(program)
}

//! Device rules as programs for the unified hierarchy. Pure.
//!
//! The kernel runs one for every open and mknod of a device with (type and access, major, minor) and
//! lets it pass on 1. A lease's allow-list has one block a device, and falling through all of them
//! denies. A specification's list has one block a rule, last rule first, because the last one that
//! says something about a device holds; falling through all of them allows, as without a program.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use nimbus_api::plan::{DeviceKind, DeviceRule};

use crate::sys::bpf::Instruction;

const TYPE_BLOCK: i32 = 1;
const TYPE_CHARACTER: i32 = 2;
const ACCESS_MAKE: i32 = 1;
const ACCESS_READ: i32 = 2;
const ACCESS_WRITE: i32 = 4;
const ACCESS_SHIFT: i32 = 16;
const TYPE_MASK: i32 = 0xffff;

// Classes and operations of the instruction set (32-bit where a value is compared).
const LOAD_WORD: u8 = 0x61;
const MOVE_REGISTER: u8 = 0xbc;
const MOVE: u8 = 0xb4;
const AND: u8 = 0x54;
const SHIFT_RIGHT: u8 = 0x74;
const JUMP_UNLESS_EQUAL: u8 = 0x56;
const JUMP_IF_EQUAL: u8 = 0x16;
const EXIT: u8 = 0x95;

// Registers: the result, the context, and what is read from it.
const RESULT: u8 = 0;
const CONTEXT: u8 = 1;
const ACCESS: u8 = 2;
const TYPE: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;

const fn op(code: u8, to: u8, from: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction { code, registers: to | (from << 4), offset, immediate }
}

/// One rule of a specification; what is none means all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Access {
    allow: bool,
    kind: Option<i32>,
    major: Option<u32>,
    minor: Option<u32>,
    mask: i32,
}

impl Access {
    /// Reads a rule as version 1 spells it: `c 1:* rwm`.
    pub(crate) fn parse(allow: bool, line: &str) -> Option<Self> {
        let mut words = line.split(' ');
        let kind = match words.next()? {
            "a" => None,
            "b" => Some(TYPE_BLOCK),
            "c" | "u" => Some(TYPE_CHARACTER),
            _ => return None,
        };
        let (major, minor) = words.next()?.split_once(':')?;
        let number = |text: &str| match text {
            "*" => Some(None),
            text => text.parse().ok().map(Some),
        };
        let mut mask = 0;
        for letter in words.next()?.chars() {
            mask |= match letter {
                'r' => ACCESS_READ,
                'w' => ACCESS_WRITE,
                'm' => ACCESS_MAKE,
                _ => return None,
            };
        }
        let (major, minor) = (number(major)?, number(minor)?);
        words.next().is_none().then_some(Self { allow, kind, major, minor, mask })
    }

    /// Its block; a condition that is not met jumps behind it.
    fn block(&self) -> Vec<Instruction> {
        let numbers = [
            self.kind.map(|kind| (TYPE, kind)),
            self.major.map(|major| (MAJOR, major.cast_signed())),
            self.minor.map(|minor| (MINOR, minor.cast_signed())),
        ];
        let conditions: Vec<(u8, i32)> = numbers.into_iter().flatten().collect();
        // An allowing rule must cover all that is asked, a denying one any of it.
        let mask = if self.allow { !self.mask } else { self.mask };
        let jump = if self.allow { JUMP_UNLESS_EQUAL } else { JUMP_IF_EQUAL };
        let tail = [
            op(MOVE_REGISTER, RESULT, ACCESS, 0, 0),
            op(AND, RESULT, 0, 0, mask),
            op(jump, RESULT, 0, 2, 0),
            op(MOVE, RESULT, 0, 0, i32::from(self.allow)),
            op(EXIT, 0, 0, 0, 0),
        ];
        let mut block = Vec::new();
        for (at, (register, value)) in conditions.iter().enumerate() {
            let behind = i16::try_from(conditions.len() - at - 1 + tail.len()).unwrap_or(i16::MAX);
            block.push(op(JUMP_UNLESS_EQUAL, *register, 0, behind, *value));
        }
        block.extend(tail);
        block
    }
}

/// The program for a specification's rules.
pub(crate) fn listed(rules: &[Access]) -> Vec<Instruction> {
    let mut program = load();
    program.extend(rules.iter().rev().flat_map(Access::block));
    program.extend([op(MOVE, RESULT, 0, 0, 1), op(EXIT, 0, 0, 0, 0)]);
    program
}

/// What every program begins with: the question, into registers.
fn load() -> Vec<Instruction> {
    vec![
        op(LOAD_WORD, ACCESS, CONTEXT, 0, 0),
        op(MOVE_REGISTER, TYPE, ACCESS, 0, 0),
        op(AND, TYPE, 0, 0, TYPE_MASK),
        op(SHIFT_RIGHT, ACCESS, 0, 0, ACCESS_SHIFT),
        op(LOAD_WORD, MAJOR, CONTEXT, 4, 0),
        op(LOAD_WORD, MINOR, CONTEXT, 8, 0),
    ]
}

/// The program for a lease's allow-list.
pub(crate) fn leased(rules: &[DeviceRule]) -> Vec<Instruction> {
    let mut merged: BTreeMap<(i32, u32, u32), i32> = BTreeMap::new();
    for rule in rules {
        let kind = match rule.kind {
            DeviceKind::Character => TYPE_CHARACTER,
            DeviceKind::Block => TYPE_BLOCK,
        };
        let access = if rule.writable { ACCESS_READ | ACCESS_WRITE } else { ACCESS_READ };
        *merged.entry((kind, rule.major, rule.minor)).or_default() |= access;
    }
    let mut program = load();
    for ((kind, major, minor), access) in merged {
        program.extend([
            op(JUMP_UNLESS_EQUAL, TYPE, 0, 7, kind),
            op(JUMP_UNLESS_EQUAL, MAJOR, 0, 6, major.cast_signed()),
            op(JUMP_UNLESS_EQUAL, MINOR, 0, 5, minor.cast_signed()),
            // Whatever is asked beyond what is given.
            op(MOVE_REGISTER, RESULT, ACCESS, 0, 0),
            op(AND, RESULT, 0, 0, !access),
            op(JUMP_UNLESS_EQUAL, RESULT, 0, 2, 0),
            op(MOVE, RESULT, 0, 0, 1),
            op(EXIT, 0, 0, 0, 0),
        ]);
    }
    program.extend([op(MOVE, RESULT, 0, 0, 0), op(EXIT, 0, 0, 0, 0)]);
    program
}

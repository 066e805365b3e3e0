//! An allow-list of devices as a program for the unified hierarchy. Pure.
//!
//! The kernel runs it for every open and mknod of a device with (type and access, major, minor) and
//! lets it pass on 1. One block a device; falling through all of them denies.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use nimbus_api::plan::{DeviceKind, DeviceRule};

use crate::sys::bpf::Instruction;

const TYPE_BLOCK: i32 = 1;
const TYPE_CHARACTER: i32 = 2;
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

/// The program for these rules.
pub(crate) fn program(rules: &[DeviceRule]) -> Vec<Instruction> {
    let mut merged: BTreeMap<(i32, u32, u32), i32> = BTreeMap::new();
    for rule in rules {
        let kind = match rule.kind {
            DeviceKind::Character => TYPE_CHARACTER,
            DeviceKind::Block => TYPE_BLOCK,
        };
        let access = if rule.writable { ACCESS_READ | ACCESS_WRITE } else { ACCESS_READ };
        *merged.entry((kind, rule.major, rule.minor)).or_default() |= access;
    }
    let mut program = vec![
        op(LOAD_WORD, ACCESS, CONTEXT, 0, 0),
        op(MOVE_REGISTER, TYPE, ACCESS, 0, 0),
        op(AND, TYPE, 0, 0, TYPE_MASK),
        op(SHIFT_RIGHT, ACCESS, 0, 0, ACCESS_SHIFT),
        op(LOAD_WORD, MAJOR, CONTEXT, 4, 0),
        op(LOAD_WORD, MINOR, CONTEXT, 8, 0),
    ];
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

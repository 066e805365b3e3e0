//! A program of machine code that makes system calls and says what they answered, without a compiler,
//! a library or a loader: what it calls is what the kernel is asked, under any ABI that x86-64 has.
//!
//! Its output is one character a call, then a newline: `0` for success with zero, `0` plus the error
//! number for an error up to [`ERRNO_MAX`] ([`EPERM`], [`ENOSYS`]), [`OTHER`] for everything else.

/// What an EPERM is shown as.
pub const EPERM: char = '1';
/// What an ENOSYS is shown as.
pub const ENOSYS: char = 'V';
/// What a success with a number, or an error beyond [`ERRNO_MAX`], is shown as.
pub const OTHER: char = '~';
/// The largest error number that is told.
pub const ERRNO_MAX: u8 = OTHER as u8 - b'0' - 1;

/// Where the program is loaded.
const BASE: u64 = 0x40_0000;
const HEADER_BYTES_64: u64 = 64 + 56;
const HEADER_BYTES_32: u32 = 52 + 32;
/// Where the answers are collected, one page behind the code.
const BUFFER: u64 = BASE + 0x1_0000;
const SEGMENT_BYTES: u64 = 0x1_1000;
/// How the other programs here end when they are let.
pub const ENDED: i32 = 42;

/// A call by the 64-bit ABI, or by that of x32 where bit 30 of the number is set.
#[derive(Debug, Clone, Copy)]
pub struct Call {
    /// The number.
    pub number: u64,
    /// The arguments; those that are left out are zero.
    pub args: [u64; 6],
}

/// A 64-bit program that makes these calls by `syscall`.
pub fn program(calls: &[Call]) -> Vec<u8> {
    // mov r12, BUFFER
    let mut code = with_u64(&[0x49, 0xbc], BUFFER);
    for call in calls {
        code.extend(with_u64(&[0x48, 0xb8], call.number));
        // rdi, rsi, rdx, r10, r8, r9
        let registers =
            [[0x48, 0xbf], [0x48, 0xbe], [0x48, 0xba], [0x49, 0xba], [0x49, 0xb8], [0x49, 0xb9]];
        for (register, value) in registers.iter().zip(call.args) {
            code.extend(with_u64(register, value));
        }
        code.extend([0x0f, 0x05]);
        // neg eax; cmp eax, ERRNO_MAX; jbe over; mov eax, ERRNO_MAX + 1; over: add al, '0'
        code.extend([0xf7, 0xd8, 0x83, 0xf8, ERRNO_MAX, 0x76, 5]);
        code.extend([0xb8, ERRNO_MAX + 1, 0, 0, 0, 0x04, b'0']);
        // mov [r12], al; inc r12
        code.extend([0x41, 0x88, 0x04, 0x24, 0x49, 0xff, 0xc4]);
    }
    // mov byte [r12], '\n'; inc r12; mov eax, write; mov edi, 1; mov rsi, BUFFER
    code.extend([0x41, 0xc6, 0x04, 0x24, b'\n', 0x49, 0xff, 0xc4]);
    code.extend([0xb8, 1, 0, 0, 0, 0xbf, 1, 0, 0, 0]);
    code.extend(with_u64(&[0x48, 0xbe], BUFFER));
    // mov rdx, r12; sub rdx, rsi; syscall
    code.extend([0x4c, 0x89, 0xe2, 0x48, 0x29, 0xf2, 0x0f, 0x05]);
    code.extend(exit_group(0));
    elf64(&code)
}

/// A 64-bit program that asks for its pid by the 32-bit gate, `int 0x80`, and then ends with
/// [`ENDED`] by the 64-bit one.
pub fn by_the_32_bit_gate() -> Vec<u8> {
    // mov eax, 20; int 0x80
    let mut code = vec![0xb8, 20, 0, 0, 0, 0xcd, 0x80];
    code.extend(exit_group(ENDED.unsigned_abs()));
    elf64(&code)
}

/// A 32-bit program that ends with [`ENDED`].
pub fn of_32_bits() -> Vec<u8> {
    // mov eax, exit; mov ebx, ENDED; int 0x80
    let [low, ..] = ENDED.to_le_bytes();
    let code = [0xb8, 1, 0, 0, 0, 0xbb, low, 0, 0, 0, 0xcd, 0x80];
    let base = u32::try_from(BASE).unwrap_or(u32::MAX);
    // 32 bits, little-endian; an executable for i386, with one program header behind this one.
    let mut elf = ident(1);
    elf.extend([2, 0, 3, 0]);
    words32(&mut elf, &[1, base + HEADER_BYTES_32, 52, 0, 0]);
    elf.extend([52, 0, 32, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    let bytes = HEADER_BYTES_32 + u32::try_from(code.len()).unwrap_or(u32::MAX);
    words32(&mut elf, &[1, 0, base, base, bytes, bytes, 5, 0x1000]);
    elf.extend(code);
    elf
}

fn exit_group(status: u32) -> Vec<u8> {
    // mov edi, status; mov eax, exit_group; syscall
    let mut code = vec![0xbf];
    code.extend(status.to_le_bytes());
    code.extend([0xb8, 231, 0, 0, 0, 0x0f, 0x05]);
    code
}

fn with_u64(opcode: &[u8], value: u64) -> Vec<u8> {
    [opcode, &value.to_le_bytes()].concat()
}

fn ident(class: u8) -> Vec<u8> {
    let mut ident = vec![0x7f, b'E', b'L', b'F', class, 1, 1, 0];
    ident.extend([0; 8]);
    ident
}

fn words32(to: &mut Vec<u8>, words: &[u32]) {
    to.extend(words.iter().flat_map(|word| word.to_le_bytes()));
}

fn elf64(code: &[u8]) -> Vec<u8> {
    let mut elf = ident(2);
    let words = |elf: &mut Vec<u8>, words: &[u64]| {
        elf.extend(words.iter().flat_map(|word| word.to_le_bytes()));
    };
    elf.extend([2, 0, 62, 0, 1, 0, 0, 0]);
    words(&mut elf, &[BASE + HEADER_BYTES_64, 64, 0]);
    elf.extend([0, 0, 0, 0, 64, 0, 56, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    // Loaded whole, readable, writable and executable.
    elf.extend([1, 0, 0, 0, 7, 0, 0, 0]);
    let bytes = HEADER_BYTES_64 + u64::try_from(code.len()).unwrap_or(u64::MAX);
    words(&mut elf, &[0, BASE, BASE, bytes, SEGMENT_BYTES, 0x1000]);
    elf.extend(code);
    elf
}

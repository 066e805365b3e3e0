//! Every fuzz target, without libFuzzer: its seeds, then what becomes of them by chance for a while.
//!
//! Intent: a short run for every change. libFuzzer looks where inputs lead and finds far more, but its
//! build takes minutes; this one is built like any test. The chances are the same in every run, so that
//! what fails once fails again; `NIMBUS_FUZZ_SECONDS` is how long each target gets.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use nimbus_fuzz::targets::{TARGETS, Target};

/// Seconds that a target gets.
const SECONDS_DEFAULT: u64 = 2;
/// Inputs that a target gets at least, however slow it is.
const INPUTS_MIN: u64 = 50;
/// Longest input.
const INPUT_BYTES_MAX: usize = 64 << 10;

/// xorshift64*: what is wanted is variety, not secrecy.
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, end: usize) -> usize {
        let end = u64::try_from(end.max(1)).unwrap_or(u64::MAX);
        usize::try_from(self.next() % end).unwrap_or(0)
    }
}

/// Words that parsers look for.
const WORDS: [&[u8]; 14] = [
    b"\0",
    b"\n",
    b"max",
    b"-1",
    b"18446744073709551615",
    b"\"",
    b"{",
    b"[[[[",
    b"null",
    b"..",
    b"/",
    b"file://",
    b"\xff\xfe",
    b"=",
];

fn mutated(seeds: &[Vec<u8>], chance: &mut Chance) -> Vec<u8> {
    let at = chance.below(seeds.len());
    let mut input = seeds.get(at).cloned().unwrap_or_default();
    for _ in 0..=chance.below(6) {
        let at = chance.below(input.len() + 1);
        match chance.below(7) {
            0 => input.truncate(at),
            1 => {
                if let Some(byte) = input.get_mut(at) {
                    *byte ^= 1 << chance.below(8);
                }
            }
            2 => {
                let word = WORDS.get(chance.below(WORDS.len())).copied().unwrap_or_default();
                input.splice(at..at, word.iter().copied());
            }
            3 => {
                let end = (at + 1 + chance.below(16)).min(input.len());
                input.drain(at..end);
            }
            4 => {
                let end = (at + 1 + chance.below(64)).min(input.len());
                let piece = input.get(at..end).unwrap_or_default().to_vec();
                let to = chance.below(input.len() + 1);
                input.splice(to..to, piece);
            }
            5 => {
                let other = chance.below(seeds.len());
                let other = seeds.get(other).cloned().unwrap_or_default();
                let from = chance.below(other.len() + 1);
                input.truncate(at);
                input.extend_from_slice(other.get(from..).unwrap_or_default());
            }
            _ => input.insert(at, chance.next().to_le_bytes()[0]),
        }
    }
    input.truncate(INPUT_BYTES_MAX);
    input
}

/// The seeds, of `seeds` and, where libFuzzer has left any, of `regressions`.
fn seeds(name: &str) -> Vec<Vec<u8>> {
    let mut all = vec![Vec::new()];
    for folder in ["seeds", "regressions"] {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder).join(name);
        let files = fs::read_dir(dir).into_iter().flatten().flatten();
        all.extend(files.filter_map(|file| fs::read(file.path()).ok()));
    }
    all.sort();
    all
}

fn replay(name: &str, target: Target, patience: Duration) -> u64 {
    let seeds = seeds(name);
    seeds.iter().for_each(|seed| target(seed));
    let mut chance = Chance(0x9e37_79b9_7f4a_7c15);
    let begun = Instant::now();
    let mut inputs = 0;
    while inputs < INPUTS_MIN || begun.elapsed() < patience {
        let input = mutated(&seeds, &mut chance);
        let broken = std::panic::catch_unwind(|| target(&input)).is_err();
        assert!(!broken, "{name} breaks its promise on {}", input.escape_ascii());
        inputs += 1;
    }
    inputs
}

#[test]
fn every_target_keeps_its_promise_on_its_seeds_and_what_becomes_of_them() {
    let seconds = std::env::var("NIMBUS_FUZZ_SECONDS").ok().and_then(|text| text.parse().ok());
    let patience = Duration::from_secs(seconds.unwrap_or(SECONDS_DEFAULT));
    for (name, target) in TARGETS {
        let inputs = replay(name, *target, patience);
        println!("{name:16} {inputs} inputs");
    }
}

#[test]
fn every_target_has_a_program_for_libfuzzer() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz_targets");
    let mut found: Vec<_> = fs::read_dir(dir)
        .expect("the programs")
        .flatten()
        .filter_map(|file| Some(file.path().file_stem()?.to_str()?.to_owned()))
        .collect();
    found.sort();
    let named: Vec<_> = TARGETS.iter().map(|(name, _)| *name).collect();
    assert_eq!(found, named);
}

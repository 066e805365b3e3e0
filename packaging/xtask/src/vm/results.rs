//! What a machine has left on its second disk, read when it is off, without mounting it.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::payload::Program;
use crate::count::Count;
use crate::run::{RunError, complain, output, say};

/// What the guest must say about its cgroups: one unified hierarchy and no other.
const PURE: [&str; 2] = ["cgroup2fs", "0"];

/// Copies the results out of the disk and counts. A test program that left no closing line, or that
/// failed without a failed test, counts as one failed test.
pub(super) fn read(disk: &Path, dir: &Path, programs: &[Program]) -> Result<Count, RunError> {
    let failed = |source| RunError::Files { what: dir.display().to_string(), source };
    if dir.exists() {
        fs::remove_dir_all(dir).map_err(failed)?;
    }
    fs::create_dir_all(dir).map_err(failed)?;
    let mut dump = Command::new("debugfs");
    dump.arg("-R").arg(format!("rdump /out {}", dir.display())).arg(disk);
    output(&mut dump)?;
    let dir = dir.join("out");
    let text = |name: &str| fs::read_to_string(dir.join(name)).unwrap_or_default();
    let machine = text("machine");
    let said: Vec<_> = machine.lines().collect();
    say(format_args!("machine: {}", said.join(", ")));
    let mut total = Count::default();
    if said.get(2..) != Some(PURE.as_slice()) {
        complain("xtask: the machine has not booted with cgroup v2 alone");
        total.failed += 1;
    }
    for program in programs {
        let log = fs::read(dir.join(format!("{}.log", program.name))).unwrap_or_default();
        let status = text(&format!("{}.status", program.name));
        let count = of_program(&String::from_utf8_lossy(&log), status.trim());
        say(format_args!("{:44} {count}", program.name));
        total += count;
    }
    Ok(total)
}

fn of_program(log: &str, status: &str) -> Count {
    let mut count = Count::default();
    let mut closed = false;
    for more in log.lines().filter_map(Count::of_line) {
        closed = true;
        count += more;
    }
    if count.failed == 0 && (!closed || status != "0") {
        count.failed = 1;
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;

    const OK: &str = "x\ntest result: ok. 3 passed; 0 failed; 1 ignored; 0 measured\n";

    #[test]
    fn what_did_not_end_well_has_failed_whatever_it_says() {
        assert_eq!(of_program(OK, "0"), Count { passed: 3, failed: 0, skipped: 1 });
        assert_eq!(of_program(OK, "137").failed, 1);
        assert_eq!(of_program(OK, "").failed, 1);
        assert_eq!(of_program("running 3 tests\n", "0").failed, 1);
        assert_eq!(of_program("", "").failed, 1);
        let failed = OK.replace("ok. 3 passed; 0", "FAILED. 1 passed; 2");
        assert_eq!(of_program(&failed, "101").failed, 2);
    }
}

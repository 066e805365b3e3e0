//! Lane `vm`: the same tests in a virtual machine with nothing but cgroup v2.
//!
//! Intent: most of what limits and ends a job is the kernel's, and a developer's machine has one kernel
//! and one layout of cgroups. Here are others, booted under emulation, in which the test programs of
//! the other lanes run unchanged: the runtime's and the shim's own tests, and the lanes `e2e`,
//! `security` and `fault`. Inputs: a machine's image, made once (`image`), and a disk with the programs
//! (`payload`). Output: a count, from files that the machine leaves on that disk (`results`).
//! Deliberately absent: a network, and any use of KVM.

mod image;
mod machine;
mod payload;
mod qemu;
mod results;

use std::fs;

pub(crate) use machine::Machine;

use crate::count::Count;
use crate::run::{RunError, Workspace, complain};
use crate::setup;
use image::Image;
use qemu::Ended;

/// Lines of the console that are shown when a machine did not come to its end.
const CONSOLE_LINES: usize = 40;

/// What is run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Chosen<'a> {
    /// Only test programs whose name contains this.
    pub(crate) program: Option<&'a str>,
    /// Only tests whose name contains this.
    pub(crate) filter: Option<&'a str>,
}

/// Boots the machine, runs every test program whose tests match, and counts.
pub(crate) fn test(
    workspace: &Workspace,
    machine: Machine,
    chosen: Chosen<'_>,
) -> Result<Count, RunError> {
    setup::setup_vm()?;
    let image = Image::ready(machine)?;
    let mut programs = payload::programs(workspace)?;
    // Maintainer scripts and units want systemd, and whoever has chosen tests means others.
    if machine.has_systemd() && chosen.filter.is_none() {
        programs.push(payload::packages());
    }
    programs.retain(|program| program.name.contains(chosen.program.unwrap_or_default()));
    let dir = workspace.target().join("vm").join(machine.name());
    fs::create_dir_all(&dir)
        .map_err(|source| RunError::Files { what: dir.display().to_string(), source })?;
    let disk = payload::make(workspace, &dir, &programs, chosen.filter)?;
    let console = dir.join("console");
    let ended = qemu::boot(machine, &image, &disk, &console)?;
    let mut count = results::read(&disk, &dir.join("results"), &programs)?;
    if ended == Ended::Deadline {
        complain(format_args!(
            "xtask: the machine was not off after {} s and was ended",
            qemu::MACHINE_TIME_MAX.as_secs()
        ));
        count.failed = count.failed.max(1);
    }
    if count.failed > 0 {
        let text = fs::read(&console).unwrap_or_default();
        let text = String::from_utf8_lossy(&text).into_owned();
        let lines: Vec<_> = text.lines().collect();
        let from = lines.len().saturating_sub(CONSOLE_LINES);
        complain(lines.get(from..).unwrap_or_default().join("\n"));
        complain(format_args!("xtask: more is in {}", dir.display()));
    }
    Ok(count)
}

//! Booting a machine, showing what it says, and ending it at its deadline.
//!
//! KVM is not asked for: where the lane runs there may be none, or one that hangs. Under emulation a
//! machine is some ten times slower than its host, which the limits here allow for.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::image::Image;
use super::machine::Machine;
use crate::run::{RunError, complain, say, shown};

/// From power-on to power-off; a machine that takes longer is switched off and has failed.
pub(super) const MACHINE_TIME_MAX: Duration = Duration::from_mins(25);
/// Between two looks at whether it is off.
const LOOK: Duration = Duration::from_millis(100);
const MEMORY: &str = "4096";
const PROCESSORS: &str = "2";

/// How a machine ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    Off,
    Deadline,
}

/// Boots and waits until it is off. What the guest writes to its disk `payload` stays there; what it
/// writes to its root does not.
pub(super) fn boot(
    machine: Machine,
    image: &Image,
    payload: &Path,
    console: &Path,
) -> Result<Ended, RunError> {
    let mut command = command(machine, image, payload, console);
    let program = shown(&command);
    complain(format_args!("$ {program}"));
    let start = |source| RunError::Start { program: program.clone(), source };
    let mut child = command.spawn().map_err(start)?;
    let output = child.stdout.take();
    let reader = thread::spawn(move || {
        for line in output.into_iter().flat_map(|output| BufReader::new(output).split(b'\n')) {
            let Ok(line) = line else { return };
            say(String::from_utf8_lossy(&line).trim_end_matches('\r'));
        }
    });
    let deadline = Instant::now() + MACHINE_TIME_MAX;
    let read = |source| RunError::Read { program: program.clone(), source };
    let ended = loop {
        match child.try_wait().map_err(read)? {
            Some(status) if status.success() => break Ended::Off,
            Some(status) => return Err(RunError::Status { program, status }),
            None if Instant::now() < deadline => thread::sleep(LOOK),
            None => {
                child.kill().map_err(read)?;
                child.wait().map_err(read)?;
                break Ended::Deadline;
            }
        }
    };
    // It ends with the machine, whose end of the pipe is closed.
    drop(reader.join());
    Ok(ended)
}

fn command(machine: Machine, image: &Image, payload: &Path, console: &Path) -> Command {
    let mut command = Command::new("qemu-system-x86_64");
    command.args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"]);
    command.args(["-accel", "tcg,thread=multi", "-cpu", "max", "-M", "q35"]);
    command.args(["-m", MEMORY, "-smp", PROCESSORS, "-nic", "none"]);
    command.arg("-kernel").arg(image.kernel()).arg("-initrd").arg(image.initrd());
    command.args(["-append", machine.kernel_arguments()]);
    let drive = |path: &Path, more: &str| {
        // A comma in a value is written twice.
        let path = path.display().to_string().replace(',', ",,");
        format!("file={path},format=raw,if=virtio,cache=unsafe{more}")
    };
    command.arg("-drive").arg(drive(&image.disk(), ",snapshot=on"));
    command.arg("-drive").arg(drive(payload, ""));
    let console = console.display().to_string().replace(',', ",,");
    command.arg("-serial").arg(format!("file:{console}")).args(["-serial", "stdio"]);
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    command
}

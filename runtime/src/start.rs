//! Start: lets the waiting init process execute its program, and says whether it could.
#![forbid(unsafe_code)]

use std::os::fd::OwnedFd;

use nimbus_api::RefusalCode;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{AtFlags, Mode, OFlags, openat, unlinkat};

use crate::error::{Doing as _, RuntimeError};
use crate::layout::Layout;
use crate::record::Record;
use crate::report::{self, Report};

/// Longest wait until the program has been executed, seconds.
const START_SECONDS: i64 = 10;
/// What is written; that something is, is what counts.
const START: u8 = 1;

/// Starts a container that waits.
pub(crate) fn start(layout: &Layout) -> Result<(), RuntimeError> {
    let (dir, init) = waiting(layout)?;
    let fifo = report::open_reader(layout)?;
    // Without waiting: an init process that has ended holds no other end.
    let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let gate = openat(&dir, Layout::notify(), flags, Mode::empty());
    let told = gate.and_then(|gate| rustix::io::write(&gate, &[START]));
    told.doing("tell the init process to start")?;
    // What tells a started container from a waiting one.
    unlinkat(&dir, Layout::notify(), AtFlags::empty()).doing("mark the container as started")?;
    executed(&fifo, &init)
}

fn waiting(layout: &Layout) -> Result<(OwnedFd, OwnedFd), RuntimeError> {
    let not = |detail: &str| RuntimeError::refused(RefusalCode::RuntimeFailed, detail);
    let dir = layout.open()?.ok_or_else(|| not("there is no such container"))?;
    let init = Record::read(layout)?.and_then(|record| record.init);
    let init = init.ok_or_else(|| not("the container is not created"))?;
    let pidfd = init.open()?.ok_or_else(|| not("the init process has ended"))?;
    Ok((dir, pidfd))
}

/// Waits for the FIFO's end: the init process holds it until it has executed its program.
fn executed(fifo: &OwnedFd, init: &OwnedFd) -> Result<(), RuntimeError> {
    let mut both = [PollFd::new(fifo, PollFlags::IN), PollFd::new(init, PollFlags::IN)];
    let patience = Timespec { tv_sec: START_SECONDS, tv_nsec: 0 };
    loop {
        match poll(&mut both, Some(&patience)) {
            Ok(0) => return Err(RuntimeError::refused(RefusalCode::RuntimeTimeout, "no execve")),
            Ok(_) => break,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).doing("wait for the program to be executed"),
        }
    }
    match Report::receive(fifo) {
        Some(report) => Err(RuntimeError::Refused(report.refusal())),
        None => Ok(()),
    }
}

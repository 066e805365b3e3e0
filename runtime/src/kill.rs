//! Kill: a signal for the init process, or for everything in the container.
#![forbid(unsafe_code)]

use nimbus_api::RefusalCode;
use rustix::process::{Signal, pidfd_send_signal};

use crate::cgroup::end::{kill_all, signal_all};
use crate::cgroup::hierarchy::dirs;
use crate::error::{Doing as _, RuntimeError};
use crate::layout::Layout;
use crate::record::Record;
use crate::sys::signal::signal;

/// Sends a signal.
pub(crate) fn kill(layout: &Layout, number: i32, all: bool) -> Result<(), RuntimeError> {
    let not = |detail: String| RuntimeError::refused(RefusalCode::RuntimeFailed, detail);
    let signal = signal(number).ok_or_else(|| not(format!("{number} is no signal")))?;
    let record = Record::read(layout)?.ok_or_else(|| not("there is no such container".into()))?;
    if all {
        let mut dirs = dirs(&record.cgroup);
        dirs.insert(0, &record.guard);
        return if signal == Signal::KILL { kill_all(&dirs) } else { signal_all(&dirs, signal) };
    }
    let init = record.init.ok_or_else(|| not("the container is not created".into()))?;
    let pidfd = init.open()?.ok_or_else(|| not("the init process has ended".into()))?;
    match pidfd_send_signal(&pidfd, signal) {
        // Ended, and only waits for its parent to look.
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(error) => Err(error).doing("signal the init process"),
    }
}

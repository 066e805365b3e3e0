//! What an init process says about its program over the container's FIFO: one fixed-size message.
#![forbid(unsafe_code)]

use std::os::fd::{AsFd, OwnedFd};

use nimbus_api::{Refusal, RefusalCode};
use rustix::fs::{CWD, FileType, Mode, OFlags, mknodat};

use crate::error::{Doing as _, RuntimeError};
use crate::layout::Layout;

/// Bytes of one.
const PRIVATE: Mode = Mode::RUSR.union(Mode::WUSR);
pub(crate) const REPORT_BYTES: usize = 5;

/// Where it went wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Looking for the program.
    Find,
    /// Loading the filter.
    Filter,
    /// Executing the program.
    Execute,
    /// Everything before.
    SetUp,
    /// Entering its directory.
    Directory,
    /// Making its terminal.
    Terminal,
}

impl Stage {
    pub(crate) const fn sentence(self) -> &'static str {
        match self {
            Self::Find => "the program cannot be found",
            Self::Filter => "the filter cannot be loaded",
            Self::Execute => "the program cannot be executed",
            Self::SetUp => "the process cannot be set up",
            Self::Directory => "the working directory cannot be entered",
            Self::Terminal => "a terminal cannot be made in the container",
        }
    }
}

/// One message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Report {
    pub(crate) stage: Stage,
    pub(crate) errno: i32,
}

impl Report {
    /// Sends it; whoever reads finds out by the process's end if that fails.
    pub(crate) fn send(self, fifo: &OwnedFd) {
        rustix::io::write(fifo, &self.to_bytes()).unwrap_or_default();
    }

    /// As it travels.
    pub(crate) fn to_bytes(self) -> [u8; REPORT_BYTES] {
        let [a, b, c, d] = self.errno.to_ne_bytes();
        let stage = match self.stage {
            Stage::Find => 1,
            Stage::Filter => 2,
            Stage::Execute => 3,
            Stage::SetUp => 4,
            Stage::Directory => 5,
            Stage::Terminal => 6,
        };
        [stage, a, b, c, d]
    }

    /// As it has travelled, if it is one.
    pub(crate) fn from_bytes([stage, a, b, c, d]: [u8; REPORT_BYTES]) -> Option<Self> {
        let stage = match stage {
            1 => Stage::Find,
            2 => Stage::Filter,
            3 => Stage::Execute,
            4 => Stage::SetUp,
            5 => Stage::Directory,
            6 => Stage::Terminal,
            _ => return None,
        };
        Some(Self { stage, errno: i32::from_ne_bytes([a, b, c, d]) })
    }

    /// Reads one, if there is one.
    pub(crate) fn receive(fifo: impl AsFd) -> Option<Self> {
        let mut bytes = [0; REPORT_BYTES];
        if rustix::io::read(fifo, &mut bytes) != Ok(REPORT_BYTES) {
            return None;
        }
        Self::from_bytes(bytes)
    }

    /// The refusal that it means.
    pub(crate) fn refusal(self) -> Refusal {
        let code = match self.stage {
            Stage::Find | Stage::Execute | Stage::Directory => RefusalCode::RuntimeExec,
            Stage::Filter => RefusalCode::RuntimeUnproven,
            Stage::SetUp | Stage::Terminal => RefusalCode::RuntimeFailed,
        };
        let cause = std::io::Error::from_raw_os_error(self.errno);
        Refusal::with(code, format!("{}: {cause}", self.stage.sentence()))
    }
}

/// Makes the FIFO and opens it for both ends, so that opening waits for nobody.
pub(crate) fn make_fifo(layout: &Layout) -> Result<OwnedFd, RuntimeError> {
    mknodat(CWD, layout.fifo(), FileType::Fifo, PRIVATE, 0).doing("make the FIFO")?;
    open(layout, OFlags::RDWR)
}

/// Makes the FIFO that Start writes to, likewise; reading it waits.
pub(crate) fn make_gate(layout: &Layout) -> Result<OwnedFd, RuntimeError> {
    let path = layout.dir().join(Layout::notify());
    mknodat(CWD, &path, FileType::Fifo, PRIVATE, 0).doing("make the FIFO of Start")?;
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    rustix::fs::open(path, flags, Mode::empty()).doing("open the FIFO of Start")
}

/// Opens its reading end; end of file is when the init process has executed its program or ended.
pub(crate) fn open_reader(layout: &Layout) -> Result<OwnedFd, RuntimeError> {
    open(layout, OFlags::RDONLY)
}

fn open(layout: &Layout, access: OFlags) -> Result<OwnedFd, RuntimeError> {
    let flags = access | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    rustix::fs::open(layout.fifo(), flags, Mode::empty()).doing("open the FIFO")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_arrives_whole_and_noise_is_none() {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        let sent = Report { stage: Stage::Execute, errno: libc::ENOEXEC };
        sent.send(&writer);
        assert_eq!(Report::receive(&reader), Some(sent));
        assert_eq!(sent.refusal().code, RefusalCode::RuntimeExec);
        rustix::io::write(&writer, &[9, 0, 0, 0, 0]).unwrap();
        assert_eq!(Report::receive(&reader), None);
        drop(writer);
        assert_eq!(Report::receive(&reader), None);
    }
}

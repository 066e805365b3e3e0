//! What the sandbox denies on this host, tried out: for node admins and the tests.
//!
//! Everything is tried twice: once with all layers but the filter, once with the filter, so that
//! neither hides that the other is missing.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::process::Command;
use std::thread;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use serde::Serialize;

use super::{Layers, SandboxError, confine, filter};

/// What a try came to: "denied: reason" or "allowed".
pub type Tries = BTreeMap<&'static str, String>;

/// The report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Which optional layers hold.
    pub layers: Layers,
    /// With all layers but the filter.
    pub without_filter: Tries,
    /// With the filter.
    pub with_filter: Tries,
}

/// Enters the sandbox and tries to get out.
pub fn report() -> Result<Report, SandboxError> {
    let layers = confine()?;
    let without_filter = tries();
    filter::install()?;
    Ok(Report { layers, without_filter, with_filter: tries() })
}

fn tries() -> Tries {
    let mut tries = Tries::new();
    // Takes no descriptor: only an empty root or the filter denies it.
    tries.insert("look_at_file", told(fs::symlink_metadata("/etc/passwd")));
    tries.insert("read_file", told(File::open("/etc/passwd")));
    tries.insert("open_root_directory", told(File::open("/")));
    tries.insert("create_file", told(File::create("/x")));
    tries.insert(
        "socket",
        told(socket(AddressFamily::Inet, SockType::Stream, SockFlag::empty(), None)),
    );
    tries.insert("start_thread", told(thread::Builder::new().spawn(|| {})));
    tries.insert("start_program", told(Command::new("/bin/true").spawn()));
    tries.insert("become_root", told(nix::unistd::setuid(nix::unistd::Uid::from_raw(0))));
    tries
}

fn told<T, E: std::fmt::Display>(tried: Result<T, E>) -> String {
    match tried {
        Ok(_what) => "allowed".to_owned(),
        Err(error) => format!("denied: {error}"),
    }
}

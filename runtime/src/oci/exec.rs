//! `nimbus-oci exec`: one more process, taken as it is written; nobody judges it here.
#![forbid(unsafe_code)]

use std::fs;
use std::io;
use std::os::fd::AsFd as _;
use std::path::Path;

use nimbus_api::error::Chain;
use nimbus_api::runtime::{ExecProcess, OpenFiles};
use nimbus_api::strict_json::{self, Limits};
use serde_json::Value;

use super::{CONFIG_BYTES_MAX, failed};
use crate::error::{Doing as _, RuntimeError};
use crate::exec::{Request, exec};
use crate::layout::Layout;
use crate::sys::fork::Kin;
use crate::sys::seccomp::Program;

const UMASK: u32 = 0o022;
/// Open files when nobody says: containerd's default.
const NOFILE: u64 = 1024;

/// The process of a file, or the container's own with another command.
pub(super) fn process(
    layout: &Layout,
    file: Option<&Path>,
    command: Vec<String>,
) -> Result<ExecProcess, RuntimeError> {
    let read = |path: &Path| {
        let text = fs::read(path).doing(format_args!("read {}", path.display()))?;
        let parsed = strict_json::value(&text, Limits::bytes(CONFIG_BYTES_MAX));
        parsed.map_err(|error| failed(Chain(&error)))
    };
    let process = match file {
        Some(file) => read(file)?,
        None => read(&layout.config())?.get("process").cloned().unwrap_or_default(),
    };
    if process.get("terminal").and_then(Value::as_bool) == Some(true) {
        return Err(failed("terminals are not supported here"));
    }
    let texts = |pointer: &str| -> Vec<String> {
        let list = process.pointer(pointer).and_then(Value::as_array).into_iter().flatten();
        list.filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let number = |pointer: &str, absent: u32| {
        let number = process.pointer(pointer).and_then(Value::as_u64);
        number.map_or(Ok(absent), |number| {
            u32::try_from(number).map_err(|_range| failed(format!("{pointer} is {number}")))
        })
    };
    let mut groups = Vec::new();
    let listed = process.pointer("/user/additionalGids").and_then(Value::as_array);
    for group in listed.into_iter().flatten().filter_map(Value::as_u64) {
        groups.push(u32::try_from(group).map_err(|_range| failed(format!("group {group}")))?);
    }
    let cwd = process.get("cwd").and_then(Value::as_str).unwrap_or("/");
    Ok(ExecProcess {
        args: if command.is_empty() { texts("/args") } else { command },
        env: texts("/env"),
        cwd: cwd.to_owned(),
        uid: number("/user/uid", 0)?,
        gid: number("/user/gid", 0)?,
        additional_gids: groups,
        umask: number("/user/umask", UMASK)?,
        capabilities: texts("/capabilities/bounding"),
        nofile: OpenFiles { soft: NOFILE, hard: NOFILE },
        oom_score_adj: own_oom_score_adj()?,
        terminal: None,
    })
}

fn own_oom_score_adj() -> Result<i32, RuntimeError> {
    let text = fs::read_to_string("/proc/self/oom_score_adj").doing("read oom_score_adj")?;
    text.trim().parse().map_err(failed)
}

/// Starts it with this process's own descriptors; its pid.
pub(super) fn start(
    layout: &Layout,
    process: ExecProcess,
    filter: Option<Program>,
) -> Result<i32, RuntimeError> {
    let copy = |result: io::Result<_>| result.doing("take a standard descriptor");
    let stdio = [
        copy(io::stdin().as_fd().try_clone_to_owned())?,
        copy(io::stdout().as_fd().try_clone_to_owned())?,
        copy(io::stderr().as_fd().try_clone_to_owned())?,
    ];
    let request = Request { process, filter, stdio: Some(stdio), kin: Kin::Child };
    Ok(exec(layout, request)?.pid)
}

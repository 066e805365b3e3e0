//! The process: user, command, capabilities, limits.

use nimbus_api::process::{BindIdentity, ProcessIdentity};
use nimbus_api::runtime::{OpenFiles, TerminalSize};
use nimbus_api::{Refusal, RefusalCode};

use super::raw::{Capabilities, ConsoleSize, Mount, Process, Rlimit};
use super::{Tightened, binds, malformed};
use crate::DEFAULT_CAPABILITIES;

/// First id that is out of range: above it, ids turn negative somewhere (CVE-2024-40635).
const ID_LIMIT: u32 = 1 << 31;
/// Most additional groups.
const GROUPS_MAX: usize = 64;
/// Most open files.
const NOFILE_MAX: u64 = 65_536;
/// Open files of a process that names no limit: containerd's default.
const NOFILE_DEFAULT: u64 = 1024;
/// The kernel's largest `oom_score_adj`.
const OOM_SCORE_ADJ_MAX: i64 = 1000;

/// What of a process is not its identity.
#[derive(Debug)]
pub(crate) struct Task {
    pub(crate) capabilities: Vec<String>,
    pub(crate) nofile: OpenFiles,
}

pub(crate) fn identity(process: &Process, mounts: &[Mount]) -> ProcessIdentity {
    let bind = |mount: &Mount| BindIdentity {
        source: mount.source.clone(),
        destination: mount.destination.clone(),
        writable: !binds::is_read_only(mount),
    };
    ProcessIdentity {
        args: process.args.clone(),
        env: process.env.clone(),
        cwd: process.cwd.clone(),
        uid: process.user.uid,
        gid: process.user.gid,
        additional_gids: process.user.additional_gids.clone(),
        binds: mounts.iter().filter(|mount| binds::is_bind(mount)).map(bind).collect(),
    }
}

/// The terminal that a process asks for.
pub(crate) fn terminal(process: &Process) -> Option<TerminalSize> {
    process.terminal.then(|| size(process.console_size))
}

/// A size that no terminal has is one that is not known.
pub(crate) fn size(given: Option<ConsoleSize>) -> TerminalSize {
    let known = given.and_then(|size| {
        let rows = u16::try_from(size.height).ok()?;
        Some(TerminalSize { rows, columns: u16::try_from(size.width).ok()? })
    });
    known.unwrap_or_default()
}

/// Judges a process, the container's first or one more, by the capabilities that it may have and by
/// whether it is in a pod.
pub(crate) fn judge(
    process: &Process,
    leased: &[String],
    in_pod: bool,
    tightened: &mut Tightened,
) -> Result<Task, Refusal> {
    check_privileges(process, in_pod)?;
    check_user(process)?;
    check_command(process)?;
    tightened.note_if(process.no_new_privileges != Some(true), "process.noNewPrivileges: true");
    let labels = [&process.apparmor_profile, &process.selinux_label];
    let labelled = labels.iter().any(|label| label.as_ref().is_some_and(|text| !text.is_empty()));
    tightened.note_if(labelled, "process security label: not applied, the lease's containment is");
    let spared = process.oom_score_adj.is_none_or(|adjust| adjust < 0);
    tightened.note_if(spared, "process.oomScoreAdj: 0");
    let capabilities = capabilities(process.capabilities.as_ref(), leased, tightened)?;
    Ok(Task { capabilities, nofile: nofile(&process.rlimits, tightened)? })
}

/// In a pod an `oomScoreAdj` below 0 is no wish of the tenant's: kubelet gives every guaranteed pod -997,
/// and the CRI plugin every sandbox -998. Refusing it would refuse those pods whole, so it is cut to 0.
fn check_privileges(process: &Process, in_pod: bool) -> Result<(), Refusal> {
    let spared = process.oom_score_adj.is_some_and(|adjust| adjust < 0);
    let present = [
        ("process.scheduler", process.scheduler.is_some()),
        ("process.ioPriority", process.io_priority.is_some()),
        ("process.execCPUAffinity", process.exec_cpu_affinity.is_some()),
        ("process.oomScoreAdj below 0", spared && !in_pod),
    ];
    for (name, present) in present {
        if present {
            return Err(Refusal::with(RefusalCode::SpecPrivilegeForbidden, name));
        }
    }
    if process.oom_score_adj.is_some_and(|adjust| adjust > OOM_SCORE_ADJ_MAX) {
        return Err(malformed("process.oomScoreAdj is above 1000"));
    }
    Ok(())
}

fn check_user(process: &Process) -> Result<(), Refusal> {
    let user = &process.user;
    let ids = [user.uid, user.gid];
    if let Some(id) = ids.iter().chain(&user.additional_gids).find(|id| **id >= ID_LIMIT) {
        return Err(Refusal::with(RefusalCode::SpecUserForbidden, format!("found {id}")));
    }
    if user.username.is_some() || user.additional_gids.len() > GROUPS_MAX {
        let found = format!("a user name, or more than {GROUPS_MAX} groups");
        return Err(Refusal::with(RefusalCode::SpecUserForbidden, found));
    }
    if user.umask.is_some_and(|umask| umask > 0o777) {
        return Err(malformed("process.user.umask is above 0777"));
    }
    Ok(())
}

fn check_command(process: &Process) -> Result<(), Refusal> {
    if process.command_line.is_some() || process.args.is_empty() {
        return Err(malformed("process.args is empty, or process.commandLine is there"));
    }
    let texts = process.args.iter().chain(&process.env).chain([&process.cwd]);
    if texts.into_iter().any(|text| text.contains('\0')) {
        return Err(malformed("a NUL in process.args, env or cwd"));
    }
    if let Some(entry) = process.env.iter().find(|entry| entry.find('=').is_none_or(|at| at == 0)) {
        return Err(malformed(&format!("process.env entry {entry:?}")));
    }
    // CVE-2024-21626: a working directory that leads through a leaked descriptor.
    let cwd = &process.cwd;
    let mut parts = cwd.split('/').filter(|part| !matches!(*part, "" | "."));
    if !cwd.starts_with('/') || cwd.split('/').any(|part| part == "..") {
        return Err(malformed(&format!("process.cwd {cwd:?}")));
    }
    if parts.next().is_some_and(|first| first == "proc") {
        return Err(Refusal::with(RefusalCode::SpecPrivilegeForbidden, "process.cwd below /proc"));
    }
    Ok(())
}

/// What the lease and the specification both name. A name outside containerd's default set is a
/// demand for more; one of the default set that the lease lacks is only a client's habit.
fn capabilities(
    given: Option<&Capabilities>,
    leased: &[String],
    tightened: &mut Tightened,
) -> Result<Vec<String>, Refusal> {
    let none = Capabilities::default();
    let given = given.unwrap_or(&none);
    let sets =
        [&given.bounding, &given.effective, &given.permitted, &given.inheritable, &given.ambient];
    for name in sets.into_iter().flatten() {
        let known = DEFAULT_CAPABILITIES.contains(&name.as_str());
        if !known && !leased.contains(name) {
            return Err(Refusal::with(RefusalCode::SpecCapabilityForbidden, name));
        }
        tightened.note_if(!leased.contains(name), "process.capabilities: cut to the lease");
    }
    let passed_on = !given.inheritable.is_empty() || !given.ambient.is_empty();
    tightened.note_if(passed_on, "process.capabilities: none inheritable, none ambient");
    let mut kept: Vec<String> = leased
        .iter()
        .filter(|name| given.bounding.contains(name) && given.permitted.contains(name))
        .cloned()
        .collect();
    kept.sort();
    kept.dedup();
    Ok(kept)
}

fn nofile(given: &[Rlimit], tightened: &mut Tightened) -> Result<OpenFiles, Refusal> {
    let mut found: Option<OpenFiles> = None;
    for limit in given {
        if limit.kind != "RLIMIT_NOFILE" {
            tightened.note("process.rlimits: only RLIMIT_NOFILE is taken");
            continue;
        }
        if found.is_some() || limit.soft > limit.hard {
            return Err(malformed("process.rlimits has RLIMIT_NOFILE twice or turned round"));
        }
        found = Some(OpenFiles { soft: limit.soft, hard: limit.hard });
    }
    let Some(limit) = found else {
        tightened.note("process.rlimits: RLIMIT_NOFILE set");
        return Ok(OpenFiles { soft: NOFILE_DEFAULT, hard: NOFILE_DEFAULT });
    };
    tightened.note_if(limit.hard > NOFILE_MAX, "process.rlimits: RLIMIT_NOFILE cut");
    Ok(OpenFiles { soft: limit.soft.min(NOFILE_MAX), hard: limit.hard.min(NOFILE_MAX) })
}

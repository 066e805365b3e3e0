//! What the shim asks of `nimbus-runtime`: one request, one answer, over an inherited socket.
//!
//! The shim starts `nimbus-runtime` with an empty environment and no arguments, one end of a
//! `SOCK_STREAM` socket pair as descriptor [`REQUEST_FD`], and sends one frame (see
//! [`crate::frame`]): a [`RuntimeRequest`] as JSON with the descriptors it names. The runtime
//! answers with one [`RuntimeReply`] and exits. Its stdout and stderr are the shim's log.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::id::ContainerKey;
use crate::lease::LeasedResources;
use crate::plan::{Plan, PlanSeccomp};
use crate::refusal::Refusal;

/// Where `nimbus-runtime` finds its end of the socket.
pub const REQUEST_FD: i32 = 3;
/// The name (first argument) under which it is started when the request puts no process into a
/// container (neither Create nor Exec): then it skips what keeps its own file out of a container's
/// reach, and refuses both.
pub const OUTSIDE_NAME: &str = "nimbus-runtime-outside";
/// The version of [`RuntimeRequest`].
pub const RUNTIME_VERSION: u32 = 1;

/// One request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RuntimeRequest {
    /// [`RUNTIME_VERSION`].
    pub version: u32,
    /// Root-only directory below which the runtime keeps `<namespace>/<id>/`: its bundle and state.
    pub state_root: PathBuf,
    /// Which container.
    pub container: ContainerKey,
    /// What to do with it.
    pub verb: RuntimeVerb,
}

/// What to do with a container.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
pub enum RuntimeVerb {
    /// Make it, up to just before its program runs. Descriptors that come along, in this order: those of
    /// the plan (see [`Plan::descriptors`]) and, unless it gets a terminal, stdin, stdout, stderr. The init process becomes the
    /// *caller's* child.
    Create(Box<Plan>),
    /// Run its program.
    Start,
    /// Send a signal to its init, or to every process of its cgroup.
    Kill {
        /// Signal number.
        signal: i32,
        /// Every process.
        all: bool,
    },
    /// Run one more process in it; it has been started. Descriptors that come along, in this order:
    /// the seccomp program and, unless it gets a terminal, stdin, stdout, stderr. The process becomes
    /// the *caller's* child.
    Exec(Box<ExecRequest>),
    /// Set other limits; it has been created.
    Update(Box<UpdateRequest>),
    /// Let everything in it stand still; it has been started.
    Pause,
    /// Let it go on.
    Resume,
    /// Kill what is left and remove cgroups, state and bundle. Done already is done.
    Delete,
}

impl RuntimeVerb {
    /// Whether it puts a process into the container, which for a moment is the runtime's own program.
    pub const fn enters(&self) -> bool {
        match self {
            Self::Create(_) | Self::Exec(_) => true,
            Self::Start
            | Self::Kill { .. }
            | Self::Update(_)
            | Self::Pause
            | Self::Resume
            | Self::Delete => false,
        }
    }
}

/// Other limits for a container.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UpdateRequest {
    /// OCI LinuxResources as `nimbus_hooks::update` has made them: what is not mentioned stays.
    pub resources: serde_json::Value,
    /// What no limit may be above, afterwards either.
    pub leased: LeasedResources,
}

/// One more process for a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExecRequest {
    /// What it is to be.
    pub process: ExecProcess,
    /// The filter of the container's plan; it holds for this process too.
    pub seccomp: PlanSeccomp,
}

/// A process as `nimbus_hooks::exec` has judged it: everything that is not here is the container's own
/// or set by the runtime (no_new_privs, the filter, namespaces, cgroups).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExecProcess {
    /// The command; never empty.
    pub args: Vec<String>,
    /// The whole environment, but for `HOME` when it has none.
    pub env: Vec<String>,
    /// Where it begins, in the container.
    pub cwd: String,
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Supplementary groups.
    pub additional_gids: Vec<u32>,
    /// File mode creation mask.
    pub umask: u32,
    /// Bounding, permitted and effective set; nothing is inheritable or ambient.
    pub capabilities: Vec<String>,
    /// `RLIMIT_NOFILE`.
    pub nofile: OpenFiles,
    /// The container's own.
    pub oom_score_adj: i32,
    /// The terminal it gets, if any.
    pub terminal: Option<TerminalSize>,
}

/// `RLIMIT_NOFILE` of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OpenFiles {
    /// In force.
    pub soft: u64,
    /// How far the process may raise it.
    pub hard: u64,
}

/// Size of a terminal, in characters; zeroes are "not known".
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TerminalSize {
    /// Lines.
    pub rows: u16,
    /// Characters in one.
    pub columns: u16,
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
pub enum RuntimeReply {
    /// The container waits for Start. When it has a terminal, that terminal's other end comes along.
    Created {
        /// Its init, in the caller's pid namespace.
        pid: i32,
        /// Where its cgroups are.
        cgroup: CgroupPaths,
    },
    /// One more process runs. When it has a terminal, that terminal's other end comes along.
    Executed {
        /// The process, in the caller's pid namespace.
        pid: i32,
    },
    /// Any other verb has been done.
    Done,
    /// It could not be done, and nothing is left of what was begun.
    Failed {
        /// The code to answer with.
        refusal: Refusal,
        /// The whole chain of causes, for the log.
        cause: String,
    },
}

/// Absolute directories of a container's cgroups.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CgroupPaths {
    /// In the unified hierarchy, when that is what limits.
    pub unified: Option<PathBuf>,
    /// By v1 controller name: `memory`, `cpu`, `pids`, `devices`, `freezer`, `cpuacct`, ...
    pub v1: BTreeMap<String, PathBuf>,
}

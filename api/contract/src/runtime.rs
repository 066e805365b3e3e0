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
use crate::plan::Plan;
use crate::refusal::Refusal;

/// Where `nimbus-runtime` finds its end of the socket.
pub const REQUEST_FD: i32 = 3;
/// The name (first argument) under which it is started when the request is no Create: then it skips
/// what keeps its own file out of a container's reach, and refuses to create.
pub const NO_CREATE_NAME: &str = "nimbus-runtime-no-create";
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
    /// Make it, up to just before its program runs. Descriptors that come along, in this order: the
    /// seccomp program, one detached mount a layer (lowest first), stdin, stdout, stderr. The init
    /// process becomes the *caller's* child.
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
    /// Let everything in it stand still; it has been started.
    Pause,
    /// Let it go on.
    Resume,
    /// Kill what is left and remove cgroups, state and bundle. Done already is done.
    Delete,
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
pub enum RuntimeReply {
    /// The container waits for Start.
    Created {
        /// Its init, in the caller's pid namespace.
        pid: i32,
        /// Where its cgroups are.
        cgroup: CgroupPaths,
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

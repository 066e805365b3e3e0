//! The specification: read strictly, judged whole, and reduced to what a projection needs.
//!
//! Rule 3: an explicit demand for more than the lease gives is refused; what is absent or weaker
//! than it should be is set, and noted in [`Judged::tightened`]. Nothing of the input reaches the
//! projection but what is in [`Judged`].

mod binds;
mod linux;
mod mounts;
mod namespaces;
mod pod;
pub(crate) mod process;
pub(crate) mod raw;
pub(crate) mod resources;

use std::collections::BTreeMap;

use nimbus_api::id::ContainerKey;
use nimbus_api::lease::LeaseClaims;
use nimbus_api::plan::{JoinedNamespace, PlanBind};
use nimbus_api::process::ProcessIdentity;
use nimbus_api::runtime::{OpenFiles, TerminalSize};
use nimbus_api::strict_json::{self, Limits, StrictJsonError};
use nimbus_api::{Refusal, RefusalCode};
use serde::de::DeserializeOwned;

use crate::CONFIG_BYTES_MAX;
use crate::claim::Place;
use crate::facts::PodRoots;
pub(crate) use mounts::StandardMount;

/// Prefix of annotations by which other runtimes are told to inject devices.
const CDI_PREFIX: &str = "cdi.k8s.io/";
/// Longest host name that the kernel takes.
const HOSTNAME_BYTES_MAX: usize = 64;

/// What a specification is judged by.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds<'a> {
    pub(crate) container: &'a ContainerKey,
    pub(crate) claims: &'a LeaseClaims,
    pub(crate) place: Place<'a>,
    pub(crate) roots: &'a PodRoots,
}

/// What a specification has been reduced to. Every field has been judged.
#[derive(Debug)]
pub(crate) struct Judged {
    pub(crate) process: ProcessIdentity,
    pub(crate) umask: Option<u32>,
    /// The terminal that its process gets, if any.
    pub(crate) terminal: Option<TerminalSize>,
    pub(crate) nofile: OpenFiles,
    /// Sorted, without repetition: what both the lease and the specification name.
    pub(crate) capabilities: Vec<String>,
    pub(crate) oom_score_adj: i64,
    pub(crate) read_only: bool,
    /// None in a uts namespace that is joined.
    pub(crate) hostname: Option<String>,
    /// File systems.
    pub(crate) mounts: Vec<&'static StandardMount>,
    /// In order.
    pub(crate) binds: Vec<PlanBind>,
    /// In the order of a plan.
    pub(crate) joins: Vec<JoinedNamespace>,
    pub(crate) sysctl: BTreeMap<String, String>,
    pub(crate) cgroups_path: String,
    /// Beyond our own.
    pub(crate) masked_paths: Vec<String>,
    /// Beyond our own.
    pub(crate) readonly_paths: Vec<String>,
    pub(crate) tightened: Vec<String>,
}

/// What was set by us because it was absent or weaker, each once.
#[derive(Debug, Default)]
pub(crate) struct Tightened(Vec<String>);

impl Tightened {
    pub(crate) fn note(&mut self, what: &str) {
        if !self.0.iter().any(|known| known == what) {
            self.0.push(what.to_owned());
        }
    }

    pub(crate) fn note_if(&mut self, weaker: bool, what: &str) {
        if weaker {
            self.note(what);
        }
    }
}

/// argv, environment, directory, user and binds that a `config.json` asks for, as leases name them.
/// Reads strictly, judges nothing.
pub fn process_identity(config_json: &[u8]) -> Result<ProcessIdentity, Refusal> {
    let spec: raw::Spec = parse(config_json)?;
    let process = spec.process.ok_or_else(|| malformed("process is missing"))?;
    Ok(process::identity(&process, &spec.mounts))
}

/// The path of the network namespace that a `config.json` names, if it names one: what a sandbox joins
/// when its plan says that it joins one. Reads strictly, judges nothing.
pub fn network_path(config_json: &[u8]) -> Result<Option<String>, Refusal> {
    let spec: raw::Spec = parse(config_json)?;
    let linux = spec.linux.ok_or_else(|| malformed("linux is missing"))?;
    Ok(namespaces::network_path(&linux.namespaces).map(str::to_owned))
}

pub(crate) fn judge(config_json: &[u8], bounds: &Bounds<'_>) -> Result<Judged, Refusal> {
    let claims = bounds.claims;
    let spec: raw::Spec = parse(config_json)?;
    if !spec.oci_version.starts_with("1.") {
        return Err(malformed(&format!("ociVersion {:?}", spec.oci_version)));
    }
    if spec.hooks.is_some() {
        return Err(RefusalCode::SpecHooksPresent.into());
    }
    if let Some(name) = spec.annotations.keys().find(|name| name.starts_with(CDI_PREFIX)) {
        return Err(Refusal::with(RefusalCode::DeviceNotLeased, format!("annotation {name:?}")));
    }
    pod::check(&spec.annotations, bounds)?;
    let process = spec.process.ok_or_else(|| malformed("process is missing"))?;
    let root = spec.root.ok_or_else(|| malformed("root is missing"))?;
    let linux = spec.linux.ok_or_else(|| malformed("linux is missing"))?;
    check_root(&root.path)?;

    let mut tightened = Tightened::default();
    let kernel = linux::judge(&linux, bounds, &mut tightened)?;
    let mounted = mounts::judge(&spec.mounts, bounds, &mut tightened)?;
    resources::judge(linux.resources.as_ref(), &claims.resources, &mut tightened)?;
    let in_pod = bounds.place.pod().is_some();
    let task = process::judge(&process, &claims.capabilities, in_pod, &mut tightened)?;
    let hostname = if kernel.joins.contains(&JoinedNamespace::Uts) {
        tightened
            .note_if(spec.hostname.is_some_and(|name| !name.is_empty()), "hostname: the pod's");
        None
    } else {
        Some(hostname(spec.hostname.as_deref(), bounds.container, &mut tightened)?)
    };
    tightened.note_if(spec.domainname.is_some(), "domainname: not set");

    let identity = process::identity(&process, &spec.mounts);
    if identity.digest() != claims.process_sha256 {
        return Err(RefusalCode::LeaseWrongProcess.into());
    }
    Ok(Judged {
        process: identity,
        umask: process.user.umask,
        terminal: process::terminal(&process),
        nofile: task.nofile,
        capabilities: task.capabilities,
        oom_score_adj: process.oom_score_adj.unwrap_or(0).max(0),
        read_only: root.readonly,
        hostname,
        mounts: mounted.standard,
        binds: mounted.binds,
        joins: kernel.joins,
        sysctl: linux.sysctl,
        cgroups_path: kernel.cgroups_path,
        masked_paths: linux.masked_paths,
        readonly_paths: linux.readonly_paths,
        tightened: tightened.0,
    })
}

/// Reads a specification, or a part of one, strictly.
pub(crate) fn parse<T: DeserializeOwned>(json: &[u8]) -> Result<T, Refusal> {
    strict_json::parse(json, Limits::bytes(CONFIG_BYTES_MAX)).map_err(|error| {
        let code = match &error {
            StrictJsonError::TooLarge { .. } => RefusalCode::SpecTooLarge,
            _ if error.is_duplicate_key() => RefusalCode::SpecDuplicateKey,
            StrictJsonError::Shape(source) if source.to_string().starts_with("unknown field") => {
                RefusalCode::SpecUnknownField
            }
            StrictJsonError::Shape(_) | StrictJsonError::Malformed(_) => RefusalCode::SpecMalformed,
        };
        Refusal::with(code, nimbus_api::error::Chain(&error))
    })
}

pub(crate) fn malformed(found: &str) -> Refusal {
    Refusal::with(RefusalCode::SpecMalformed, found)
}

/// The bundle's own rootfs, by the names that containerd's clients give it. It is never mounted.
fn check_root(path: &str) -> Result<(), Refusal> {
    let absolute = path.starts_with('/') && path.ends_with("/rootfs");
    if path == "rootfs" || (absolute && is_clean(path)) {
        return Ok(());
    }
    Err(Refusal::with(RefusalCode::SpecRootfsForbidden, format!("root.path is {path:?}")))
}

fn hostname(
    given: Option<&str>,
    container: &ContainerKey,
    tightened: &mut Tightened,
) -> Result<String, Refusal> {
    let Some(name) = given.filter(|name| !name.is_empty()) else {
        tightened.note("hostname: the container's id");
        let own = container.id.as_str();
        return Ok(own.get(..HOSTNAME_BYTES_MAX).unwrap_or(own).to_owned());
    };
    let word = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
    if name.len() > HOSTNAME_BYTES_MAX || !name.bytes().all(word) {
        return Err(malformed(&format!("hostname {name:?}")));
    }
    Ok(name.to_owned())
}

/// Absolute, without empty, `.` or `..` components, and without NUL.
fn is_clean(path: &str) -> bool {
    path.strip_prefix('/').is_some_and(|rest| {
        rest.split('/').all(|part| !matches!(part, "" | "." | "..")) && !rest.contains('\0')
    })
}

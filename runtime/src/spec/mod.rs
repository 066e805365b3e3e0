//! A specification: what it must be when a plan has made it, and what it asks for.
//!
//! Pure. What the plan enforces elsewhere must not be in its specification (hooks, seccomp, devices),
//! and what containment rests on must be (its own namespaces, fresh `/proc` and `/dev`): both are checked
//! here once more, whatever made the plan.
#![forbid(unsafe_code)]

pub(crate) mod model;
pub(crate) mod options;

use nimbus_api::plan::JoinedNamespace;
use nimbus_api::runtime::TerminalSize;
use nimbus_api::{Refusal, RefusalCode};
use rustix::process::{Resource, Rlimit};
use serde::Deserialize as _;
use serde_json::Value;

use self::model::{Process, Spec};
use crate::error::RuntimeError;
use crate::process::Wanted;

/// Namespaces that a container has for itself, or that come with its plan.
const NAMESPACES: [(&str, Option<JoinedNamespace>); 5] = [
    ("pid", Some(JoinedNamespace::Pid)),
    ("ipc", Some(JoinedNamespace::Ipc)),
    ("uts", Some(JoinedNamespace::Uts)),
    ("mount", None),
    ("network", Some(JoinedNamespace::Network)),
];
/// File systems that are mounted fresh.
const FRESH: [&str; 2] = ["/proc", "/dev"];
/// What a program expects when nobody says otherwise.
const UMASK: u32 = 0o022;

/// Checks a plan's specification.
pub(crate) fn check(spec: &Value, joins: &[JoinedNamespace]) -> Result<(), Refusal> {
    let absent = |pointer: &str, code: RefusalCode| match spec.pointer(pointer) {
        None | Some(Value::Null) => Ok(()),
        Some(Value::Array(items)) if items.is_empty() => Ok(()),
        Some(_) => Err(Refusal::with(code, format!("the plan's specification has {pointer}"))),
    };
    absent("/hooks", RefusalCode::SpecHooksPresent)?;
    absent("/linux/seccomp", RefusalCode::SpecSeccompForbidden)?;
    absent("/linux/devices", RefusalCode::DeviceNotLeased)?;
    absent("/linux/resources/devices", RefusalCode::DeviceNotLeased)?;
    absent("/linux/netDevices", RefusalCode::DeviceNotLeased)?;
    absent("/linux/intelRdt", RefusalCode::SpecPrivilegeForbidden)?;
    check_namespaces(spec, joins)?;
    check_mounts(spec)
}

fn list<'a>(spec: &'a Value, pointer: &str) -> &'a [Value] {
    spec.pointer(pointer).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value.get(key).and_then(Value::as_str).unwrap_or_default()
}

fn check_namespaces(spec: &Value, joins: &[JoinedNamespace]) -> Result<(), Refusal> {
    let found = list(spec, "/linux/namespaces");
    for namespace in found {
        if !text(namespace, "path").is_empty() {
            let detail = format!("{} is joined by path", text(namespace, "type"));
            return Err(Refusal::with(RefusalCode::SpecHostNamespace, detail));
        }
    }
    let shared = NAMESPACES.iter().find(|(name, joined)| {
        let comes = joined.is_some_and(|kind| joins.contains(&kind));
        !comes && !found.iter().any(|one| text(one, "type") == *name)
    });
    match shared {
        Some((name, _)) => {
            Err(Refusal::with(RefusalCode::SpecHostNamespace, format!("{name} is shared")))
        }
        None => Ok(()),
    }
}

fn check_mounts(spec: &Value) -> Result<(), Refusal> {
    let mounts = list(spec, "/mounts");
    for mount in mounts {
        let options = mount.get("options").and_then(Value::as_array).into_iter().flatten();
        let bind = |option: &Value| matches!(option.as_str(), Some("bind" | "rbind"));
        if text(mount, "type") == "bind" || options.clone().any(bind) {
            return Err(Refusal::with(RefusalCode::SpecBindForbidden, text(mount, "source")));
        }
    }
    match FRESH.iter().find(|at| !mounts.iter().any(|mount| text(mount, "destination") == **at)) {
        Some(at) => {
            Err(Refusal::with(RefusalCode::SpecMountForbidden, format!("no mount at {at}")))
        }
        None => Ok(()),
    }
}

/// Names of limits as specifications have them.
const RLIMITS: [(&str, Resource); 16] = [
    ("RLIMIT_AS", Resource::As),
    ("RLIMIT_CORE", Resource::Core),
    ("RLIMIT_CPU", Resource::Cpu),
    ("RLIMIT_DATA", Resource::Data),
    ("RLIMIT_FSIZE", Resource::Fsize),
    ("RLIMIT_LOCKS", Resource::Locks),
    ("RLIMIT_MEMLOCK", Resource::Memlock),
    ("RLIMIT_MSGQUEUE", Resource::Msgqueue),
    ("RLIMIT_NICE", Resource::Nice),
    ("RLIMIT_NOFILE", Resource::Nofile),
    ("RLIMIT_NPROC", Resource::Nproc),
    ("RLIMIT_RSS", Resource::Rss),
    ("RLIMIT_RTPRIO", Resource::Rtprio),
    ("RLIMIT_RTTIME", Resource::Rttime),
    ("RLIMIT_SIGPENDING", Resource::Sigpending),
    ("RLIMIT_STACK", Resource::Stack),
];

/// Reads a specification.
pub(crate) fn understand(spec: &Value) -> Result<Spec, RuntimeError> {
    Spec::deserialize(spec).map_err(|error| {
        let detail = format!("the specification cannot be followed: {error}");
        RuntimeError::refused(RefusalCode::RuntimeFailed, detail)
    })
}

/// The process that it asks for.
pub(crate) fn wanted(process: &Process) -> Result<Wanted, RuntimeError> {
    let mut rlimits: Vec<(Resource, Rlimit)> = Vec::new();
    for one in &process.rlimits {
        let known = RLIMITS.iter().find(|(name, _)| *name == one.kind);
        let twice = |resource| rlimits.iter().any(|(other, _)| *other == resource);
        let Some((_, resource)) = known.filter(|(_, resource)| !twice(*resource)) else {
            let detail = format!("the limit {:?} is none, or is there twice", one.kind);
            return Err(RuntimeError::refused(RefusalCode::RuntimeFailed, detail));
        };
        let value = |value: u64| Some(value).filter(|value| *value != u64::MAX);
        let limit = Rlimit { current: value(one.soft), maximum: value(one.hard) };
        rlimits.push((*resource, limit));
    }
    let size = process.console_size.map_or_else(TerminalSize::default, |size| TerminalSize {
        rows: size.height,
        columns: size.width,
    });
    Ok(Wanted {
        args: process.args.clone(),
        env: process.env.clone(),
        cwd: process.cwd.clone(),
        uid: process.user.uid,
        umask: process.user.umask.unwrap_or(UMASK),
        rlimits,
        terminal: process.terminal.then_some(size),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn good() -> Value {
        json!({
            "ociVersion": "1.0.2",
            "process": {"user": {"uid": 1, "gid": 1}, "args": ["a"], "env": ["A=b", "HOME="]},
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid"]}],
            "linux": {"namespaces": NAMESPACES.map(|(name, _)| json!({"type": name}))}
        })
    }

    fn refused(change: impl FnOnce(&mut Value)) -> RefusalCode {
        let mut spec = good();
        change(&mut spec);
        check(&spec, &[]).unwrap_err().code
    }

    #[test]
    fn what_the_plan_enforces_elsewhere_is_refused_in_its_specification() {
        assert_eq!(check(&good(), &[]), Ok(()));
        let hooks = refused(|spec| spec["hooks"] = json!({"prestart": [{"path": "/x"}]}));
        assert_eq!(hooks, RefusalCode::SpecHooksPresent);
        let seccomp = refused(|spec| spec["linux"]["seccomp"] = json!({"defaultAction": "x"}));
        assert_eq!(seccomp, RefusalCode::SpecSeccompForbidden);
        for pointer in ["devices", "netDevices"] {
            let devices = refused(|spec| spec["linux"][pointer] = json!([{"path": "/dev/x"}]));
            assert_eq!(devices, RefusalCode::DeviceNotLeased);
        }
        let rules =
            refused(|spec| spec["linux"]["resources"] = json!({"devices": [{"allow": true}]}));
        assert_eq!(rules, RefusalCode::DeviceNotLeased);
    }

    #[test]
    fn what_containment_rests_on_must_be_there() {
        for at in 0..NAMESPACES.len() {
            let shared = refused(|spec| {
                spec["linux"]["namespaces"].as_array_mut().unwrap().remove(at);
            });
            assert_eq!(shared, RefusalCode::SpecHostNamespace);
            let joined =
                refused(|spec| spec["linux"]["namespaces"][at]["path"] = "/proc/1/ns/x".into());
            assert_eq!(joined, RefusalCode::SpecHostNamespace);
        }
        // The mount namespace is always its own.
        for (at, (_, joined)) in NAMESPACES.into_iter().enumerate() {
            let mut spec = good();
            spec["linux"]["namespaces"].as_array_mut().unwrap().remove(at);
            assert_eq!(joined.is_some(), check(&spec, joined.as_slice()).is_ok());
        }
        for at in 0..FRESH.len() {
            let missing = refused(|spec| {
                spec["mounts"].as_array_mut().unwrap().remove(at);
            });
            assert_eq!(missing, RefusalCode::SpecMountForbidden);
        }
        let bind = json!({"destination": "/x", "source": "/etc", "options": ["rbind"]});
        let bound = refused(|spec| spec["mounts"].as_array_mut().unwrap().push(bind));
        assert_eq!(bound, RefusalCode::SpecBindForbidden);
    }

    #[test]
    fn what_is_not_known_or_not_done_is_refused_and_not_skipped() {
        let mut spec = good();
        spec["root"] = json!({"path": "rootfs"});
        spec["process"]["cwd"] = "/".into();
        understand(&spec).unwrap();
        let refuses = |pointer: &str, key: &str, value: Value| {
            let mut spec = spec.clone();
            spec.pointer_mut(pointer).unwrap()[key] = value.clone();
            assert!(understand(&spec).is_err(), "{pointer} {key} {value}");
        };
        refuses("", "windows", json!({}));
        refuses("/process", "odd", 1.into());
        refuses("/process", "apparmorProfile", "x".into());
        refuses("/process", "scheduler", json!({"policy": "SCHED_FIFO"}));
        refuses("/linux", "uidMappings", json!([{"containerID": 0, "hostID": 0, "size": 1}]));
        refuses("/linux", "timeOffsets", json!({"boottime": {"secs": 1}}));
        refuses("/linux", "resources", json!({"cpu": {"realtimeRuntime": 1}}));
        refuses("/linux/namespaces/0", "type", "user".into());
        // Says nothing.
        spec["process"]["apparmorProfile"] = "".into();
        spec["linux"]["netDevices"] = json!({});
        spec["linux"]["resources"] = Value::Null;
        understand(&spec).unwrap();
    }

    #[test]
    fn limits_are_the_ones_that_are_named_once_and_the_umask_is_usual() {
        let mut spec = good();
        spec["root"] = json!({"path": "rootfs"});
        spec["process"]["cwd"] = "/".into();
        let limit = json!({"type": "RLIMIT_NOFILE", "soft": 7, "hard": u64::MAX});
        spec["process"]["rlimits"] = json!([limit]);
        let found = wanted(&understand(&spec).unwrap().process).unwrap();
        let nofile = Rlimit { current: Some(7), maximum: None };
        assert_eq!((found.rlimits, found.umask), (vec![(Resource::Nofile, nofile)], 0o022));
        spec["process"]["rlimits"] = json!([limit, limit]);
        assert!(wanted(&understand(&spec).unwrap().process).is_err());
        spec["process"]["rlimits"] = json!([{"type": "RLIMIT_ODD", "soft": 7, "hard": 7}]);
        assert!(wanted(&understand(&spec).unwrap().process).is_err());
    }
}

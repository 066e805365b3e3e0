//! The specification that libcontainer is given, made from the plan's.
//!
//! Pure. What the plan enforces elsewhere must not be in its specification (hooks, seccomp, devices),
//! and what containment rests on must be (its own namespaces, fresh `/proc` and `/dev`): both are checked
//! here once more, whatever made the plan. Then the parts that are ours are added: device nodes, the
//! root, no_new_privs, a home directory, a umask.
#![forbid(unsafe_code)]

use nimbus_api::plan::{DeviceKind, DeviceRule};
use nimbus_api::{Refusal, RefusalCode};
use serde_json::{Map, Value, json};

/// Namespaces that a container has for itself.
const NAMESPACES: [&str; 5] = ["pid", "ipc", "uts", "mount", "network"];
/// File systems that are mounted fresh.
const FRESH: [&str; 2] = ["/proc", "/dev"];
/// The capability sets of a process.
pub(crate) const CAPABILITY_SETS: [&str; 5] =
    ["bounding", "permitted", "effective", "inheritable", "ambient"];
/// What a program expects when nobody says otherwise.
const UMASK: u32 = 0o022;

/// Parts of the specification that are not the plan's.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Parts<'a> {
    /// Absolute path of the root, as this process sees it.
    pub(crate) root: &'a str,
    /// Whether it is read-only.
    pub(crate) read_only: bool,
    /// Nodes to be made; none keeps those of the specification.
    pub(crate) devices: Option<&'a [DeviceRule]>,
    /// `HOME` when the environment has none.
    pub(crate) home: &'a str,
}

/// Checks a plan's specification.
pub(crate) fn check(spec: &Value) -> Result<(), Refusal> {
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
    check_namespaces(spec)?;
    check_mounts(spec)?;
    if spec.pointer("/process/terminal").and_then(Value::as_bool) == Some(true) {
        return Err(RefusalCode::SpecTerminalUnsupported.into());
    }
    Ok(())
}

fn list<'a>(spec: &'a Value, pointer: &str) -> &'a [Value] {
    spec.pointer(pointer).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value.get(key).and_then(Value::as_str).unwrap_or_default()
}

fn check_namespaces(spec: &Value) -> Result<(), Refusal> {
    let found = list(spec, "/linux/namespaces");
    for namespace in found {
        if !text(namespace, "path").is_empty() {
            let detail = format!("{} is joined by path", text(namespace, "type"));
            return Err(Refusal::with(RefusalCode::SpecHostNamespace, detail));
        }
    }
    match NAMESPACES.iter().find(|name| !found.iter().any(|one| text(one, "type") == **name)) {
        Some(name) => {
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

/// Adds the parts that are ours.
pub(crate) fn complete(mut spec: Value, parts: Parts<'_>) -> Value {
    if let Some(spec) = spec.as_object_mut() {
        spec.insert("root".into(), json!({"path": parts.root, "readonly": parts.read_only}));
        edit(spec, "process", |process| complete_process(process, parts.home));
        edit(spec, "linux", |linux| {
            if let Some(devices) = parts.devices {
                let nodes = devices.iter().filter_map(node).collect();
                linux.insert("devices".into(), Value::Array(nodes));
            }
            linux.remove("seccomp");
            // libcontainer applies limits only when there is a section.
            edit(linux, "resources", |_resources| ());
        });
    }
    spec
}

/// Changes the object under a key, made when absent.
fn edit(parent: &mut Map<String, Value>, key: &str, change: impl FnOnce(&mut Map<String, Value>)) {
    if !parent.get(key).is_some_and(Value::is_object) {
        parent.insert(key.to_owned(), json!({}));
    }
    if let Some(object) = parent.get_mut(key).and_then(Value::as_object_mut) {
        change(object);
    }
}

fn complete_process(process: &mut Map<String, Value>, home: &str) {
    process.insert("noNewPrivileges".into(), true.into());
    // libcontainer leaves a set as it is that is not named.
    edit(process, "capabilities", |sets| {
        for name in CAPABILITY_SETS {
            sets.entry(name).or_insert_with(|| json!([]));
        }
    });
    edit(process, "user", |user| {
        for (key, value) in [("uid", 0), ("gid", 0), ("umask", UMASK)] {
            user.entry(key).or_insert_with(|| value.into());
        }
    });
    let env = process.entry("env").or_insert_with(|| json!([]));
    if let Some(env) = env.as_array_mut() {
        let value =
            |one: &Value| one.as_str().and_then(|one| one.strip_prefix("HOME=")).map(str::len);
        env.retain(|one| value(one) != Some(0));
        if !env.iter().any(|one| value(one).is_some()) {
            env.push(format!("HOME={home}").into());
        }
    }
}

fn node(rule: &DeviceRule) -> Option<Value> {
    let kind = match rule.kind {
        DeviceKind::Character => "c",
        DeviceKind::Block => "b",
    };
    Some(json!({
        "path": rule.path, "type": kind, "major": rule.major, "minor": rule.minor,
        "fileMode": rule.mode?, "uid": 0, "gid": 0,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Value {
        json!({
            "ociVersion": "1.0.2",
            "process": {"user": {"uid": 1, "gid": 1}, "args": ["a"], "env": ["A=b", "HOME="]},
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid"]}],
            "linux": {"namespaces": NAMESPACES.map(|name| json!({"type": name}))}
        })
    }

    fn refused(change: impl FnOnce(&mut Value)) -> RefusalCode {
        let mut spec = good();
        change(&mut spec);
        check(&spec).unwrap_err().code
    }

    #[test]
    fn what_the_plan_enforces_elsewhere_is_refused_in_its_specification() {
        assert_eq!(check(&good()), Ok(()));
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
        for at in 0..FRESH.len() {
            let missing = refused(|spec| {
                spec["mounts"].as_array_mut().unwrap().remove(at);
            });
            assert_eq!(missing, RefusalCode::SpecMountForbidden);
        }
        let bind = json!({"destination": "/x", "source": "/etc", "options": ["rbind"]});
        let bound = refused(|spec| spec["mounts"].as_array_mut().unwrap().push(bind));
        assert_eq!(bound, RefusalCode::SpecBindForbidden);
        let terminal = refused(|spec| spec["process"]["terminal"] = true.into());
        assert_eq!(terminal, RefusalCode::SpecTerminalUnsupported);
    }

    #[test]
    fn completing_sets_what_is_ours_and_keeps_what_is_the_plans() {
        let rule = |mode| DeviceRule {
            path: "/dev/null".into(),
            kind: DeviceKind::Character,
            major: 1,
            minor: 3,
            writable: true,
            mode,
        };
        let devices = [rule(Some(0o666)), rule(None)];
        let parts = Parts { root: "/r", read_only: true, devices: Some(&devices), home: "/srv/u" };
        let spec = complete(good(), parts);
        assert_eq!(spec["root"], json!({"path": "/r", "readonly": true}));
        assert_eq!(spec["process"]["noNewPrivileges"], true);
        assert_eq!(spec["process"]["env"], json!(["A=b", "HOME=/srv/u"]));
        for set in CAPABILITY_SETS {
            assert_eq!(spec["process"]["capabilities"][set], json!([]));
        }
        assert_eq!(spec["process"]["user"], json!({"uid": 1, "gid": 1, "umask": 0o022}));
        assert_eq!(spec["linux"]["devices"].as_array().unwrap().len(), 1);
        assert_eq!(spec["linux"]["devices"][0]["fileMode"], 0o666);
    }
}

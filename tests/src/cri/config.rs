//! How a lab's containerd is told about pods: the CRI plugin, both runtime handlers, a registry in plain
//! HTTP, and a pod network of the usual plugins.
//!
//! The handler `nimbus` is the one of the drop-in that is shipped, byte for byte, in the form that the
//! containerd here reads: version 2 up to 1.7, version 3 from 2.0 on.

use std::fs;
use std::path::Path;

use serde_json::json;
use toml::{Table, Value};

use crate::failure::During as _;
use crate::{Failure, Outcome, ctr};

/// The drop-ins that are shipped.
const DROP_INS: [(u32, &str); 2] = [
    (2, include_str!("../../../packaging/containerd/version-2.toml")),
    (3, include_str!("../../../packaging/containerd/version-3.toml")),
];
/// Where Debian has the CNI plugins.
const PLUGINS: &str = "/usr/lib/cni";
/// Addresses of pods, in the lane's own network namespace.
const SUBNET: &str = "10.214.80.0/24";
/// The bridge that pods are connected by.
const BRIDGE: &str = "nimbus-pods0";
/// Repository of the image that pause containers are made of.
pub const PAUSE: &str = "pods/pause";

/// The configuration's version, and plugins, for a containerd whose files are in `dir`.
pub fn containerd(dir: &Path, registry: &str) -> Result<(u32, Table), Failure> {
    let version = version(&ctr::version_word("containerd")?);
    let drop_in = DROP_INS.iter().find(|(known, _)| *known == version);
    let drop_in = drop_in.map(|(_, text)| *text).unwrap_or_default();
    let drop_in: Table = toml::from_str(drop_in).during("the drop-in")?;
    let mut plugins = drop_in.get("plugins").and_then(Value::as_table).cloned().unwrap_or_default();
    let text = |name: &str| Value::from(dir.join(name).display().to_string());
    let pause = Value::from(format!("{registry}/{PAUSE}:latest"));
    let (runtime, images) = if version == 2 {
        ("io.containerd.grpc.v1.cri", "io.containerd.grpc.v1.cri")
    } else {
        ("io.containerd.cri.v1.runtime", "io.containerd.cri.v1.images")
    };
    // Nobody here may lower a score.
    put(&mut plugins, &[runtime, "restrict_oom_score_adj"], true.into());
    put(&mut plugins, &[runtime, "cni", "bin_dir"], PLUGINS.into());
    put(&mut plugins, &[runtime, "cni", "conf_dir"], text("cni"));
    let runc = [runtime, "containerd", "runtimes", "runc"];
    put(&mut plugins, &[&runc[..], &["runtime_type"]].concat(), "io.containerd.runc.v2".into());
    put(&mut plugins, &[&runc[..], &["options", "Root"]].concat(), text("runc"));
    put(&mut plugins, &[&runc[..], &["options", "SystemdCgroup"]].concat(), false.into());
    put(&mut plugins, &[images, "registry", "config_path"], text("certs.d"));
    if version == 2 {
        put(&mut plugins, &[runtime, "sandbox_image"], pause);
    } else {
        put(&mut plugins, &[images, "pinned_images", "sandbox"], pause);
    }
    Ok((version, plugins))
}

/// 1.6.20 reads version 2, 2.1.9 reads version 3.
fn version(containerd: &str) -> u32 {
    if containerd.starts_with("1.") { 2 } else { 3 }
}

/// Sets a value deep in tables.
fn put(table: &mut Table, path: &[&str], value: Value) {
    match path {
        [] => {}
        [last] => {
            table.insert((*last).to_owned(), value);
        }
        [first, rest @ ..] => {
            let inner = table.entry((*first).to_owned()).or_insert_with(|| Table::new().into());
            if let Value::Table(inner) = inner {
                put(inner, rest, value);
            }
        }
    }
}

/// Writes the pod network and the registry's entry where the configuration says they are.
pub fn write_beside(dir: &Path, registry: &str) -> Outcome {
    let hosts = dir.join("certs.d").join(registry);
    fs::create_dir_all(&hosts)?;
    fs::write(hosts.join("hosts.toml"), format!("server = \"http://{registry}\"\n"))?;
    fs::create_dir_all(dir.join("cni"))?;
    let network = json!({
        "cniVersion": "0.4.0",
        "name": "nimbus-lab",
        "plugins": [
            {
                "type": "bridge", "bridge": BRIDGE, "isGateway": true, "ipMasq": true,
                "hairpinMode": true,
                "ipam": {
                    "type": "host-local", "dataDir": dir.join("ipam"),
                    "ranges": [[{"subnet": SUBNET}]], "routes": [{"dst": "0.0.0.0/0"}],
                },
            },
            {"type": "portmap", "capabilities": {"portMappings": true}},
        ],
    });
    fs::write(dir.join("cni/10-lab.conflist"), network.to_string())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_class_and_the_policy_name_the_handler_of_the_drop_ins() {
        let class = include_str!("../../../packaging/kubernetes/runtimeclass.yaml");
        assert!(class.lines().any(|line| line == "handler: nimbus"), "{class}");
        let named = class.lines().find_map(|line| line.strip_prefix("  name: "));
        let policy = include_str!("../../../packaging/kubernetes/validatingadmissionpolicy.yaml");
        let wanted = format!("object.spec.runtimeClassName == '{}'", named.unwrap_or_default());
        assert!(policy.contains(&wanted), "{policy}");
        for text in [class, policy] {
            assert!(!text.contains('\t'), "no YAML has tabs");
        }
    }

    #[test]
    fn the_drop_ins_define_the_handler_for_every_containerd() {
        for (version, text) in DROP_INS {
            let drop_in: Table = toml::from_str(text).unwrap();
            assert_eq!(drop_in.get("version").and_then(Value::as_integer), Some(version.into()));
            let found = text.contains(".containerd.runtimes.nimbus]");
            assert!(found, "version {version} defines no handler nimbus");
            for wanted in ["io.containerd.nimbus.v1", "pod_annotations = [\"nimbus.io/*\"]"] {
                assert!(text.contains(wanted), "version {version} lacks {wanted}");
            }
        }
        assert_eq!((version("1.7.24~ds1"), version("2.1.9+unknown")), (2, 3));
    }
}

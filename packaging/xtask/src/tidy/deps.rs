//! Dependencies point one way, and sigstore is named in one place.
//!
//! Input: `cargo metadata --no-deps`.

use serde_json::Value;

use super::Finding;

/// Package, and which of our packages it may use.
const ALLOWED: &[(&str, &[&str])] = &[
    ("nimbus-api", &[]),
    ("nimbus-hooks", &["nimbus-api"]),
    ("nimbus-verify", &["nimbus-api"]),
    ("nimbus-runtime", &["nimbus-api"]),
    ("nimbus-shim", &["nimbus-api", "nimbus-hooks"]),
    ("nimbus-node", &["nimbus-api", "nimbus-hooks"]),
    ("nimbus-control", &["nimbus-api"]),
    ("nimbusctl", &["nimbus-api"]),
    ("nimbus-forge", &["nimbus-api"]),
    ("nimbus-tests", &["nimbus-api", "nimbus-forge"]),
    ("xtask", &[]),
];
/// What only tests may use, besides.
const FOR_TESTS: &[&str] = &["nimbus-forge"];
/// The one package that may name a crate of this prefix.
const SIGSTORE: (&str, &str) = ("sigstore", "nimbus-verify");

/// Checks every package of the workspace.
pub(super) fn check(metadata: &Value) -> Vec<Finding> {
    let mut findings = Vec::new();
    let packages = list(metadata, "packages");
    let ours: Vec<_> = packages.iter().map(|package| text(package, "name")).collect();
    for package in packages {
        let name = text(package, "name");
        let Some((_, allowed)) = ALLOWED.iter().find(|(known, _)| *known == name) else {
            findings.push(Finding::new(name, "is not in tidy's table of packages"));
            continue;
        };
        for dependency in list(package, "dependencies") {
            let used = text(dependency, "name");
            let for_tests = text(dependency, "kind") == "dev" && FOR_TESTS.contains(&used);
            if ours.contains(&used) && !allowed.contains(&used) && !for_tests {
                findings.push(Finding::new(name, format!("must not depend on {used}")));
            }
            if used.starts_with(SIGSTORE.0) && name != SIGSTORE.1 {
                findings.push(Finding::new(name, format!("only {} may name {used}", SIGSTORE.1)));
            }
        }
    }
    findings
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value.get(key).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value.get(key).and_then(Value::as_str).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn package(name: &str, dependency: &str, kind: Option<&str>) -> Value {
        json!({"name": name, "dependencies": [{"name": dependency, "kind": kind}]})
    }

    fn findings(package: Value) -> usize {
        let others = ["nimbus-api", "nimbus-runtime", "nimbus-forge", "nimbus-shim"];
        let mut packages: Vec<_> =
            others.iter().map(|name| json!({"name": name, "dependencies": []})).collect();
        packages.push(package);
        check(&json!({"packages": packages})).len()
    }

    #[test]
    fn a_dependency_against_the_direction_is_found() {
        assert_eq!(findings(package("nimbus-control", "nimbus-shim", None)), 1);
        assert_eq!(findings(package("nimbus-hooks", "nimbus-runtime", Some("dev"))), 1);
        assert_eq!(findings(package("nimbus-control", "nimbus-api", None)), 0);
        assert_eq!(findings(package("nimbus-control", "serde", None)), 0);
    }

    #[test]
    fn the_forge_is_for_tests_only_and_sigstore_for_the_verifier() {
        assert_eq!(findings(package("nimbus-verify", "nimbus-forge", Some("dev"))), 0);
        assert_eq!(findings(package("nimbus-verify", "nimbus-forge", None)), 1);
        assert_eq!(findings(package("nimbus-node", "sigstore-verify", None)), 1);
        assert_eq!(findings(package("nimbus-verify", "sigstore-verify", None)), 0);
    }

    #[test]
    fn a_package_that_nobody_placed_is_found() {
        assert_eq!(findings(package("nimbus-new", "serde", None)), 1);
    }
}

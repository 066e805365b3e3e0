//! The shape of the request: what containerd may ask for besides a specification.

use nimbus_api::id::ContainerKey;
use nimbus_api::{Refusal, RefusalCode};

use crate::facts::{NodeFacts, TaskFacts};

/// Most rootfs mounts in a request: every snapshotter of containerd 1.6 gives one, the agent none.
/// They are never mounted.
pub(crate) const ROOTFS_MOUNTS_MAX: usize = 1;
/// Runtime options that a client may send; what they say is never used.
const OPTIONS: [&str; 2] = ["containerd.runc.v1.Options", "runtimeoptions.v1.Options"];
/// Host that containerd puts in front of some type URLs.
const TYPE_HOST: &str = "types.containerd.io/";

pub(crate) fn check(
    task: &TaskFacts,
    node: &NodeFacts,
    container: &ContainerKey,
) -> Result<(), Refusal> {
    if task.checkpoint {
        return Err(RefusalCode::SpecCheckpointForbidden.into());
    }
    if task.rootfs_mounts > ROOTFS_MOUNTS_MAX {
        let found =
            format!("found {} mounts, expected at most {ROOTFS_MOUNTS_MAX}", task.rootfs_mounts);
        return Err(Refusal::with(RefusalCode::SpecRootfsForbidden, found));
    }
    let kind = task.options_type.strip_prefix(TYPE_HOST).unwrap_or(&task.options_type);
    if !kind.is_empty() && !OPTIONS.contains(&kind) {
        return Err(Refusal::with(RefusalCode::SpecOptionsForbidden, &task.options_type));
    }
    for (name, uri, output) in [
        ("stdin", &task.stdin, false),
        ("stdout", &task.stdout, true),
        ("stderr", &task.stderr, true),
    ] {
        let allowed = uri.is_empty()
            || is_fifo(uri, &node.fifo_roots)
            || (output && is_log(uri, &node.log_root, container.id.as_str()));
        if !allowed {
            let found = format!("{name} is {uri:?}");
            return Err(Refusal::with(RefusalCode::SpecStdioForbidden, found));
        }
    }
    Ok(())
}

/// containerd names a fifo by its bare path or as `fifo://`.
fn is_fifo(uri: &str, roots: &[String]) -> bool {
    let path = uri.strip_prefix("fifo://").unwrap_or(uri);
    roots.iter().any(|root| is_below(path, root))
}

/// A file in the directory of this very container: another's output must not be overwritten.
fn is_log(uri: &str, root: &str, container: &str) -> bool {
    let Some(path) = uri.strip_prefix("file://") else { return false };
    let directory = path.rsplit('/').nth(1);
    is_below(path, root) && directory == Some(container)
}

/// Whether `path` is absolute, free of `.`, `..`, empty components and of anything that a URI would
/// read otherwise, and strictly below `root`.
fn is_below(path: &str, root: &str) -> bool {
    let inside = path.strip_prefix(root).and_then(|rest| rest.strip_prefix('/'));
    root.starts_with('/')
        && inside.is_some_and(|rest| rest.split('/').all(|part| !matches!(part, "" | "." | "..")))
        && !path.contains(['?', '#', '%', '\0'])
}

#[cfg(test)]
mod tests {
    use super::is_below;

    #[test]
    fn below_is_strict_and_cannot_be_climbed_out_of() {
        assert!(is_below("/run/fifo/a/stdout", "/run/fifo"));
        for bad in [
            "/run/fifo",
            "/run/fifo/",
            "/run/fifox/a",
            "/run/fifo/../a",
            "/run/fifo/./a",
            "/run/fifo//a",
            "run/fifo/a",
            "/run/fifo/%2e%2e/a",
            "/run/fifo/a?b",
        ] {
            assert!(!is_below(bad, "/run/fifo"), "{bad}");
        }
        assert!(!is_below("/etc/passwd", ""));
    }
}

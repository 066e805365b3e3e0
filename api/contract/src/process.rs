//! What exactly is run: the part of an OCI spec that a lease names by hash.
//!
//! Control computes the digest when it signs, the node agent again from the `config.json` that
//! containerd hands to the shim; a client that changes the command between the two is refused.

use serde::{Deserialize, Serialize};

use crate::digest::Digest;

/// `PATH` of a job whose environment names none.
pub const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// argv, env, cwd, user and the binds that the job asked for, in the order they were given.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProcessIdentity {
    /// argv.
    pub args: Vec<String>,
    /// `KEY=VALUE`.
    pub env: Vec<String>,
    /// Absolute.
    pub cwd: String,
    /// Numeric user.
    pub uid: u32,
    /// Numeric group.
    pub gid: u32,
    /// Additional groups.
    pub additional_gids: Vec<u32>,
    /// Bind mounts, in order. Always empty on the agent path of this version.
    pub binds: Vec<BindIdentity>,
}

/// One bind that a job has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BindIdentity {
    /// Host path.
    pub source: String,
    /// Path in the container.
    pub destination: String,
    /// Whether it can be written.
    pub writable: bool,
}

impl ProcessIdentity {
    /// SHA-256 of the JSON of this struct: fields in the order above, no white space.
    pub fn digest(&self) -> Digest {
        Digest::of(&serde_json::to_vec(self).unwrap_or_default())
    }
}

impl From<&crate::proto::control::v1::JobSpec> for ProcessIdentity {
    /// What control signs and the node agent runs for a job: the job's own words, with "/" for an
    /// empty cwd and [`DEFAULT_PATH`] put in front where the job names no `PATH`.
    fn from(spec: &crate::proto::control::v1::JobSpec) -> Self {
        let mut env = spec.env.clone();
        if !env.iter().any(|entry| entry.starts_with("PATH=")) {
            env.insert(0, DEFAULT_PATH.to_owned());
        }
        Self {
            args: spec.args.clone(),
            env,
            cwd: if spec.cwd.is_empty() { "/".to_owned() } else { spec.cwd.clone() },
            uid: spec.uid,
            gid: spec.gid,
            additional_gids: Vec::new(),
            binds: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process() -> ProcessIdentity {
        ProcessIdentity {
            args: vec!["/bin/true".to_owned()],
            env: vec!["A=b".to_owned()],
            cwd: "/".to_owned(),
            uid: 0,
            gid: 0,
            additional_gids: vec![],
            binds: vec![],
        }
    }

    #[test]
    fn any_changed_part_changes_the_digest() {
        let base = process().digest();
        let changes: [fn(&mut ProcessIdentity); 7] = [
            |p| p.args.push(String::new()),
            |p| p.env.swap_remove(0).clear(),
            |p| p.cwd.push('x'),
            |p| p.uid = 1,
            |p| p.gid = 1,
            |p| p.additional_gids.push(0),
            |p| {
                p.binds.push(BindIdentity {
                    source: "/a".to_owned(),
                    destination: "/a".to_owned(),
                    writable: false,
                });
            },
        ];
        for change in changes {
            let mut changed = process();
            change(&mut changed);
            assert_ne!(changed.digest(), base, "{changed:?}");
        }
    }
}

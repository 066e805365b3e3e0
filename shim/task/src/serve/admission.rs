//! Asking the node agent whether a container may be made, and checking what it hands over.
//!
//! Fail closed (rule 1): an agent that is not there, closes, is silent for [`ADMIT_PATIENCE`] or
//! answers with something else means `node.agent_down`. A grant is taken only if the plan is the
//! one its digest names, is for this very container, in the pod and of the org whose containers are here,
//! and comes with as many descriptors as it names. Nothing is started, opened or mounted here.

use std::fs::File;
use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use containerd_shim_protos::api::CreateTaskRequest;
use nimbus_api::error::Chain;
use nimbus_api::id::ContainerKey;
use nimbus_api::plan::{PLAN_VERSION, Plan};
use nimbus_api::proto::admit::v1::{
    Admit, Granted as GrantedMessage, RootfsMount, agent_message, shim_message,
};
use nimbus_api::{Digest, Refusal, RefusalCode};
use rustix::fs::{FileType, Mode, OFlags};

use super::link::Link;
use super::pod::Pod;
use crate::log::Log;
use crate::status::TaskError;

/// The version of the protocol.
pub(super) const PROTOCOL_VERSION: u32 = 1;
/// How long the agent may take, preparing the image included.
const ADMIT_PATIENCE: Duration = Duration::from_secs(90);
/// Longest `config.json`: with the rest of the message it fits a frame.
const CONFIG_BYTES_MAX: u64 = 4 << 20;

/// A grant that holds together.
#[derive(Debug)]
pub(super) struct Grant {
    /// What the kernel is to enforce.
    pub plan: Plan,
    /// SHA-256 of the plan as it came, as the agent spells it.
    pub plan_sha256: String,
    /// The filter, one detached mount a layer, lowest first, one a bind, the namespaces to join: in the
    /// plan's order.
    pub fds: Vec<OwnedFd>,
    /// The connection it came on; kept for the container's life.
    pub link: Link,
}

/// Asks, and checks the answer.
pub(super) async fn admit(
    socket: &Path,
    (key, pod): (&ContainerKey, &Pod),
    request: &CreateTaskRequest,
    log: &Log,
) -> Result<Grant, TaskError> {
    let admit = message(key, request, read_config(Path::new(&request.bundle))?);
    let asked = tokio::time::timeout(ADMIT_PATIENCE, ask(socket, admit)).await;
    let down = || Refusal::from(RefusalCode::NodeAgentDown);
    let (mut link, kind, fds) = match asked {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => {
            log.warn(Chain(&error));
            return Err(down().into());
        }
        Err(_silent) => {
            log.warn(format_args!("the node agent was silent for {ADMIT_PATIENCE:?}"));
            return Err(down().into());
        }
    };
    match kind {
        agent_message::Kind::Granted(granted) => {
            let checked = check(key, &granted, fds.len());
            match checked.and_then(|plan| pod.takes(&plan).map(|()| plan)) {
                Ok(plan) => Ok(Grant { plan, plan_sha256: granted.plan_sha256, fds, link }),
                Err(refusal) => {
                    // The agent believes that the lease is in use; tell it that it is not.
                    let released = super::session::released(0, false, Some(refusal.code));
                    let _lost = link.send(shim_message::Kind::Released(released)).await;
                    Err(refusal.into())
                }
            }
        }
        agent_message::Kind::Refused(refused) => Err(TaskError::from_agent(&refused)),
        agent_message::Kind::Deadline(_) | agent_message::Kind::Revoked(_) => {
            log.warn("the node agent answered with something else than a decision");
            Err(down().into())
        }
    }
}

async fn ask(
    socket: &Path,
    admit: Admit,
) -> Result<(Link, agent_message::Kind, Vec<OwnedFd>), super::link::LinkError> {
    let mut link = Link::connect(socket).await?;
    link.send(shim_message::Kind::Admit(admit)).await?;
    let (kind, fds) = link.receive().await?;
    Ok((link, kind, fds))
}

/// The question, in the agent's words.
pub(crate) fn message(
    key: &ContainerKey,
    request: &CreateTaskRequest,
    config_json: Vec<u8>,
) -> Admit {
    Admit {
        version: PROTOCOL_VERSION,
        namespace: key.namespace.to_string(),
        id: key.id.to_string(),
        config_json,
        rootfs: request
            .rootfs
            .iter()
            .map(|mount| RootfsMount {
                r#type: mount.type_.clone(),
                source: mount.source.clone(),
                options: mount.options.clone(),
            })
            .collect(),
        checkpoint: !request.checkpoint.is_empty() || !request.parent_checkpoint.is_empty(),
        terminal: request.terminal,
        stdin: request.stdin.clone(),
        stdout: request.stdout.clone(),
        stderr: request.stderr.clone(),
        options_type: request.options.as_ref().map(|any| any.type_url.clone()).unwrap_or_default(),
    }
}

/// The bytes of `config.json`, unparsed: the agent judges them.
pub(crate) fn read_config(bundle: &Path) -> Result<Vec<u8>, Refusal> {
    let malformed = |why: &dyn std::fmt::Display| {
        Refusal::with(RefusalCode::SpecMalformed, format_args!("config.json: {why}"))
    };
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let fd = rustix::fs::open(bundle.join("config.json"), flags, Mode::empty())
        .map_err(|error| malformed(&error))?;
    let stat = rustix::fs::fstat(&fd).map_err(|error| malformed(&error))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(malformed(&"not a regular file"));
    }
    let mut bytes = Vec::new();
    File::from(fd)
        .take(CONFIG_BYTES_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| malformed(&error))?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > CONFIG_BYTES_MAX {
        return Err(Refusal::with(
            RefusalCode::SpecTooLarge,
            format_args!("more than {CONFIG_BYTES_MAX} bytes"),
        ));
    }
    Ok(bytes)
}

/// Whether the grant holds together.
fn check(key: &ContainerKey, granted: &GrantedMessage, fds: usize) -> Result<Plan, Refusal> {
    let odd = |what: String| Refusal::with(RefusalCode::NodeInternal, what);
    if granted.plan_sha256.parse() != Ok(Digest::of(&granted.plan_json)) {
        return Err(odd("the plan is not the one that its digest names".to_owned()));
    }
    let plan = Plan::parse(&granted.plan_json)
        .map_err(|error| odd(format!("the plan cannot be read: {}", Chain(&error))))?;
    if plan.version != PLAN_VERSION {
        return Err(odd(format!("the plan is of version {}", plan.version)));
    }
    if plan.container != *key {
        return Err(odd(format!("the plan is for container {}", plan.container)));
    }
    if fds != plan.descriptors() {
        return Err(odd(format!("{fds} descriptors, the plan has {}", plan.descriptors())));
    }
    Ok(plan)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bundle(config: &[u8]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config.json"), config).unwrap();
        dir
    }

    #[test]
    fn a_config_is_handed_over_byte_for_byte() {
        let text = b"{ \"a\":1, \"a\":2 }\n";
        assert_eq!(read_config(bundle(text).path()), Ok(text.to_vec()));
    }

    #[test]
    fn a_config_that_is_too_long_missing_or_a_link_is_refused() {
        let long = bundle(&vec![b' '; usize::try_from(CONFIG_BYTES_MAX + 1).unwrap()]);
        assert_eq!(read_config(long.path()).unwrap_err().code, RefusalCode::SpecTooLarge);
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(read_config(dir.path()).unwrap_err().code, RefusalCode::SpecMalformed);
        std::os::unix::fs::symlink("/etc/passwd", dir.path().join("config.json")).unwrap();
        assert_eq!(read_config(dir.path()).unwrap_err().code, RefusalCode::SpecMalformed);
    }

    #[test]
    fn a_plan_with_another_digest_is_refused() {
        let key = ContainerKey { namespace: "n".parse().unwrap(), id: "c".parse().unwrap() };
        let granted = GrantedMessage {
            plan_json: b"{}".to_vec(),
            plan_sha256: Digest::of(b"{ }").to_string(),
        };
        let refusal = check(&key, &granted, 1).unwrap_err();
        assert_eq!(refusal.code, RefusalCode::NodeInternal);
        assert!(refusal.detail().contains("digest"));
    }
}

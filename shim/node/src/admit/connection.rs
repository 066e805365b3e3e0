//! One shim's connection: the question, the answer, then what is to be said while the container
//! lives.

use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use nimbus_api::error::Chain;
use nimbus_api::frame::{self, FrameError, FrameReader};
use nimbus_api::id::{ContainerKey, LeaseId};
use nimbus_api::lease::{LeaseClaims, LeaseToken, ScratchMedium};
use nimbus_api::plan::JoinedNamespace;
use nimbus_api::proto::admit::v1::Released;
use nimbus_api::proto::admit::v1::agent_message::Kind as ToShim;
use nimbus_api::proto::admit::v1::shim_message::Kind as FromShim;
use nimbus_api::proto::admit::v1::{Admit, AgentMessage, Granted, Refused, Resume, ShimMessage};
use nimbus_api::{Digest, Refusal, RefusalCode};
use prost::Message as _;
use rustix::fs::{MemfdFlags, SealFlags};

use super::gather::{Gathered, gather};
use super::peers::Peer;
use crate::agent::{Agent, Filter};
use crate::claims::sandbox::{self, Running};
use crate::claims::{self, binds};
use crate::ledger::{End, Entry, Revoked, Stage, Step, Usage};

/// The protocol's version.
pub const ADMIT_VERSION: u32 = 1;
/// Longest wait for the first message.
pub const FIRST_MESSAGE_SECONDS: u64 = 10;
/// Longest wait for a shim to take a message.
pub const WRITE_SECONDS: u64 = 5;

/// Serves one connection until it ends.
pub fn serve(agent: &Arc<Agent>, stream: &UnixStream) {
    if let Err(error) = converse(agent, stream) {
        tracing::warn!(error = %Chain(&error), "a shim's connection failed");
    }
}

/// Tells a shim no.
pub fn refuse(stream: &UnixStream, refusal: &Refusal) {
    let refused = ToShim::Refused(Refused {
        code: refusal.code.as_str().to_owned(),
        sentence: refusal.sentence(),
        advice: refusal.code.advice().to_owned(),
    });
    if let Err(error) = send(stream, refused, &[]) {
        tracing::warn!(error = %Chain(&error), "a shim did not take a refusal");
    }
}

fn converse(agent: &Arc<Agent>, stream: &UnixStream) -> Result<(), FrameError> {
    if !peer_is_root(stream) {
        tracing::warn!("a connection of another user was closed");
        return Ok(());
    }
    stream.set_write_timeout(Some(Duration::from_secs(WRITE_SECONDS))).map_err(FrameError::Io)?;
    stream
        .set_read_timeout(Some(Duration::from_secs(FIRST_MESSAGE_SECONDS)))
        .map_err(FrameError::Io)?;
    let mut reader = FrameReader::default();
    let first = match receive(&mut reader, stream) {
        Ok(first) => first,
        Err(FrameError::Closed) => return Ok(()),
        Err(error) => return Err(error),
    };
    let held = match first {
        Some(FromShim::Admit(admit)) => answer_admit(agent, stream, &admit)?,
        Some(FromShim::Resume(resume)) => answer_resume(agent, stream, &resume),
        Some(FromShim::Started(_) | FromShim::Released(_)) | None => None,
    };
    let Some(id) = held else { return Ok(()) };
    stream.set_read_timeout(None).map_err(FrameError::Io)?;
    let peer = Arc::new(Peer::new(stream.try_clone().map_err(FrameError::Io)?));
    agent.peers.register(&id, &peer);
    push_present(agent, &id);
    let ended = follow(agent, &mut reader, stream, &id);
    agent.peers.unregister(&id, &peer);
    ended
}

/// Deadline and revocation as they are now: they may have changed while nobody was registered.
fn push_present(agent: &Agent, id: &LeaseId) {
    let Some(entry) = agent.ledger.get(id) else { return };
    if let Some(usage) = &entry.usage {
        agent.peers.push_deadline(id, usage.deadline);
    }
    if let Some(revoked) = &entry.revoked {
        agent.peers.push_revoked(id, revoked);
    } else if entry.stage == Stage::Ended {
        let code = RefusalCode::LeaseEnded;
        let message = "the node has given the job up".to_owned();
        agent.peers.push_revoked(id, &Revoked { code, message });
    }
}

/// Reads what a shim reports until it releases its container or is gone.
fn follow(
    agent: &Agent,
    reader: &mut FrameReader,
    stream: &UnixStream,
    id: &LeaseId,
) -> Result<(), FrameError> {
    loop {
        match receive(reader, stream) {
            Ok(Some(FromShim::Started(started))) => on_started(agent, id, started.pid),
            Ok(Some(FromShim::Released(released))) => {
                on_released(agent, id, &released);
                return Ok(());
            }
            Ok(Some(FromShim::Admit(_) | FromShim::Resume(_)) | None) => {
                tracing::warn!(lease = %id, "a shim said something out of turn");
                return Ok(());
            }
            Err(FrameError::Closed) => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}

fn on_started(agent: &Agent, id: &LeaseId, pid: u32) {
    tracing::info!(lease = %id, pid, "started");
    let recorded = agent.ledger.get(id).map(|entry| {
        let running = claims::is_sandbox(&entry.claims).then(|| Running::look(pid)).transpose();
        // One that has ended already is entered by nobody.
        let running = running.unwrap_or_default();
        if let Some(running) = &running {
            claims::guard_pod(agent, &entry.claims, running);
        }
        agent.started(&entry, running)
    });
    if let Some(Err(refusal)) = recorded {
        tracing::error!(lease = %id, %refusal, "a start could not be recorded");
    }
}

fn on_released(agent: &Agent, id: &LeaseId, released: &Released) {
    tracing::info!(lease = %id, status = released.exit_status, reason = released.reason, "released");
    let Some(entry) = agent.ledger.get(id) else { return };
    let reason = released.reason.parse::<RefusalCode>().ok();
    let claimed = entry.claims.claim.is_some();
    if entry.stage == Stage::Used && reason.is_none() {
        if claimed {
            let found = "its client removed the container before it was started";
            end_claimed(agent, id, End::refused(&Refusal::with(RefusalCode::LeaseEnded, found)));
        }
        // It never ran: who asked containerd for it knows why, and ends the lease.
        agent.wake_jobs();
        return;
    }
    let end = End {
        exit_status: Some(released.exit_status),
        oom_killed: released.oom_killed,
        reason,
        message: reason.map(|code| Refusal::new(code).to_string()).unwrap_or_default(),
    };
    if claimed {
        end_claimed(agent, id, end);
        return;
    }
    if let Err(refusal) = agent.ledger.step(id, Step::End(end)) {
        tracing::error!(lease = %id, %refusal, "a release could not be recorded");
    }
    agent.wake_jobs();
}

/// Nobody drives a claimed lease: its end is reported here, or by a later look.
fn end_claimed(agent: &Agent, id: &LeaseId, end: End) {
    if let Err(refusal) = agent.finish(id, end) {
        tracing::error!(lease = %id, %refusal, "the end of a claimed lease could not be recorded");
    }
}

/// Answers; gives the lease when the container was granted.
fn answer_admit(
    agent: &Arc<Agent>,
    stream: &UnixStream,
    admit: &Admit,
) -> Result<Option<LeaseId>, FrameError> {
    let decided = catch_unwind(AssertUnwindSafe(|| decide(agent, admit)));
    let decided = decided.unwrap_or_else(|_panic| Err(broken_off()));
    match decided {
        Ok(grant) => {
            let fds: Vec<_> = grant.fds.iter().map(|fd| fd.as_fd()).collect();
            let granted = Granted { plan_json: grant.plan.into_bytes(), plan_sha256: grant.digest };
            send(stream, ToShim::Granted(granted), &fds)?;
            tracing::info!(lease = %grant.lease, container = admit.id, "admitted");
            Ok(Some(grant.lease))
        }
        Err(refusal) => {
            tracing::info!(container = admit.id, %refusal, "refused");
            refuse(stream, &refusal);
            Ok(None)
        }
    }
}

fn broken_off() -> Refusal {
    Refusal::with(RefusalCode::NodeInternal, "admission broke off")
}

struct Grant {
    lease: LeaseId,
    plan: String,
    digest: String,
    fds: Vec<OwnedFd>,
}

fn decide(agent: &Agent, admit: &Admit) -> Result<Grant, Refusal> {
    let container = key(admit.version, &admit.namespace, &admit.id)?;
    let claimed = claims::claim(agent, &container, admit)?;
    let token = claimed.as_ref().map(|claimed| &claimed.token);
    // A lease that was claimed is given back whatever happens.
    let granted = catch_unwind(AssertUnwindSafe(|| grant(agent, admit, container, token)));
    let granted = granted.unwrap_or_else(|_panic| Err(broken_off()));
    if let (Some(claimed), Err(refusal)) = (&claimed, &granted) {
        claims::give_back(agent, &claimed.id, refusal);
    }
    granted
}

fn grant(
    agent: &Agent,
    admit: &Admit,
    container: ContainerKey,
    claimed: Option<&LeaseToken>,
) -> Result<Grant, Refusal> {
    let Gathered { facts, lease, image, filter } = gather(agent, container.clone(), admit, claimed);
    let plan = (agent.admission)(&facts)?;
    let (Some(lease), Some(image), Some(filter)) = (lease, image, filter) else {
        return Err(Refusal::with(RefusalCode::NodeInternal, "admitted without all facts"));
    };
    let mut fds = vec![sealed_memfd(&filter)?];
    if plan.rootfs.scratch == ScratchMedium::Disk {
        fds.push(agent.scratch.make(plan.rootfs.scratch_bytes)?);
    }
    fds.extend(agent.images.open_layers(&image)?);
    let roots = agent.config.bind_roots();
    for bind in &plan.binds {
        fds.push(binds::open(&roots, bind)?);
    }
    for kind in &plan.joins {
        fds.push(joined(agent, admit, &lease.claims, *kind)?);
    }
    let plan_json = String::from_utf8(plan.to_json())
        .map_err(|error| Refusal::with(RefusalCode::NodeInternal, error.utf8_error()))?;
    let usage = Usage {
        container,
        config_sha256: Digest::of(&admit.config_json),
        plan_sha256: Digest::of(plan_json.as_bytes()),
        plan: plan_json,
        deadline: plan.deadline,
        boot_id: agent.boot_id.clone(),
    };
    // Durable before the shim hears of it (rule 8); asked again, the first answer stands.
    let id = lease.claims.lease_id;
    let entry = agent.ledger.step(&id, Step::Use(Box::new(usage)))?;
    let no_usage = || Refusal::with(RefusalCode::NodeInternal, "no use on record");
    let usage = entry.usage.ok_or_else(no_usage)?;
    Ok(Grant { lease: id, digest: usage.plan_sha256.to_string(), plan: usage.plan, fds })
}

/// A namespace that the plan enters: made by us, CNI's, or the pod's sandbox's.
fn joined(
    agent: &Agent,
    admit: &Admit,
    claims: &LeaseClaims,
    kind: JoinedNamespace,
) -> Result<OwnedFd, Refusal> {
    if claims.egress.is_made() {
        return agent.networks.namespace(&claims.lease_id);
    }
    if claims::is_sandbox(claims) {
        let path = nimbus_hooks::network_path(&admit.config_json)?.unwrap_or_default();
        let namespace = sandbox::open_netns(&path)?;
        // In force before anybody is in it.
        agent.pod_networks.guard(&claims.lease_id, &namespace)?;
        return Ok(namespace);
    }
    let running = claims::sandbox_of(agent, claims).and_then(|entry| entry.running);
    running.ok_or_else(|| Refusal::new(RefusalCode::PodSandboxMissing))?.open(kind)
}

fn key(version: u32, namespace: &str, id: &str) -> Result<ContainerKey, Refusal> {
    if version != ADMIT_VERSION {
        let found = format!("admit protocol {version}, expected {ADMIT_VERSION}");
        return Err(Refusal::with(RefusalCode::NodeInternal, found));
    }
    let malformed =
        |error: &dyn std::fmt::Display| Refusal::with(RefusalCode::SpecMalformed, error);
    Ok(ContainerKey {
        namespace: namespace.parse().map_err(|error| malformed(&error))?,
        id: id.parse().map_err(|error| malformed(&error))?,
    })
}

/// The filter in memory that nobody can change any more.
fn sealed_memfd(filter: &Filter) -> Result<OwnedFd, Refusal> {
    let failed = |error: std::io::Error| Refusal::with(RefusalCode::NodeInternal, error);
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let fd = rustix::fs::memfd_create("nimbus-seccomp", flags).map_err(|e| failed(e.into()))?;
    let mut file = std::fs::File::from(fd);
    std::io::Write::write_all(&mut file, &filter.program).map_err(failed)?;
    std::io::Seek::rewind(&mut file).map_err(failed)?;
    let seals = SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
    rustix::fs::fcntl_add_seals(&file, seals).map_err(|e| failed(e.into()))?;
    Ok(file.into())
}

/// A shim that lost its connection; gives the lease when it may go on.
fn answer_resume(agent: &Agent, stream: &UnixStream, resume: &Resume) -> Option<LeaseId> {
    match resumed(agent, resume) {
        Ok(id) => Some(id),
        Err(refusal) => {
            tracing::warn!(container = resume.id, %refusal, "a shim may not resume");
            refuse(stream, &refusal);
            None
        }
    }
}

fn resumed(agent: &Agent, resume: &Resume) -> Result<LeaseId, Refusal> {
    let container = key(resume.version, &resume.namespace, &resume.id)?;
    let is_it = |entry: &Entry| {
        entry.usage.as_ref().is_some_and(|usage| {
            usage.container == container
                && usage.plan_sha256.to_string() == resume.plan_sha256
                && usage.boot_id == agent.boot_id
        })
    };
    let found = agent.ledger.all().into_iter().find(is_it);
    let unknown = || Refusal::with(RefusalCode::LeaseMissing, "this plan is not on record here");
    Ok(found.ok_or_else(unknown)?.claims.lease_id)
}

fn receive(reader: &mut FrameReader, stream: &UnixStream) -> Result<Option<FromShim>, FrameError> {
    let frame = reader.read(stream)?;
    Ok(ShimMessage::decode(frame.bytes.as_slice()).ok().and_then(|message| message.kind))
}

fn send(
    stream: &UnixStream,
    kind: ToShim,
    fds: &[std::os::fd::BorrowedFd<'_>],
) -> Result<(), FrameError> {
    frame::write_frame(stream, &AgentMessage { kind: Some(kind) }.encode_to_vec(), fds)
}

fn peer_is_root(stream: &UnixStream) -> bool {
    rustix::net::sockopt::socket_peercred(stream).is_ok_and(|peer| peer.uid.is_root())
}

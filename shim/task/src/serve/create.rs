//! Create: admission first, then streams, then the runtime.
//!
//! Until the grant nothing is started, opened or mounted; the mounts of the request never are. What
//! goes wrong after the grant is undone here before the answer, and the agent is told.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use containerd_shim_protos::api::CreateTaskRequest;
use nimbus_api::error::Chain;
use nimbus_api::plan::{JoinedNamespace, Plan};
use nimbus_api::runtime::{RuntimeReply, RuntimeVerb};
use nimbus_api::{Refusal, RefusalCode};

use super::Context;
use super::admission::{self, Grant};
use super::container::{Container, Description, Granted, Made, kill};
use super::deadline::Deadline;
use super::lifecycle::DELETE_PATIENCE;
use super::oom;
use super::session::{Opening, Session, released};
use crate::cgroup::Cgroup;
use crate::delete::INIT_PID_FILE;
use crate::process::{Birth, ChildProcess};
use crate::runtime::Answer;
use crate::state::Machine;
use crate::status::TaskError;
use crate::stdio::{self, Streams};

/// The longest that making a container may take.
const CREATE_PATIENCE: Duration = Duration::from_mins(1);

/// How long the processes of a container may take to end once its init has.
const EXECS_PATIENCE: Duration = Duration::from_secs(10);

/// Makes the container; answers with its init's pid.
pub(super) async fn create(
    context: Context,
    container: Arc<Container>,
    request: CreateTaskRequest,
) -> Result<u32, TaskError> {
    let _turn = container.turn().await;
    let (made, _birth) = match admitted(&context, &container, &request).await {
        Ok(made) => made,
        Err(error) => {
            context.log.info(format_args!("not created: {error}"));
            container.step("create", &context.events, Machine::create_failed)?;
            return Err(error);
        }
    };
    context.family.add(&made.init);
    container.set_made(made.clone());
    oom::watch(context.clone(), Arc::clone(&container));
    container.step("create", &context.events, Machine::created)?;
    let pid = container.pid();
    if let Err(error) = fs::write(Path::new(&request.bundle).join(INIT_PID_FILE), pid.to_string()) {
        context.log.warn(format_args!("cannot remember the init's pid: {error}"));
    }
    tokio::spawn(watch(context, Arc::clone(&container), made.clone()));
    if container.end_reason().is_some() {
        // The end came between the runtime's answer and here.
        kill(&made);
    }
    Ok(pid)
}

/// Waits for the init and tells.
async fn watch(context: Context, container: Arc<Container>, made: Made) {
    let status = made.init.wait().await;
    context.family.remove(&made.init);
    // The kernel has ended everybody else in its pid namespace. In one that it shares with its pod they
    // live on, and end here.
    if made.granted.plan.joins.contains(&JoinedNamespace::Pid) && !made.cgroup.kill_all().await {
        context.log.warn("processes of the container do not end");
    }
    // Its own exit is told last.
    if !container.execs().ended(EXECS_PATIENCE).await {
        context.log.warn("processes of the container have not ended with its init");
    }
    context.log.info(format_args!("init ended with status {status}"));
    if let Err(error) = container.exited(status, &context.events) {
        context.warn_chain(&error);
    }
}

async fn admitted(
    context: &Context,
    container: &Arc<Container>,
    request: &CreateTaskRequest,
) -> Result<(Made, Birth), TaskError> {
    let socket = context.paths.agent_socket();
    let asked = (&context.key, &*context.pod);
    let grant = tokio::select! {
        grant = admission::admit(&socket, asked, request, &context.log) => grant?,
        reason = container.ended() => return Err(reason.into()),
    };
    // From the runtime's answer until the init is watched, it must not be taken for an orphan. Not before
    // the grant, which may take long: other containers leave orphans meanwhile.
    let birth = context.family.birth();
    let Grant { plan, plan_sha256, fds, link } = grant;
    let deadline = Deadline::at(plan.deadline).map_err(|error| {
        Refusal::with(RefusalCode::RuntimeFailed, format_args!("no timer: {error}"))
    })?;
    let opening = Opening { link, deadline, socket, plan_sha256 };
    // From here on the deadline and a revocation reach the container, made or not.
    let session = Session::spawn(opening, Arc::clone(container), context.log.clone());
    let granted = Granted::new(&plan, &fds);
    let built =
        match granted {
            Ok(granted) => build(context, container, (plan, fds), &granted).await.map(
                |(init, cgroup, streams)| Made {
                    init,
                    cgroup,
                    streams: Arc::new(streams),
                    session: session.clone(),
                    granted: Arc::new(granted),
                },
            ),
            Err(refusal) => Err(refusal),
        };
    match built {
        Ok(made) => Ok((made, birth)),
        Err(refusal) => {
            session.released(released(0, false, Some(refusal.code))).await;
            Err(refusal.into())
        }
    }
}

/// Connects the container and has it made.
async fn build(
    context: &Context,
    container: &Container,
    (plan, mut fds): (Plan, Vec<OwnedFd>),
    granted: &Granted,
) -> Result<(ChildProcess, Cgroup, Streams), Refusal> {
    let Description { uris, terminal, .. } = container.description();
    let connecting = stdio::connect(uris, *terminal, &granted.budget, &context.log);
    let (connecting, ends) = connecting.map_err(|error| Refusal::from(&error))?;
    fds.extend(ends);
    let verb = RuntimeVerb::Create(Box::new(plan));
    let (init, cgroup, terminal) = run(context, container, verb, fds).await?;
    match connecting.attach(terminal) {
        Ok(streams) => Ok((init, cgroup, streams)),
        Err(error) => {
            context.warn_chain(&error);
            clean_up(context).await;
            Err((&error).into())
        }
    }
}

/// Has the runtime make it; what it leaves when it fails is cleaned up.
async fn run(
    context: &Context,
    container: &Container,
    verb: RuntimeVerb,
    fds: Vec<OwnedFd>,
) -> Result<(ChildProcess, Cgroup, Option<OwnedFd>), Refusal> {
    let reply = tokio::select! {
        reply = context.launcher.call(verb, fds, CREATE_PATIENCE) => reply,
        // Giving the call up kills the runtime.
        reason = container.ended() => {
            clean_up(context).await;
            return Err(reason);
        }
    };
    match reply {
        Ok(Answer { reply: RuntimeReply::Created { pid, cgroup }, terminal }) => {
            match ChildProcess::adopt(pid) {
                Ok(init) => Ok((init, Cgroup::new(cgroup), terminal)),
                Err(error) => {
                    context.warn_chain(&error);
                    clean_up(context).await;
                    Err(Refusal::with(RefusalCode::RuntimeUnproven, Chain(&error)))
                }
            }
        }
        Ok(Answer { reply: RuntimeReply::Failed { refusal, cause }, .. }) => {
            context.log.warn(format_args!("{refusal}: {cause}"));
            Err(refusal)
        }
        Ok(Answer { reply: RuntimeReply::Done | RuntimeReply::Executed { .. }, .. }) => {
            clean_up(context).await;
            Err(Refusal::with(RefusalCode::RuntimeFailed, "answered something else to Create"))
        }
        Err(error) => {
            context.warn_chain(&error);
            clean_up(context).await;
            Err((&error).into())
        }
    }
}

async fn clean_up(context: &Context) {
    if let Err(refusal) = context.launcher.done(RuntimeVerb::Delete, DELETE_PATIENCE).await {
        context.log.warn(format_args!("something may be left of the container: {refusal}"));
    }
}

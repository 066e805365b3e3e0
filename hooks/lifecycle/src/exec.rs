//! `exec`: one more process for a container, judged by the plan that it was admitted by (rule 2).
//!
//! Input: the plan, the client's OCI Process as JSON, and whether the client attaches a terminal.
//! Output: what the runtime is to make, field by field, or a refusal. What the process may be is what
//! the container's own may: no more capabilities, the same limits of ids, files and directories. What
//! holds for the container holds for it: no_new_privs, filter, namespaces, cgroups, masks and
//! `oom_score_adj` are not the client's to choose.
//!
//! Deliberately absent: which command. Whoever may exec has the containerd socket.

use nimbus_api::plan::Plan;
use nimbus_api::runtime::ExecProcess;
use nimbus_api::{Refusal, RefusalCode};
use serde_json::Value;

use crate::spec::{Tightened, parse, process, raw};

/// What a process gets when neither it nor the container says.
const UMASK_DEFAULT: u32 = 0o022;

/// Decides about one `Task.Exec`. The same plan and process give the same answer.
pub fn exec(plan: &Plan, process_json: &[u8], terminal: bool) -> Result<ExecProcess, Refusal> {
    let given: raw::Process = parse(process_json)?;
    // Nobody reads the list: a receipt is of a start. What is weaker is set all the same.
    let judged = process::judge(
        &given,
        &plan.exec.capabilities,
        plan.pod.is_some(),
        &mut Tightened::default(),
    )?;
    let number = |pointer: &str| plan.spec.pointer(pointer).and_then(Value::as_i64);
    let oom_score_adj = number("/process/oomScoreAdj").unwrap_or(0);
    let umask = number("/process/user/umask").and_then(|umask| u32::try_from(umask).ok());
    let identity = process::identity(&given, &[]);
    Ok(ExecProcess {
        args: identity.args,
        env: identity.env,
        cwd: identity.cwd,
        uid: identity.uid,
        gid: identity.gid,
        additional_gids: identity.additional_gids,
        umask: given.user.umask.or(umask).unwrap_or(UMASK_DEFAULT),
        capabilities: judged.capabilities,
        nofile: judged.nofile,
        oom_score_adj: i32::try_from(oom_score_adj)
            .map_err(|_range| Refusal::with(RefusalCode::NodeInternal, "the plan's oomScoreAdj"))?,
        terminal: terminal.then(|| process::size(given.console_size)),
    })
}

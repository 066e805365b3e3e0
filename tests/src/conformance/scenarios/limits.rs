//! Figures, limits and their changes, checkpoints.

use containerd_client::services::v1::CheckpointTaskRequest;
use containerd_client::services::v1::tasks_client::TasksClient;
use containerd_client::tonic::Request;
use containerd_client::with_namespace;
use serde_json::json;

use super::{Scenario, scenarios};
use crate::conformance::ground::NAMESPACE;
use crate::conformance::run::{INIT, Run, said_status};
use crate::conformance::spec::{process, shell, specification};
use crate::wait::until;
use crate::{Failure, Outcome};

pub(super) fn scenarios() -> Vec<Scenario> {
    scenarios!["Figures and limits"; stats, out_of_memory, out_of_memory_beside_init, too_many_processes,
        update, checkpoint]
}

/// Uses some memory and CPU, then goes on.
const WORKLOAD: &str = "x=$(head -c 4000000 /dev/zero | tr '\\0' x); echo ready; exec sleep 600";

fn stats(run: &mut Run<'_>) -> Outcome {
    let (uris, output, _errors) = run.outputs("init")?;
    let spec = specification(run.id(), &shell(WORKLOAD));
    run.create_with(&spec, uris);
    let before = run.figures()?.map_or("none", |_some| "some");
    run.see("before Start", before);
    run.see_answer("Start", &run.start(INIT));
    output.wait_for("ready")?;
    let figures = until("figures of the workload", || {
        let figures = run.figures()?;
        Ok(figures.filter(|figures| figures.sane.contains("1 pids")))
    })?;
    let (network, others): (Vec<_>, Vec<_>) =
        figures.present.into_iter().partition(|name| name.starts_with("network"));
    run.see("groups, when it runs", others.join(", "));
    run.see("of the network, when it runs", if network.is_empty() { "none" } else { "some" });
    let sure: Vec<_> = figures.numbers.into_iter().filter(|name| !is_luck(name)).collect();
    run.see("not zero, when it runs", sure.join(", "));
    run.see("values, when it runs", figures.sane);
    drop(run.kill9());
    drop(run.wait(INIT));
    run.see("after the exit", after(run)?);
    drop(run.delete());
    run.see("after Delete", after(run)?);
    Ok(())
}

/// Whether a figure may be zero or not for reasons that are nobody's.
fn is_luck(name: &str) -> bool {
    let parts = ["anon", "file", "usage.kernel", "usage.user", "cache", "dirty", "writeback"];
    let more = ["throttl", "maj_fault", "unevictable", "failcnt", "_usec", "blkio", "reclaim"];
    parts.iter().chain(&more).any(|part| name.contains(part))
}

fn after(run: &Run<'_>) -> Result<&'static str, Failure> {
    Ok(run.figures()?.map_or("none", |_some| "some"))
}

/// Which events there were but for those that say that memory was short: their number is luck.
fn see_events_of_oom(run: &mut Run<'_>) {
    let told = run.told("delete");
    let events = run.ground().events().of(run.id());
    let oom = events.iter().any(|event| event == "oom");
    run.see("an OOM event", if oom { "yes" } else { "no" });
    let others: Vec<_> = events.into_iter().filter(|event| event != "oom").collect();
    run.see("other events", format!("{}{}", others.join(", "), if told { "" } else { " …" }));
}

fn out_of_memory(run: &mut Run<'_>) -> Outcome {
    run.begin(&process(&["/bin/tail", "/dev/zero"]))?;
    run.see("Wait", said_status(&run.wait(INIT)));
    run.told("oom");
    run.see("Delete", said_status(&run.delete()));
    see_events_of_oom(run);
    Ok(())
}

/// Another process than the init is killed, and the container goes on.
fn out_of_memory_beside_init(run: &mut Run<'_>) -> Outcome {
    run.begin(&process(&["/bin/sleep", "600"]))?;
    run.exec_started("e1", &process(&["/bin/tail", "/dev/zero"]))?;
    run.see("Wait for the exec", said_status(&run.wait("e1")));
    let told = run.told("oom");
    run.see("an OOM event while it goes on", if told { "yes" } else { "no" });
    run.see("State", run.state(INIT));
    drop(run.kill9());
    drop(run.wait(INIT));
    drop(run.delete());
    see_events_of_oom(run);
    Ok(())
}

fn too_many_processes(run: &mut Run<'_>) -> Outcome {
    let script = "for i in $(seq 100); do sleep 600 & done; exit 3";
    run.begin(&shell(script))?;
    run.see("Wait", said_status(&run.wait(INIT)));
    Ok(())
}

fn update(run: &mut Run<'_>) -> Outcome {
    run.begin(&process(&["/bin/sleep", "600"]))?;
    let less = json!({"memory": {"limit": 32 << 20, "swap": 32 << 20}, "pids": {"limit": 16}});
    run.see_answer("less memory and fewer processes", &run.update(&less));
    let more = json!({"memory": {"limit": 128 << 20, "swap": 128 << 20}});
    run.see_answer("more memory than at Create", &run.update(&more));
    run.see_answer("CPU shares", &run.update(&json!({"cpu": {"shares": 512}})));
    run.see_answer("nothing", &run.update(&json!({})));
    run.see_answer("no limits at all", &run.update(&json!("a text")));
    run.see("State afterwards", run.state(INIT));
    Ok(())
}

fn checkpoint(run: &mut Run<'_>) -> Outcome {
    run.begin(&process(&["/bin/sleep", "600"]))?;
    let request = CheckpointTaskRequest { container_id: run.id().to_owned(), ..Default::default() };
    let mut tasks = TasksClient::new(run.ground().channel());
    let answer = run.ground().ask(tasks.checkpoint(with_namespace!(request, NAMESPACE)));
    run.see_answer("Checkpoint", &answer);
    run.see("State afterwards", run.state(INIT));
    Ok(())
}

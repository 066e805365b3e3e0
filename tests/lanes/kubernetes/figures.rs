//! What a container uses, and how much it may.

use k8s_cri::v1::{
    ContainerStats, ContainerStatsRequest, LinuxContainerResources, ListContainerStatsRequest,
    PodSandboxStatsRequest, UInt64Value, UpdateContainerResourcesRequest,
};
use nimbus_tests::cri::{Container, Handler, Node, Seen, wish};
use nimbus_tests::wait::until;
use nimbus_tests::{Failure, Lab, ensure, proc};

use crate::{Scenario, scenarios};

pub(crate) fn scenarios() -> Vec<(&'static str, Scenario)> {
    scenarios![use_is_told, limits_are_those_that_were_asked_for, limits_can_be_changed,]
}

fn figure(value: Option<&UInt64Value>) -> u64 {
    value.map(|value| value.value).unwrap_or_default()
}

fn stats(node: &Node, container: &Container) -> Result<ContainerStats, Failure> {
    let container_id = container.id().to_owned();
    let stats = node.cri().container_stats(ContainerStatsRequest { container_id })?.stats;
    stats.ok_or_else(|| Failure::new("no stats"))
}

fn use_is_told(lab: &mut Lab, handler: Handler) -> Result<Seen, Failure> {
    let node = Node::of(lab, handler)?;
    let mut seen = Seen::default();
    let pod = node.pod("used")?;
    let script =
        "seq 300000 > /dev/null; head -c 8m /dev/zero > /tmp/file; echo done; exec sleep 600";
    let busy = pod.sh("busy", script)?;
    let idle = pod.sh("idle", "exec sleep 600")?;
    busy.says("done")?;
    let told = until("the use to be told", || {
        let told = stats(&node, &busy)?;
        let cpu = figure(told.cpu.as_ref().and_then(|cpu| cpu.usage_core_nano_seconds.as_ref()));
        Ok((cpu > 0).then_some(told))
    })?;
    let memory = told.memory.unwrap_or_default();
    let used = figure(memory.working_set_bytes.as_ref());
    let within = 0 < used && used <= wish::MEMORY.unsigned_abs();
    ensure!(within, "it uses {used} bytes: {told:?}");
    let attributes = told.attributes.clone().unwrap_or_default();
    ensure!(attributes.id == busy.id(), "they are of {attributes:?}");
    seen.note("writable layer is told", told.writable_layer.is_some());
    seen.note("memory", memory.working_set_bytes.is_some());
    let all = node.cri().list_container_stats(ListContainerStatsRequest::default())?.stats;
    let ids: Vec<_> = all.iter().filter_map(|one| one.attributes.as_ref()).map(|a| &a.id).collect();
    ensure!(ids.len() == 2 && ids.iter().any(|id| *id == idle.id()), "stats of {ids:?}");
    let of_pod = PodSandboxStatsRequest { pod_sandbox_id: pod.id().to_owned() };
    let of_pod = node.cri().pod_sandbox_stats(of_pod)?.stats.and_then(|stats| stats.linux);
    let of_pod = of_pod.ok_or_else(|| Failure::new("no stats of the pod"))?;
    seen.note("containers of the pod", of_pod.containers.len());
    seen.note("cpu of the pod", of_pod.cpu.is_some());
    seen.note("memory of the pod", of_pod.memory.is_some());
    seen.note("network of the pod", of_pod.network.is_some());
    pod.end()?;
    Ok(seen)
}

/// A limit of a container, from any hierarchy that has the file.
fn limit(container: &Container, files: [&str; 2]) -> Result<String, Failure> {
    let process = proc::inside(container.id()).into_iter().next();
    let process = process.ok_or_else(|| Failure::new("the container has no process"))?;
    let text = std::fs::read_to_string(format!("/proc/{}/cgroup", process.pid))?;
    let mut found = None;
    for line in text.lines() {
        let mut parts = line.splitn(3, ':');
        let (_, controllers, path) = (parts.next(), parts.next(), parts.next());
        let path = path.unwrap_or_default();
        let below = controllers.unwrap_or_default();
        for file in files {
            for root in [format!("/sys/fs/cgroup/{below}"), "/sys/fs/cgroup".to_owned()] {
                found = found.or(std::fs::read_to_string(format!("{root}{path}/{file}")).ok());
            }
        }
    }
    let found = found.ok_or_else(|| Failure::new(format!("no {files:?}: {text}")))?;
    Ok(found.trim().to_owned())
}

const MEMORY_FILES: [&str; 2] = ["memory.limit_in_bytes", "memory.max"];
const CPU_FILES: [&str; 2] = ["cpu.cfs_quota_us", "cpu.max"];

fn limits_are_those_that_were_asked_for(lab: &mut Lab, handler: Handler) -> Result<Seen, Failure> {
    let node = Node::of(lab, handler)?;
    let mut seen = Seen::default();
    let pod = node.pod("limited")?;
    let container = pod.sh("main", "exec sleep 600")?;
    let memory = limit(&container, MEMORY_FILES)?;
    ensure!(memory == wish::MEMORY.to_string(), "memory is limited to {memory}");
    seen.note("memory", memory);
    seen.note("cpu", limit(&container, CPU_FILES)?);
    let pid = proc::inside(container.id()).into_iter().next().map(|process| process.pid);
    let pid = pid.ok_or_else(|| Failure::new("the container has no process"))?;
    let score = std::fs::read_to_string(format!("/proc/{pid}/oom_score_adj"))?;
    seen.note("score", score.trim());
    pod.end()?;
    Ok(seen)
}

fn limits_can_be_changed(lab: &mut Lab, handler: Handler) -> Result<Seen, Failure> {
    let node = Node::of(lab, handler)?;
    let mut seen = Seen::default();
    let pod = node.pod("changed")?;
    let container = pod.sh("main", "exec sleep 600")?;
    let request = |memory: i64| UpdateContainerResourcesRequest {
        container_id: container.id().to_owned(),
        linux: Some(LinuxContainerResources {
            cpu_period: 100_000,
            cpu_quota: 25_000,
            cpu_shares: 256,
            memory_limit_in_bytes: memory,
            ..Default::default()
        }),
        ..Default::default()
    };
    node.cri().update_container_resources(request(wish::MEMORY / 2))?;
    let memory = limit(&container, MEMORY_FILES)?;
    ensure!(memory == (wish::MEMORY / 2).to_string(), "memory is limited to {memory}");
    seen.note("memory", memory);
    seen.note("cpu", limit(&container, CPU_FILES)?);
    pod.end()?;
    Ok(seen)
}

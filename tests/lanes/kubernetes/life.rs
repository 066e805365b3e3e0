//! Sandboxes and containers from their start to their end.

use k8s_cri::v1::{ContainerState, ListContainersRequest, PodSandboxState};
use nimbus_tests::cri::{Handler, Node, Seen, wish};
use nimbus_tests::wait::until;
use nimbus_tests::{Failure, Lab, ensure, proc};

use crate::{Scenario, scenarios};

pub(crate) fn scenarios() -> Vec<(&'static str, Scenario)> {
    scenarios![
        a_sandbox_comes_up_and_goes_away,
        two_containers_run_in_one_pod,
        an_exit_code_is_told_with_its_reason,
        a_container_that_uses_too_much_memory_is_killed_for_it,
        a_container_is_stopped_by_its_signal_or_killed_after_its_time,
        a_container_is_started_again_with_the_next_attempt,
        last_words_reach_kubelet,
        a_pod_can_be_made_again_at_once,
        a_container_that_was_never_started_can_be_removed,
        a_program_that_is_not_there_is_told,
        a_pod_outlives_containerd,
    ]
}

fn a_sandbox_comes_up_and_goes_away(lab: &mut Lab, handler: Handler) -> Result<Seen, Failure> {
    let node = Node::of(lab, handler)?;
    let mut seen = Seen::default();
    let pod = node.pod("lonely")?;
    let status = pod.status()?;
    seen.note("ready", status.state == i32::from(PodSandboxState::SandboxReady));
    seen.note("handler is told", status.runtime_handler == handler.name());
    let address = status.network.map(|network| network.ip).unwrap_or_default();
    ensure!(address.starts_with("10.214.80."), "its address is {address:?}");
    pod.end()?;
    node.is_empty()?;
    Ok(seen)
}

fn two_containers_run_in_one_pod(lab: &mut Lab, handler: Handler) -> Result<Seen, Failure> {
    let node = Node::of(lab, handler)?;
    let mut seen = Seen::default();
    let pod = node.pod("pair")?;
    let first = pod.sh("first", "echo one; exec sleep 600")?;
    let second = pod.sh("second", "echo two; exec sleep 600")?;
    first.says("one")?;
    second.says("two")?;
    for (name, container) in [("first", &first), ("second", &second)] {
        let status = container.status()?;
        let running = status.state == i32::from(ContainerState::ContainerRunning);
        ensure!(running, "{name} does not run: {status:?}");
        seen.note(name, (running, status.exit_code, &status.reason, status.started_at > 0));
        seen.note(format!("its processes, {name}"), container.exec("ps | grep -c '[s]leep 600'")?);
    }
    let listed = node.cri().list_containers(ListContainersRequest::default())?.containers;
    ensure!(listed.len() == 2, "there are {}: {listed:?}", listed.len());
    // The end of one is not the end of the other.
    first.stop(0)?;
    seen.note("killed", first.ended()?.exit_code);
    seen.note("the other lives", second.exec("echo alive")?);
    pod.end()?;
    Ok(seen)
}

fn an_exit_code_is_told_with_its_reason(lab: &mut Lab, handler: Handler) -> Result<Seen, Failure> {
    let node = Node::of(lab, handler)?;
    let mut seen = Seen::default();
    let pod = node.pod("codes")?;
    for (name, script, code, reason) in [
        ("fine", "exit 0", 0, "Completed"),
        ("seven", "exit 7", 7, "Error"),
        ("signal", "kill -KILL $$", 0, "Completed"),
        ("aborts", "(sleep 0.1; exit 255); exit $?", 255, "Error"),
    ] {
        let ended = pod.sh(name, script)?.ended()?;
        // The start is by the CRI plugin's clock, after the call; the end is by the shim's.
        let times = ended.created_at <= ended.started_at && ended.created_at <= ended.finished_at;
        ensure!(times, "{name}: its times are not in order: {ended:?}");
        if name == "signal" {
            // Init of a pid namespace is not killed from inside.
            seen.note(name, (ended.exit_code, &ended.reason));
            continue;
        }
        ensure!((ended.exit_code, ended.reason.as_str()) == (code, reason), "{name}: {ended:?}");
        seen.note(name, (ended.exit_code, &ended.reason, &ended.message));
    }
    pod.end()?;
    Ok(seen)
}

fn a_container_that_uses_too_much_memory_is_killed_for_it(
    lab: &mut Lab,
    handler: Handler,
) -> Result<Seen, Failure> {
    let node = Node::of(lab, handler)?;
    let mut seen = Seen::default();
    let pod = node.pod("hungry")?;
    let mut config = pod.wish("hungry", "")?;
    config.command = ["/bin/dd", "if=/dev/zero", "of=/dev/null", "bs=200M", "count=1"]
        .map(str::to_owned)
        .to_vec();
    wish::resources(&mut config).memory_limit_in_bytes = 32 << 20;
    let container = pod.start(&config)?;
    container.ended()?;
    let ended = until("the reason to be told", || {
        let ended = container.status()?;
        Ok((ended.reason == "OOMKilled").then_some(ended))
    })?;
    ensure!(ended.exit_code == 137, "found {ended:?}");
    seen.note("end", (ended.exit_code, &ended.reason));
    pod.end()?;
    Ok(seen)
}

fn a_container_is_stopped_by_its_signal_or_killed_after_its_time(
    lab: &mut Lab,
    handler: Handler,
) -> Result<Seen, Failure> {
    let node = Node::of(lab, handler)?;
    let mut seen = Seen::default();
    let pod = node.pod("stopped")?;
    let listens = "trap 'echo bye; exit 3' TERM; echo ready; while :; do sleep 0.1; done";
    let deaf = "trap '' TERM; echo ready; while :; do sleep 0.1; done";
    for (name, script, timeout, code) in [("listens", listens, 30, 3), ("deaf", deaf, 1, 137)] {
        let container = pod.sh(name, script)?;
        container.says("ready")?;
        container.stop(timeout)?;
        let ended = container.ended()?;
        ensure!(ended.exit_code == code, "{name}: {ended:?}");
        seen.note(name, (ended.exit_code, &ended.reason, container.stdout()?));
        // As often as somebody likes.
        container.stop(timeout)?;
    }
    pod.end()?;
    Ok(seen)
}

fn a_container_is_started_again_with_the_next_attempt(
    lab: &mut Lab,
    handler: Handler,
) -> Result<Seen, Failure> {
    let node = Node::of(lab, handler)?;
    let mut seen = Seen::default();
    let pod = node.pod("again")?;
    let mut config = pod.wish("main", "echo from $$; touch /tmp/mark; ls /tmp; exit 1")?;
    for attempt in 0..3 {
        if let Some(metadata) = &mut config.metadata {
            metadata.attempt = attempt;
        }
        config.log_path = format!("main/{attempt}.log");
        let count = "io.kubernetes.container.restartCount".to_owned();
        config.annotations.insert(count, attempt.to_string());
        let container = pod.start(&config)?;
        let ended = container.ended()?;
        let told = ended.metadata.map(|metadata| metadata.attempt);
        ensure!(told == Some(attempt), "it says {told:?}");
        seen.note(attempt, (ended.exit_code, &ended.reason, container.stdout()?));
    }
    pod.end()?;
    Ok(seen)
}

fn last_words_reach_kubelet(lab: &mut Lab, handler: Handler) -> Result<Seen, Failure> {
    let node = Node::of(lab, handler)?;
    let mut seen = Seen::default();
    let pod = node.pod("words")?;
    let container = pod.sh("main", "echo out of cheese > /dev/termination-log; exit 4")?;
    let ended = container.ended()?;
    let words = std::fs::read_to_string(pod.termination_message("main"))?;
    ensure!(words == "out of cheese\n", "found {words:?}, {ended:?}");
    seen.note("end", (ended.exit_code, words));
    pod.end()?;
    Ok(seen)
}

/// The shim of the one before may be on its way out still.
fn a_pod_can_be_made_again_at_once(lab: &mut Lab, handler: Handler) -> Result<Seen, Failure> {
    let node = Node::of(lab, handler)?;
    let mut seen = Seen::default();
    for round in 0..3 {
        let pod = node.pod("again-and-again")?;
        let ended = pod.sh("main", "exit 5")?.ended()?;
        seen.note(round, ended.exit_code);
        pod.end()?;
    }
    Ok(seen)
}

fn a_container_that_was_never_started_can_be_removed(
    lab: &mut Lab,
    handler: Handler,
) -> Result<Seen, Failure> {
    let node = Node::of(lab, handler)?;
    let mut seen = Seen::default();
    let pod = node.pod("idle")?;
    let container = pod.create(&pod.wish("main", "exit 0")?)?;
    let state = container.status()?.state;
    seen.note("created", state == i32::from(ContainerState::ContainerCreated));
    pod.end()?;
    Ok(seen)
}

fn a_program_that_is_not_there_is_told(lab: &mut Lab, handler: Handler) -> Result<Seen, Failure> {
    let node = Node::of(lab, handler)?;
    let mut seen = Seen::default();
    let pod = node.pod("absent")?;
    let mut config = pod.wish("main", "")?;
    config.command = vec!["/no/such/program".to_owned()];
    let container = pod.create(&config)?;
    let failed = container.start();
    ensure!(failed.is_err(), "it started");
    let ended = container.ended()?;
    seen.note("end", (ended.exit_code, &ended.reason, !ended.message.is_empty()));
    // The pod is none the worse for it.
    seen.note("another", pod.sh("other", "exit 6")?.ended()?.exit_code);
    pod.end()?;
    Ok(seen)
}

fn a_pod_outlives_containerd(lab: &mut Lab, handler: Handler) -> Result<Seen, Failure> {
    let node = Node::of(lab, handler)?;
    let mut seen = Seen::default();
    let pod = node.pod("outlives")?;
    let script = "trap 'exit 7' TERM; echo ready; while :; do sleep 0.1; done";
    let container = pod.sh("main", script)?;
    let brief = pod.sh("brief", "sleep 2; exit 9")?;
    container.says("ready")?;
    lab.kill_containerd()?;
    // One of them ends while nobody looks.
    until("the brief one to be gone", || {
        Ok(proc::inside(brief.id()).iter().all(|process| !process.runs("sleep")).then_some(()))
    })?;
    lab.start_containerd()?;
    let again = Node::of(lab, handler)?;
    // The connection to the one before is found out to be gone by the first call.
    let status = until("containerd to answer", || Ok(pod.status().ok()))?;
    seen.note("sandbox", status.state == i32::from(PodSandboxState::SandboxReady));
    let state = container.status()?.state;
    seen.note("runs", state == i32::from(ContainerState::ContainerRunning));
    seen.note("the brief one", brief.ended()?.exit_code);
    seen.note("command", container.exec("echo still here")?);
    seen.note("next", pod.sh("next", "exit 5")?.ended()?.exit_code);
    container.stop(30)?;
    let ended = container.ended()?;
    ensure!(ended.exit_code == 7, "found {ended:?}");
    pod.end()?;
    again.is_empty()?;
    Ok(seen)
}

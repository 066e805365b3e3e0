//! Commands in a running container, as probes run them.

use nimbus_tests::cri::{Handler, Node, Seen};
use nimbus_tests::wait::until;
use nimbus_tests::{Failure, Lab, ensure};

use crate::{Scenario, scenarios};

/// Probes in a row.
const PROBES: usize = 100;

pub(crate) fn scenarios() -> Vec<(&'static str, Scenario)> {
    scenarios![
        a_command_tells_its_output_and_exit_code,
        a_command_that_takes_too_long_is_ended,
        a_command_that_is_not_there_is_told,
        probes_go_on_while_the_node_agent_is_restarted,
        a_command_sees_what_the_container_sees,
        a_command_cannot_be_run_in_an_ended_container,
    ]
}

fn a_command_tells_its_output_and_exit_code(
    lab: &mut Lab,
    handler: Handler,
) -> Result<Seen, Failure> {
    let node = Node::of(lab, handler)?;
    let mut seen = Seen::default();
    let pod = node.pod("exec")?;
    let container = pod.sh("main", "exec sleep 600")?;
    let ran = container.exec("echo out; echo err >&2; exit 3")?;
    let parts = (ran.code, ran.out.as_str(), ran.err.as_str());
    ensure!(parts == (3, "out\n", "err\n"), "found {ran:?}");
    seen.note("both streams", ran);
    for script in ["exit 0", "exit 255", "kill -9 $$", "kill -TERM $$", "printf x", "cat"] {
        seen.note(script, container.exec(script)?);
    }
    let much = container.exec("seq 100000")?;
    ensure!(much.out.lines().count() == 100_000, "found {} bytes", much.out.len());
    pod.end()?;
    Ok(seen)
}

fn a_command_that_takes_too_long_is_ended(
    lab: &mut Lab,
    handler: Handler,
) -> Result<Seen, Failure> {
    let node = Node::of(lab, handler)?;
    let mut seen = Seen::default();
    let pod = node.pod("slow")?;
    let container = pod.sh("main", "exec sleep 600")?;
    let late = container.exec_within("exec sleep 777", 1);
    let text = late.err().map(|failure| failure.text().to_owned()).unwrap_or_default();
    ensure!(text.contains("timeout") || text.contains("deadline"), "found {text:?}");
    until("the command to be gone", || {
        let left = container.exec("ps | grep '[s]leep 777' | wc -l")?;
        Ok((left.out.trim() == "0").then_some(()))
    })?;
    seen.note("next", container.exec("echo fine")?);
    pod.end()?;
    Ok(seen)
}

fn a_command_that_is_not_there_is_told(lab: &mut Lab, handler: Handler) -> Result<Seen, Failure> {
    let node = Node::of(lab, handler)?;
    let mut seen = Seen::default();
    let pod = node.pod("no-exec")?;
    let container = pod.sh("main", "exec sleep 600")?;
    let request = k8s_cri::v1::ExecSyncRequest {
        container_id: container.id().to_owned(),
        cmd: vec!["/no/such/program".to_owned()],
        timeout: 30,
    };
    let answer = node.cri().exec_sync(request);
    seen.note("refused", answer.is_err());
    seen.note("next", container.exec("echo fine")?);
    pod.end()?;
    Ok(seen)
}

fn probes_go_on_while_the_node_agent_is_restarted(
    lab: &mut Lab,
    handler: Handler,
) -> Result<Seen, Failure> {
    let node = Node::of(lab, handler)?;
    let mut seen = Seen::default();
    let pod = node.pod("probed")?;
    let container = pod.sh("main", "exec sleep 600")?;
    for number in 0..PROBES {
        match number {
            30 => lab.kill_node()?,
            60 => lab.start_node()?,
            _ => {}
        }
        let ran = container.exec(&format!("echo {number}"))?;
        let fine = ran.code == 0 && ran.out == format!("{number}\n") && ran.err.is_empty();
        ensure!(fine, "probe {number}: {ran:?}");
    }
    lab.wait_connected()?;
    // Nor is the pod lost by it.
    let other = pod.sh("other", "exit 8")?;
    seen.note("another container", other.ended()?.exit_code);
    seen.note("processes", container.exec("ps | grep '[s]leep 600' | wc -l")?);
    pod.end()?;
    Ok(seen)
}

fn a_command_sees_what_the_container_sees(
    lab: &mut Lab,
    handler: Handler,
) -> Result<Seen, Failure> {
    let node = Node::of(lab, handler)?;
    let mut seen = Seen::default();
    let pod = node.pod("same")?;
    let container = pod.sh("main", "exec sleep 600")?;
    for kind in ["ipc", "mnt", "net", "pid", "uts"] {
        let script =
            format!("[ $(readlink /proc/1/ns/{kind}) = $(readlink /proc/self/ns/{kind}) ]");
        let ran = container.exec(&script)?;
        ensure!(ran.code == 0, "another {kind} namespace: {ran:?}");
    }
    seen.note("directory and variables", container.exec("pwd; echo $PATH $HOSTNAME")?);
    pod.end()?;
    Ok(seen)
}

fn a_command_cannot_be_run_in_an_ended_container(
    lab: &mut Lab,
    handler: Handler,
) -> Result<Seen, Failure> {
    let node = Node::of(lab, handler)?;
    let mut seen = Seen::default();
    let pod = node.pod("over")?;
    let container = pod.sh("main", "exit 0")?;
    container.ended()?;
    seen.note("refused", container.exec("echo x").is_err());
    pod.end()?;
    Ok(seen)
}

//! exec, attach and port-forward with a person at the other end.

use k8s_cri::v1::{AttachRequest, ExecRequest, PortForwardRequest};
use nimbus_tests::cri::stream::{DATA, STDIN, STDOUT, Stream};
use nimbus_tests::cri::{Container, Handler, Node, Seen};
use nimbus_tests::{Failure, Lab, ensure};

use crate::{Scenario, scenarios};

pub(crate) fn scenarios() -> Vec<(&'static str, Scenario)> {
    scenarios![
        a_command_has_both_streams_and_its_exit_code,
        a_command_with_a_terminal_has_one,
        a_command_reads_what_is_sent,
        somebody_attaches_to_a_running_container,
        somebody_attaches_to_a_container_with_a_terminal,
        a_port_of_a_pod_is_forwarded,
    ]
}

fn exec(node: &Node, container: &Container, script: &str, tty: bool) -> Result<Stream, Failure> {
    let request = ExecRequest {
        container_id: container.id().to_owned(),
        cmd: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(),
        tty,
        stdin: true,
        stdout: true,
        stderr: !tty,
    };
    Stream::open(&node.cri().exec(request)?.url)
}

fn attach(node: &Node, container: &Container, tty: bool) -> Result<Stream, Failure> {
    let request = AttachRequest {
        container_id: container.id().to_owned(),
        stdin: true,
        tty,
        stdout: true,
        stderr: !tty,
    };
    Stream::open(&node.cri().attach(request)?.url)
}

fn a_command_has_both_streams_and_its_exit_code(
    lab: &mut Lab,
    handler: Handler,
) -> Result<Seen, Failure> {
    let node = Node::of(lab, handler)?;
    let mut seen = Seen::default();
    let pod = node.pod("streamed")?;
    let container = pod.sh("main", "exec sleep 600")?;
    for (script, code) in [("echo out; echo err >&2; exit 7", 7), ("exit 0", 0)] {
        let ended = exec(&node, &container, script, false)?.finish()?;
        ensure!(ended.code == Some(code), "{script}: {ended:?}");
        seen.note(script, ended);
    }
    pod.end()?;
    Ok(seen)
}

fn a_command_with_a_terminal_has_one(lab: &mut Lab, handler: Handler) -> Result<Seen, Failure> {
    let node = Node::of(lab, handler)?;
    let mut seen = Seen::default();
    let pod = node.pod("terminal")?;
    let container = pod.sh("main", "exec sleep 600")?;
    let script = "test -t 0 && test -t 1 && test -t 2 && echo terminal; read x; stty size; exit 5";
    let mut stream = exec(&node, &container, script, true)?;
    stream.wait_for(STDOUT, "terminal")?;
    stream.resize(91, 37)?;
    // The size goes another way than the line does; a second one is certainly behind it.
    let second = container.exec("echo later")?;
    stream.send(STDIN, b"go\n")?;
    let ended = stream.finish()?;
    ensure!(ended.code == Some(5), "found {ended:?}");
    ensure!(ended.stdout.contains("37 91"), "found {ended:?}");
    seen.note("terminal", ended);
    seen.note("second", second);
    pod.end()?;
    Ok(seen)
}

fn a_command_reads_what_is_sent(lab: &mut Lab, handler: Handler) -> Result<Seen, Failure> {
    let node = Node::of(lab, handler)?;
    let mut seen = Seen::default();
    let pod = node.pod("reads")?;
    let container = pod.sh("main", "exec sleep 600")?;
    let script = "while read line; do [ $line = end ] && exit 4; echo got $line; done; exit 1";
    let mut stream = exec(&node, &container, script, false)?;
    for word in ["one", "two", "three"] {
        stream.send(STDIN, format!("{word}\n").as_bytes())?;
        stream.wait_for(STDOUT, &format!("got {word}\n"))?;
    }
    stream.send(STDIN, b"end\n")?;
    let ended = stream.finish()?;
    ensure!(ended.code == Some(4), "found {ended:?}");
    seen.note("reads", ended);
    pod.end()?;
    Ok(seen)
}

fn somebody_attaches_to_a_running_container(
    lab: &mut Lab,
    handler: Handler,
) -> Result<Seen, Failure> {
    let node = Node::of(lab, handler)?;
    let mut seen = Seen::default();
    let pod = node.pod("attached")?;
    let script = "while read line; do [ $line = end ] && exit 6; echo got $line; done; exit 1";
    let mut config = pod.wish("main", script)?;
    config.stdin = true;
    let container = pod.start(&config)?;
    // Twice: the first has gone away, the container has not.
    for word in ["first", "second"] {
        let mut stream = attach(&node, &container, false)?;
        stream.send(STDIN, format!("{word}\n").as_bytes())?;
        stream.wait_for(STDOUT, &format!("got {word}\n"))?;
    }
    let mut stream = attach(&node, &container, false)?;
    stream.send(STDIN, b"end\n")?;
    stream.finish()?;
    let ended = container.ended()?;
    ensure!(ended.exit_code == 6, "found {ended:?}");
    container.says("got second")?;
    seen.note("end", (ended.exit_code, container.stdout()?));
    pod.end()?;
    Ok(seen)
}

fn somebody_attaches_to_a_container_with_a_terminal(
    lab: &mut Lab,
    handler: Handler,
) -> Result<Seen, Failure> {
    let node = Node::of(lab, handler)?;
    let mut seen = Seen::default();
    let pod = node.pod("attached-terminal")?;
    let mut config = pod.wish("main", "test -t 0 && echo terminal; read x; echo got $x; exit 2")?;
    config.stdin = true;
    config.tty = true;
    let container = pod.start(&config)?;
    container.says("terminal")?;
    let mut stream = attach(&node, &container, true)?;
    stream.send(STDIN, b"word\n")?;
    stream.wait_for(STDOUT, "got word")?;
    stream.finish()?;
    let ended = container.ended()?;
    seen.note("end", (ended.exit_code, container.stdout()?));
    pod.end()?;
    Ok(seen)
}

fn a_port_of_a_pod_is_forwarded(lab: &mut Lab, handler: Handler) -> Result<Seen, Failure> {
    let node = Node::of(lab, handler)?;
    let mut seen = Seen::default();
    let pod = node.pod("forwarded")?;
    let script = "mkdir /tmp/www; echo served > /tmp/www/index.html; \
                  httpd -p 127.0.0.1:8080 -h /tmp/www; echo ready; exec sleep 600";
    let container = pod.sh("main", script)?;
    container.says("ready")?;
    for round in 0..2 {
        let request = PortForwardRequest { pod_sandbox_id: pod.id().to_owned(), port: vec![8080] };
        let mut stream = Stream::open(&node.cri().port_forward(request)?.url)?;
        stream.send(DATA, b"GET /index.html HTTP/1.0\r\n\r\n")?;
        stream.wait_for(DATA, "served\n")?;
        let answer = stream.so_far(DATA);
        ensure!(answer.contains("200 OK"), "found {answer:?}");
        seen.note(round, answer.contains("served\n"));
    }
    pod.end()?;
    Ok(seen)
}

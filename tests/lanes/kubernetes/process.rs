//! What a container's process is, sees and may do.

use std::fs;

use k8s_cri::v1::Int64Value;
use nimbus_tests::cri::{Handler, Node, Seen, wish};
use nimbus_tests::{Failure, Lab, ensure};

use crate::{Scenario, scenarios};

pub(crate) fn scenarios() -> Vec<(&'static str, Scenario)> {
    scenarios![
        a_container_has_its_pods_names,
        a_container_runs_as_the_user_that_was_asked_for,
        a_read_only_root_cannot_be_written,
        a_container_has_what_its_author_wrote,
        a_container_cannot_get_more_privileges_when_it_asked_not_to,
        containers_of_a_pod_may_share_their_processes,
        containers_of_a_pod_share_memory,
    ]
}

fn a_container_has_its_pods_names(lab: &mut Lab, handler: Handler) -> Result<Seen, Failure> {
    let node = Node::of(lab, handler)?;
    let mut seen = Seen::default();
    let pod = node.pod("well-named")?;
    let container = pod.sh("main", "exec sleep 600")?;
    for script in [
        "hostname",
        "cat /etc/hostname",
        "cat /etc/hosts",
        "cat /etc/resolv.conf",
        "echo $HOSTNAME $KUBERNETES_SERVICE_HOST",
    ] {
        seen.note(script, container.exec(script)?);
    }
    let hostname = container.exec("hostname")?.out;
    ensure!(hostname == "well-named\n", "its hostname is {hostname:?}");
    let hosts = fs::read_to_string(pod.dir().join("etc-hosts"))?;
    let found = container.exec("cat /etc/hosts")?.out;
    ensure!(found == hosts, "/etc/hosts is {found:?}");
    // kubelet changes the file in place when a pod gets another alias.
    fs::write(pod.dir().join("etc-hosts"), format!("{hosts}192.0.2.9\talias\n"))?;
    let changed = container.exec("grep -c alias /etc/hosts")?;
    ensure!(changed.code == 0, "the change does not show: {changed:?}");
    pod.end()?;
    Ok(seen)
}

fn a_container_runs_as_the_user_that_was_asked_for(
    lab: &mut Lab,
    handler: Handler,
) -> Result<Seen, Failure> {
    let node = Node::of(lab, handler)?;
    let mut seen = Seen::default();
    let pod = node.pod("user")?;
    let script = "id -u; id -g; id -G; grep -E '^Cap(Eff|Prm)' /proc/self/status; \
                  touch /root/x 2>/dev/null || echo refused; exec sleep 600";
    let mut config = pod.wish("main", script)?;
    let security = wish::security(&mut config);
    security.run_as_user = Some(Int64Value { value: 1000 });
    security.run_as_group = Some(Int64Value { value: 2000 });
    security.supplemental_groups = vec![3000, 4000];
    let container = pod.start(&config)?;
    container.says("refused")?;
    let output = container.stdout()?;
    ensure!(output.starts_with("1000\n2000\n"), "found {output:?}");
    seen.note("process", output);
    seen.note("exec", container.exec("id -u; id -g; id -G")?);
    // Ours has no raw sockets beside the cluster's network; all else is the same.
    let bound = match handler {
        Handler::Runc => "00000000a80425fb",
        Handler::Nimbus => "00000000a80405fb",
    };
    let found = container.exec("grep CapBnd /proc/1/status")?;
    ensure!(found.out.contains(bound), "found {found:?}");
    pod.end()?;
    Ok(seen)
}

fn a_read_only_root_cannot_be_written(lab: &mut Lab, handler: Handler) -> Result<Seen, Failure> {
    let node = Node::of(lab, handler)?;
    let mut seen = Seen::default();
    let pod = node.pod("read-only")?;
    let mut config = pod.wish("main", "exec sleep 600")?;
    wish::security(&mut config).readonly_rootfs = true;
    let container = pod.start(&config)?;
    let tried = container.exec("touch /tmp/x")?;
    ensure!(tried.code == 1, "it could write: {tried:?}");
    seen.note("root", tried);
    seen.note("shm", container.exec("echo x > /dev/shm/x && cat /dev/shm/x")?);
    pod.end()?;
    Ok(seen)
}

fn a_container_has_what_its_author_wrote(lab: &mut Lab, handler: Handler) -> Result<Seen, Failure> {
    let node = Node::of(lab, handler)?;
    let mut seen = Seen::default();
    let pod = node.pod("authored")?;
    let mut config = pod.wish("main", "")?;
    config.command = vec!["/bin/sh".to_owned(), "-c".to_owned()];
    config.args = vec![
        "pwd; echo \"$GREETING\"; echo \"$0 $1\"".to_owned(),
        "a".to_owned(),
        "b c".to_owned(),
    ];
    "/var".clone_into(&mut config.working_dir);
    let greeting =
        k8s_cri::v1::KeyValue { key: "GREETING".to_owned(), value: "hello\tthere".to_owned() };
    config.envs.push(greeting);
    let container = pod.start(&config)?;
    let ended = container.ended()?;
    let output = container.stdout()?;
    ensure!(output == "/var\nhello\tthere\na b c\n", "found {output:?}, {ended:?}");
    seen.note("end", (ended.exit_code, output));
    pod.end()?;
    Ok(seen)
}

fn a_container_cannot_get_more_privileges_when_it_asked_not_to(
    lab: &mut Lab,
    handler: Handler,
) -> Result<Seen, Failure> {
    let node = Node::of(lab, handler)?;
    let mut seen = Seen::default();
    let pod = node.pod("restricted")?;
    let mut config = pod.wish("main", "exec sleep 600")?;
    let security = wish::security(&mut config);
    security.run_as_user = Some(Int64Value { value: 65534 });
    security.no_new_privs = true;
    security.capabilities = Some(k8s_cri::v1::Capability {
        drop_capabilities: vec!["ALL".to_owned()],
        ..Default::default()
    });
    let container = pod.start(&config)?;
    let script = "grep -E '^(Cap|NoNewPrivs|Seccomp:)' /proc/self/status";
    let found = container.exec(script)?;
    ensure!(found.out.contains("NoNewPrivs:\t1"), "found {found:?}");
    ensure!(found.out.contains("CapBnd:\t0000000000000000"), "found {found:?}");
    seen.note("status", found);
    pod.end()?;
    Ok(seen)
}

fn containers_of_a_pod_may_share_their_processes(
    lab: &mut Lab,
    handler: Handler,
) -> Result<Seen, Failure> {
    use k8s_cri::v1::NamespaceMode;
    use nimbus_tests::cri::ground::MAPPED;
    let node = Node::of(lab, handler)?;
    let mut seen = Seen::default();
    let share = |options: &mut Option<k8s_cri::v1::NamespaceOption>| {
        options.get_or_insert_default().pid = NamespaceMode::Pod.into();
    };
    let pod = node.pod_in(MAPPED, "sharing", |config| {
        share(&mut wish::sandbox_security(config).namespace_options);
    })?;
    let mut containers = Vec::new();
    for name in ["first", "second"] {
        let mut config = pod.wish(name, &format!("echo ready; exec sleep 60{}", name.len()))?;
        share(&mut wish::security(&mut config).namespace_options);
        let container = pod.start(&config)?;
        container.says("ready")?;
        containers.push(container);
    }
    for container in &containers {
        // Both and the sandbox's, which is the first.
        seen.note("processes", container.exec("ps | grep '[s]leep' | grep -v grep | wc -l")?);
        seen.note("first", container.exec("tr '\\0' ' ' < /proc/1/cmdline")?);
    }
    let alone = node.pod("not-sharing")?;
    let container = alone.sh("main", "exec sleep 600")?;
    seen.note("alone", container.exec("tr '\\0' ' ' < /proc/1/cmdline")?);
    alone.end()?;
    pod.end()?;
    Ok(seen)
}

fn containers_of_a_pod_share_memory(lab: &mut Lab, handler: Handler) -> Result<Seen, Failure> {
    let node = Node::of(lab, handler)?;
    let mut seen = Seen::default();
    let pod = node.pod("shm")?;
    let writer = pod.sh("writer", "exec sleep 600")?;
    let reader = pod.sh("reader", "exec sleep 600")?;
    seen.note("write", writer.exec("echo shared > /dev/shm/note")?);
    let read = reader.exec("cat /dev/shm/note")?;
    ensure!(read.out == "shared\n", "found {read:?}");
    seen.note("read", read);
    for (kind, shared) in
        [("ipc", true), ("uts", true), ("net", true), ("mnt", false), ("pid", false)]
    {
        let script = format!("readlink /proc/self/ns/{kind}");
        let same = writer.exec(&script)?.out == reader.exec(&script)?.out;
        ensure!(same == shared, "{kind} namespace: the same is {same}, expected {shared}");
    }
    pod.end()?;
    Ok(seen)
}

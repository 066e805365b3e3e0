//! Who finds which server: `start` of the containers of one pod, at once and one after the other.

use std::process::Stdio;
use std::time::Duration;
use std::{fs, thread};

use containerd_shim_protos::api::{ConnectRequest, ShutdownRequest};
use rustix::process::Signal;

use crate::lab::{Shim, alive, call, wait_until};
use crate::pods::{KUBERNETES, Member, Pod, told};

/// Containers of one pod that are started at once.
const AT_ONCE: usize = 6;
const ROUNDS: usize = 8;

/// All of them at once; their addresses.
fn start_at_once(members: &[Member]) -> Vec<String> {
    let starts: Vec<_> = members
        .iter()
        .map(|member| {
            let mut start = member.command(&["start"]);
            start.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
        })
        .collect();
    starts.into_iter().map(|start| told(&start.wait_with_output().unwrap())).collect()
}

fn members(pod: &Pod) -> Vec<Member> {
    (0..AT_ONCE).map(|n| pod.member(&format!("c{n}"))).collect()
}

/// Ends the server of containers that never came.
fn end(members: &[Member], address: &str) {
    let shim = Shim::of(address, members[0].id.clone(), &members[0].bundle);
    for member in members {
        let request = ShutdownRequest { id: member.id.clone(), ..Default::default() };
        shim.task.shutdown(call(), &request).unwrap();
    }
    wait_until("the server ends", || !alive(shim.pid));
}

#[test]
fn many_starts_of_a_pod_at_once_make_one_server_that_all_are_told() {
    let pod = Pod::new();
    let members = members(&pod);
    let mut killed = None;
    for round in 0..ROUNDS {
        let addresses = start_at_once(&members);
        // One that was executed this instant has no command line yet.
        wait_until("the server shows", || !pod.servers().is_empty());
        let servers = pod.servers();
        assert_eq!(servers.len(), 1, "{servers:?}");
        for (member, address) in members.iter().zip(&addresses) {
            assert_eq!(*address, addresses[0]);
            assert_eq!(fs::read_to_string(member.bundle.join("address")).unwrap(), *address);
        }
        if let Some(killed) = killed.take() {
            assert_ne!(servers, [killed]);
        }
        if round % 2 == 0 {
            end(&members, &addresses[0]);
            assert_eq!(pod.sockets(), 0);
        } else {
            // The next round finds a socket that nobody listens on.
            let shim = Shim::of(&addresses[0], members[0].id.clone(), &members[0].bundle);
            shim.signal(Signal::KILL);
            wait_until("it is dead", || !alive(shim.pid));
            killed = Some(shim.pid);
        }
    }
    for member in &members {
        member.delete();
    }
    pod.assert_nothing_left();
}

/// containerd ends `start` when the client that it is for has gone; the server stays for the other.
#[test]
fn a_server_that_another_start_has_found_outlives_the_one_that_made_it() {
    let pod = Pod::new();
    let (first, second) = (pod.member("a"), pod.member("b"));
    let mut outlived = 0;
    for step in 0..40_u32 {
        let mut killed = first.command(&["start"]).stdout(Stdio::piped()).spawn().unwrap();
        let mut finding = second.command(&["start"]);
        finding.stdout(Stdio::piped()).stderr(Stdio::piped());
        let finding = finding.spawn().unwrap();
        thread::sleep(Duration::from_micros(u64::from(step) * 200));
        killed.kill().unwrap();
        outlived += u32::from(!killed.wait().unwrap().success());
        let address = told(&finding.wait_with_output().unwrap());
        // Long enough for a server that was told nothing to be gone.
        thread::sleep(Duration::from_millis(20));
        let shim = Shim::of(&address, second.id.clone(), &second.bundle);
        assert_eq!(pod.servers(), [shim.pid]);
        for id in [first.id.clone(), second.id.clone()] {
            let request = ShutdownRequest { id, ..Default::default() };
            shim.task.shutdown(call(), &request).unwrap();
        }
        wait_until("the server ends", || !alive(shim.pid));
    }
    assert!(outlived > 0);
    for member in [first, second] {
        member.delete();
    }
    pod.assert_nothing_left();
}

#[test]
fn a_container_that_was_announced_is_waited_for_when_another_ones_end_comes_first() {
    let pod = Pod::new();
    let (first, second) = (pod.member("a"), pod.member("b"));
    let address = first.start();
    assert_eq!(second.start(), address);
    let shim = Shim::of(&address, first.id.clone(), &first.bundle);
    shim.ask_to_end();
    thread::sleep(Duration::from_millis(100));
    assert!(alive(shim.pid), "the second one has its address");
    Shim::of(&address, second.id.clone(), &second.bundle).shut_down();
    pod.assert_nothing_left();
}

#[test]
fn only_the_namespace_of_kubernetes_is_grouped() {
    let pod = Pod::in_namespace("nimbus-test");
    let members = members(&pod);
    let addresses = start_at_once(&members);
    wait_until("each has its own", || pod.servers().len() == AT_ONCE);
    for (member, address) in members.iter().zip(&addresses) {
        Shim::of(address, member.id.clone(), &member.bundle).shut_down();
    }
    pod.assert_nothing_left();
}

#[test]
fn an_odd_annotation_or_another_pods_means_a_server_of_its_own() {
    let pod = Pod::new();
    let all = members(&pod);
    let configs = [
        "{}".to_owned(),
        r#"{"annotations": {"io.kubernetes.cri.sandbox-id": "../s"}}"#.to_owned(),
        r#"{"annotations": {"io.kubernetes.cri.sandbox-id": "another"}}"#.to_owned(),
        format!(r#"{{"annotations": {{"io.kubernetes.cri.container-name": "{KUBERNETES}"}}}}"#),
    ];
    for (member, config) in all.iter().zip(&configs) {
        fs::write(member.bundle.join("config.json"), config).unwrap();
    }
    let addresses = start_at_once(&all);
    // Four of their own, one of the rest.
    wait_until("as many servers", || pod.servers().len() == configs.len() + 1);
    for (member, address) in all.iter().zip(&addresses) {
        let shim = Shim::of(address, member.id.clone(), &member.bundle);
        shim.ask_to_end();
    }
    wait_until("all have ended", || pod.servers().is_empty());
    pod.assert_nothing_left();
}

/// containerd finds each container's server again by the file in its bundle.
#[test]
fn after_a_restart_of_containerd_each_bundle_leads_to_the_server() {
    let pod = Pod::new();
    let members = members(&pod);
    let servers: Vec<_> = members
        .iter()
        .map(|member| {
            member.start();
            let address = fs::read_to_string(member.bundle.join("address")).unwrap();
            let shim = Shim::of(&address, member.id.clone(), &member.bundle);
            let request = ConnectRequest { id: member.id.clone(), ..Default::default() };
            shim.task.connect(call(), &request).unwrap().shim_pid
        })
        .collect();
    assert!(servers.iter().all(|pid| *pid == servers[0]), "{servers:?}");
    let address = members[0].start();
    end(&members, &address);
    pod.assert_nothing_left();
}

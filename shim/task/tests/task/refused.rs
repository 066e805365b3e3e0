//! Whatever is not granted: nothing runs, the answer says why, and nothing is left.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;
use std::{fs, thread};

use containerd_shim_protos::TaskClient;
use containerd_shim_protos::api::{
    CheckpointTaskRequest, DeleteRequest, KillRequest, PidsRequest, ShutdownRequest, StateRequest,
};
use containerd_shim_protos::protobuf::Message as _;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::shim::oci::Options;
use containerd_shim_protos::ttrpc::{Client, Request};
use containerd_shim_protos::types::introspection::RuntimeInfo;
use nimbus_api::proto::admit::v1::shim_message;
use nimbus_api::{Refusal, RefusalCode};
use rustix::process::Signal;

use crate::agent::Answer;
use crate::lab::{Lab, Shim, alive, call, mode, status, wait_until};
use crate::plan::{granted, plan, sealed_filter};

const UNAVAILABLE: i32 = 14;

#[test]
fn start_answers_with_a_bare_address_and_nothing_else() {
    let lab = Lab::new();
    let address = lab.start();
    let socket = address.strip_prefix("unix://").unwrap();
    assert_eq!(fs::read_to_string(lab.bundle().join("address")).unwrap(), address);
    assert_eq!(mode(socket.as_ref()), 0o600);
    assert_eq!(mode(&lab.run_dir().join("s")), 0o700);
    // containerd asks again after its own restart: the same server, not a second one.
    let first = Shim::connect(&address, &lab).pid;
    assert_eq!(lab.start(), address);
    assert_eq!(Shim::connect(&address, &lab).pid, first);
    Shim::connect(&address, &lab).shut_down();
    lab.assert_nothing_left();
}

/// containerd ends `start` when the client that it is for has gone.
#[test]
fn a_start_that_is_killed_at_any_instant_leaves_no_server_that_nobody_knows() {
    let lab = Lab::new();
    let id = lab.key.id.to_string();
    let servers = || {
        let processes = fs::read_dir("/proc").unwrap().flatten();
        let lines = processes.filter_map(|one| fs::read_to_string(one.path().join("cmdline")).ok());
        lines.filter(|line| line.split('\0').any(|word| word == id)).count()
    };
    let mut killed_in_time = 0;
    for step in 0..60_u32 {
        let mut start = lab.command(&["start"]).stdout(Stdio::piped()).spawn().unwrap();
        thread::sleep(Duration::from_micros(u64::from(step) * 100));
        start.kill().unwrap();
        let output = start.wait_with_output().unwrap();
        let address = String::from_utf8(output.stdout).unwrap();
        killed_in_time += u32::from(!output.status.success());
        // Killed after it had told: whoever reads that knows the server.
        let end = || {
            let Ok(client) = Client::connect(&address) else { return };
            let request = ShutdownRequest { id: id.clone(), ..Default::default() };
            drop(TaskClient::new(client).shutdown(call(), &request));
        };
        wait_until("no server is left", || {
            if !address.is_empty() {
                end();
            }
            servers() == 0
        });
    }
    assert!(killed_in_time > 0);
    // A socket that was made for no server is taken over by the next, or goes with the bundle.
    lab.delete();
    lab.assert_nothing_left();
}

#[test]
fn a_server_is_put_where_containerds_configuration_says_or_not_started() {
    let lab = Lab::new();
    let start = |cgroup: &str| {
        let options = Options { shim_cgroup: cgroup.to_owned(), ..Options::default() };
        let any = Any {
            type_url: "containerd.runc.v1.Options".to_owned(),
            value: options.write_to_bytes().unwrap(),
            ..Any::default()
        };
        let input = lab.dir.path().join("options");
        fs::write(&input, any.write_to_bytes().unwrap()).unwrap();
        lab.command(&["start"]).stdin(fs::File::open(input).unwrap()).output().unwrap()
    };
    let name = format!("nimbus-test-shims-{}", std::process::id());
    let absent = start(&format!("/{name}"));
    assert!(!absent.status.success());
    assert!(String::from_utf8_lossy(&absent.stderr).contains("ShimCgroup"), "{absent:?}");
    assert_eq!(fs::read_dir(lab.run_dir().join("s")).unwrap().count(), 0, "a socket is left");

    let hierarchy = Path::new("/sys/fs/cgroup/pids");
    let hierarchy = if hierarchy.is_dir() { hierarchy } else { Path::new("/sys/fs/cgroup") };
    fs::create_dir(hierarchy.join(&name)).unwrap();
    let started = start(&format!("/{name}"));
    let address = String::from_utf8(started.stdout).unwrap();
    let shim = Shim::connect(&address, &lab);
    let cgroups = fs::read_to_string(format!("/proc/{}/cgroup", shim.pid)).unwrap();
    shim.shut_down();
    wait_until("its cgroup to be empty", || fs::remove_dir(hierarchy.join(&name)).is_ok());
    assert!(cgroups.contains(&format!(":/{name}\n")), "{cgroups}");
    lab.assert_nothing_left();
}

#[test]
fn without_a_node_agent_nothing_starts() {
    let lab = Lab::new();
    let shim = lab.shim();
    let text = Refusal::new(RefusalCode::NodeAgentDown).to_string();
    assert!(text.starts_with("[node.agent_down] "));
    assert_eq!(shim.create("", ""), Err((UNAVAILABLE, text)));
    assert_eq!(shim.delete().unwrap_err().0, 5);
    shim.shut_down();
    lab.assert_nothing_left();
    assert_eq!(lab.events.so_far(), Vec::<String>::new());
}

#[test]
fn an_agent_that_closes_is_an_agent_that_is_down() {
    let lab = Lab::new();
    lab.agent(Answer::Close);
    let (code, text) = lab.shim().create("", "").unwrap_err();
    assert_eq!((code, Refusal::code_in(&text)), (UNAVAILABLE, Some(RefusalCode::NodeAgentDown)));
}

#[test]
fn a_refusal_is_told_word_for_word_with_the_status_of_its_class() {
    for (code, number) in [
        (RefusalCode::LeaseMissing, 7),
        (RefusalCode::PolicyMissing, 9),
        (RefusalCode::ImagePreparing, UNAVAILABLE),
    ] {
        let lab = Lab::new();
        let refusal = Refusal::with(code, "found \u{e4}, expected b");
        let agent = lab.agent(Answer::Refuse(refusal.clone()));
        let shim = lab.shim();
        assert_eq!(shim.create("", ""), Err((number, refusal.to_string())));
        let config = agent.config();
        assert_eq!(config, b"{}");
        shim.shut_down();
        lab.assert_nothing_left();
        assert_eq!(lab.events.so_far(), Vec::<String>::new());
    }
}

#[test]
fn while_the_agent_thinks_the_shim_answers_and_delete_ends_it() {
    let lab = Lab::new();
    let agent = lab.agent(Answer::Silent);
    let shim = lab.shim();
    let creating = Shim::connect(&lab.start(), &lab);
    let created = thread::spawn(move || creating.create("", ""));
    agent.hear(|kind| matches!(kind, shim_message::Kind::Admit(_)).then_some(()));
    let id = lab.key.id.to_string();
    let state = StateRequest { id: id.clone(), ..Default::default() };
    assert_eq!(shim.task.state(call(), &state).unwrap().pid, 0);
    let pids = PidsRequest { id: id.clone(), ..Default::default() };
    assert!(shim.task.pids(call(), &pids).unwrap().processes.is_empty());
    let kill = KillRequest { id: id.clone(), signal: 15, ..Default::default() };
    assert_eq!(status(shim.task.kill(call(), &kill)).unwrap_err().0, 9);
    let delete = DeleteRequest { id, ..Default::default() };
    assert_eq!(status(shim.task.delete(call(), &delete)).unwrap_err().0, 5);
    let (_, text) = created.join().unwrap().unwrap_err();
    assert_eq!(Refusal::code_in(&text), Some(RefusalCode::JobCancelled));
    shim.shut_down();
    lab.assert_nothing_left();
}

#[test]
fn a_grant_that_does_not_hold_together_is_not_taken() {
    let for_another = |lab: &Lab| {
        let mut other = lab.key.clone();
        other.id = "another".parse().unwrap();
        granted(&plan(&other, "true"))
    };
    let of_another_digest = |lab: &Lab| {
        let mut message = granted(&plan(&lab.key, "true"));
        message.plan_json.push(b' ');
        message
    };
    let without_its_layer = |lab: &Lab| granted(&plan(&lab.key, "true"));
    let cases: [&dyn Fn(&Lab) -> _; 3] = [&for_another, &of_another_digest, &without_its_layer];
    for case in cases {
        let lab = Lab::new();
        let agent = lab.agent(Answer::Grant(case(&lab), Box::new(|| vec![sealed_filter()])));
        let shim = lab.shim();
        let (code, text) = shim.create("", "").unwrap_err();
        assert_eq!((code, Refusal::code_in(&text)), (UNAVAILABLE, Some(RefusalCode::NodeInternal)));
        let reason = agent.released().reason;
        assert_eq!(reason, "node.internal");
        shim.shut_down();
        lab.assert_nothing_left();
    }
}

#[test]
fn delete_is_idempotent_and_ends_a_server_that_is_still_there() {
    let lab = Lab::new();
    let shim = lab.shim();
    for _ in 0..2 {
        let response = lab.delete();
        assert_eq!((response.pid, response.exit_status), (0, 137));
        assert!(response.exited_at.seconds > 0);
        assert!(!alive(shim.pid));
        lab.assert_nothing_left();
    }
}

#[test]
fn a_socket_of_a_killed_server_is_taken_over() {
    let lab = Lab::new();
    let address = lab.start();
    let first = Shim::connect(&address, &lab);
    first.signal(Signal::KILL);
    wait_until("it is dead", || !alive(first.pid));
    assert_eq!(lab.start(), address);
    let second = Shim::connect(&address, &lab);
    assert_ne!(second.pid, first.pid);
    second.shut_down();
    lab.assert_nothing_left();
}

#[test]
fn a_signal_ends_a_server_without_a_container() {
    let lab = Lab::new();
    let shim = lab.shim();
    shim.signal(Signal::TERM);
    wait_until("it has ended", || !alive(shim.pid));
    lab.assert_nothing_left();
}

#[test]
fn both_names_of_the_task_service_are_served() {
    let lab = Lab::new();
    let shim = lab.shim();
    for service in ["containerd.task.v2.Task", "containerd.task.v3.Task"] {
        let request = Request {
            service: service.to_owned(),
            method: "Connect".to_owned(),
            timeout_nano: i64::try_from(Duration::from_secs(10).as_nanos()).unwrap(),
            ..Default::default()
        };
        let response = shim.client.request(request).unwrap();
        assert!(!response.payload.is_empty(), "{service}");
    }
}

#[test]
fn what_does_not_exist_yet_says_so_and_other_ids_are_not_served() {
    let lab = Lab::new();
    let shim = lab.shim();
    let request = CheckpointTaskRequest::default();
    let (code, text) = status(shim.task.checkpoint(call(), &request)).unwrap_err();
    assert_eq!((code, text.as_str()), (12, "Checkpoint is not implemented by this runtime"));
    let mut other = shim.create_request();
    other.id = "other".to_owned();
    assert_eq!(shim.create_with(&other).unwrap_err().0, 3);
    let state = StateRequest { id: "other".to_owned(), ..Default::default() };
    assert_eq!(status(shim.task.state(call(), &state)).unwrap_err().0, 5);
}

#[test]
fn the_runtime_describes_itself() {
    let lab = Lab::new();
    let output = lab.run(&["-info"]);
    let info = RuntimeInfo::parse_from_bytes(&output.stdout).unwrap();
    assert_eq!(info.name, "io.containerd.nimbus.v1");
    assert_eq!(info.version.version, env!("CARGO_PKG_VERSION"));
    assert!(lab.run(&["-v"]).stdout.starts_with(b"containerd-shim-nimbus-v1 "));
    assert_eq!(lab.run(&["-grouping", "x", "start"]).status.code(), Some(64));
    // Run by hand it says what it is.
    let served = lab.run(&[]);
    assert_eq!(served.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&served.stderr).contains("not a listening socket"));
}

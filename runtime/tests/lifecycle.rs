//! Create, Start, Kill and Delete from outside: what is refused, what ends, what is left.
#![forbid(unsafe_code)]
#![expect(
    clippy::tests_outside_test_module,
    clippy::unwrap_used,
    clippy::panic,
    reason = "all of an integration test is one"
)]

mod support;

use std::fs;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::process::ExitStatusExt as _;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nimbus_api::frame::{FrameReader, write_frame};
use nimbus_api::runtime::{OUTSIDE_NAME, RuntimeReply, RuntimeVerb, UpdateRequest};
use nimbus_api::{Digest, RefusalCode};
use serde_json::json;
use support::{Host, cgroup_of, freeze};

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(10);
    while !done() {
        assert!(Instant::now() < end, "never: {what}");
        sleep(Duration::from_millis(5));
    }
}

fn refused(reply: &RuntimeReply) -> RefusalCode {
    let RuntimeReply::Failed { refusal, .. } = reply else { panic!("{reply:?}") };
    refusal.code
}

fn members(dir: &std::path::Path) -> usize {
    fs::read_to_string(dir.join("cgroup.procs")).unwrap().lines().count()
}

#[test]
fn a_created_container_waits_and_can_be_deleted_unstarted() {
    let host = Host::shell("echo ran");
    let created = host.create();
    assert_eq!(created.out(), "");
    host.delete();
    let ended = created.wait();
    assert_eq!((ended.out.as_str(), ended.status.terminating_signal()), ("", Some(9)));
}

/// Such a process can be reached by a container through what it executes.
#[test]
fn a_process_that_was_not_started_to_create_refuses_to() {
    let host = Host::new(&["true"]);
    let (mut child, socket) = Host::spawn_as(OUTSIDE_NAME);
    let (fds, _, _) = host.create_fds();
    let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
    let request = serde_json::to_vec(&host.request(host.create_verb())).unwrap();
    write_frame(&socket, &request, &fds).unwrap();
    let frame = FrameReader::default().read(&socket).unwrap();
    let reply: RuntimeReply = serde_json::from_slice(&frame.bytes).unwrap();
    assert_eq!(refused(&reply), RefusalCode::RuntimeUnproven);
    assert_eq!(child.wait().unwrap().code(), Some(1));
    assert!(!host.bundle().exists());
}

#[test]
fn delete_is_done_any_number_of_times_and_without_a_create() {
    let host = Host::new(&["true"]);
    host.delete();
    let created = host.create();
    assert_eq!(host.ask(RuntimeVerb::Start), RuntimeReply::Done);
    created.wait();
    host.delete();
    host.delete();
}

#[test]
fn a_second_create_or_start_is_refused_and_harms_nothing() {
    let host = Host::new(&["sleep", "100"]);
    let created = host.create();
    assert_eq!(host.try_create().err().unwrap().0, RefusalCode::RuntimeFailed);
    assert_eq!(host.ask(RuntimeVerb::Start), RuntimeReply::Done);
    assert_eq!(refused(&host.ask(RuntimeVerb::Start)), RefusalCode::RuntimeFailed);
    assert_eq!(host.ask(RuntimeVerb::Kill { signal: 9, all: false }), RuntimeReply::Done);
    assert_eq!(created.wait().status.terminating_signal(), Some(9));
    // Waited for, so its number may be anybody's now.
    let gone = host.ask(RuntimeVerb::Kill { signal: 9, all: false });
    assert_eq!(refused(&gone), RefusalCode::RuntimeFailed);
    host.delete();
}

#[test]
fn a_signal_reaches_the_program() {
    let host =
        Host::shell("trap 'echo got; exit 3' TERM; echo ready; while :; do sleep 0.05; done");
    let created = host.create();
    assert_eq!(host.ask(RuntimeVerb::Start), RuntimeReply::Done);
    until("ready", || created.out().contains("ready"));
    let bad = host.ask(RuntimeVerb::Kill { signal: 0, all: false });
    assert_eq!(refused(&bad), RefusalCode::RuntimeFailed);
    assert_eq!(host.ask(RuntimeVerb::Kill { signal: 15, all: false }), RuntimeReply::Done);
    let ended = created.wait();
    assert_eq!((ended.out.as_str(), ended.status.exit_status()), ("ready\ngot\n", Some(3)));
    host.delete();
}

#[test]
fn kill_all_ends_grandchildren_in_sessions_of_their_own() {
    let host = Host::shell("setsid sleep 100 & (setsid sleep 100 &) ; sleep 100 & wait");
    let created = host.create();
    assert_eq!(host.ask(RuntimeVerb::Start), RuntimeReply::Done);
    until("four processes", || members(&created.controller("pids")) >= 4);
    assert_eq!(host.ask(RuntimeVerb::Kill { signal: 9, all: true }), RuntimeReply::Done);
    assert_eq!(members(&created.controller("pids")), 0);
    assert_eq!(created.wait().status.terminating_signal(), Some(9));
    host.delete();
}

#[test]
fn delete_ends_a_running_container_that_is_frozen() {
    let host = Host::shell("sleep 100 & sleep 100");
    let created = host.create();
    assert_eq!(host.ask(RuntimeVerb::Start), RuntimeReply::Done);
    assert!(freeze(&created.controller("freezer")));
    host.delete();
    created.wait();
}

#[test]
fn limits_that_are_not_the_leases_are_refused() {
    for resource in ["memory", "cpu", "pids"] {
        let mut host = Host::new(&["true"]);
        let resources = host.plan.spec.pointer_mut("/linux/resources").unwrap();
        resources.as_object_mut().unwrap().remove(resource);
        let (code, cause) = host.try_create().err().unwrap();
        assert_eq!(code, RefusalCode::RuntimeUnproven, "{resource}: {cause}");
        host.assert_nothing_left();
    }
    let mut host = Host::new(&["true"]);
    host.edit("/linux/resources/pids/limit", json!(33));
    assert_eq!(host.try_create().err().unwrap().0, RefusalCode::RuntimeUnproven);
    host.assert_nothing_left();
}

#[test]
fn a_filter_that_is_not_the_plans_is_refused() {
    let mut other = Host::new(&["true"]);
    other.plan.seccomp.program_sha256 = Digest::of(b"other");
    assert_eq!(other.try_create().err().unwrap().0, RefusalCode::RuntimeUnproven);
    let mut longer = Host::new(&["true"]);
    longer.plan.seccomp.instructions += 1;
    assert_eq!(longer.try_create().err().unwrap().0, RefusalCode::RuntimeUnproven);
    // The kernel refuses it: it jumps beyond its end.
    let mut invalid = Host::new(&["true"]);
    invalid.filter[8 + 2] = 200;
    invalid.plan.seccomp.program_sha256 = Digest::of(&invalid.filter);
    assert_eq!(invalid.try_create().err().unwrap().0, RefusalCode::RuntimeUnproven);
    for host in [other, longer, invalid] {
        host.assert_nothing_left();
    }
}

#[test]
fn what_a_plan_must_not_ask_for_is_refused() {
    let mut hooks = Host::new(&["true"]);
    hooks.plan.spec["hooks"] = json!({"prestart": [{"path": "/bin/true"}]});
    assert_eq!(hooks.try_create().err().unwrap().0, RefusalCode::SpecHooksPresent);
    let mut shared = Host::new(&["true"]);
    shared.edit("/linux/namespaces/4", json!({"type": "network", "path": "/proc/1/ns/net"}));
    assert_eq!(shared.try_create().err().unwrap().0, RefusalCode::SpecHostNamespace);
    let mut outside = Host::new(&["true"]);
    outside.edit("/linux/cgroupsPath", json!("/../x"));
    assert_eq!(outside.try_create().err().unwrap().0, RefusalCode::RuntimeFailed);
    for host in [hooks, shared, outside] {
        host.assert_nothing_left();
    }
}

#[test]
fn a_cgroup_that_is_there_already_is_not_entered() {
    let host = Host::new(&["true"]);
    let dir = cgroup_of(&host, "pids");
    fs::create_dir(&dir).unwrap();
    let refused = host.try_create().err().map(|(code, _)| code);
    let stays = dir.exists();
    fs::remove_dir(&dir).unwrap();
    assert_eq!((refused, stays), (Some(RefusalCode::RuntimeFailed), true));
    host.assert_nothing_left();
}

#[test]
fn requests_that_are_not_understood_are_answered() {
    let host = Host::new(&["true"]);
    let mut request = host.request(RuntimeVerb::Start);
    request.version = 99;
    assert_eq!(refused(&Host::ask_with(&request, &[])), RefusalCode::RuntimeFailed);
    let file = fs::File::open("/dev/null").unwrap();
    let extra = Host::ask_with(&host.request(RuntimeVerb::Delete), &[file.as_fd()]);
    assert_eq!(refused(&extra), RefusalCode::RuntimeFailed);
    let few = Host::ask_with(&host.request(host.create_verb()), &[file.as_fd()]);
    assert_eq!(refused(&few), RefusalCode::RuntimeFailed);
    host.assert_nothing_left();
}

#[test]
fn a_guard_without_a_directory_is_found_and_emptied() {
    let host = Host::new(&["sleep", "100"]);
    let created = host.create();
    let record = fs::read_to_string(host.bundle().join("record.json")).unwrap();
    let record: serde_json::Value = serde_json::from_str(&record).unwrap();
    let guard = record.get("guard").and_then(|guard| guard.as_str()).unwrap().to_owned();
    fs::remove_dir_all(host.bundle()).unwrap();
    // Whoever takes part in a creation is in the guard, of which a unified host has none.
    fs::create_dir_all(&guard).unwrap();
    let mut part = std::process::Command::new("sleep").arg("100").spawn().unwrap();
    fs::write(format!("{guard}/cgroup.procs"), part.id().to_string()).unwrap();
    assert_eq!(host.ask(RuntimeVerb::Delete), RuntimeReply::Done);
    assert!(!std::path::Path::new(&guard).exists());
    assert_eq!(part.wait().unwrap().signal(), Some(9));
    // There the container is in its own cgroup, of which nobody knows any more.
    if let Some(dir) = &created.cgroup.unified {
        fs::write(dir.join("cgroup.kill"), "1").unwrap();
    }
    assert_eq!(created.wait().status.terminating_signal(), Some(9));
    for dir in created.cgroup.v1.values().chain(&created.cgroup.unified) {
        until("the cgroup is let go", || fs::remove_dir(dir).is_ok() || !dir.exists());
    }
    host.assert_nothing_left();
}

/// Freezes the processes of a creation, so that `nimbus-runtime` waits for them in vain.
#[test]
fn a_create_that_hangs_is_undone_at_its_deadline() {
    for _attempt in 0..50 {
        let host = Host::new(&["sleep", "100"]);
        let dir = cgroup_of(&host, "freezer");
        let freezer = std::thread::spawn(move || {
            let end = Instant::now() + Duration::from_secs(10);
            while !dir.exists() && Instant::now() < end {
                std::thread::yield_now();
            }
            freeze(&dir)
        });
        let created = host.try_create();
        freezer.join().unwrap();
        match created {
            // Too late to hang it.
            Ok(_) => host.delete(),
            Err((code, cause)) => {
                assert_eq!(code, RefusalCode::RuntimeTimeout, "{cause}");
                host.assert_nothing_left();
                return;
            }
        }
    }
    panic!("no creation could be frozen in time");
}

/// Kills `nimbus-runtime` in the middle of Create, later each time, until one gets through.
#[test]
fn a_create_that_is_killed_at_any_time_leaves_nothing_after_delete() {
    let mut finished = 0;
    for step in 0..60 {
        let host = Host::new(&["sleep", "100"]);
        let (fds, ..) = host.create_fds();
        let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
        let (mut child, socket) = Host::spawn();
        let request = serde_json::to_vec(&host.request(host.create_verb())).unwrap();
        write_frame(&socket, &request, &fds).unwrap();
        sleep(Duration::from_micros(700) * step);
        child.kill().unwrap();
        finished += u32::from(child.wait().unwrap().success());
        host.delete();
    }
    assert!(finished < 60, "no create was cut short");
}

#[test]
fn limits_are_moved_within_the_lease_and_never_beyond_it() {
    let host = Host::new(&["sleep", "100"]);
    let created = host.create();
    assert_eq!(host.ask(RuntimeVerb::Start), RuntimeReply::Done);
    let leased = host.plan.resources;
    let update = |resources: serde_json::Value| {
        host.ask(RuntimeVerb::Update(Box::new(UpdateRequest { resources, leased })))
    };
    let read = |controller: &str, v1: &str, v2: &str| {
        let dirs = &created.cgroup;
        let file =
            dirs.unified.as_ref().map_or_else(|| dirs.v1[controller].join(v1), |dir| dir.join(v2));
        fs::read_to_string(file).unwrap().trim().to_owned()
    };
    let memory = || read("memory", "memory.limit_in_bytes", "memory.max");
    for bytes in [16_u64 << 20, 48 << 20, 64 << 20] {
        let reply =
            update(json!({"memory": {"limit": bytes, "swap": bytes}, "pids": {"limit": 9}}));
        assert_eq!(reply, RuntimeReply::Done);
        assert_eq!(memory(), bytes.to_string());
        assert_eq!(read("pids", "pids.max", "pids.max"), "9");
    }
    assert_eq!(update(json!({})), RuntimeReply::Done);
    assert_eq!(memory(), (64 << 20).to_string());
    // Whoever asks is to have judged; it is read back all the same.
    let more = update(json!({"memory": {"limit": 65 << 20, "swap": 65 << 20}}));
    assert_eq!(refused(&more), RefusalCode::RuntimeUnproven);
    assert_eq!(refused(&update(json!({"gpu": 1}))), RefusalCode::RuntimeFailed);
    host.delete();
    created.wait();
}

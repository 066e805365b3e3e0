//! Containers of a pod: mounts and namespaces that come with the plan, as descriptors.
#![forbid(unsafe_code)]
#![expect(
    clippy::tests_outside_test_module,
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "all of an integration test is one"
)]

mod support;

use std::fs::{self, File};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nimbus_api::RefusalCode;
use nimbus_api::lease::{LeasedEgress, LeasedPod};
use nimbus_api::plan::{JoinedNamespace, PlanBind};
use nimbus_api::runtime::{ExecProcess, ExecRequest, OpenFiles, RuntimeReply, RuntimeVerb};
use nix::sched::CloneFlags;
use rustix::fs::{CWD, FileType, Mode, OFlags, makedev, mknodat};
use rustix::mount::{
    MountFlags, MountPropagationFlags, OpenTreeFlags, mount, mount_change, open_tree,
};
use rustix::process::{Pid, WaitOptions, waitpid};
use serde_json::json;
use support::Host;

use JoinedNamespace::{Ipc, Network, Pid as Processes, Uts};

/// What an image has at a place.
type Put = fn(&Path);
/// What is wrong with a plan.
type Change = fn(&mut Host);

fn pod(container: Option<&str>) -> LeasedPod {
    LeasedPod {
        sandbox: "s1".parse().unwrap(),
        namespace: "tenant".to_owned(),
        name: "pod".to_owned(),
        uid: "u1".to_owned(),
        container: container.map(str::to_owned),
        restart: 0,
    }
}

/// A container in a pod that runs this.
fn in_pod(script: &str) -> Host {
    let mut host = Host::shell(script);
    host.plan.pod = Some(pod(Some("main")));
    host
}

fn clone(path: &Path) -> OwnedFd {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_RECURSIVE;
    open_tree(CWD, path, flags).unwrap()
}

fn bind(host: &mut Host, mount: OwnedFd, destination: &str, read_only: bool) {
    host.plan.binds.push(PlanBind {
        source: "/somewhere".to_owned(),
        destination: destination.to_owned(),
        read_only,
        recursive: true,
    });
    host.binds.push(mount);
}

/// A directory with a file system mounted in it, which travels, seen by nobody but the descriptor.
fn tree(dir: &Path) -> OwnedFd {
    std::thread::scope(|threads| {
        let made = threads.spawn(|| {
            nix::sched::unshare(CloneFlags::CLONE_NEWNS).unwrap();
            mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
            mount(dir, dir, "", MountFlags::BIND, None).unwrap();
            mount_change(dir, MountPropagationFlags::SHARED).unwrap();
            fs::create_dir(dir.join("below")).unwrap();
            mount("t", dir.join("below"), "tmpfs", MountFlags::empty(), None).unwrap();
            fs::write(dir.join("below/inner"), "inner\n").unwrap();
            clone(dir)
        });
        made.join().unwrap()
    })
}

fn refused(host: &Host) -> RefusalCode {
    let (code, cause) = host.try_create().err().unwrap();
    assert!(!cause.is_empty());
    host.assert_nothing_left();
    code
}

/// Options and tags of a mount of this process at this place.
fn mounted(pid: i32, at: &str) -> (String, String) {
    let table = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap();
    let line = table.lines().rfind(|line| line.split(' ').nth(4) == Some(at)).unwrap();
    let (mount, _) = line.split_once(" - ").unwrap();
    let fields: Vec<_> = mount.split(' ').collect();
    (fields[5].to_owned(), fields[6..].join(" "))
}

#[test]
fn binds_are_seen_and_closed_with_all_that_is_mounted_below() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("file"), "of the host\n").unwrap();
    let mut host = in_pod(
        "cat /data/file /data/below/inner /etc/hosts /dev/termination-log /usr/deep/er/file
        echo x >/data/new && echo y >/data/below/new && echo z >/etc/hosts && echo written
        echo x 2>&- >/closed/new || echo closed; echo x 2>&- >/closed/below/new || echo closed below
        echo x 2>&- >/etc/closed || echo closed file; echo s >/dev/shm/s && cat /dev/shm/s",
    );
    let plain = |name: &str| {
        let path = dir.path().join(name);
        fs::write(&path, format!("{name}\n")).unwrap();
        clone(&path)
    };
    let (hosts, log, closed) = (plain("hosts"), plain("log"), plain("closed"));
    for name in ["tree", "other"] {
        fs::create_dir(dir.path().join(name)).unwrap();
        fs::write(dir.path().join(name).join("file"), "of the host\n").unwrap();
    }
    let shared = tempfile::tempdir().unwrap();
    // Where the image has nothing, a directory, a file, and a link to a directory of its own.
    fs::write(host.layers[0].join("etc/hosts"), "the image's\n").unwrap();
    symlink("../usr", host.layers[0].join("link")).unwrap();
    bind(&mut host, tree(&dir.path().join("tree")), "/data", false);
    bind(&mut host, tree(&dir.path().join("other")), "/closed", true);
    bind(&mut host, hosts, "/etc/hosts", false);
    bind(&mut host, closed, "/etc/closed", true);
    bind(&mut host, log, "/dev/termination-log", false);
    bind(&mut host, clone(&dir.path().join("tree")), "/link/deep/er", false);
    let list = host.plan.spec["mounts"].as_array_mut().unwrap();
    list.retain(|mount| mount["destination"] != "/dev/shm");
    bind(&mut host, clone(shared.path()), "/dev/shm", false);
    host.plan.rootfs.read_only = true;

    let created = host.create();
    let at = ["/data", "/data/below", "/etc/hosts", "/dev/termination-log", "/usr/deep/er"];
    for at in at.into_iter().chain(["/dev/shm"]) {
        let (options, tags) = mounted(created.pid, at);
        assert!(options.starts_with("rw,nosuid,nodev"), "{at}: {options}");
        assert_eq!(tags, "", "{at}");
    }
    for at in ["/closed", "/closed/below", "/etc/closed"] {
        let (options, tags) = mounted(created.pid, at);
        assert!(options.starts_with("ro,nosuid,nodev"), "{at}: {options}");
        assert_eq!(tags, "", "{at}");
    }
    host.ask(RuntimeVerb::Start);
    let ended = created.wait();
    let wanted = "of the host\ninner\nhosts\nlog\nof the host\nwritten\nclosed\nclosed below\n\
        closed file\ns\n";
    assert_eq!(ended.out, wanted, "{ended:?}");
    assert_eq!(fs::read_to_string(dir.path().join("tree/new")).unwrap(), "x\n");
    assert_eq!(fs::read_to_string(dir.path().join("hosts")).unwrap(), "z\n");
    assert_eq!(fs::read_to_string(shared.path().join("s")).unwrap(), "s\n");
    assert_eq!(fs::read_to_string(host.layers[0].join("etc/hosts")).unwrap(), "the image's\n");
    assert!(!host.layers[0].join("data").exists());
    host.delete();
}

#[test]
fn a_later_bind_may_be_within_an_earlier_one_that_is_read_only() {
    let (outer, inner) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::create_dir(outer.path().join("inner")).unwrap();
    let mut host = in_pod("echo x >/outer/inner/x && echo x 2>&- >/outer/x || echo closed");
    bind(&mut host, clone(outer.path()), "/outer", true);
    bind(&mut host, clone(inner.path()), "/outer/inner", false);
    let ended = host.run();
    assert_eq!(ended.out, "closed\n", "{ended:?}");
    assert!(inner.path().join("x").exists() && !outer.path().join("x").exists());
    // But nothing is made in what is read-only.
    let mut host = in_pod("true");
    bind(&mut host, clone(outer.path()), "/outer", true);
    bind(&mut host, clone(inner.path()), "/outer/missing", false);
    refused(&host);
    assert!(!outer.path().join("missing").exists());
}

#[test]
fn an_image_that_has_something_else_where_a_bind_goes_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    let cases: [(&str, bool, &str, Put); 17] = [
        ("a fifo", false, "/x", |at| mknodat(CWD, at, FileType::Fifo, Mode::RUSR, 0).unwrap()),
        ("a device", false, "/x", |at| {
            mknodat(CWD, at, FileType::CharacterDevice, Mode::RUSR, makedev(1, 3)).unwrap();
        }),
        ("a socket", false, "/x", |at| mknodat(CWD, at, FileType::Socket, Mode::RUSR, 0).unwrap()),
        ("a link to nowhere", false, "/x", |at| symlink("/no/such", at).unwrap()),
        ("a link to nowhere, outside", true, "/x", |at| symlink("/../../no", at).unwrap()),
        ("a link to a device", false, "/x", |at| symlink("/dev/null", at).unwrap()),
        ("a link to itself", true, "/x", |at| symlink("x", at).unwrap()),
        ("a link to the root", true, "/x", |at| symlink("/", at).unwrap()),
        ("a link to the root from above", true, "/x", |at| symlink("../../..", at).unwrap()),
        ("a link to /dev", true, "/x", |at| symlink("dev", at).unwrap()),
        ("a link to /proc", true, "/x", |at| symlink("proc", at).unwrap()),
        ("a link into /proc", true, "/x/sys/kernel", |at| symlink("proc", at).unwrap()),
        ("a link to a file of /proc", false, "/x", |at| symlink("/proc/uptime", at).unwrap()),
        ("a link into /sys", true, "/x/kernel", |at| symlink("/sys", at).unwrap()),
        ("a magic link", true, "/x", |at| symlink("/proc/self/root", at).unwrap()),
        ("a file instead of a directory", true, "/x", |at| fs::write(at, "").unwrap()),
        ("a directory instead of a file", false, "/x", |at| fs::create_dir(at).unwrap()),
    ];
    for (case, directory, destination, put) in cases {
        let mut host = in_pod("true");
        put(&host.layers[0].join("x"));
        let source = if directory { dir.path() } else { &file };
        bind(&mut host, clone(source), destination, false);
        assert_eq!(refused(&host), RefusalCode::RootfsHostile, "{case}");
    }
    // Twice the same place, by two names.
    let mut host = in_pod("true");
    symlink("usr", host.layers[0].join("x")).unwrap();
    bind(&mut host, clone(dir.path()), "/usr", false);
    bind(&mut host, clone(dir.path()), "/x", false);
    assert_eq!(refused(&host), RefusalCode::RootfsHostile, "two names");
    for destination in ["relative", "/a/../b", ""] {
        let mut host = in_pod("true");
        bind(&mut host, clone(dir.path()), destination, false);
        assert_eq!(refused(&host), RefusalCode::SpecMountForbidden, "{destination:?}");
    }
    let entries: Vec<_> = fs::read_dir(dir.path()).unwrap().flatten().collect();
    assert_eq!(entries.len(), 1, "{entries:?}");
}

#[test]
fn what_is_no_detached_mount_of_a_file_or_directory_is_refused_and_nothing_of_the_hosts_changes() {
    let dir = tempfile::tempdir().unwrap();
    let fifo = dir.path().join("fifo");
    mknodat(CWD, &fifo, FileType::Fifo, Mode::RUSR, 0).unwrap();
    let before = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let open = |path: &Path| {
        rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap()
    };
    for (case, mount) in [
        ("the host's root", open(Path::new("/"))),
        ("the host's /proc", open(Path::new("/proc"))),
        ("a directory of the host's", open(dir.path())),
        ("a file of the host's", File::open("/etc/passwd").unwrap().into()),
        ("a fifo", clone(&fifo)),
        ("a device", clone(Path::new("/dev/null"))),
        ("a pipe", rustix::pipe::pipe().unwrap().0),
    ] {
        let mut host = in_pod("true");
        bind(&mut host, mount, "/data", true);
        let (code, cause) = host.try_create().err().unwrap();
        assert!(!cause.is_empty() && code != RefusalCode::RuntimeTimeout, "{case}: {cause}");
        host.assert_nothing_left();
    }
    let sorted = |text: &str| {
        let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    assert_eq!(sorted(&before), sorted(&fs::read_to_string("/proc/self/mountinfo").unwrap()));
}

#[test]
fn a_plan_that_joins_or_binds_more_than_one_like_it_may_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let elsewhere = Elsewhere::new();
    let cases: [(&str, &[JoinedNamespace], Change); 9] = [
        ("a job that is in no pod", &[Ipc], |host| host.plan.pod = None),
        ("a sandbox", &[Uts], |host| host.plan.pod = Some(pod(None))),
        ("a job that joins a network", &[Network], |host| host.plan.pod = None),
        ("a sandbox that has none", &[Network], |host| host.plan.pod = Some(pod(None))),
        ("one twice", &[Ipc, Ipc], |_| {}),
        ("two networks", &[Network, Network], |_| {}),
        ("a network that does not come", &[], |host| host.plan.egress = LeasedEgress::Pod),
        ("a pod's network without a pod", &[Network], |host| {
            (host.plan.egress, host.plan.pod) = (LeasedEgress::Pod, None);
        }),
        ("one that does not come", &[Ipc], |host| host.joins.clear()),
    ];
    for (case, joins, change) in cases {
        let mut host = in_pod("true");
        elsewhere.join(&mut host, joins);
        change(&mut host);
        assert_eq!(refused(&host), RefusalCode::RuntimeFailed, "{case}");
    }
    let mut host = Host::shell("true");
    bind(&mut host, clone(dir.path()), "/data", true);
    assert_eq!(refused(&host), RefusalCode::RuntimeFailed, "a job with a bind");
    let mut host = in_pod("true");
    bind(&mut host, clone(dir.path()), "/data", true);
    host.binds.clear();
    assert_eq!(refused(&host), RefusalCode::RuntimeFailed, "a bind that does not come");
}

/// Namespaces of a process that is nothing but in them.
struct Elsewhere(std::process::Child);

impl Elsewhere {
    fn new() -> Self {
        let mut command = std::process::Command::new("unshare");
        command.args([
            "--net",
            "--ipc",
            "--uts",
            "--pid",
            "--fork",
            "--kill-child",
            "sleep",
            "300",
        ]);
        let child = command.spawn().unwrap();
        let waiting = Self(child);
        let deadline = Instant::now() + Duration::from_secs(10);
        while waiting.inner().is_none() {
            assert!(Instant::now() < deadline, "unshare did not start");
            sleep(Duration::from_millis(5));
        }
        waiting
    }

    /// The process in the pid namespace.
    fn inner(&self) -> Option<i32> {
        let pid = self.0.id();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
        let inner = children.split_whitespace().next()?.parse().ok()?;
        let name = fs::read_to_string(format!("/proc/{inner}/comm")).ok()?;
        (name == "sleep\n").then_some(inner)
    }

    fn join(&self, host: &mut Host, kinds: &[JoinedNamespace]) {
        join(host, self.inner().unwrap(), kinds);
    }
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

const fn name(kind: JoinedNamespace) -> &'static str {
    match kind {
        Network => "net",
        Ipc => "ipc",
        Uts => "uts",
        Processes => "pid",
    }
}

fn join(host: &mut Host, pid: i32, kinds: &[JoinedNamespace]) {
    for kind in kinds {
        let path = format!("/proc/{pid}/ns/{}", name(*kind));
        host.plan.joins.push(*kind);
        host.joins.push(File::open(path).unwrap());
    }
    let list = host.plan.spec["linux"]["namespaces"].as_array_mut().unwrap();
    let word = |kind: &JoinedNamespace| {
        if *kind == Network { "network" } else { name(*kind) }
    };
    list.retain(|one| !kinds.iter().any(|kind| one["type"] == word(kind)));
}

fn inode(pid: i32, name: &str) -> u64 {
    fs::metadata(format!("/proc/{pid}/ns/{name}")).unwrap().ino()
}

fn until(what: &str, done: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !done() {
        assert!(Instant::now() < deadline, "{what}");
        sleep(Duration::from_millis(5));
    }
}

#[test]
fn containers_of_a_pod_share_the_first_ones_namespaces_and_no_others() {
    let mut sandbox = Host::shell("echo of the pod >/dev/shm/x; echo ready; sleep 300");
    sandbox.plan.pod = Some(pod(None));
    sandbox.plan.spec["hostname"] = json!("pod");
    let first = sandbox.create();
    sandbox.ask(RuntimeVerb::Start);
    until("ready", || first.out().contains("ready"));
    for kinds in [&[Network, Ipc, Uts][..], &[Network, Ipc, Uts, Processes]] {
        let shares_pids = kinds.contains(&Processes);
        let mut host = in_pod(
            "hostname; cat /sys/class/net/lo/flags; ls -d /proc/[0-9]*; echo ready
            while ! [ -e /done ]; do sleep 0.05; done",
        );
        host.plan.spec["hostname"] = json!("mine");
        join(&mut host, first.pid, kinds);
        let second = host.create();
        for kind in [Network, Ipc, Uts, Processes] {
            let same = inode(first.pid, name(kind)) == inode(second.pid, name(kind));
            assert_eq!(same, kinds.contains(&kind), "{kind:?}");
            assert!(
                inode(second.pid, name(kind))
                    != fs::metadata(format!("/proc/self/ns/{}", name(kind))).unwrap().ino()
            );
        }
        assert!(inode(first.pid, "mnt") != inode(second.pid, "mnt"));
        // Nobody in it holds one by a descriptor.
        for fd in fs::read_dir(format!("/proc/{}/fd", second.pid)).unwrap().flatten() {
            let target = fs::read_link(fd.path()).unwrap();
            let target = target.to_string_lossy().into_owned();
            let held = ["net:", "ipc:", "uts:", "pid:"].iter().any(|kind| target.starts_with(kind));
            assert!(!held, "{target}");
        }
        host.ask(RuntimeVerb::Start);
        until("ready", || second.out().contains("ready"));
        let out = second.out();
        assert!(out.starts_with("pod\n0x9\n"), "{out}");
        assert_eq!(out.contains("/proc/2\n"), shares_pids, "{out}");
        // One more process is where the container is.
        let ended = exec(
            &host,
            "hostname; readlink /proc/self/ns/pid; readlink /proc/self/ns/ipc; echo >/done",
        );
        let wanted = format!(
            "pod\npid:[{}]\nipc:[{}]\n",
            inode(second.pid, "pid"),
            inode(second.pid, "ipc")
        );
        assert_eq!(ended, wanted);
        let pid = second.pid;
        assert_eq!(second.wait().status.exit_status(), Some(0));
        host.delete();
        assert!(!Path::new(&format!("/proc/{pid}")).exists());
        // The first one lives on.
        let state = fs::read_to_string(format!("/proc/{}/stat", first.pid)).unwrap();
        assert!(!state.contains(") Z "), "{state}");
    }
    sandbox.ask(RuntimeVerb::Kill { signal: 9, all: true });
    first.wait();
    sandbox.delete();
}

/// What it printed.
fn exec(host: &Host, script: &str) -> String {
    let process = ExecProcess {
        args: ["/bin/sh", "-c", script].map(str::to_owned).into(),
        env: vec!["PATH=/bin".to_owned()],
        cwd: "/".to_owned(),
        uid: 0,
        gid: 0,
        additional_gids: vec![],
        umask: 0o022,
        capabilities: vec![],
        nofile: OpenFiles { soft: 64, hard: 64 },
        oom_score_adj: 0,
        terminal: None,
    };
    let seccomp = host.plan.seccomp.clone();
    let request = host.request(RuntimeVerb::Exec(Box::new(ExecRequest { process, seccomp })));
    let path = host.path().join("exec-out");
    let out = File::create(&path).unwrap();
    let filter = host.sealed_filter();
    let stdio = [File::open("/dev/null").unwrap(), out.try_clone().unwrap(), out];
    let stdio = stdio.map(OwnedFd::from);
    let fds: Vec<BorrowedFd<'_>> = [&filter].into_iter().chain(&stdio).map(AsFd::as_fd).collect();
    let RuntimeReply::Executed { pid } = Host::ask_with(&request, &fds) else { panic!("no exec") };
    let status = waitpid(Pid::from_raw(pid), WaitOptions::empty()).unwrap().unwrap().1;
    assert_eq!(status.exit_status(), Some(0));
    fs::read_to_string(&path).unwrap()
}

#[test]
fn the_hosts_namespaces_and_what_is_none_of_the_kind_are_refused() {
    let elsewhere = Elsewhere::new();
    for kind in [Network, Ipc, Uts, Processes] {
        let with = |path: String| {
            let mut host = in_pod("true");
            host.plan.joins = vec![kind];
            host.joins = vec![File::open(path).unwrap()];
            host
        };
        let own = with(format!("/proc/self/ns/{}", name(kind)));
        assert_eq!(refused(&own), RefusalCode::RuntimeUnproven, "{kind:?}");
        assert_eq!(refused(&with("/etc/passwd".to_owned())), RefusalCode::RuntimeUnproven);
        let inner = elsewhere.inner().unwrap();
        for other in ["net", "ipc", "uts", "pid"].into_iter().filter(|one| *one != name(kind)) {
            refused(&with(format!("/proc/{inner}/ns/{other}")));
        }
        // The same way with the right one.
        let mut host = in_pod("true");
        elsewhere.join(&mut host, &[kind]);
        assert_eq!(host.run().status.exit_status(), Some(0), "{kind:?}");
    }
}

#[test]
fn a_sandbox_lives_in_the_network_that_came_and_its_devices_stay_as_they_are() {
    let elsewhere = Elsewhere::new();
    let mut host = Host::shell("cat /sys/class/net/lo/flags; readlink /proc/self/ns/net");
    host.plan.pod = Some(pod(None));
    host.plan.egress = LeasedEgress::Pod;
    elsewhere.join(&mut host, &[Network]);
    let ended = host.run();
    let wanted = format!("0x8\nnet:[{}]\n", inode(elsewhere.inner().unwrap(), "net"));
    assert_eq!(ended.out, wanted, "{ended:?}");
}

//! The same through a real containerd with its own root, state and sockets.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use nimbus_api::id::ContainerKey;
use nimbus_api::{Refusal, RefusalCode};
use rustix::process::{Pid, Signal, kill_process};

use crate::agent::{Agent, Answer};
use crate::granted::build_runtime;
use crate::lab::{alive, cgroups_named, wait_until};
use crate::plan::{busybox_root, detached, grant, granted, plan, sealed_filter};
use crate::pods::{KUBERNETES, plan_in_pod};

const SHIM: &str = env!("CARGO_BIN_EXE_containerd-shim-nimbus-v1");
const NAMESPACE: &str = "nimbus";
/// Tells containers of this test binary apart: cgroups have no containerd.
static NUMBER: AtomicU32 = AtomicU32::new(0);

struct Containerd {
    dir: tempfile::TempDir,
    daemon: Child,
    namespace: &'static str,
    key: ContainerKey,
}

impl Containerd {
    fn start() -> Self {
        Self::in_namespace(NAMESPACE)
    }

    fn in_namespace(namespace: &'static str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).display().to_string();
        fs::create_dir(path("run")).unwrap();
        let config = format!(
            "version = 2\nroot = {:?}\nstate = {:?}\n\
             disabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n\
             [grpc]\naddress = {:?}\n[ttrpc]\naddress = {:?}\n",
            path("root"),
            path("state"),
            path("c.sock"),
            path("c.sock.ttrpc"),
        );
        fs::write(path("config.toml"), config).unwrap();
        let daemon = spawn_daemon(dir.path());
        let n = NUMBER.fetch_add(1, Ordering::SeqCst);
        let id = format!("c{}-{n}", std::process::id()).parse().unwrap();
        let key = ContainerKey { namespace: namespace.parse().unwrap(), id };
        let containerd = Self { dir, daemon, namespace, key };
        containerd.wait_ready();
        containerd
    }

    /// Killed and started again.
    fn restart(&mut self) {
        self.daemon.kill().unwrap();
        self.daemon.wait().unwrap();
        self.daemon = spawn_daemon(self.dir.path());
        self.wait_ready();
    }

    fn wait_ready(&self) {
        wait_until("containerd answers", || self.ctr(&["version"]).status.success());
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn ctr(&self, args: &[&str]) -> Output {
        let socket = self.path("c.sock").display().to_string();
        Command::new("ctr").args(["-a", &socket, "-n", self.namespace]).args(args).output().unwrap()
    }

    fn run(&self) -> Output {
        let layer = self.path("layer").display().to_string();
        let runtime = ["run", "--rm", "--runtime", "io.containerd.nimbus.v1", "--rootfs"];
        self.ctr(&[&runtime[..], &[&layer, self.key.id.as_str(), "/bin/true"]].concat())
    }

    fn agent(&self, answer: Answer) -> Agent {
        Agent::listen(&self.path("run/node.sock"), answer)
    }

    fn assert_nothing_left(&self) {
        let log = fs::read_to_string(self.path("daemon.log")).unwrap();
        let sockets: Vec<_> = fs::read_dir(self.path("run/s")).unwrap().collect();
        assert!(sockets.is_empty(), "{sockets:?}\n{log}");
        assert_eq!(
            fs::read_dir(self.bundles()).map_or(0, Iterator::count),
            0,
            "bundle left\n{log}"
        );
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(self.dir.path().to_str().unwrap()), "mount left");
        wait_until("no shim is left", || self.shims() == 0);
    }

    fn bundles(&self) -> PathBuf {
        self.path("state/io.containerd.runtime.v2.task").join(self.namespace)
    }

    /// Servers of this very containerd.
    fn shims(&self) -> usize {
        self.servers().len()
    }

    fn servers(&self) -> Vec<u32> {
        let socket = self.path("c.sock").display().to_string();
        let pids = fs::read_dir("/proc").unwrap().flatten();
        pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .filter(|pid: &u32| {
                let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                line.starts_with("containerd-shim") && line.contains(&socket) && alive(*pid)
            })
            .collect()
    }
}

/// A containerd of Kubernetes' namespace, with an agent that lets everything sleep in the pod of its key.
struct OfPod {
    containerd: Containerd,
    agent: Agent,
    sandbox: String,
    layer: String,
}

impl OfPod {
    fn start() -> Self {
        build_runtime();
        let containerd = Containerd::in_namespace(KUBERNETES);
        let layer = busybox_root(containerd.dir.path());
        let sandbox = containerd.key.id.to_string();
        let (pod, root) = (sandbox.clone(), layer.clone());
        let agent = containerd.agent(Answer::Choose(Box::new(move |admit| {
            let (namespace, id) = (admit.namespace.parse().unwrap(), admit.id.parse().unwrap());
            let plan = plan_in_pod(&ContainerKey { namespace, id }, &pod, "exec sleep 600");
            Some((granted(&plan), vec![sealed_filter(), detached(&root)]))
        })));
        Self { containerd, agent, sandbox, layer: layer.display().to_string() }
    }

    fn run(&self, id: &str) {
        let annotation = format!("io.kubernetes.cri.sandbox-id={}", self.sandbox);
        let runtime = ["run", "-d", "--null-io", "--runtime", "io.containerd.nimbus.v1"];
        let what = ["--annotation", &annotation, "--rootfs", &self.layer, id, "/bin/true"];
        let output = self.containerd.ctr(&[&runtime[..], &what].concat());
        assert!(output.status.success(), "{output:?}");
    }

    fn is(&self, id: &str, state: &str) -> bool {
        let tasks = self.containerd.ctr(&["task", "ls"]).stdout;
        let tasks = String::from_utf8(tasks).unwrap();
        tasks.lines().any(|line| line.starts_with(id) && line.contains(state))
    }

    fn ends(&self, id: &str) {
        assert!(self.containerd.ctr(&["task", "kill", "-s", "KILL", id]).status.success());
        wait_until("it has stopped", || self.is(id, "STOPPED"));
        self.containerd.ctr(&["task", "rm", id]);
        assert_eq!(self.agent.released_of(id).exit_status, 137);
        wait_until("its bundle is gone", || !self.containerd.bundles().join(id).exists());
    }
}

fn spawn_daemon(dir: &Path) -> Child {
    let shim = Path::new(SHIM);
    let search = format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", shim.parent().unwrap().display());
    let log = fs::OpenOptions::new().create(true).append(true).open(dir.join("daemon.log"));
    Command::new("containerd")
        .arg("--config")
        .arg(dir.join("config.toml"))
        .env("PATH", search)
        .env("NIMBUS_RUN_DIR", dir.join("run"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log.unwrap())
        .spawn()
        .unwrap()
}

impl Drop for Containerd {
    fn drop(&mut self) {
        // What a failed test left running.
        for bundle in fs::read_dir(self.bundles()).into_iter().flatten().flatten() {
            let delete = Command::new(SHIM)
                .args(["-namespace", self.namespace, "-id"])
                .arg(bundle.file_name())
                .args(["-address".into(), self.path("c.sock"), "-bundle".into(), bundle.path()])
                .arg("delete")
                .env("NIMBUS_RUN_DIR", self.path("run"))
                .output();
            delete.unwrap();
        }
        self.daemon.kill().unwrap_or_default();
        self.daemon.wait().unwrap();
    }
}

#[test]
fn a_client_of_containerd_sees_why_and_nothing_is_left() {
    let containerd = Containerd::start();
    busybox_root(containerd.dir.path());
    let answer = |code| {
        let output = containerd.run();
        assert!(!output.status.success());
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(text.contains(&Refusal::new(code).to_string()), "{text}");
        containerd.assert_nothing_left();
    };
    answer(RefusalCode::NodeAgentDown);
    let agent = containerd.agent(Answer::Refuse(RefusalCode::LeaseMissing.into()));
    answer(RefusalCode::LeaseMissing);
    let config = agent.config();
    let config: serde_json::Value = serde_json::from_slice(&config).unwrap();
    assert_eq!(config["process"]["args"], serde_json::json!(["/bin/true"]));
}

#[test]
fn what_is_granted_runs_as_the_plan_says_and_not_as_the_client_does() {
    build_runtime();
    let containerd = Containerd::start();
    let layer = busybox_root(containerd.dir.path());
    let agent = containerd.agent(grant(&plan(&containerd.key, "echo by the plan; exit 5"), layer));
    let output = containerd.run();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "by the plan\n", "{output:?}");
    assert_eq!(output.status.code(), Some(5), "{output:?}");
    containerd.assert_nothing_left();
    assert_eq!(agent.released().exit_status, 5);
}

#[test]
fn a_job_outlives_its_containerd_and_its_end_is_not_lost() {
    build_runtime();
    let mut containerd = Containerd::start();
    let id = containerd.key.id.to_string();
    let layer = busybox_root(containerd.dir.path());
    let agent = containerd.agent(grant(&plan(&containerd.key, "sleep 600"), layer.clone()));
    let layer = layer.display().to_string();
    let runtime = ["run", "-d", "--null-io", "--runtime", "io.containerd.nimbus.v1", "--rootfs"];
    let output = containerd.ctr(&[&runtime[..], &[&layer, id.as_str(), "/bin/true"]].concat());
    assert!(output.status.success(), "{output:?}");
    let task = |containerd: &Containerd| {
        String::from_utf8(containerd.ctr(&["task", "ls"]).stdout).unwrap()
    };
    assert!(task(&containerd).contains("RUNNING"));
    containerd.restart();
    assert!(task(&containerd).contains("RUNNING"), "{}", task(&containerd));
    assert!(containerd.ctr(&["task", "kill", "-s", "KILL", &id]).status.success());
    wait_until("it has stopped", || task(&containerd).contains("STOPPED"));
    let deleted = containerd.ctr(&["task", "rm", &id]);
    assert_eq!(agent.released().exit_status, 137, "{deleted:?}");
    wait_until("no shim is left", || containerd.shims() == 0);
    containerd.assert_nothing_left();
}

#[test]
fn a_client_of_containerd_runs_one_more_process_and_sees_its_pids() {
    build_runtime();
    let containerd = Containerd::start();
    let id = containerd.key.id.to_string();
    let layer = busybox_root(containerd.dir.path());
    let _agent = containerd.agent(grant(&plan(&containerd.key, "sleep 600"), layer.clone()));
    let layer = layer.display().to_string();
    let runtime = ["run", "-d", "--null-io", "--runtime", "io.containerd.nimbus.v1", "--rootfs"];
    let output = containerd.ctr(&[&runtime[..], &[&layer, id.as_str(), "/bin/true"]].concat());
    assert!(output.status.success(), "{output:?}");
    let exec = |name: &str, script: &str| {
        containerd.ctr(&["task", "exec", "--exec-id", name, &id, "/bin/sh", "-c", script])
    };
    let output = exec("e1", "echo out; echo err >&2; exit 7");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert_eq!((text(&output.stdout), output.status.code()), ("out\n".to_owned(), Some(7)));
    assert!(text(&output.stderr).contains("err"), "{output:?}");
    let missing = containerd.ctr(&["task", "exec", "--exec-id", "e2", &id, "/bin/none"]);
    assert!(text(&missing.stderr).contains("[runtime.exec_failed]"), "{missing:?}");
    let listed = exec("e3", "sleep 0.1");
    assert!(listed.status.success(), "{listed:?}");
    let pids = text(&containerd.ctr(&["task", "ps", &id]).stdout);
    assert_eq!(pids.lines().count(), 2, "{pids}");
    assert!(containerd.ctr(&["task", "kill", "-s", "KILL", &id]).status.success());
    wait_until("it has stopped", || {
        text(&containerd.ctr(&["task", "ls"]).stdout).contains("STOPPED")
    });
    containerd.ctr(&["task", "rm", &id]);
    wait_until("no shim is left", || containerd.shims() == 0);
    containerd.assert_nothing_left();
}

#[test]
fn a_pods_containers_outlive_their_containerd_in_one_process_and_end_one_by_one() {
    let mut pod = OfPod::start();
    let sandbox = pod.sandbox.clone();
    let [app, other, last] = ["a", "b", "l"].map(|name| format!("{name}{sandbox}"));
    for id in [&sandbox, &app, &other] {
        pod.run(id);
    }
    assert_eq!(pod.containerd.shims(), 1);
    pod.ends(&other);
    pod.containerd.restart();
    for id in [&sandbox, &app] {
        assert!(pod.is(id, "RUNNING"), "{id}");
        let pids = pod.containerd.ctr(&["task", "ps", id]).stdout;
        assert_eq!(String::from_utf8(pids).unwrap().lines().count(), 2);
    }
    let exec = ["task", "exec", "--exec-id", "e1", &app, "/bin/sh", "-c", "exit 7"];
    assert_eq!(pod.containerd.ctr(&exec).status.code(), Some(7));
    pod.ends(&app);
    assert!(pod.is(&sandbox, "RUNNING"));
    pod.run(&last);
    assert_eq!(pod.containerd.shims(), 1);
    pod.ends(&last);
    pod.ends(&sandbox);
    wait_until("no shim is left", || pod.containerd.shims() == 0);
    pod.containerd.assert_nothing_left();
}

#[test]
fn when_a_pods_server_is_killed_containerd_has_all_of_it_cleaned_up() {
    let pod = OfPod::start();
    let app = format!("a{}", pod.sandbox);
    for id in [&pod.sandbox, &app] {
        pod.run(id);
    }
    let [server] = pod.containerd.servers()[..] else { panic!("{:?}", pod.containerd.servers()) };
    let server = Pid::from_raw(i32::try_from(server).unwrap()).unwrap();
    kill_process(server, Signal::KILL).unwrap();
    let state = pod.containerd.path("run/runtime").join(KUBERNETES);
    wait_until("both are gone", || {
        fs::read_dir(&state).map_or(0, Iterator::count) == 0
            && cgroups_named(&pod.sandbox).is_empty()
    });
    for id in [&pod.sandbox, &app] {
        pod.containerd.ctr(&["task", "rm", id]);
    }
    wait_until("both bundles are gone", || {
        fs::read_dir(pod.containerd.bundles()).map_or(0, Iterator::count) == 0
    });
    pod.containerd.assert_nothing_left();
}

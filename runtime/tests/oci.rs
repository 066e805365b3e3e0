//! The development command line, as a suite uses it.
#![forbid(unsafe_code)]
#![expect(
    clippy::tests_outside_test_module,
    clippy::unwrap_used,
    reason = "all of an integration test is one"
)]

mod support;

use std::fs;
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::unix::net::UnixListener;
use std::process::{Command, Output, Stdio};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use serde_json::{Value, json};
use support::{busybox_root, cgroups_named, deny_keyctl};

struct Bundle {
    dir: tempfile::TempDir,
    id: String,
}

impl Bundle {
    fn new(name: &str, script: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        busybox_root(&dir.path().join("rootfs"));
        for mount_point in ["proc", "dev", "sys"] {
            fs::create_dir(dir.path().join("rootfs").join(mount_point)).unwrap();
        }
        fs::write(dir.path().join("filter"), deny_keyctl()).unwrap();
        let bundle = Self { dir, id: format!("oci-{name}-{}", std::process::id()) };
        bundle.configure(|_spec| (), script);
        bundle
    }

    fn configure(&self, change: impl FnOnce(&mut Value), script: &str) {
        let mut spec = json!({
            "ociVersion": "1.0.2",
            "process": {
                "user": {"uid": 0, "gid": 0}, "args": ["/bin/sh", "-c", script],
                "env": ["PATH=/bin"], "cwd": "/"
            },
            "root": {"path": "rootfs"},
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
                {"destination": "/dev/pts", "type": "devpts", "source": "devpts"}],
            "linux": {"namespaces": [
                {"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"},
                {"type": "network"}]}
        });
        change(&mut spec);
        fs::write(self.dir.path().join("config.json"), spec.to_string()).unwrap();
    }

    /// stderr goes to a file, which a container that outlives the command does not keep open for us.
    fn oci(&self, args: &[&str]) -> Output {
        let log = fs::File::create(self.dir.path().join("log")).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_nimbus-oci"))
            .arg("--root")
            .arg(self.dir.path().join("state"))
            .args(args)
            .arg(&self.id)
            .stdin(Stdio::null())
            .stdout(if args.contains(&"create") { Stdio::null() } else { Stdio::piped() })
            .stderr(log)
            .spawn()
            .unwrap();
        child.wait_with_output().unwrap()
    }

    fn kill(&self, signal: &str) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nimbus-oci"));
        command.arg("--root").arg(self.dir.path().join("state"));
        command.args(["kill", "--all", &self.id, signal]).output().unwrap()
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap()
    }

    fn status(&self) -> String {
        let state: Value = serde_json::from_slice(&self.oci(&["state"]).stdout).unwrap();
        state.get("status").and_then(Value::as_str).unwrap().to_owned()
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }
}

#[test]
fn run_gives_output_and_exit_status_and_leaves_nothing() {
    let bundle = Bundle::new("run", "echo hello; grep Seccomp: /proc/self/status; exit 9");
    let output =
        bundle.oci(&["run", "-b", &bundle.path(""), "--seccomp-bpf", &bundle.path("filter")]);
    assert_eq!(output.status.code(), Some(9), "{}", bundle.log());
    assert_eq!(String::from_utf8_lossy(&output.stdout), "hello\nSeccomp:\t2\n");
    assert!(cgroups_named(&bundle.id).is_empty());
    assert!(!bundle.dir.path().join("state/oci").join(&bundle.id).exists());
}

#[test]
fn a_container_goes_through_its_states() {
    let bundle = Bundle::new("states", "sleep 100");
    assert!(bundle.oci(&["create", "-b", &bundle.path("")]).status.success(), "{}", bundle.log());
    assert_eq!(bundle.status(), "created");
    assert!(bundle.oci(&["start"]).status.success(), "{}", bundle.log());
    assert_eq!(bundle.status(), "running");
    assert!(!bundle.oci(&["delete"]).status.success());
    // TERM would not end it: it is process 1 of its namespace and handles nothing.
    assert!(bundle.oci(&["kill", "--all", "--signal"]).status.code() == Some(2));
    assert!(bundle.kill("KILL").status.success(), "{}", bundle.log());
    assert_eq!(bundle.status(), "stopped");
    assert!(bundle.oci(&["delete", "-f"]).status.success(), "{}", bundle.log());
    assert!(!bundle.oci(&["state"]).status.success());
    assert!(bundle.oci(&["delete", "-f"]).status.success());
    assert!(cgroups_named(&bundle.id).is_empty());
}

#[test]
fn a_profile_without_its_program_does_not_run_unfiltered() {
    let bundle = Bundle::new("profile", "echo ran");
    bundle.configure(
        |spec| spec["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW"}),
        "echo ran",
    );
    let output = bundle.oci(&["run", "-b", &bundle.path("")]);
    assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0));
    assert!(bundle.log().contains("--seccomp-bpf"), "{}", bundle.log());
}

#[test]
fn one_more_process_runs_in_a_container_and_its_exit_status_is_told() {
    let bundle = Bundle::new("exec", "sleep 100");
    let created = ["create", "-b", &bundle.path(""), "--seccomp-bpf", &bundle.path("filter")];
    assert!(bundle.oci(&created).status.success(), "{}", bundle.log());
    assert!(bundle.oci(&["start"]).status.success(), "{}", bundle.log());
    let exec = |options: &[&str], command: &[&str]| {
        let mut oci = Command::new(env!("CARGO_BIN_EXE_nimbus-oci"));
        oci.arg("--root").arg(bundle.dir.path().join("state")).arg("exec").args(options);
        oci.arg(&bundle.id).args(command).output().unwrap()
    };
    let script = "echo $PPID; grep Seccomp: /proc/self/status; exit 9";
    let output = exec(&["--seccomp-bpf", &bundle.path("filter")], &["sh", "-c", script]);
    assert_eq!(output.status.code(), Some(9), "{output:?}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "0\nSeccomp:\t2\n");
    assert!(bundle.kill("KILL").status.success());
    assert!(bundle.oci(&["delete", "-f"]).status.success(), "{}", bundle.log());
}

/// A terminal's other end, as whoever listens at a console socket gets it.
fn accept_terminal(listener: &UnixListener) -> fs::File {
    let (socket, _) = listener.accept().unwrap();
    let mut bytes = [0; 64];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC;
    recvmsg(&socket, &mut [IoSliceMut::new(&mut bytes)], &mut control, flags).unwrap();
    let mut terminal = None;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(mut fds) = message {
            terminal = fds.next();
        }
    }
    terminal.unwrap().into()
}

#[test]
fn a_terminal_is_the_containers_own_and_its_console() {
    let script = "tty; test -t 2 && echo yes; stat -c %t /dev/console /dev/pts/0; stty size";
    let bundle = Bundle::new("terminal", script);
    bundle.configure(
        |spec| {
            spec["process"]["terminal"] = true.into();
            spec["process"]["consoleSize"] = json!({"height": 33, "width": 99});
        },
        script,
    );
    let without = bundle.oci(&["create", "-b", &bundle.path("")]);
    assert!(!without.status.success());
    assert!(cgroups_named(&bundle.id).is_empty());
    let socket = bundle.path("console");
    let listener = UnixListener::bind(&socket).unwrap();
    let args = ["create", "-b", &bundle.path(""), "--console-socket", &socket];
    assert!(bundle.oci(&args).status.success(), "{}", bundle.log());
    let mut terminal = accept_terminal(&listener);
    assert!(bundle.oci(&["start"]).status.success(), "{}", bundle.log());
    let mut out = Vec::new();
    // The end of the last process on it is EIO.
    let _end = io::copy(&mut terminal, &mut out);
    let out = String::from_utf8_lossy(&out).replace("\r\n", "\n");
    assert!(bundle.oci(&["delete", "-f"]).status.success(), "{}", bundle.log());
    assert_eq!(out, "/dev/pts/0\nyes\n88\n88\n33 99\n");
}

#[test]
fn a_bundle_gets_the_mounts_devices_and_namespaces_that_it_asks_for() {
    let script = "cat /data/file; echo x > /data/file || echo ro; cat /one; \
        stat -c %t:%T:%a:%u /dev/odd/fuse; \
        cd /sys/fs/cgroup/pids 2>/dev/null || cd /sys/fs/cgroup; cat pids.max; \
        mkdir x || echo ro; readlink /proc/self/ns/net; hostname; \
        cat /proc/sys/kernel/domainname; ulimit -n; grep Cap[IA] /proc/self/status";
    let bundle = Bundle::new("asks", script);
    fs::create_dir(bundle.path("data")).unwrap();
    fs::write(bundle.path("data/file"), "data\n").unwrap();
    fs::write(bundle.path("one"), "one\n").unwrap();
    let change = |spec: &mut Value| {
        let mounts = spec["mounts"].as_array_mut().unwrap();
        mounts.push(json!({"destination": "/sys", "type": "sysfs", "options": ["ro"]}));
        mounts.push(
            json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "options": ["ro", "nosuid"]}),
        );
        // Relative to the bundle.
        mounts.push(json!({"destination": "/data", "source": "data", "options": ["rbind", "ro"]}));
        mounts.push(
            json!({"destination": "/one", "type": "bind", "source": "one", "options": ["bind"]}),
        );
        spec["linux"]["devices"] = json!([{"path": "/dev/odd/fuse", "type": "c", "major": 10,
            "minor": 229, "fileMode": 0o640, "uid": 7}]);
        spec["linux"]["resources"] = json!({"pids": {"limit": 21}, "devices": [
            {"allow": false, "access": "rwm"},
            {"allow": true, "type": "c", "major": 10, "minor": 229, "access": "rw"}]});
        spec["linux"]["namespaces"][4]["path"] = "/proc/self/ns/net".into();
        spec["hostname"] = "odd".into();
        spec["domainname"] = "domain".into();
        spec["process"]["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "soft": 55, "hard": 66}]);
        let caps = json!(["CAP_KILL"]);
        spec["process"]["capabilities"] = json!({"bounding": caps, "permitted": caps,
            "effective": caps, "inheritable": caps, "ambient": ["CAP_KILL", "CAP_CHOWN"]});
    };
    bundle.configure(change, script);
    let output = bundle.oci(&["run", "-b", &bundle.path("")]);
    let net = fs::read_link("/proc/self/ns/net").unwrap();
    let wanted = format!(
        "data\nro\none\na:e5:640:7\n21\nro\n{}\nodd\ndomain\n55\n\
         CapInh:\t0000000000000020\nCapAmb:\t0000000000000020\n",
        net.display()
    );
    assert_eq!(String::from_utf8_lossy(&output.stdout), wanted, "{}", bundle.log());
    assert_eq!(fs::read_to_string(bundle.path("data/file")).unwrap(), "data\n");
}

/// What runc's users have.
#[test]
fn a_bundle_as_runc_specifies_it_runs() {
    let bundle = Bundle::new("runc", "");
    fs::remove_file(bundle.path("config.json")).unwrap();
    let made = Command::new("runc").arg("spec").current_dir(bundle.path("")).status().unwrap();
    assert!(made.success());
    let text = fs::read_to_string(bundle.path("config.json")).unwrap();
    let mut spec: Value = serde_json::from_str(&text).unwrap();
    spec["process"]["terminal"] = false.into();
    spec["process"]["args"] = json!([
        "/bin/sh",
        "-c",
        "hostname; touch /x || echo ro; ls /sys/fs/cgroup/pids || ls /sys/fs/cgroup"
    ]);
    fs::write(bundle.path("config.json"), spec.to_string()).unwrap();
    let output = bundle.oci(&["run", "-b", &bundle.path("")]);
    let out = String::from_utf8_lossy(&output.stdout);
    assert!(out.starts_with("runc\nro\n") && out.contains("pids.max"), "{out} {}", bundle.log());
    for (pointer, value) in [
        ("/hooks", json!({"prestart": [{"path": "/bin/true"}]})),
        ("/linux/intelRdt", json!({"closID": "x"})),
        ("/process/selinuxLabel", json!("x")),
        ("/strange", json!(1)),
    ] {
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        let mut spec = spec.clone();
        spec.pointer_mut(parent).unwrap()[key] = value;
        fs::write(bundle.path("config.json"), spec.to_string()).unwrap();
        let output = bundle.oci(&["run", "-b", &bundle.path("")]);
        assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0), "{pointer}");
        assert!(cgroups_named(&bundle.id).is_empty());
    }
}

//! The development command line, as a suite uses it.
#![forbid(unsafe_code)]
#![expect(
    clippy::tests_outside_test_module,
    clippy::unwrap_used,
    reason = "all of an integration test is one"
)]

mod support;

use std::fs;
use std::process::{Command, Output, Stdio};

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

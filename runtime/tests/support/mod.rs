//! A caller of `nimbus-runtime`: builds a root from busybox, a plan, and asks the real program.
#![allow(
    dead_code,
    missing_docs,
    missing_debug_implementations,
    unreachable_pub,
    clippy::allow_attributes,
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a part of tests, of which each binary uses some"
)]

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use nimbus_api::clock::BootNanos;
use nimbus_api::frame::{FrameReader, write_frame};
use nimbus_api::id::ContainerKey;
use nimbus_api::lease::{LeasedEgress, LeasedResources, ScratchMedium};
use nimbus_api::plan::{
    DeviceKind, DeviceRule, ExecClause, PLAN_VERSION, Plan, PlanImage, PlanLease, PlanSeccomp,
    RootfsRecipe,
};
use nimbus_api::runtime::{
    CgroupPaths, REQUEST_FD, RUNTIME_VERSION, RuntimeReply, RuntimeRequest, RuntimeVerb,
};
use nimbus_api::{Digest, RefusalCode};
use rustix::fs::{CWD, MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use rustix::mount::{OpenTreeFlags, open_tree};
use rustix::process::{WaitOptions, WaitStatus, waitpid};
use serde_json::{Value, json};

const CAPS: [&str; 3] = ["CAP_CHOWN", "CAP_KILL", "CAP_SETUID"];
const MEBI: u64 = 1 << 20;

/// Tells containers of one test binary apart.
static NUMBER: AtomicU32 = AtomicU32::new(0);

/// A root directory, a state root and what a container is asked to be. Deletes on drop.
pub struct Host {
    dir: tempfile::TempDir,
    pub plan: Plan,
    pub layers: Vec<PathBuf>,
    pub filter: Vec<u8>,
    /// A detached mount for the upper, when the plan has it on disk.
    pub scratch: Option<OwnedFd>,
    /// Detached mounts that go with the plan's binds. Each is good for one container.
    pub binds: Vec<OwnedFd>,
    /// Namespaces that go with the plan's joins.
    pub joins: Vec<File>,
    pub stdin: Option<File>,
    cgroup: String,
}

/// What a container printed and how it ended.
#[derive(Debug)]
pub struct Ended {
    pub out: String,
    pub err: String,
    pub status: WaitStatus,
}

/// A container that waits for Start.
pub struct Created {
    pub pid: i32,
    pub cgroup: CgroupPaths,
    out: PathBuf,
    err: PathBuf,
}

impl Host {
    pub fn new(command: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("layer0");
        busybox_root(&root);
        fs::DirBuilder::new().mode(0o700).create(dir.path().join("state")).unwrap();
        let n = NUMBER.fetch_add(1, Ordering::SeqCst);
        let id = format!("t{}-{n}", std::process::id());
        let cgroup = format!("/nimbus-test-{id}");
        let filter = deny_keyctl();
        let container =
            ContainerKey { namespace: "nimbus".parse().unwrap(), id: id.parse().unwrap() };
        let plan = plan(container, &cgroup, &filter, command);
        Self {
            dir,
            plan,
            layers: vec![root],
            filter,
            scratch: None,
            binds: vec![],
            joins: vec![],
            stdin: None,
            cgroup,
        }
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    pub fn bundle(&self) -> PathBuf {
        let key = &self.plan.container;
        self.path().join("state").join(key.namespace.as_str()).join(key.id.as_str())
    }

    pub fn shell(script: &str) -> Self {
        Self::new(&["/bin/sh", "-c", script])
    }

    pub fn request(&self, verb: RuntimeVerb) -> RuntimeRequest {
        RuntimeRequest {
            version: RUNTIME_VERSION,
            state_root: self.path().join("state"),
            container: self.plan.container.clone(),
            verb,
        }
    }

    /// The program with our socket as its descriptor 3 and an empty environment. A shell moves the
    /// descriptor there, so that this stays free of unsafe code; it execs, so pid and parent stay. Descriptor 9 is one that a careless caller leaks.
    pub fn spawn() -> (Child, UnixStream) {
        Self::spawn_as("nimbus-runtime")
    }

    pub fn spawn_as(name: &str) -> (Child, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let script = format!("exec -c -a {name} \"$0\" 3<&0 0</dev/null 9</etc/passwd");
        let child = Command::new("/bin/bash")
            // Bash takes a socket for a remote shell, which reads the user's own file.
            .args(["--norc", "-c", &script])
            .arg(env!("CARGO_BIN_EXE_nimbus-runtime"))
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        assert_eq!(REQUEST_FD, 3);
        (child, ours)
    }

    pub fn ask_with(request: &RuntimeRequest, fds: &[BorrowedFd<'_>]) -> RuntimeReply {
        Self::ask_for(request, fds).0
    }

    /// The answer and the descriptors that came along.
    pub fn ask_for(
        request: &RuntimeRequest,
        fds: &[BorrowedFd<'_>],
    ) -> (RuntimeReply, Vec<OwnedFd>) {
        let (mut child, socket) = Self::spawn();
        write_frame(&socket, &serde_json::to_vec(request).unwrap(), fds).unwrap();
        let frame = FrameReader::default().read(&socket).unwrap();
        let reply: RuntimeReply = serde_json::from_slice(&frame.bytes).unwrap();
        let code = child.wait().unwrap().code();
        let failed = matches!(reply, RuntimeReply::Failed { .. });
        assert_eq!(code, Some(i32::from(failed)), "{reply:?}");
        (reply, frame.fds)
    }

    pub fn ask(&self, verb: RuntimeVerb) -> RuntimeReply {
        Self::ask_with(&self.request(verb), &[])
    }

    pub fn sealed_filter(&self) -> OwnedFd {
        let memfd =
            memfd_create("filter", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
        let mut file = File::from(memfd);
        file.write_all(&self.filter).unwrap();
        fcntl_add_seals(&file, SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK).unwrap();
        file.into()
    }

    pub fn create_fds(&self) -> (Vec<OwnedFd>, PathBuf, PathBuf) {
        let mut fds = vec![self.sealed_filter()];
        fds.extend(self.scratch.iter().map(|mount| mount.try_clone().unwrap()));
        for layer in &self.layers {
            let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
            fds.push(open_tree(CWD, layer, flags).unwrap());
        }
        fds.extend(self.binds.iter().map(|mount| mount.try_clone().unwrap()));
        fds.extend(self.joins.iter().map(|join| join.try_clone().unwrap().into()));
        let (out, err) = (self.path().join("out"), self.path().join("err"));
        let stdin = match &self.stdin {
            Some(file) => file.try_clone().unwrap(),
            None => File::open("/dev/null").unwrap(),
        };
        fds.push(stdin.into());
        fds.push(File::create(&out).unwrap().into());
        fds.push(File::create(&err).unwrap().into());
        (fds, out, err)
    }

    pub fn create_verb(&self) -> RuntimeVerb {
        RuntimeVerb::Create(Box::new(self.plan.clone()))
    }

    pub fn try_create(&self) -> Result<Created, (RefusalCode, String)> {
        let (fds, out, err) = self.create_fds();
        let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
        match Self::ask_with(&self.request(self.create_verb()), &fds) {
            RuntimeReply::Created { pid, cgroup } => Ok(Created { pid, cgroup, out, err }),
            RuntimeReply::Failed { refusal, cause } => Err((refusal.code, cause)),
            other @ (RuntimeReply::Done | RuntimeReply::Executed { .. }) => {
                panic!("Create was answered with {other:?}")
            }
        }
    }

    pub fn create(&self) -> Created {
        self.try_create().unwrap()
    }

    /// Create, Start, wait, Delete.
    pub fn run(&self) -> Ended {
        let created = self.create();
        assert_eq!(self.ask(RuntimeVerb::Start), RuntimeReply::Done);
        let ended = created.wait();
        self.delete();
        ended
    }

    pub fn delete(&self) {
        assert_eq!(self.ask(RuntimeVerb::Delete), RuntimeReply::Done);
        self.assert_nothing_left();
    }

    pub fn assert_nothing_left(&self) {
        assert!(!self.bundle().exists(), "bundle left");
        assert_eq!(cgroups_named(self.cgroup.trim_start_matches('/')), Vec::<PathBuf>::new());
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!table.contains(self.path().to_str().unwrap()), "mount left");
    }

    pub fn edit(&mut self, pointer: &str, value: Value) {
        *self.plan.spec.pointer_mut(pointer).unwrap() = value;
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        let (mut child, socket) = Self::spawn();
        let request = serde_json::to_vec(&self.request(RuntimeVerb::Delete)).unwrap();
        write_frame(&socket, &request, &[]).unwrap();
        child.wait().unwrap();
    }
}

impl Created {
    /// The directory in which this v1 controller limits, or the one in which all do.
    pub fn controller(&self, name: &str) -> PathBuf {
        self.cgroup.unified.clone().unwrap_or_else(|| self.cgroup.v1[name].clone())
    }

    /// Waits as the parent that this test is: the init process is our child.
    pub fn wait(&self) -> Ended {
        let pid = rustix::process::Pid::from_raw(self.pid);
        let (_, status) = waitpid(pid, WaitOptions::empty()).unwrap().unwrap();
        let read = |path: &Path| {
            let mut bytes = Vec::new();
            File::open(path).unwrap().read_to_end(&mut bytes).unwrap();
            String::from_utf8_lossy(&bytes).into_owned()
        };
        Ended { out: read(&self.out), err: read(&self.err), status }
    }

    pub fn out(&self) -> String {
        fs::read_to_string(&self.out).unwrap()
    }
}

/// Where a container's cgroup of this v1 controller is, or its only one.
pub fn cgroup_of(host: &Host, controller: &str) -> PathBuf {
    let path = host.plan.spec.pointer("/linux/cgroupsPath").unwrap().as_str().unwrap();
    let v1 = Path::new("/sys/fs/cgroup").join(controller);
    let root = if v1.is_dir() { v1 } else { PathBuf::from("/sys/fs/cgroup") };
    root.join(path.trim_start_matches('/'))
}

/// Whether everything in this cgroup could be told to stand still.
pub fn freeze(dir: &Path) -> bool {
    fs::write(dir.join("cgroup.freeze"), "1").is_ok()
        || fs::write(dir.join("freezer.state"), "FROZEN").is_ok()
}

pub fn cgroups_named(part: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let root = PathBuf::from("/sys/fs/cgroup");
    let below = fs::read_dir(&root).unwrap().flatten().map(|entry| entry.path());
    for hierarchy in below.chain([root.clone()]) {
        if let Ok(entries) = fs::read_dir(hierarchy) {
            let names = entries.flatten();
            found.extend(
                names.filter(|e| e.file_name().to_string_lossy().contains(part)).map(|e| e.path()),
            );
        }
    }
    found
}

/// Guards left by anybody: tests of one binary run at the same time, so only for those alone.
pub fn guards() -> Vec<PathBuf> {
    cgroups_named("nimbus-guard-")
}

pub fn busybox_root(root: &Path) {
    for dir in ["bin", "etc", "tmp", "usr", "root"] {
        fs::create_dir_all(root.join(dir)).unwrap();
    }
    let mut source = File::open("/bin/busybox").unwrap();
    let mut target = File::create(root.join("bin/busybox")).unwrap();
    std::io::copy(&mut source, &mut target).unwrap();
    fs::set_permissions(root.join("bin/busybox"), fs::Permissions::from_mode(0o755)).unwrap();
    for applet in [
        "sh", "echo", "cat", "true", "ls", "id", "sleep", "mount", "ping", "mknod", "grep", "dd",
        "stat", "setsid", "ip", "pwd", "env", "umount", "touch", "chmod", "chown", "readlink",
        "hostname", "stty", "tty", "mkfifo", "rm", "test", "mkdir",
    ] {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(applet)).unwrap();
    }
    fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n").unwrap();
}

/// `allow everything, but keyctl(2) fails with EPERM`, for x86-64 and arm64.
pub fn deny_keyctl() -> Vec<u8> {
    let keyctl: u32 = if cfg!(target_arch = "x86_64") { 250 } else { 219 };
    let instruction = |code: u16, jt: u8, jf: u8, k: u32| {
        let mut bytes = code.to_ne_bytes().to_vec();
        bytes.extend([jt, jf]);
        bytes.extend(k.to_ne_bytes());
        bytes
    };
    [
        instruction(0x20, 0, 0, 0),
        instruction(0x15, 0, 1, keyctl),
        instruction(0x06, 0, 0, 0x0005_0001),
        instruction(0x06, 0, 0, 0x7fff_0000),
    ]
    .concat()
}

fn node(name: &str, major: u32, minor: u32) -> DeviceRule {
    DeviceRule {
        path: format!("/dev/{name}"),
        kind: DeviceKind::Character,
        major,
        minor,
        writable: true,
        mode: Some(0o666),
    }
}

fn plan(container: ContainerKey, cgroup: &str, filter: &[u8], command: &[&str]) -> Plan {
    let resources = LeasedResources {
        cpu_millis: 1000,
        memory_bytes: 64 * MEBI,
        pids: 32,
        scratch_bytes: 16 * MEBI,
        scratch: ScratchMedium::Memory,
        log_bytes: MEBI,
    };
    let digest = Digest::of(b"test");
    Plan {
        version: PLAN_VERSION,
        container,
        lease: PlanLease {
            lease_id: "l1".parse().unwrap(),
            job: "j1".parse().unwrap(),
            attempt: 1,
            org: "org".parse().unwrap(),
            token_sha256: digest,
        },
        image: PlanImage {
            name: "test".into(),
            digest,
            manifest: digest,
            platform: "linux/amd64".into(),
            attestations: vec![],
        },
        rootfs: RootfsRecipe {
            layers: vec![digest],
            digest,
            scratch_bytes: 16 * MEBI,
            scratch: ScratchMedium::Memory,
            read_only: false,
        },
        spec: spec(cgroup, &resources, command),
        seccomp: PlanSeccomp {
            profile: "test".into(),
            program_sha256: Digest::of(filter),
            instructions: u32::try_from(filter.len() / 8).unwrap(),
        },
        devices: vec![
            node("null", 1, 3),
            node("zero", 1, 5),
            node("full", 1, 7),
            node("random", 1, 8),
            node("urandom", 1, 9),
            node("tty", 5, 0),
        ],
        resources,
        egress: LeasedEgress::None,
        binds: Vec::new(),
        joins: Vec::new(),
        pod: None,
        exec: ExecClause { capabilities: CAPS.map(str::to_owned).to_vec() },
        deadline: BootNanos(u64::MAX),
        policy_serial: 1,
        tightened: vec![],
    }
}

fn spec(cgroup: &str, leased: &LeasedResources, command: &[&str]) -> Value {
    let mount = |at: &str, kind: &str, options: &[&str]| json!({"destination": at, "type": kind, "source": kind, "options": options});
    let plain = ["nosuid", "noexec", "nodev"];
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": command,
            "env": ["PATH=/usr/bin:/bin", "JOB=yes"],
            "cwd": "/",
            "capabilities": {"bounding": CAPS, "effective": CAPS, "permitted": CAPS},
            "noNewPrivileges": true
        },
        "root": {"path": "rootfs"},
        "hostname": "job",
        "mounts": [
            mount("/proc", "proc", &plain),
            mount("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
            mount("/dev/pts", "devpts",
                &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
            mount("/dev/shm", "tmpfs", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
            mount("/dev/mqueue", "mqueue", &plain),
            mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
            mount("/run", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"])
        ],
        "linux": {
            "cgroupsPath": cgroup,
            "namespaces": [
                {"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"},
                {"type": "network"}],
            "resources": {
                "memory": {"limit": leased.memory_bytes, "swap": leased.memory_bytes},
                "cpu": {"quota": u64::from(leased.cpu_millis) * 100, "period": 100_000},
                "pids": {"limit": leased.pids}
            },
            "maskedPaths": ["/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
                "/proc/timer_list", "/proc/driver", "/sys/firmware", "/sys/class/drm"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys",
                "/proc/sysrq-trigger"],
            "rootfsPropagation": "private"
        }
    })
}

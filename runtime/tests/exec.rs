//! One more process in a container: that it is contained as the first is, and what a container can do
//! to whoever puts it there.
#![forbid(unsafe_code)]
#![expect(
    clippy::tests_outside_test_module,
    clippy::unwrap_used,
    clippy::panic,
    reason = "all of an integration test is one"
)]

mod support;

use std::fs::{self, File};
use std::io::Write as _;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nimbus_api::RefusalCode;
use nimbus_api::frame::{FrameReader, write_frame};
use nimbus_api::runtime::{
    ExecProcess, ExecRequest, OUTSIDE_NAME, OpenFiles, RuntimeReply, RuntimeVerb, TerminalSize,
};
use rustix::process::{Pid, WaitOptions, WaitStatus, waitpid};
use support::{Created, Host};

const SLEEPER: &str = "echo ready; while :; do sleep 0.05; done";

/// One test at a time: what a runtime has left to its parent, which is this process, is waited for by
/// whoever finds it.
static TURN: Mutex<()> = Mutex::new(());

/// A container that runs, and what may be run in it.
struct Running {
    host: Host,
    created: Created,
    _turn: MutexGuard<'static, ()>,
}

struct Ended {
    out: String,
    status: WaitStatus,
}

impl Running {
    fn new(host: Host) -> Self {
        let running = Self::waiting(host);
        assert_eq!(running.host.ask(RuntimeVerb::Start), RuntimeReply::Done);
        until("ready", || running.created.out().contains("ready"));
        running
    }

    /// One that has not been started.
    fn waiting(host: Host) -> Self {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let created = host.create();
        Self { host, created, _turn: turn }
    }

    /// Waits for whoever has ended and is not the first process: until that is done, its namespace does
    /// not end.
    fn reap(&self) {
        use nix::sys::wait::{Id, WaitPidFlag, waitid};
        let look = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        while let Ok(ended) = waitid(Id::All, look) {
            let pid = ended.pid().map(nix::unistd::Pid::as_raw);
            let Some(pid) = pid.filter(|pid| *pid != self.created.pid) else { return };
            wait(pid);
        }
    }

    fn shell() -> Self {
        Self::new(Host::shell(SLEEPER))
    }

    fn verb(&self, process: ExecProcess) -> RuntimeVerb {
        let seccomp = self.host.plan.seccomp.clone();
        RuntimeVerb::Exec(Box::new(ExecRequest { process, seccomp }))
    }

    fn ask(&self, process: ExecProcess, stdio: &[OwnedFd]) -> (RuntimeReply, Vec<OwnedFd>) {
        let filter = self.host.sealed_filter();
        let fds: Vec<BorrowedFd<'_>> =
            [&filter].into_iter().chain(stdio).map(AsFd::as_fd).collect();
        Host::ask_for(&self.host.request(self.verb(process)), &fds)
    }

    /// Runs it with output to a file.
    fn try_run(&self, process: ExecProcess) -> Result<Ended, (RefusalCode, String)> {
        let path = self.host.path().join("exec-out");
        let out = File::create(&path).unwrap();
        let stdio = [File::open("/dev/null").unwrap(), out.try_clone().unwrap(), out];
        match self.ask(process, &stdio.map(OwnedFd::from)) {
            (RuntimeReply::Executed { pid }, fds) if fds.is_empty() => {
                let status = wait(pid);
                Ok(Ended { out: fs::read_to_string(&path).unwrap(), status })
            }
            (RuntimeReply::Failed { refusal, cause }, _) => {
                self.reap();
                Err((refusal.code, cause))
            }
            other => panic!("{other:?}"),
        }
    }

    fn run(&self, script: &str) -> Ended {
        self.try_run(sh(script)).unwrap()
    }

    fn end(self) {
        std::thread::scope(|threads| {
            let deleted = threads.spawn(|| self.host.delete());
            while !deleted.is_finished() {
                self.reap();
                sleep(Duration::from_millis(1));
            }
        });
        self.created.wait();
    }

    fn members(&self) -> usize {
        let procs = self.created.cgroup.v1.get("pids").or(self.created.cgroup.unified.as_ref());
        fs::read_to_string(procs.unwrap().join("cgroup.procs")).unwrap().lines().count()
    }
}

fn sh(script: &str) -> ExecProcess {
    command(&["/bin/sh", "-c", script])
}

fn command(args: &[&str]) -> ExecProcess {
    ExecProcess {
        args: args.iter().map(|&arg| arg.to_owned()).collect(),
        env: vec!["PATH=/usr/bin:/bin".to_owned()],
        cwd: "/".to_owned(),
        uid: 0,
        gid: 0,
        additional_gids: Vec::new(),
        umask: 0o022,
        capabilities: vec!["CAP_CHOWN".to_owned(), "CAP_KILL".to_owned()],
        nofile: OpenFiles { soft: 100, hard: 200 },
        oom_score_adj: 0,
        terminal: None,
    }
}

fn wait(pid: i32) -> WaitStatus {
    waitpid(Pid::from_raw(pid), WaitOptions::empty()).unwrap().unwrap().1
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(10);
    while !done() {
        assert!(Instant::now() < end, "never: {what}");
        sleep(Duration::from_millis(5));
    }
}

#[test]
fn it_is_where_the_first_process_is_and_contained_as_that_is() {
    let running = Running::shell();
    let script = "for n in pid mnt ipc uts net; do readlink /proc/self/ns/$n; done; echo ---
        grep -E '^(Cap|NoNewPrivs|Seccomp:)' /proc/self/status; echo ---
        cat /proc/self/cgroup; echo ---; cat /proc/1/cgroup; exit 7";
    let ended = running.run(script);
    assert_eq!(ended.status.exit_status(), Some(7), "{}", ended.out);
    let parts: Vec<&str> = ended.out.split("---\n").collect();
    let [own, status, cgroup, first_cgroup] = parts[..] else { panic!("{}", ended.out) };
    let link = |name| fs::read_link(format!("/proc/{}/ns/{name}", running.created.pid)).unwrap();
    let first = ["pid", "mnt", "ipc", "uts", "net"].map(|name| link(name).display().to_string());
    assert_eq!(own.lines().collect::<Vec<_>>(), first);
    assert_eq!(cgroup, first_cgroup);
    let kept = "0000000000000021";
    let none = "0000000000000000";
    let wanted = format!(
        "CapInh:\t{none}\nCapPrm:\t{kept}\nCapEff:\t{kept}\nCapBnd:\t{kept}\nCapAmb:\t{none}\n\
         NoNewPrivs:\t1\nSeccomp:\t2\n"
    );
    assert_eq!(status, wanted);
    running.end();
}

#[test]
fn user_directory_mask_limits_and_environment_are_as_judged() {
    let running =
        Running::new(Host::shell(&format!("mkdir -p /srv/w && chmod 700 /srv/w; {SLEEPER}")));
    let mut process = sh("id -u; id -g; id -G; pwd; umask; ulimit -n; ulimit -Hn; ulimit -c
        echo $HOME $A; cat /proc/self/oom_score_adj");
    process.uid = 1000;
    process.gid = 1001;
    process.additional_gids = vec![1002];
    process.umask = 0o077;
    process.cwd = "/tmp".to_owned();
    process.env.extend(["A=b".to_owned(), "HOME=".to_owned()]);
    process.oom_score_adj = 900;
    let ended = running.try_run(process).unwrap();
    let wanted = "1000\n1001\n1001 1002\n/tmp\n0077\n100\n200\n0\n/ b\n900\n";
    assert_eq!(ended.out, wanted);
    running.end();
}

#[test]
fn nothing_of_the_host_is_open_in_it() {
    let running = Running::shell();
    let ended = running.run("exec ls /proc/self/fd");
    // The last is the directory that is being listed.
    assert_eq!(ended.out, "0\n1\n2\n3\n");
    let null = running.run("readlink /proc/self/fd/0; stat -c '%t:%T' -L /proc/self/fd/0");
    assert_eq!(null.out, "/dev/null\n1:3\n");
    running.end();
}

#[test]
fn a_program_that_is_not_there_is_told_and_leaves_no_process() {
    let running = Running::new(Host::shell("echo ready; exec sleep 100"));
    until("the shell is gone", || running.members() == 1);
    let before = running.members();
    for (process, word) in [
        (command(&["nothing-like-it"]), "found"),
        (command(&["/etc/passwd"]), "found"),
        (command(&["/proc/self/exe"]), "found"),
        (ExecProcess { cwd: "/nowhere".to_owned(), ..sh("true") }, "working directory"),
        (ExecProcess { cwd: "/etc/passwd".to_owned(), ..sh("true") }, "working directory"),
    ] {
        let (code, cause) = running.try_run(process).err().unwrap();
        assert_eq!(code, RefusalCode::RuntimeExec, "{cause}");
        assert!(cause.contains(word), "{cause}");
    }
    let mut odd = sh("true");
    odd.capabilities = vec!["CAP_EVERYTHING".to_owned()];
    assert_eq!(running.try_run(odd).err().unwrap().0, RefusalCode::RuntimeUnproven);
    assert_eq!(running.members(), before);
    assert!(running.run("exit 3").status.exit_status() == Some(3));
    running.end();
}

#[test]
fn a_container_that_waits_has_ended_or_is_none_is_not_entered() {
    let running = Running::waiting(Host::shell(SLEEPER));
    let refused = |running: &Running| running.try_run(sh("true")).err().unwrap();
    assert!(refused(&running).1.contains("not been started"));
    assert_eq!(running.host.ask(RuntimeVerb::Kill { signal: 9, all: false }), RuntimeReply::Done);
    running.created.wait();
    assert!(refused(&running).1.contains("ended"));
    running.host.delete();
    assert!(refused(&running).1.contains("no such container"));
}

#[test]
fn a_terminal_is_the_containers_own_and_its_size_is_the_clients() {
    let mut host = Host::shell(SLEEPER);
    let device = |path: &str, major, minor| nimbus_api::plan::DeviceRule {
        path: path.to_owned(),
        major,
        minor,
        mode: None,
        ..host.plan.devices[0].clone()
    };
    let more = [device("/dev/ptmx", 5, 2), device("/dev/pts/0", 136, 0)];
    host.plan.devices.extend(more);
    let running = Running::new(host);
    let mut process = sh("tty; stty size; stat -c %u $(tty); echo in $(readlink /proc/self/fd/2)
        read line; echo \"got $line\"; cat /dev/tty; exit 4");
    process.terminal = Some(TerminalSize { rows: 30, columns: 100 });
    process.uid = 1000;
    let (reply, fds) = running.ask(process, &[]);
    let RuntimeReply::Executed { pid } = reply else { panic!("{reply:?}") };
    let [master] = <[OwnedFd; 1]>::try_from(fds).unwrap();
    rustix::fs::fcntl_setfl(&master, rustix::fs::OFlags::empty()).unwrap();
    let mut master = File::from(master);
    master.write_all(b"hello\n\x04").unwrap();
    let mut out = Vec::new();
    // The end of a terminal is an error to whoever reads its other end.
    let _end = std::io::copy(&mut master, &mut out);
    let out = String::from_utf8(out).unwrap();
    assert_eq!(wait(pid).exit_status(), Some(4), "{out}");
    for line in ["/dev/pts/0", "30 100", "1000", "in /dev/pts/0", "got hello"] {
        assert!(out.lines().any(|found| found == line), "{line}: {out}");
    }
    running.end();
}

/// `/dev` is the container's to write to. Whoever opens what it has put there must not wait for it, nor
/// be sent elsewhere.
#[test]
fn what_a_container_puts_in_the_place_of_a_device_neither_hangs_nor_leads_anybody() {
    let mut host = Host::shell(&format!(
        "rm /dev/null; mkfifo /dev/null; mkdir -p /dev/pts; mkfifo /dev/pts/ptmx; {SLEEPER}"
    ));
    let mounts = host.plan.spec["mounts"].as_array_mut().unwrap();
    mounts.retain(|mount| mount["destination"] != "/dev/pts");
    let running = Running::new(host);
    let (code, cause) = running.try_run(sh("true")).err().unwrap();
    assert_eq!(code, RefusalCode::RuntimeFailed, "{cause}");
    let terminal = || ExecProcess { terminal: Some(TerminalSize::default()), ..sh("true") };
    let (reply, fds) = running.ask(terminal(), &[]);
    let RuntimeReply::Failed { refusal, cause } = reply else { panic!("{reply:?}") };
    assert_eq!((refusal.code, fds.len()), (RefusalCode::RuntimeFailed, 0));
    assert!(cause.contains("terminal"), "{cause}");
    running.end();
}

/// CVE-2019-5736: a script whose interpreter is `/proc/self/exe` is run by whatever executes it.
#[test]
fn the_runtimes_own_file_cannot_be_written_through_what_it_executes() {
    let layer_script = "#!/proc/self/exe\n";
    let host = Host::shell(&format!(
        "{SLEEPER} & while :; do for p in /proc/[0-9]*; do
            if readlink $p/exe | grep -q nimbus; then echo seen; fi
            (echo x >> $p/exe) 2>/dev/null && echo written; done; done"
    ));
    fs::write(host.layers[0].join("bin/hostile"), layer_script).unwrap();
    let mode = fs::Permissions::from_mode(0o755);
    fs::set_permissions(host.layers[0].join("bin/hostile"), mode).unwrap();
    let before = fs::read(env!("CARGO_BIN_EXE_nimbus-runtime")).unwrap();
    let running = Running::new(host);
    for _ in 0..20 {
        if let Ok(ended) = running.try_run(command(&["/bin/hostile"])) {
            assert_ne!(ended.status.exit_status(), Some(0));
        }
    }
    assert!(!running.created.out().contains("written"), "{}", running.created.out());
    assert!(before == fs::read(env!("CARGO_BIN_EXE_nimbus-runtime")).unwrap());
    running.end();
}

/// What procfs shows of a process's mounts and network is open to everybody who sees the process.
#[test]
fn nobody_in_the_container_sees_the_hosts_mounts_or_network_through_it() {
    // Neither is in the container: no cgroup is mounted there, and it has a loopback device alone.
    let host = Host::shell(
        "echo ready; while :; do for p in /proc/[0-9]*; do
            grep -q cgroup $p/mountinfo 2>/dev/null && echo leaked mounts
            grep -q eth $p/net/dev 2>/dev/null && echo leaked devices; done; done",
    );
    let running = Running::new(host);
    for _ in 0..60 {
        assert_eq!(running.try_run(command(&["/bin/true"])).unwrap().status.exit_status(), Some(0));
    }
    assert!(!running.created.out().contains("leaked"), "{}", running.created.out());
    running.end();
}

/// Such a process can be reached by a container through what it executes.
#[test]
fn a_process_that_was_not_started_to_enter_refuses_to() {
    let running = Running::shell();
    let (mut child, socket) = Host::spawn_as(OUTSIDE_NAME);
    let request = serde_json::to_vec(&running.host.request(running.verb(sh("true")))).unwrap();
    write_frame(&socket, &request, &[running.host.sealed_filter().as_fd()]).unwrap();
    let frame = FrameReader::default().read(&socket).unwrap();
    let reply: RuntimeReply = serde_json::from_slice(&frame.bytes).unwrap();
    let RuntimeReply::Failed { refusal, .. } = reply else { panic!("{reply:?}") };
    assert_eq!(refusal.code, RefusalCode::RuntimeUnproven);
    child.wait().unwrap();
    running.end();
}

#[test]
fn a_filter_that_is_not_the_plans_is_not_loaded() {
    let running = Running::shell();
    let null = || OwnedFd::from(File::open("/dev/null").unwrap());
    let mut other = Host::new(&["true"]);
    other.filter.extend_from_slice(&[6, 0, 0, 0, 0, 0, 0xff, 0x7f]);
    let filter = other.sealed_filter();
    let fds = [filter, null(), null(), null()];
    let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
    let request = running.host.request(running.verb(sh("true")));
    let RuntimeReply::Failed { refusal, .. } = Host::ask_with(&request, &fds) else { panic!() };
    assert_eq!(refusal.code, RefusalCode::RuntimeUnproven);
    running.end();
}

#[test]
fn a_runtime_that_is_killed_at_any_instant_leaves_no_process_in_the_container() {
    let running = Running::new(Host::shell("echo ready; exec sleep 100"));
    for step in 0..40_u64 {
        let (mut child, socket) = Host::spawn();
        let null =
            || OwnedFd::from(File::options().read(true).write(true).open("/dev/null").unwrap());
        let fds = [running.host.sealed_filter(), null(), null(), null()];
        let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
        let request = running.host.request(running.verb(command(&["/bin/true"])));
        write_frame(&socket, &serde_json::to_vec(&request).unwrap(), &fds).unwrap();
        sleep(Duration::from_micros(step * 500));
        child.kill().unwrap();
        child.wait().unwrap();
    }
    until("nobody but the first is there", || {
        running.reap();
        running.members() == 1
    });
    running.end();
}

//! Images, bundles and callers that mean harm: nothing outside the container may change by them.
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
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nimbus_api::RefusalCode;
use nimbus_api::frame::write_frame;
use nimbus_api::runtime::{RuntimeReply, RuntimeVerb};
use rustix::fs::{CWD, FileType, Mode, RenameFlags, makedev, mknodat, renameat_with};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use support::{Host, busybox_root, cgroups_named};

/// Creations while somebody exchanges directories.
const RACES: usize = 60;

/// What is exchanged for a link to the outside, one after the other.
const EXCHANGED: [&str; 6] = ["proc", "dev", "run", "data/deep", "data", "etc"];
/// Between two exchanges: about what lies between two steps of a creation.
const EXCHANGE_PAUSE: Duration = Duration::from_micros(50);

/// A directory of the host's that must stay as it is.
struct Outside(tempfile::TempDir);

impl Outside {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for name in ["ptmx", "null"] {
            fs::write(dir.path().join(name), "host's").unwrap();
        }
        Self(dir)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn assert_untouched(&self, what: &str) {
        let mut names: Vec<_> = fs::read_dir(self.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names, ["null", "ptmx"], "{what}");
        for name in names {
            assert_eq!(fs::read_to_string(self.path().join(name)).unwrap(), "host's", "{what}");
        }
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!table.contains(self.path().to_str().unwrap()), "{what}: mounted on");
    }
}

/// What an image may hold where a directory is expected.
const KINDS: [&str; 6] =
    ["absolute link", "climbing link", "link to itself", "file", "fifo", "device"];

fn put(kind: &str, at: &Path, outside: &Path) {
    fs::create_dir_all(at.parent().unwrap()).unwrap();
    match kind {
        "absolute link" => symlink(outside, at).unwrap(),
        "climbing link" => {
            symlink(format!("../../../../../../../..{}", outside.display()), at).unwrap();
        }
        "link to itself" => symlink(at.file_name().unwrap(), at).unwrap(),
        "file" => fs::write(at, "image's").unwrap(),
        "fifo" => mknodat(CWD, at, FileType::Fifo, Mode::RUSR, 0).unwrap(),
        "device" => {
            let zero = makedev(1, 5);
            mknodat(CWD, at, FileType::CharacterDevice, Mode::RUSR | Mode::WUSR, zero).unwrap();
        }
        other => panic!("{other}"),
    }
}

#[test]
fn whatever_an_image_has_at_a_mount_point_nothing_outside_is_touched() {
    for place in ["dev", "proc", "sys", "run"] {
        for kind in KINDS {
            let (host, outside) = (Host::new(&["true"]), Outside::new());
            let at = host.layers[0].join(place);
            put(kind, &at, outside.path());
            let (code, cause) = host.try_create().err().unwrap();
            assert_eq!(code, RefusalCode::RootfsHostile, "{place} {kind}: {cause}");
            outside.assert_untouched(&format!("{place} {kind}"));
            host.assert_nothing_left();
        }
    }
}

/// What lies below a fresh `/dev` and `/proc` is covered by them.
#[test]
fn what_an_image_has_below_its_dev_and_proc_is_never_seen() {
    for kind in KINDS {
        let script = "stat -c %F /dev/null /dev/pts /dev/shm /proc/sys; \
            cat /proc/keys; stat -c %t:%T /proc/keys; echo x > /dev/null";
        let (host, outside) = (Host::shell(script), Outside::new());
        for place in
            ["dev/null", "dev/pts", "dev/shm", "dev/ptmx", "dev/console", "proc/sys", "proc/keys"]
        {
            put(kind, &host.layers[0].join(place), outside.path());
        }
        let ended = host.run();
        let expected = "character special file\ndirectory\ndirectory\ndirectory\n1:3\n";
        assert_eq!(ended.out, expected, "{kind}: {ended:?}");
        outside.assert_untouched(kind);
    }
}

/// A link at a path that is to be hidden hides what it leads to in the container, and nothing else.
#[test]
fn a_masked_or_read_only_path_that_is_a_link_stays_inside() {
    let script = "cat /secret /etc/hidden; ls /tmp/hidden; \
        echo x > /etc/fixed/file || echo ro; cat /etc/fixed/file";
    let (mut host, outside) = (Host::shell(script), Outside::new());
    let layer = host.layers[0].clone();
    fs::write(layer.join("secret"), "secret\n").unwrap();
    symlink("../secret", layer.join("etc/hidden")).unwrap();
    symlink(outside.path(), layer.join("tmp/hidden")).unwrap();
    fs::create_dir(layer.join("usr/fixed")).unwrap();
    fs::write(layer.join("usr/fixed/file"), "fixed\n").unwrap();
    symlink("/usr/fixed", layer.join("etc/fixed")).unwrap();
    let add = |host: &mut Host, list: &str, path: &str| {
        let paths = host.plan.spec.pointer_mut(list).unwrap();
        paths.as_array_mut().unwrap().push(path.into());
    };
    add(&mut host, "/linux/maskedPaths", "/etc/hidden");
    add(&mut host, "/linux/maskedPaths", "/tmp/hidden");
    add(&mut host, "/linux/readonlyPaths", "/etc/fixed");
    let ended = host.run();
    assert_eq!(ended.out, "ro\nfixed\n", "{ended:?}");
    outside.assert_untouched("masks");
    // Through a magic link there is no knowing what would be hidden.
    let mut magic = Host::new(&["true"]);
    add(&mut magic, "/linux/maskedPaths", "/proc/self/exe");
    magic.try_create().err().unwrap();
    magic.assert_nothing_left();
}

#[test]
fn parameters_are_set_in_the_container_alone() {
    const FILE: &str = "/proc/sys/net/ipv4/ip_unprivileged_port_start";
    let before = fs::read_to_string(FILE).unwrap();
    let mut host = Host::new(&["cat", FILE]);
    host.plan.spec["linux"]["sysctl"] = json!({"net.ipv4.ip_unprivileged_port_start": "77"});
    let ended = host.run();
    assert_eq!(ended.out, "77\n", "{ended:?}");
    assert_eq!(fs::read_to_string(FILE).unwrap(), before);
    for name in ["kernel.core_pattern", "vm.overcommit_memory", "net/../kernel/core_pattern"] {
        let mut host = Host::new(&["true"]);
        host.plan.spec["linux"]["sysctl"] = json!({name: "1"});
        host.try_create().err().unwrap();
        host.assert_nothing_left();
    }
}

/// A bundle whose root somebody changes while containers are made of it.
struct Contested {
    dir: tempfile::TempDir,
    outside: Outside,
}

impl Contested {
    fn new() -> Self {
        let contested = Self { dir: tempfile::tempdir().unwrap(), outside: Outside::new() };
        let root = contested.dir.path().join("rootfs");
        busybox_root(&root);
        for dir in ["proc", "dev", "sys", "run", "data/deep"] {
            fs::create_dir_all(root.join(dir)).unwrap();
        }
        // Beside each directory waits a link that would take its place.
        for dir in EXCHANGED {
            symlink(contested.outside.path(), root.join(format!("{dir}-link"))).unwrap();
        }
        contested
    }

    fn configure(&self, sysctl_cover: bool) {
        let tmpfs = |at: &str| json!({"destination": at, "type": "tmpfs", "source": "tmpfs"});
        let mut mounts = vec![
            json!({"destination": "/proc", "type": "proc", "source": "proc"}),
            tmpfs("/dev"),
            json!({"destination": "/dev/pts", "type": "devpts", "source": "devpts"}),
            tmpfs("/run"),
            tmpfs("/data/deep/made"),
            tmpfs("/etc/made/here"),
        ];
        if sysctl_cover {
            let cover = self.dir.path().join("cover");
            fs::create_dir_all(cover.join("ipv4")).unwrap();
            fs::write(cover.join("ipv4/ip_unprivileged_port_start"), "cover's").unwrap();
            mounts.insert(
                1,
                json!({"destination": "/proc/sys/net", "source": cover, "options": ["bind"]}),
            );
        }
        let spec = json!({
            "ociVersion": "1.0.2",
            "process": {
                "user": {}, "args": ["/bin/true"], "env": ["PATH=/bin"], "cwd": "/"},
            "root": {"path": "rootfs"},
            "mounts": mounts,
            "linux": {
                "namespaces": [
                    {"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"},
                    {"type": "network"}],
                "sysctl": {"net.ipv4.ip_unprivileged_port_start": "77"},
                "maskedPaths": ["/data/deep", "/etc/passwd"],
                "readonlyPaths": ["/etc", "/run"]
            }
        });
        fs::write(self.dir.path().join("config.json"), spec.to_string()).unwrap();
    }

    /// Makes and removes a container; whether it could be made.
    fn make(&self, id: &str) -> (bool, String) {
        let log = self.dir.path().join("log");
        let oci = |args: &[&str]| {
            let mut command = Command::new(env!("CARGO_BIN_EXE_nimbus-oci"));
            command.arg("--root").arg(self.dir.path().join("state")).args(args);
            command.stdin(Stdio::null()).stdout(Stdio::null());
            command.stderr(fs::File::create(&log).unwrap()).status().unwrap().success()
        };
        let made = oci(&["create", "--bundle", self.dir.path().to_str().unwrap(), id]);
        let said = fs::read_to_string(&log).unwrap();
        assert!(oci(&["delete", "--force", id]), "{}", fs::read_to_string(&log).unwrap());
        assert!(cgroups_named(id).is_empty());
        (made, said)
    }
}

/// CVE-2021-30465, CVE-2024-45310, CVE-2025-52881: directories become links between two looks.
#[test]
fn a_directory_that_becomes_a_link_while_create_runs_leads_nowhere() {
    let contested = Contested::new();
    contested.configure(false);
    let root = contested.dir.path().join("rootfs");
    let (done, contested_now) = (AtomicBool::new(false), AtomicUsize::new(0));
    let mut made = 0;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::SeqCst) {
                let dir = EXCHANGED[contested_now.load(Ordering::SeqCst) % EXCHANGED.len()];
                let (one, other) = (root.join(dir), root.join(format!("{dir}-link")));
                for _there_and_back in 0..2 {
                    renameat_with(CWD, &one, CWD, &other, RenameFlags::EXCHANGE).unwrap();
                    sleep(EXCHANGE_PAUSE);
                }
            }
        });
        for number in 0..RACES {
            contested_now.store(number, Ordering::SeqCst);
            let (was_made, _) = contested.make(&format!("race-{}-{number}", std::process::id()));
            made += usize::from(was_made);
        }
        done.store(true, Ordering::SeqCst);
    });
    contested.outside.assert_untouched("races");
    assert!(made > 0, "none could be made, so nothing was tried");
}

/// CVE-2025-52881: something else stands where the kernel's parameters are written to.
#[test]
fn a_parameter_is_not_written_to_what_covers_it() {
    let contested = Contested::new();
    contested.configure(true);
    let (made, said) = contested.make(&format!("cover-{}", std::process::id()));
    assert!(!made && said.contains("kernel parameter"), "{said}");
    let file = contested.dir.path().join("cover/ipv4/ip_unprivileged_port_start");
    assert_eq!(fs::read_to_string(file).unwrap(), "cover's");
    contested.configure(false);
    let (made, said) = contested.make(&format!("plain-{}", std::process::id()));
    assert!(made, "{said}");
}

/// Who makes a container stands still in the middle of it, later each time, and Delete comes.
#[test]
fn a_create_that_stands_still_is_ended_by_delete() {
    const STEPS: u32 = 30;
    let mut stopped = 0;
    // Spread over what one creation takes here: milliseconds, or under emulation a second.
    let host = Host::new(&["true"]);
    let begun = Instant::now();
    let created = host.create();
    let step_time = begun.elapsed() / STEPS;
    host.delete();
    created.wait();
    for step in 0..STEPS {
        let host = Host::new(&["sleep", "100"]);
        let (fds, ..) = host.create_fds();
        let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
        let (mut child, socket) = Host::spawn();
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
        let request = serde_json::to_vec(&host.request(host.create_verb())).unwrap();
        write_frame(&socket, &request, &fds).unwrap();
        sleep(step_time * step);
        kill_process(pid, Signal::STOP).unwrap();
        let locked = host.bundle().join("record.json").exists();
        if !locked {
            // It has begun nothing, and nobody can know who it is: Delete waits for it to go on.
            kill_process(pid, Signal::CONT).unwrap();
        }
        let mut reply = host.ask(RuntimeVerb::Delete);
        if reply != RuntimeReply::Done {
            // Stopped before its record was whole: Delete has given up waiting and is asked again.
            kill_process(pid, Signal::CONT).unwrap_or_default();
            reply = host.ask(RuntimeVerb::Delete);
        }
        assert_eq!(reply, RuntimeReply::Done, "step {step}");
        if locked {
            host.assert_nothing_left();
        }
        // Ended by Delete, or too early or late for it to know.
        kill_process(pid, Signal::CONT).unwrap_or_default();
        drop(socket);
        let status = child.wait().unwrap();
        stopped += u32::from(status.code().is_none());
        host.delete();
    }
    assert!(stopped > 0, "no create was ended by Delete");
}

/// The null device in a container is not the host's node: nothing that is done to it shows there.
#[test]
fn nodes_are_the_containers_own() {
    let before = fs::metadata("/dev/null").unwrap();
    let mut host =
        Host::shell("chmod 0600 /dev/null; chown 5 /dev/null /proc/keys; stat -c %a:%u /dev/null");
    let caps = json!(["CAP_CHOWN", "CAP_FOWNER"]);
    host.edit(
        "/process/capabilities",
        json!({"bounding": caps, "effective": caps, "permitted": caps}),
    );
    let ended = host.run();
    assert!(ended.out.contains("600:5"), "{ended:?}");
    assert!(ended.err.contains("Read-only"), "{ended:?}");
    let after = fs::metadata("/dev/null").unwrap();
    assert_eq!((after.mode(), after.uid()), (before.mode(), before.uid()));
}

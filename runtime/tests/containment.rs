//! What a container can and cannot do, tried from inside it, as root on this host.
#![forbid(unsafe_code)]
#![expect(
    clippy::tests_outside_test_module,
    clippy::unwrap_used,
    reason = "all of an integration test is one"
)]

mod support;

use std::fs;
use std::io::Read as _;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt as _;

use nimbus_api::RefusalCode;
use nimbus_api::runtime::{RuntimeReply, RuntimeVerb};
use nix::unistd::Gid;
use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
use rustix::process::{WaitOptions, waitpid};
use serde_json::json;
use support::Host;

fn mount_table() -> String {
    fs::read_to_string("/proc/self/mountinfo").unwrap()
}

#[test]
fn a_program_runs_with_its_arguments_and_its_exit_status_is_its_parents_to_read() {
    let host = Host::shell("echo hello $JOB $HOME; hostname 2>/dev/null; exit 7");
    let ended = host.run();
    assert!(ended.out.starts_with("hello yes /root\n"), "{ended:?}");
    assert_eq!(ended.status.exit_status(), Some(7));
}

#[test]
fn the_hosts_mounts_are_the_same_before_during_and_after() {
    let before = mount_table();
    let host = Host::shell("echo x > /written; cat /written");
    let created = host.create();
    assert_eq!(mount_table(), before);
    assert_eq!(host.ask(RuntimeVerb::Start), RuntimeReply::Done);
    let ended = created.wait();
    assert_eq!(ended.out, "x\n", "{ended:?}");
    assert!(!host.layers[0].join("written").exists(), "a layer was written to");
    host.delete();
    assert_eq!(mount_table(), before);
}

#[test]
fn filter_privileges_and_capabilities_are_the_plans_inside() {
    let host = Host::new(&["cat", "/proc/self/status"]);
    let ended = host.run();
    for line in [
        "NoNewPrivs:\t1",
        "Seccomp:\t2",
        "Seccomp_filters:\t1",
        "CapBnd:\t00000000000000a1",
        "CapEff:\t00000000000000a1",
        "CapInh:\t0000000000000000",
        "CapAmb:\t0000000000000000",
        "SigIgn:\t0000000000000000",
        "SigBlk:\t0000000000000000",
        "Umask:\t0022",
    ] {
        assert!(ended.out.lines().any(|found| found == line), "{line} not in\n{}", ended.out);
    }
}

#[test]
fn a_user_without_root_has_no_capability_to_use() {
    let mut host = Host::shell("id -u; grep CapEff /proc/self/status; touch /etc/x || echo denied");
    host.edit("/process/user", json!({"uid": 1000, "gid": 1000}));
    host.edit("/process/capabilities", json!({"bounding": ["CAP_CHOWN"]}));
    let ended = host.run();
    assert_eq!(ended.out, "1000\nCapEff:\t0000000000000000\ndenied\n", "{ended:?}");
}

#[test]
fn devices_that_are_not_leased_cannot_be_opened_or_made() {
    let script = "echo x > /dev/null && echo null; \
        mknod /dev/gpu c 195 254 || echo no-node; \
        (exec 3</dev/ptmx) || echo no-ptmx; mknod /tmp/z c 1 5 || echo no-zero; ls /dev";
    let mut host = Host::shell(script);
    let caps = json!(["CAP_MKNOD", "CAP_DAC_OVERRIDE"]);
    host.edit(
        "/process/capabilities",
        json!({"bounding": caps, "effective": caps, "permitted": caps}),
    );
    let ended = host.run();
    for line in ["null", "no-node", "no-ptmx", "no-zero"] {
        assert!(ended.out.lines().any(|found| found == line), "{line}: {ended:?}");
    }
    assert!(!ended.out.lines().any(|line| line == "gpu"), "{ended:?}");
}

#[test]
fn a_leased_node_is_there_with_its_mode_and_its_neighbour_is_denied() {
    // Opening without a driver gives ENXIO where the kernel allows and EPERM where it denies.
    let mut host = Host::shell("cat /dev/nvidia0; cat /dev/nvidia1; stat -c %a /dev/nvidia0");
    let mut rule = host.plan.devices[0].clone();
    (rule.path, rule.major, rule.minor) = ("/dev/nvidia0".to_owned(), 195, 0);
    rule.mode = Some(0o640);
    host.plan.devices.push(rule);
    let created = host.create();
    // Made from outside after create, so that a node without a rule is there to be tried.
    let node = format!("/proc/{}/root/dev/nvidia1", created.pid);
    let (kind, mode) = (FileType::CharacterDevice, Mode::RUSR | Mode::WUSR);
    mknodat(CWD, node, kind, mode, makedev(195, 1)).unwrap();
    assert_eq!(host.ask(RuntimeVerb::Start), RuntimeReply::Done);
    let ended = created.wait();
    host.delete();
    assert!(ended.err.contains("/dev/nvidia0': No such device"), "{ended:?}");
    assert!(ended.err.contains("/dev/nvidia1': Operation not permitted"), "{ended:?}");
    assert_eq!(ended.out, "640\n");
}

#[test]
fn memory_beyond_the_lease_kills() {
    // 60 of 64 MiB, then 10 more, in places whose pages cannot be given back.
    let script = "dd if=/dev/zero of=/dev/shm/x bs=1M count=60 && echo first && \
        dd if=/dev/zero of=/big bs=1M count=10 && echo second";
    let ended = Host::shell(script).run();
    assert_eq!(ended.out, "first\n", "{ended:?}");
}

#[test]
fn scratch_space_ends_at_its_size() {
    let host = Host::shell("dd if=/dev/zero of=/big bs=1M count=30; stat -c %s /big");
    let ended = host.run();
    assert!(ended.err.contains("No space left"), "{ended:?}");
    assert_eq!(ended.out, format!("{}\n", 16 << 20));
}

#[test]
fn processes_beyond_the_lease_are_not_made() {
    let host = Host::shell("i=0; while [ $i -lt 60 ]; do sleep 5 & i=$((i+1)); done; echo all");
    let ended = host.run();
    assert!(ended.err.contains("can't fork"), "{ended:?}");
}

#[test]
fn masked_and_readonly_paths_hold() {
    let host = Host::shell(
        "cat /proc/keys /proc/timer_list; ls /proc/driver /sys/firmware; \
         echo 1 > /proc/sys/kernel/printk || echo ro; echo 1 > /sys/x || echo ro",
    );
    let ended = host.run();
    assert_eq!(ended.out, "/proc/driver:\n\n/sys/firmware:\nro\nro\n", "{ended:?}");
}

#[test]
fn the_network_is_a_loopback_that_is_up_and_nothing_else() {
    let host = Host::shell("ls /sys/class/net; ip -o link show lo");
    let ended = host.run();
    assert!(ended.out.starts_with("lo\n"), "{ended:?}");
    assert!(ended.out.contains("LOOPBACK,UP"), "{ended:?}");
}

#[test]
fn no_descriptor_but_the_three_is_inside() {
    let host = Host::shell("ls /proc/$$/fd; :");
    assert_eq!(host.run().out, "0\n1\n2\n");
}

#[test]
fn a_root_can_be_read_only() {
    let mut host = Host::shell("touch /x || echo ro; touch /run/x && echo rw");
    host.plan.rootfs.read_only = true;
    let ended = host.run();
    assert_eq!(ended.out, "ro\nrw\n", "{ended:?}");
}

#[test]
fn higher_layers_cover_lower_ones() {
    let mut host = Host::new(&["cat", "/etc/which"]);
    for n in 1..=40 {
        let layer = host.path().join(format!("layer{n}"));
        fs::create_dir_all(layer.join("etc")).unwrap();
        fs::write(layer.join("etc/which"), n.to_string()).unwrap();
        host.layers.push(layer);
        let digest = host.plan.rootfs.layers[0];
        host.plan.rootfs.layers.push(digest);
    }
    assert_eq!(host.run().out, "40");
}

#[test]
fn a_symlink_where_a_mount_point_must_be_is_refused_and_the_host_untouched() {
    for name in ["dev", "proc", "sys"] {
        let host = Host::new(&["true"]);
        // The directory on the host that the image's link names, as in CVE-2026-41579.
        let target = host.path().join("target");
        fs::create_dir(&target).unwrap();
        fs::write(target.join("ptmx"), "host's").unwrap();
        std::os::unix::fs::symlink(&target, host.layers[0].join(name)).unwrap();
        let (code, _) = host.try_create().err().unwrap();
        assert_eq!(code, RefusalCode::RootfsHostile);
        assert_eq!(fs::read_to_string(target.join("ptmx")).unwrap(), "host's");
        assert_eq!(fs::read_dir(&target).unwrap().count(), 1);
        host.assert_nothing_left();
    }
}

#[test]
fn a_file_where_a_mount_point_must_be_is_refused() {
    let host = Host::new(&["true"]);
    fs::write(host.layers[0].join("proc"), "").unwrap();
    assert_eq!(host.try_create().err().unwrap().0, RefusalCode::RootfsHostile);
    host.assert_nothing_left();
}

#[test]
fn a_home_is_not_asked_of_the_images_own_libraries() {
    let host = Host::new(&["/bin/sh", "-c", "echo $HOME"]);
    std::os::unix::fs::symlink("/etc/shadow-outside", host.layers[0].join("etc/x")).unwrap();
    fs::remove_file(host.layers[0].join("etc/passwd")).unwrap();
    std::os::unix::fs::symlink("/etc/group", host.layers[0].join("etc/passwd")).unwrap();
    assert_eq!(host.run().out, "/\n");
}

#[test]
fn programs_that_are_missing_or_not_executable_are_named_as_that() {
    let missing = Host::new(&["nothing-of-that-name"]);
    let (code, cause) = missing.try_create().err().unwrap();
    assert_eq!(code, RefusalCode::RuntimeExec, "{cause}");
    missing.assert_nothing_left();

    let garbage = Host::new(&["/bin/garbage"]);
    let path = garbage.layers[0].join("bin/garbage");
    fs::write(&path, "\u{7f}ELF and no more").unwrap();
    assert_eq!(garbage.try_create().err().unwrap().0, RefusalCode::RuntimeExec);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    let created = garbage.create();
    let RuntimeReply::Failed { refusal, .. } = garbage.ask(RuntimeVerb::Start) else {
        panic!("started");
    };
    assert_eq!(refusal.code, RefusalCode::RuntimeExec);
    assert_eq!(created.wait().status.exit_status(), Some(126));
    garbage.delete();
}

#[test]
fn a_working_directory_that_is_not_there_is_made_in_the_upper_only() {
    let mut host = Host::shell("pwd; stat -c %a .; stat -c %a /dev/..");
    std::os::unix::fs::symlink("/usr", host.layers[0].join("link")).unwrap();
    host.edit("/process/cwd", json!("/link/a/b"));
    let ended = host.run();
    assert_eq!(ended.out, "/usr/a/b\n755\n755\n", "{ended:?}");
    assert!(!host.layers[0].join("usr/a").exists());
}

#[test]
fn an_argument_with_a_zero_byte_is_refused() {
    let host = Host::new(&["echo", "a\0b"]);
    assert_eq!(host.try_create().err().unwrap().0, RefusalCode::RuntimeExec);
    host.assert_nothing_left();
}

#[test]
fn a_cgroup_namespace_hides_the_hosts_paths() {
    let mut host = Host::new(&["cat", "/proc/self/cgroup"]);
    let namespaces = host.plan.spec.pointer_mut("/linux/namespaces").unwrap();
    namespaces.as_array_mut().unwrap().push(json!({"type": "cgroup"}));
    let ended = host.run();
    assert_eq!(ended.status.exit_status(), Some(0), "{ended:?}");
    assert!(!ended.out.contains("nimbus-test-"), "{ended:?}");
}

/// CVE-2019-5736: what executes in the container is this program until it executes the job's, and a
/// file of the host must not be there to be written.
#[test]
fn a_waiting_init_runs_from_a_file_that_nobody_can_write() {
    let host = Host::shell("true");
    let created = host.create();
    let own = fs::File::open(format!("/proc/{}/exe", created.pid)).unwrap();
    let flags = rustix::fs::fstatvfs(&own).unwrap().f_flag;
    host.delete();
    assert!(flags.contains(rustix::fs::StatVfsMountFlags::RDONLY), "{flags:?}");
}

/// CVE-2024-21626 and worse: a program's path could lead through a descriptor before execve closes it.
#[test]
fn a_waiting_init_holds_nothing_of_the_host_but_channels() {
    let host = Host::shell("true");
    let created = host.create();
    let held = fs::read_dir(format!("/proc/{}/fd", created.pid)).unwrap().map(|entry| {
        let path = entry.unwrap().path();
        let number: u32 = path.file_name().unwrap().to_str().unwrap().parse().unwrap();
        (number, fs::read_link(path).unwrap().to_string_lossy().into_owned())
    });
    let held: Vec<_> = held.filter(|(number, _)| *number > 2).collect();
    host.delete();
    assert!(!held.is_empty(), "not even a channel was seen");
    for (number, target) in held {
        let channel = target.starts_with("socket:") || target.starts_with("pipe:");
        assert!(channel || target.ends_with("fifo"), "{number} is {target}");
    }
}

#[test]
fn a_program_behind_a_magic_link_is_not_found() {
    for program in ["/proc/self/exe", "/proc/1/exe", "/proc/self/root/bin/true"] {
        let host = Host::new(&[program]);
        let Err((code, detail)) = host.try_create() else { panic!("{program} was found") };
        assert_eq!(code, RefusalCode::RuntimeExec, "{program}: {detail}");
    }
}

#[test]
fn whoever_the_job_runs_as_opens_its_own_output_and_has_its_own_groups() {
    let mut host = Host::shell("echo out > /dev/stdout; id -G");
    host.edit("/process/user", json!({"uid": 1000, "gid": 1000}));
    let (mut fds, _out, _err) = host.create_fds();
    let (mut reader, writer) = std::io::pipe().unwrap();
    let at = fds.len() - 2;
    fds[at] = writer.into();
    // A containerd that was started from somebody's shell has that shell's groups.
    let before = nix::unistd::getgroups().unwrap();
    nix::unistd::setgroups(&[Gid::from_raw(6), Gid::from_raw(10)]).unwrap();
    let borrowed: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
    let reply = Host::ask_with(&host.request(host.create_verb()), &borrowed);
    nix::unistd::setgroups(&before).unwrap();
    drop(fds);
    let RuntimeReply::Created { pid, .. } = reply else { panic!("{reply:?}") };
    assert_eq!(host.ask(RuntimeVerb::Start), RuntimeReply::Done);
    let mut out = String::new();
    reader.read_to_string(&mut out).unwrap();
    waitpid(rustix::process::Pid::from_raw(pid), WaitOptions::empty()).unwrap();
    host.delete();
    assert_eq!(out, "out\n1000\n");
}

#[test]
fn output_to_nowhere_can_be_written_to() {
    let host = Host::shell("echo lost && echo lost >&2 && exit 9");
    let (mut fds, _out, _err) = host.create_fds();
    for at in [fds.len() - 2, fds.len() - 1] {
        fds[at] = fs::OpenOptions::new().write(true).open("/dev/null").unwrap().into();
    }
    let borrowed: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
    let reply = Host::ask_with(&host.request(host.create_verb()), &borrowed);
    let RuntimeReply::Created { pid, .. } = reply else { panic!("{reply:?}") };
    assert_eq!(host.ask(RuntimeVerb::Start), RuntimeReply::Done);
    let (_, status) =
        waitpid(rustix::process::Pid::from_raw(pid), WaitOptions::empty()).unwrap().unwrap();
    host.delete();
    assert_eq!(status.exit_status(), Some(9));
}

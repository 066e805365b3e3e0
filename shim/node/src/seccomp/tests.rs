//! What the programs answer, found out by running them as the kernel does.

use super::*;

/// What a program said.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    Allow,
    Errno(u32),
    Kill,
}

/// The part of the kernel's BPF machine that seccomp programs use. Anything else fails the test.
fn run(filter: &CompiledFilter, arch: u32, number: u32, args: [u64; 6]) -> Answer {
    let mut data = Vec::new();
    data.extend_from_slice(&number.to_le_bytes());
    data.extend_from_slice(&arch.to_le_bytes());
    data.extend_from_slice(&0_u64.to_le_bytes());
    for arg in args {
        data.extend_from_slice(&arg.to_le_bytes());
    }
    let word = |offset: u32| {
        let at = usize::try_from(offset).unwrap();
        u32::from_le_bytes(data[at..at + 4].try_into().unwrap())
    };
    let (mut at, mut register) = (0, 0_u32);
    loop {
        let instruction = &filter.bytes[at * 8..at * 8 + 8];
        let code = u16::from_ne_bytes(instruction[..2].try_into().unwrap());
        let (jt, jf) = (usize::from(instruction[2]), usize::from(instruction[3]));
        let k = u32::from_ne_bytes(instruction[4..].try_into().unwrap());
        at += 1;
        let mut jump = |condition: bool| at += if condition { jt } else { jf };
        match code {
            0x20 => register = word(k),
            0x54 => register &= k,
            0x05 => at += usize::try_from(k).unwrap(),
            0x15 => jump(register == k),
            0x25 => jump(register > k),
            0x35 => jump(register >= k),
            0x06 => {
                return match k & 0xffff_0000 {
                    0x7fff_0000 => Answer::Allow,
                    0x0005_0000 => Answer::Errno(k & 0xffff),
                    0x8000_0000 => Answer::Kill,
                    other => panic!("answer {other:#x}"),
                };
            }
            other => panic!("instruction {other:#x}"),
        }
    }
}

fn filter(capabilities: &[&str]) -> CompiledFilter {
    let capabilities: Vec<String> = capabilities.iter().map(|name| (*name).to_owned()).collect();
    compile(DEFAULT_PROFILE, &capabilities).unwrap()
}

fn call(filter: &CompiledFilter, name: &str, args: &[u64]) -> Answer {
    let mut all = [0; 6];
    all[..args.len()].copy_from_slice(args);
    run(filter, AUDIT_ARCH_X86_64, syscalls::number(name).unwrap(), all)
}

#[test]
fn ordinary_calls_are_allowed() {
    let filter = filter(&[]);
    for name in [
        "read",
        "write",
        "openat",
        "mmap",
        "execve",
        "fork",
        "vfork",
        "futex",
        "wait4",
        "exit_group",
        "close_range",
        "socket",
        "ioctl",
        "prctl",
        "seccomp",
        "ptrace",
        "rseq",
        "fchmodat2",
        "newfstatat",
        "clone",
        "setuid",
        "getrandom",
        "statx",
        "kill",
    ] {
        assert_eq!(call(&filter, name, &[]), Answer::Allow, "{name}");
    }
}

#[test]
fn calls_that_reach_the_host_are_denied_whatever_a_lease_says() {
    for filter in [filter(&[]), filter(&nimbus_hooks::DEFAULT_CAPABILITIES)] {
        for name in [
            "mount",
            "umount2",
            "pivot_root",
            "move_mount",
            "fsopen",
            "open_tree",
            "setns",
            "unshare",
            "keyctl",
            "add_key",
            "request_key",
            "bpf",
            "perf_event_open",
            "userfaultfd",
            "init_module",
            "finit_module",
            "delete_module",
            "kexec_load",
            "kexec_file_load",
            "reboot",
            "swapon",
            "acct",
            "syslog",
            "settimeofday",
            "clock_settime",
            "open_by_handle_at",
            "name_to_handle_at",
            "process_vm_readv",
            "pidfd_getfd",
            "iopl",
            "ioperm",
            "mbind",
            "quotactl",
            "statmount",
            "fanotify_init",
        ] {
            assert_eq!(call(&filter, name, &[]), Answer::Errno(EPERM), "{name}");
        }
    }
}

#[test]
fn arguments_that_make_a_call_dangerous_are_denied() {
    let filter = filter(&[]);
    let denied = Answer::Errno(EPERM);
    let namespaces = [
        0x0002_0000_u64,
        0x0200_0000,
        0x0400_0000,
        0x0800_0000,
        0x1000_0000,
        0x2000_0000,
        0x4000_0000,
    ];
    for flag in namespaces {
        assert_eq!(call(&filter, "clone", &[flag | 0x11]), denied, "{flag:#x}");
    }
    // CLONE_VM|FS|FILES|SIGHAND|THREAD|SYSVSEM|SETTLS|...: a thread.
    assert_eq!(call(&filter, "clone", &[0x003d_0f00]), Answer::Allow);
    for (domain, answer) in [(1, Answer::Allow), (2, Answer::Allow), (40, Answer::Errno(EPERM))] {
        assert_eq!(call(&filter, "socket", &[domain]), answer, "{domain}");
    }
    // The upper half of a 64-bit register, which the kernel ignores, must not hide the lower.
    assert_eq!(call(&filter, "socket", &[0x28 | 1 << 32]), denied);
    assert_eq!(call(&filter, "ioctl", &[0, 0x5412 | 1 << 32]), denied);
    assert_eq!(call(&filter, "ioctl", &[0, 0x5401]), Answer::Allow);
    assert_eq!(call(&filter, "personality", &[0xffff_ffff]), Answer::Allow);
    assert_eq!(call(&filter, "personality", &[0x0004_0000]), denied);
}

#[test]
fn calls_that_cannot_be_judged_do_not_exist() {
    let filter = filter(&[]);
    for name in ["clone3", "io_uring_setup", "io_uring_enter", "io_uring_register"] {
        assert_eq!(call(&filter, name, &[]), Answer::Errno(ENOSYS), "{name}");
    }
    for number in [syscalls::FIRST_UNKNOWN, 1000, 0x4000_0000, 0x4000_0000 | 0x3b, u32::MAX] {
        let answer = run(&filter, AUDIT_ARCH_X86_64, number, [0; 6]);
        assert_eq!(answer, Answer::Errno(ENOSYS), "{number:#x}");
    }
}

#[test]
fn another_architecture_is_killed() {
    let filter = filter(&[]);
    // i386, arm64 and nonsense; number 11 is execve on i386 and munmap here.
    for arch in [0x4000_0003, 0xc000_00b7, 0] {
        for number in [0, 11, 435, 9999] {
            assert_eq!(run(&filter, arch, number, [0; 6]), Answer::Kill, "{arch:#x} {number}");
        }
    }
}

#[test]
fn a_call_that_needs_a_capability_follows_the_lease() {
    assert_eq!(call(&filter(&[]), "chroot", &[]), Answer::Errno(EPERM));
    assert_eq!(call(&filter(&["CAP_SYS_CHROOT"]), "chroot", &[]), Answer::Allow);
    assert_ne!(filter(&[]).sha256, filter(&["CAP_SYS_CHROOT"]).sha256);
    assert_eq!(filter(&[]).profile_sha256, filter(&["CAP_SYS_CHROOT"]).profile_sha256);
}

#[test]
fn a_program_is_the_same_every_time_and_fits_the_kernel() {
    let filter = filter(&[]);
    assert_eq!(filter, self::filter(&[]));
    assert_eq!(filter.bytes.len(), usize::try_from(filter.instructions).unwrap() * 8);
    assert_eq!(filter.sha256, Digest::of(&filter.bytes));
    assert!(filter.instructions > 300);
}

#[test]
fn an_unknown_profile_is_refused() {
    let refusal = compile("unconfined", &[]).unwrap_err();
    assert_eq!(refusal.code, RefusalCode::LeaseUnsupported);
}

#[test]
fn every_number_is_known_once_and_below_the_unknown() {
    for pair in syscalls::SYSCALLS.windows(2) {
        assert!(pair[0].1 < pair[1].1, "{pair:?}");
    }
    assert!(syscalls::SYSCALLS.iter().all(|(_, number)| *number < syscalls::FIRST_UNKNOWN));
    // As libc has them, where it has them.
    assert_eq!(i64::from(syscalls::number("clone3").unwrap()), libc::SYS_clone3);
    assert_eq!(i64::from(syscalls::number("execveat").unwrap()), libc::SYS_execveat);
}

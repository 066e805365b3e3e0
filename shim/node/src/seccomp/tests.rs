//! What the programs answer, found out by running them as the kernel does.

use proptest::prelude::*;

use super::profile::{Condition, Test};
use super::program::{ENOSYS, EPERM};
use super::*;

/// Most instructions that are run for one call.
const STEPS_MAX: usize = 200;
const AUDIT_ARCH_X86_64: u32 = Arch::X86_64.audit();

/// What a program said.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    Allow,
    Errno(u32),
    Kill,
}

/// The part of the kernel's BPF machine that seccomp programs use. Anything else fails the test, and so
/// does a long way to the answer.
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
    for _step in 0..STEPS_MAX {
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
    panic!("no answer to {number} within {STEPS_MAX} instructions");
}

fn owned(capabilities: &[&str]) -> Vec<String> {
    capabilities.iter().map(|name| (*name).to_owned()).collect()
}

fn filter(capabilities: &[&str]) -> CompiledFilter {
    compiled(SECCOMP_DEFAULT, Arch::X86_64, capabilities)
}

fn strict(capabilities: &[&str]) -> CompiledFilter {
    compiled(SECCOMP_STRICT, Arch::X86_64, capabilities)
}

fn compiled(profile: &str, arch: Arch, capabilities: &[&str]) -> CompiledFilter {
    Source::named(profile).unwrap().compile(arch, &owned(capabilities)).unwrap()
}

fn call(filter: &CompiledFilter, name: &str, args: &[u64]) -> Answer {
    let mut all = [0; 6];
    all[..args.len()].copy_from_slice(args);
    run(filter, AUDIT_ARCH_X86_64, Arch::X86_64.number(name).unwrap(), all)
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
    for filter in [filter(&[]), strict(&[])] {
        // i386, arm64 and nonsense; number 11 is execve on i386 and munmap here.
        for arch in [0x4000_0003, 0xc000_00b7, 0] {
            for number in [0, 11, 435, 9999, 0x4000_0000] {
                assert_eq!(run(&filter, arch, number, [0; 6]), Answer::Kill, "{arch:#x} {number}");
            }
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
    assert!((100..400).contains(&filter.instructions), "{}", filter.instructions);
}

#[test]
fn an_unknown_profile_is_refused() {
    for name in ["unconfined", "", "Default", "nimbus-strict ", "../default"] {
        let refusal = compile(name, &[]).unwrap_err();
        assert_eq!(refusal.code, RefusalCode::LeaseUnsupported, "{name:?}");
    }
}

#[test]
fn every_number_is_known_once_and_below_the_unknown() {
    for arch in Arch::ALL {
        for pair in arch.table().windows(2) {
            assert!(pair[0].1 < pair[1].1, "{pair:?}");
        }
        assert!(arch.table().iter().all(|(_, number)| *number < syscalls::FIRST_UNKNOWN));
        // From the day on which all architectures got one number each.
        for (name, number) in arch.table().iter().filter(|(_, number)| *number >= 424) {
            assert_eq!(Arch::X86_64.number(name), Some(*number), "{name}");
        }
    }
    // As libc has them, where it has them.
    let native = |name| i64::from(Arch::native().unwrap().number(name).unwrap());
    assert_eq!(native("read"), libc::SYS_read);
    assert_eq!(native("clone3"), libc::SYS_clone3);
    assert_eq!(native("execveat"), libc::SYS_execveat);
    assert_eq!(native("statx"), libc::SYS_statx);
}

/// Of `ctr containers create --seccomp` of containerd 1.6.20, as a Create brings it.
const CONTAINERDS: &str =
    include_str!("../../../../hooks/lifecycle/src/tests/ctr-1.6.20-spec.json");

/// Where "default" is not containerd's, whole: what it has less, and calls that are newer.
#[test]
fn the_default_profile_is_containerds_but_for_what_is_named_here() {
    let spec: serde_json::Value = serde_json::from_str(CONTAINERDS).unwrap();
    let rules = spec.pointer("/linux/seccomp/syscalls").unwrap().as_array().unwrap();
    let allowed = |rule: &&serde_json::Value| rule["action"] == "SCMP_ACT_ALLOW";
    let theirs: Vec<&str> = rules
        .iter()
        .filter(allowed)
        .flat_map(|rule| rule["names"].as_array().unwrap())
        .filter_map(serde_json::Value::as_str)
        .filter(|name| Arch::X86_64.number(name).is_some())
        .collect();
    let profile = Source::named(SECCOMP_DEFAULT).unwrap().profile(Arch::X86_64).unwrap();
    let ours = |name: &str| {
        let number = Arch::X86_64.number(name).unwrap();
        profile.rules.iter().any(|rule| rule.number == number)
    };
    let mut less: Vec<_> = theirs.iter().filter(|name| !ours(name)).copied().collect();
    less.sort_unstable();
    assert_eq!(less, ["io_uring_enter", "io_uring_register", "io_uring_setup"]);
    let table = Arch::X86_64.table().iter().map(|(name, _)| *name);
    let more: Vec<_> = table.filter(|name| ours(name) && !theirs.contains(name)).collect();
    let newer = [
        "cachestat",
        "fchmodat2",
        "map_shadow_stack",
        "futex_wake",
        "futex_wait",
        "futex_requeue",
        "mseal",
        "setxattrat",
        "getxattrat",
        "listxattrat",
        "removexattrat",
        "file_getattr",
        "file_setattr",
    ];
    assert_eq!(more, newer);
    // And of the arguments: theirs are numbers in words of the specification.
    let conditional = |name: &str| {
        let of = |rule: &&serde_json::Value| rule["names"][0] == name && !rule["args"].is_null();
        rules.iter().filter(of).count()
    };
    for (name, count) in [("clone", 1), ("personality", 5), ("socket", 0), ("ioctl", 0)] {
        assert_eq!(conditional(name), count, "{name}");
    }
}

/// What "nimbus-strict" claims, each with arguments that "default" allows.
#[test]
fn the_strict_profile_denies_each_thing_that_it_claims() {
    let all = nimbus_hooks::DEFAULT_CAPABILITIES;
    let (lax, filter) = (filter(&all), strict(&all));
    let claims: &[(&str, &[u64], u32)] = &[
        ("ptrace", &[0], EPERM),
        ("modify_ldt", &[1], EPERM),
        ("personality", &[0x8], EPERM),
        ("personality", &[0x2_0000], EPERM),
        ("socket", &[2, 3, 1], EPERM),
        ("socket", &[2, 2, 1], EPERM),
        ("socket", &[10, 2, 58], EPERM),
        ("socket", &[2, 1, 132], EPERM),
        ("socket", &[2, 1, 262], EPERM),
        ("socket", &[2, 2, 136], EPERM),
        ("socket", &[2, 5, 132], EPERM),
        ("socket", &[2, 6, 33], EPERM),
        ("socket", &[17, 3, 0x300], EPERM),
        ("socket", &[21, 5, 0], EPERM),
        ("socket", &[29, 3, 1], EPERM),
        ("socket", &[30, 2, 0], EPERM),
        ("socket", &[31, 3, 1], EPERM),
        ("socket", &[16, 3, 12], EPERM),
        ("socketpair", &[30, 2, 0], EPERM),
        ("setsockopt", &[3, 6, 31], EPERM),
        ("setsockopt", &[3, 1, 26], EPERM),
        ("setsockopt", &[3, 1, 50], EPERM),
        ("setsockopt", &[3, 1, 51], EPERM),
        ("setsockopt", &[3, 1, 52], EPERM),
        ("ioctl", &[0, 0x5423], EPERM),
        ("msgget", &[0], EPERM),
        ("msgsnd", &[0], EPERM),
        ("msgrcv", &[0], EPERM),
        ("msgctl", &[0], EPERM),
        ("mq_open", &[0], ENOSYS),
        ("mq_notify", &[0], ENOSYS),
        ("io_setup", &[1], ENOSYS),
        ("io_submit", &[0], ENOSYS),
        ("vmsplice", &[0], EPERM),
        ("remap_file_pages", &[0], ENOSYS),
        ("memfd_secret", &[0], ENOSYS),
        ("mknod", &[0, 0x21b6], EPERM),
        ("mknod", &[0, 0x61b6], EPERM),
        ("mknodat", &[0, 0, 0x21b6], EPERM),
        ("mknodat", &[0, 0, 0x61b6], EPERM),
        ("chroot", &[0], EPERM),
        ("adjtimex", &[0], EPERM),
        ("clock_adjtime", &[0], EPERM),
        ("fanotify_mark", &[0], EPERM),
        ("process_mrelease", &[0], EPERM),
    ];
    for (name, args, errno) in claims {
        assert_eq!(call(&lax, name, args), Answer::Allow, "default: {name} {args:x?}");
        assert_eq!(call(&filter, name, args), Answer::Errno(*errno), "{name} {args:x?}");
        // What is written in the upper half of a register must hide nothing.
        let high: Vec<u64> = args.iter().map(|arg| arg | 1 << 32).collect();
        assert_eq!(call(&filter, name, &high), Answer::Errno(*errno), "{name} {high:x?}");
    }
}

#[test]
fn the_strict_profile_leaves_what_builds_and_tests_need() {
    let filter = strict(&[]);
    let cloexec = 0x8_0000;
    let needed: &[(&str, &[u64])] = &[
        ("socket", &[1, 1 | cloexec, 0]),
        ("socket", &[2, 1 | cloexec, 0]),
        ("socket", &[2, 1 | cloexec, 6]),
        ("socket", &[10, 2 | 0x800 | cloexec, 17]),
        ("socket", &[16, 3 | cloexec, 0]),
        ("socket", &[16, 3, 9]),
        ("socketpair", &[1, 1, 0]),
        ("setsockopt", &[3, 1, 2]),
        ("setsockopt", &[3, 6, 1]),
        ("setsockopt", &[3, 41, 26]),
        ("ioctl", &[0, 0x5401]),
        ("personality", &[0xffff_ffff]),
        ("mknod", &[0, 0x11a4]),
        ("mknodat", &[0, 0, 0x81a4]),
        ("clone", &[0x003d_0f00]),
        ("execve", &[]),
        ("shmget", &[]),
        ("semop", &[]),
        ("splice", &[]),
        ("memfd_create", &[]),
        ("seccomp", &[]),
        ("prctl", &[]),
        ("inotify_init1", &[]),
    ];
    for (name, args) in needed {
        assert_eq!(call(&filter, name, args), Answer::Allow, "{name} {args:x?}");
    }
}

/// What a profile says, without a program.
fn meaning(profile: &Profile, number: u32, args: [u64; 6], capabilities: &[String]) -> Answer {
    if profile.enosys.contains(&number) || number >= syscalls::FIRST_UNKNOWN {
        return Answer::Errno(ENOSYS);
    }
    let holds = |condition: &Condition| {
        let found = args[usize::from(condition.argument)] & 0xffff_ffff;
        let value = u64::from(condition.value);
        match condition.test {
            Test::Equal => found == value,
            Test::NotEqual => found != value,
            Test::Masked(mask) => found & u64::from(mask) == value & u64::from(mask),
        }
    };
    let allows = |rule: &&Rule| {
        rule.number == number
            && rule.capability.as_ref().is_none_or(|name| capabilities.contains(name))
            && rule.conditions.iter().all(holds)
    };
    if profile.rules.iter().any(|rule| allows(&rule)) {
        Answer::Allow
    } else {
        Answer::Errno(EPERM)
    }
}

/// Arguments that some rule names, their neighbours, and any.
fn argument() -> impl Strategy<Value = u64> {
    let named = prop::sample::select(vec![
        0_u64,
        1,
        2,
        3,
        5,
        6,
        8,
        9,
        10,
        16,
        17,
        26,
        31,
        38,
        40,
        50,
        51,
        52,
        132,
        0x1000,
        0x2000,
        0x5412,
        0x541c,
        0x5423,
        0x6000,
        0x8000,
        0xc000,
        0x2_0000,
        0x2_0008,
        0x3d_0f00,
        0x7e02_0000,
        0x1000_0011,
        0xffff_ffff,
    ]);
    let high = prop::sample::select(vec![0_u64, 1 << 32, 0xffff_ffff << 32]);
    prop_oneof![4 => (named, high).prop_map(|(low, high)| low | high), 1 => any::<u64>()]
}

fn one_call() -> impl Strategy<Value = (u32, [u64; 6])> {
    let conditional = ["socket", "clone", "ioctl", "setsockopt", "personality", "mknodat"];
    let hot = move |arch: Arch| conditional.map(|name| arch.number(name).unwrap());
    let hot = [hot(Arch::X86_64), hot(Arch::Aarch64)].concat();
    let number = prop_oneof![
        4 => prop::sample::select(hot),
        4 => 0..syscalls::FIRST_UNKNOWN + 8,
        1 => (0..syscalls::FIRST_UNKNOWN).prop_map(|number| number | 0x4000_0000),
        1 => any::<u32>(),
    ];
    (number, prop::array::uniform6(argument()))
}

/// Profile and architecture, each with and without the one capability that a rule asks for.
fn every_filter() -> Vec<(Profile, Arch, Vec<String>, CompiledFilter)> {
    let mut all = Vec::new();
    for name in nimbus_api::lease::SECCOMP_PROFILES {
        for arch in Arch::ALL {
            for capabilities in [&[][..], &["CAP_SYS_CHROOT"]] {
                let profile = Source::named(name).unwrap().profile(arch).unwrap();
                let filter = compiled(name, arch, capabilities);
                all.push((profile, arch, owned(capabilities), filter));
            }
        }
    }
    all
}

#[test]
fn a_program_says_what_its_profile_means_whatever_is_called() {
    let filters = every_filter();
    let config = ProptestConfig { cases: 4096, ..ProptestConfig::default() };
    proptest!(config, |(which in 0..filters.len(), (number, args) in one_call(), foreign: u32)| {
        let (profile, arch, capabilities, filter) = &filters[which];
        let found = run(filter, arch.audit(), number, args);
        prop_assert_eq!(found, meaning(profile, number, args, capabilities));
        if foreign != arch.audit() {
            prop_assert_eq!(run(filter, foreign, number, args), Answer::Kill);
        }
    });
}

#[test]
fn every_number_of_every_table_is_answered_as_meant() {
    for (profile, arch, capabilities, filter) in every_filter() {
        for number in 0..syscalls::FIRST_UNKNOWN + 2 {
            for args in [[0; 6], [1; 6], [16; 6], [u64::MAX; 6]] {
                let found = run(&filter, arch.audit(), number, args);
                let meant = meaning(&profile, number, args, &capabilities);
                assert_eq!(found, meant, "{arch:?} {number} {args:x?}");
            }
        }
    }
}

#[test]
fn nothing_that_the_strict_profile_allows_does_the_default_deny() {
    for arch in Arch::ALL {
        let all = nimbus_hooks::DEFAULT_CAPABILITIES;
        let lax = compiled(SECCOMP_DEFAULT, arch, &all);
        let filter = compiled(SECCOMP_STRICT, arch, &all);
        let config = ProptestConfig { cases: 4096, ..ProptestConfig::default() };
        proptest!(config, |((number, args) in one_call())| {
            if run(&filter, arch.audit(), number, args) == Answer::Allow {
                prop_assert_eq!(run(&lax, arch.audit(), number, args), Answer::Allow);
            }
        });
    }
}

#[test]
fn the_profiles_have_digests_of_their_own() {
    assert_ne!(filter(&[]).profile_sha256, strict(&[]).profile_sha256);
    assert_ne!(filter(&[]).sha256, strict(&[]).sha256);
    assert_ne!(filter(&[]).sha256, compiled(SECCOMP_DEFAULT, Arch::Aarch64, &[]).sha256);
}

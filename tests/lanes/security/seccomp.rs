//! Filters, from inside: a job's own machine code asks the kernel what it may, under each profile, by
//! each ABI; the same program outside of any job shows what the kernel alone would answer.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::process::Command;

use nimbus_api::RefusalCode;
use nimbus_tests::images::on_busybox;
use nimbus_tests::lab::Submission;
use nimbus_tests::lane::Case;
use nimbus_tests::probe::{self, Call, ENOSYS, EPERM};
use nimbus_tests::{Failure, Lab, Outcome, cases, ensure};

use crate::refused;

pub(crate) fn cases() -> Vec<Case> {
    let mut all = cases![shared[
        a_lease_with_an_unknown_seccomp_profile_is_refused,
        a_job_that_asks_for_an_unknown_seccomp_profile_is_refused,
    ]];
    if cfg!(target_arch = "x86_64") {
        all.extend(cases![shared[
            each_profile_denies_what_it_claims_and_no_other_abi_gives_it,
            a_call_by_the_32_bit_gate_kills_the_job,
            a_32_bit_program_is_killed,
        ]]);
    }
    all
}

/// Bit 30: the x32 ABI.
const X32: u64 = 0x4000_0000;
/// A descriptor that nobody has.
const NO_FD: u64 = 0xffff_ffff;
const SIGSYS: i32 = nix::sys::signal::Signal::SIGSYS as i32;

/// A call, and what each profile says to it; none is "not the filter's answer".
struct Trial(&'static str, u64, &'static [u64], Option<char>, Option<char>);

/// With arguments that the kernel itself refuses in other words, or that do nothing.
const TRIALS: &[Trial] = &[
    // Denied by both.
    Trial("mount", 165, &[], Some(EPERM), Some(EPERM)),
    Trial("umount2", 166, &[], Some(EPERM), Some(EPERM)),
    Trial("pivot_root", 155, &[], Some(EPERM), Some(EPERM)),
    Trial("move_mount", 429, &[NO_FD, 0, NO_FD], Some(EPERM), Some(EPERM)),
    Trial("open_tree", 428, &[NO_FD], Some(EPERM), Some(EPERM)),
    Trial("fsopen", 430, &[], Some(EPERM), Some(EPERM)),
    Trial("unshare nothing", 272, &[], Some(EPERM), Some(EPERM)),
    Trial("unshare a user namespace", 272, &[0x1000_0000], Some(EPERM), Some(EPERM)),
    Trial("setns", 308, &[NO_FD], Some(EPERM), Some(EPERM)),
    Trial("add_key", 248, &[], Some(EPERM), Some(EPERM)),
    Trial("request_key", 249, &[], Some(EPERM), Some(EPERM)),
    Trial("keyctl", 250, &[0xff], Some(EPERM), Some(EPERM)),
    Trial("bpf", 321, &[0xff], Some(EPERM), Some(EPERM)),
    Trial("perf_event_open", 298, &[], Some(EPERM), Some(EPERM)),
    Trial("userfaultfd", 323, &[0xff], Some(EPERM), Some(EPERM)),
    Trial("init_module", 175, &[], Some(EPERM), Some(EPERM)),
    Trial("finit_module", 313, &[NO_FD], Some(EPERM), Some(EPERM)),
    Trial("kexec_load", 246, &[0, 99], Some(EPERM), Some(EPERM)),
    Trial("open_by_handle_at", 304, &[NO_FD], Some(EPERM), Some(EPERM)),
    Trial("process_vm_readv", 310, &[0x7fff_ffff], Some(EPERM), Some(EPERM)),
    Trial("pidfd_getfd", 438, &[NO_FD], Some(EPERM), Some(EPERM)),
    Trial("kcmp", 312, &[], Some(EPERM), Some(EPERM)),
    Trial("iopl", 172, &[9], Some(EPERM), Some(EPERM)),
    Trial("AF_VSOCK", 41, &[40, 0xf], Some(EPERM), Some(EPERM)),
    Trial("AF_ALG", 41, &[38, 0xf], Some(EPERM), Some(EPERM)),
    Trial("TIOCSTI", 16, &[NO_FD, 0x5412], Some(EPERM), Some(EPERM)),
    Trial("TIOCSTI, hidden", 16, &[NO_FD, 0x5412 | 1 << 32], Some(EPERM), Some(EPERM)),
    Trial("no randomised addresses", 135, &[0x4_0000], Some(EPERM), Some(EPERM)),
    Trial("clone3", 435, &[], Some(ENOSYS), Some(ENOSYS)),
    Trial("io_uring_setup", 425, &[], Some(ENOSYS), Some(ENOSYS)),
    // Taken away by the stricter one.
    Trial("ptrace", 101, &[16, 0x7fff_ffff], None, Some(EPERM)),
    Trial("modify_ldt", 154, &[0xff], None, Some(EPERM)),
    Trial("PER_LINUX32", 135, &[0x8], None, Some(EPERM)),
    Trial("SCTP", 41, &[2, 1, 132], None, Some(EPERM)),
    Trial("UDP-Lite", 41, &[2, 2, 136], None, Some(EPERM)),
    Trial("Bluetooth", 41, &[31, 3], None, Some(EPERM)),
    Trial("kernel events", 41, &[16, 3, 15], None, Some(EPERM)),
    Trial("a pair of another family", 53, &[30, 2], None, Some(EPERM)),
    Trial("TCP_ULP", 54, &[NO_FD, 6, 31], None, Some(EPERM)),
    Trial("SO_ATTACH_FILTER", 54, &[NO_FD, 1, 26], None, Some(EPERM)),
    Trial("TIOCSETD", 16, &[NO_FD, 0x5423], None, Some(EPERM)),
    Trial("msgget", 68, &[], None, Some(EPERM)),
    Trial("mq_open", 240, &[], None, Some(ENOSYS)),
    Trial("io_setup", 206, &[1], None, Some(ENOSYS)),
    Trial("vmsplice", 278, &[NO_FD], None, Some(EPERM)),
    Trial("remap_file_pages", 216, &[], None, Some(ENOSYS)),
    Trial("a character device", 133, &[0, 0x21b6], None, Some(EPERM)),
    Trial("a block device", 259, &[NO_FD, 0, 0x61b6], None, Some(EPERM)),
    Trial("adjtimex", 159, &[], None, Some(EPERM)),
    Trial("clock_adjtime", 305, &[], None, Some(EPERM)),
    Trial("fanotify_mark", 301, &[NO_FD], None, Some(EPERM)),
    Trial("process_mrelease", 448, &[NO_FD], None, Some(EPERM)),
    // Left by both.
    Trial("getpid", 39, &[], None, None),
    Trial("TCP", 41, &[2, 1, 6], None, None),
    Trial("UDP over IPv6", 41, &[10, 2, 17], None, None),
    Trial("netlink for routes", 41, &[16, 3, 0], None, None),
    Trial("SO_REUSEADDR", 54, &[NO_FD, 1, 2], None, None),
    Trial("a fifo", 133, &[0, 0x11a4], None, None),
    // The kernel itself may not have x32; that the filter would answer is in its own tests.
    Trial("x32 getpid", X32 + 39, &[], Some(ENOSYS), Some(ENOSYS)),
    Trial("x32 mount", X32 + 165, &[], Some(ENOSYS), Some(ENOSYS)),
    Trial("x32 ptrace", X32 + 521, &[16, 0x7fff_ffff], Some(ENOSYS), Some(ENOSYS)),
    Trial("a number that nobody has", 1000, &[], Some(ENOSYS), Some(ENOSYS)),
];

fn each_profile_denies_what_it_claims_and_no_other_abi_gives_it(lab: &mut Lab) -> Outcome {
    let calls: Vec<_> = TRIALS
        .iter()
        .map(|Trial(_, number, given, ..)| {
            let mut args = [0; 6];
            args.iter_mut().zip(*given).for_each(|(arg, value)| *arg = *value);
            Call { number: *number, args }
        })
        .collect();
    let program = probe::program(&calls);
    let outside = Command::new(written(lab, "probe", &program)?).output()?;
    let outside = String::from_utf8(outside.stdout)?;
    let lax = inside(lab, &program, None)?;
    let strict = inside(lab, &program, Some("nimbus-strict"))?;
    for text in [&outside, &lax, &strict] {
        ensure!(text.trim_end().len() == TRIALS.len(), "{} answers: {text:?}", text.len());
    }
    let answers = outside.chars().zip(lax.chars()).zip(strict.chars());
    for (trial, ((outside, lax), strict)) in TRIALS.iter().zip(answers) {
        let Trial(what, number, _, by_default, by_strict) = trial;
        for (profile, found, wanted) in
            [("default", lax, by_default), ("nimbus-strict", strict, by_strict)]
        {
            match wanted {
                Some(wanted) => {
                    ensure!(found == *wanted, "{what} under {profile}: found {found:?}");
                }
                // What the kernel has not got stays absent; it is never EPERM.
                None => ensure!(found != EPERM, "{what} is denied under {profile}"),
            }
        }
        // Root outside is answered otherwise: what denied inside was the filter.
        let absent = *number & X32 != 0 || *number == 1000;
        ensure!(absent || outside != EPERM, "{what} proves nothing: denied outside too");
        let said_anyway =
            [by_default, by_strict].into_iter().all(|wanted| *wanted == Some(outside));
        ensure!(absent || !said_anyway, "{what} proves nothing: outside says the same");
    }
    Ok(())
}

fn a_call_by_the_32_bit_gate_kills_the_job(lab: &mut Lab) -> Outcome {
    killed(lab, "gate", &probe::by_the_32_bit_gate())
}

fn a_32_bit_program_is_killed(lab: &mut Lab) -> Outcome {
    killed(lab, "i386", &probe::of_32_bits())
}

/// Outside the program ends as it says, or as a kernel without 32-bit calls lets it; inside it is
/// killed by SIGSYS under either profile.
fn killed(lab: &mut Lab, name: &str, program: &[u8]) -> Outcome {
    if let Ok(outside) = Command::new(written(lab, name, program)?).status() {
        let ended = outside.code() == Some(probe::ENDED);
        ensure!(ended || outside.signal() == Some(11), "outside: {outside}");
    }
    for profile in [None, Some("nimbus-strict")] {
        let submission = submission(lab, program, profile)?;
        let job = lab.submit(&submission)?.job()?;
        lab.wait_ended(&job)?.expect_exit(i64::from(128 + SIGSYS))?;
    }
    Ok(())
}

/// A lease of a stolen control may name any profile; the node compiles those that it has.
fn a_lease_with_an_unknown_seccomp_profile_is_refused(lab: &mut Lab) -> Outcome {
    for name in ["unconfined", "", "nimbus-strict2"] {
        refused(lab, RefusalCode::LeaseUnsupported, |attack| {
            name.clone_into(&mut attack.claims.seccomp.profile);
            Ok(())
        })?;
    }
    Ok(())
}

fn a_job_that_asks_for_an_unknown_seccomp_profile_is_refused(lab: &mut Lab) -> Outcome {
    let mut submission = lab.good(&["/bin/true"])?;
    submission.seccomp = Some("unconfined".to_owned());
    let said = lab.try_submit(&submission)?;
    // By nimbusctl itself, which names it.
    ensure!(said.code == Some(2) && said.stderr.contains("unconfined"), "it was taken: {said:?}");
    Ok(())
}

fn written(lab: &Lab, name: &str, program: &[u8]) -> Result<std::path::PathBuf, Failure> {
    let path = lab.path(&format!("files/{name}"));
    fs::write(&path, program)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    Ok(path)
}

fn submission(lab: &mut Lab, program: &[u8], profile: Option<&str>) -> Result<Submission, Failure> {
    let layer = nimbus_forge::image::Layer::new().file("probe", 0o755, program);
    let image = lab.publish("apps/probe", &on_busybox(layer)?.build()?)?;
    let bundle = image.attested(lab.keys())?;
    let mut submission = Submission::of(&image, vec![bundle], &["/probe"]);
    submission.seccomp = profile.map(str::to_owned);
    Ok(submission)
}

/// The program's output as a job.
fn inside(lab: &mut Lab, program: &[u8], profile: Option<&str>) -> Result<String, Failure> {
    let submission = submission(lab, program, profile)?;
    let job = lab.submit(&submission)?.job()?;
    lab.wait_ended(&job)?.expect_exit(0)?;
    lab.output(&job)
}

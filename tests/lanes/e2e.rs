//! Lane `e2e`: the whole way of a job, from `nimbusctl` to the kernel and back, with the real
//! programs, containerd and registry.
#![forbid(unsafe_code)]

#[path = "e2e/systemd.rs"]
mod systemd;

use std::fs;
use std::process::{ExitCode, Stdio};

use nimbus_api::RefusalCode;
use nimbus_api::dsse::SigningKey;
use nimbus_api::receipt::Receipt;
use nimbus_tests::ctl::{field, find};
use nimbus_tests::ctr::Said;
use nimbus_tests::failure::During as _;
use nimbus_tests::images::{Published, busybox_with};
use nimbus_tests::lab::Submission;
use nimbus_tests::mint::{self, at};
use nimbus_tests::wait::until;
use nimbus_tests::{Failure, Lab, Outcome, Setting, cases, ensure, lane, proc};
use serde_json::Value;
use systemd::a_reload_of_systemd_changes_nothing_for_a_running_job;

fn main() -> ExitCode {
    lane::main(
        "e2e",
        &cases![
            shared[
                the_output_of_a_job_reaches_the_person_who_submitted_it,
                a_failing_job_is_done_with_its_exit_code,
                a_program_that_is_not_in_the_image_is_refused_with_its_reason,
                output_can_be_followed_while_the_job_runs,
                the_same_request_gives_the_same_job,
                a_list_shows_every_job_once_and_the_newest_first,
                a_cancelled_job_ends_and_leaves_nothing,
                a_job_that_runs_too_long_is_ended,
                a_job_sees_only_what_its_lease_gives,
                an_image_in_an_oci_layout_runs,
                an_image_behind_an_index_runs,
                a_young_logged_attestation_is_enough,
                an_image_attested_by_nimbusctl_runs,
                a_receipt_says_what_ran_and_verifies,
                another_orgs_job_is_as_if_it_were_not_there,
                a_tag_that_moves_after_submit_changes_nothing,
                a_real_time_signal_reaches_the_program,
                a_container_can_be_asked_for_again_at_once,
                a_list_of_nodes_shows_which_policy_is_in_force,
                what_a_job_may_write_is_limited_on_disk_and_in_memory,
                a_reload_of_systemd_changes_nothing_for_a_running_job,
            ]
            own(short_leases)[
                a_running_jobs_lease_is_extended,
                a_job_whose_node_agent_is_dead_ends_at_its_deadline,
            ]
        ],
    )
}

fn short_leases() -> Setting {
    Setting { lease_ttl: 12, lease_extension: 3, ..Setting::default() }
}

fn run(lab: &mut Lab, submission: &Submission) -> Result<(String, String), Failure> {
    let job = lab.submit(submission)?.job()?;
    lab.wait_ended(&job)?.expect_exit(0)?;
    let output = lab.output(&job)?;
    Ok((job, output))
}

fn the_output_of_a_job_reaches_the_person_who_submitted_it(lab: &mut Lab) -> Outcome {
    let mut submission = lab.good(&["/bin/sh", "-c", "echo $GREETING; pwd"])?;
    submission.env.push("GREETING=hello there".to_owned());
    let (job, output) = run(lab, &submission)?;
    ensure!(output == "hello there\n/\n", "found {output:?}");
    lab.nothing_left_of(&format!("{job}-1"))
}

/// More than the job's memory fits on disk, and neither is more than leased.
fn what_a_job_may_write_is_limited_on_disk_and_in_memory(lab: &mut Lab) -> Outcome {
    let script = "dd if=/dev/zero of=/big bs=1M 2>/dev/null; wc -c < /big";
    for (in_memory, most) in [(false, 48 << 20), (true, 8 << 20)] {
        let mut submission = lab.good(&["/bin/sh", "-c", script])?;
        submission.scratch = Some(format!("{}MiB", most >> 20));
        submission.scratch_in_memory = in_memory;
        let (job, output) = run(lab, &submission)?;
        let written: u64 = output.lines().next().unwrap_or_default().parse().unwrap_or(0);
        ensure!(written > most * 3 / 4 && written <= most, "found {output:?}");
        lab.nothing_left_of(&format!("{job}-1"))?;
    }
    Ok(())
}

fn a_failing_job_is_done_with_its_exit_code(lab: &mut Lab) -> Outcome {
    let submission = lab.good(&["/bin/sh", "-c", "exit 7"])?;
    let job = lab.submit(&submission)?.job()?;
    let ended = lab.wait_ended(&job)?;
    ended.expect_exit(7)?;
    ensure!(ended.attempts().len() == 1, "it was tried again: {}", ended.job);
    Ok(())
}

fn a_real_time_signal_reaches_the_program(lab: &mut Lab) -> Outcome {
    let script = "trap 'exit 7' 40; echo ready; while :; do sleep 0.1; done";
    let submission = lab.good(&["/bin/sh", "-c", script])?;
    let job = lab.submit(&submission)?.job()?;
    until("the program is ready", || Ok(lab.output(&job)?.contains("ready").then_some(())))?;
    lab.ctr().ask(&["task", "kill", "--signal", "40", &format!("{job}-1")])?.good()?;
    lab.wait_ended(&job)?.expect_exit(7)
}

/// The server of the one before may be on its way out still: nobody is sent to it.
fn a_container_can_be_asked_for_again_at_once(lab: &mut Lab) -> Outcome {
    let attack = lab.specimen()?.attack()?;
    let spec = attack.spec.to_string().into_bytes();
    for _ in 0..10 {
        let said = lab.ctr().run(&attack.id, &spec, &[])?;
        ensure!(said.refusal() == Some(RefusalCode::LeaseMissing), "found {said:?}");
    }
    lab.nothing_left_of(&attack.id)
}

fn a_program_that_is_not_in_the_image_is_refused_with_its_reason(lab: &mut Lab) -> Outcome {
    let submission = lab.good(&["/no/such/program"])?;
    lab.outcome(&submission)?.expect_refused(RefusalCode::RuntimeExec)
}

fn output_can_be_followed_while_the_job_runs(lab: &mut Lab) -> Outcome {
    let script = "for i in 1 2 3 4 5; do echo $i; sleep 0.3; done";
    let submission = lab.good(&["/bin/sh", "-c", script])?;
    let job = lab.submit(&submission)?.job()?;
    let mut command = lab.ctl().command(&["logs", "--follow", &job]);
    let follower = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
    let output = follower.wait_with_output()?;
    ensure!(output.stdout == b"1\n2\n3\n4\n5\n", "found {:?}", output.stdout);
    lab.wait_ended(&job)?.expect_exit(0)
}

fn the_same_request_gives_the_same_job(lab: &mut Lab) -> Outcome {
    let mut submission = lab.good(&["/bin/true"])?;
    submission.request_id = Some("01980000-0000-7000-8000-000000000001".to_owned());
    let first = lab.submit(&submission)?.job()?;
    let again = lab.submit(&submission)?.job()?;
    ensure!(first == again, "found {first} and {again}");
    submission.args.push("other".to_owned());
    let said = lab.try_submit(&submission)?;
    ensure!(said.refusal() == Some(RefusalCode::RequestConflict), "found {said:?}");
    lab.wait_ended(&first)?.expect_exit(0)
}

fn a_list_shows_every_job_once_and_the_newest_first(lab: &mut Lab) -> Outcome {
    let submission = lab.good(&["/bin/true"])?;
    let mut submitted = Vec::new();
    for _ in 0..5 {
        submitted.push(lab.submit(&submission)?.job()?);
    }
    for job in &submitted {
        lab.wait_ended(job)?.expect_exit(0)?;
    }
    let listed = list(lab, "500")?;
    for job in &submitted {
        let times = listed.iter().filter(|listed| *listed == job).count();
        ensure!(times == 1, "{job} is listed {times} times");
    }
    let newest: Vec<_> = submitted.iter().rev().take(2).cloned().collect();
    let first = list(lab, "2")?;
    ensure!(first == newest, "expected {newest:?}, found {first:?}");
    Ok(())
}

/// The ids of the newest jobs.
fn list(lab: &Lab, limit: &str) -> Result<Vec<String>, Failure> {
    let page = lab.ctl().json(&["list", "--limit", limit])?;
    let jobs: Vec<Value> = field(&page, "jobs")?;
    jobs.iter().map(|job| field(job, "id")).collect()
}

fn a_cancelled_job_ends_and_leaves_nothing(lab: &mut Lab) -> Outcome {
    let submission = lab.good(&["/bin/sleep", "600"])?;
    let job = lab.submit(&submission)?.job()?;
    let id = lab.wait_running(&job)?;
    lab.cancel(&job)?;
    let ended = lab.wait_ended(&job)?;
    ensure!(ended.state == "CANCELLED", "found {}", ended.job);
    ensure!(ended.code == Some(RefusalCode::JobCancelled), "found {}", ended.job);
    lab.nothing_left_of(&id)
}

fn a_job_that_runs_too_long_is_ended(lab: &mut Lab) -> Outcome {
    let mut submission = lab.good(&["/bin/sleep", "600"])?;
    submission.max_runtime = Some(2);
    lab.outcome(&submission)?.expect_refused(RefusalCode::JobRuntime)
}

fn a_job_sees_only_what_its_lease_gives(lab: &mut Lab) -> Outcome {
    let script = "grep -E '^(Seccomp|NoNewPrivs):' /proc/self/status; echo pid $$; \
                  echo net $(ls /sys/class/net 2>/dev/null); ls /dev | sort | tr '\\n' ' '; echo; \
                  mount -t tmpfs tmpfs /tmp 2>/dev/null && echo mounted; \
                  mknod /tmp/mem c 1 1 2>/dev/null && head -c 1 /tmp/mem 2>/dev/null | wc -c | grep 1; \
                  ls /proc/1/root/etc/which";
    let submission = lab.good(&["/bin/sh", "-c", script])?;
    let (_job, output) = run(lab, &submission)?;
    for wanted in ["NoNewPrivs:\t1", "Seccomp:\t2", "pid 1", "/proc/1/root/etc/which"] {
        ensure!(output.contains(wanted), "no {wanted:?} in {output:?}");
    }
    ensure!(!output.contains("mounted"), "it could mount: {output:?}");
    let net = output.lines().find_map(|line| line.strip_prefix("net ")).unwrap_or_default();
    ensure!(net.split(' ').all(|device| device.is_empty() || device == "lo"), "found {net:?}");
    for forbidden in ["kmsg", "mem", "sda", "nvidia", "fuse", "kvm"] {
        let seen = output.split_whitespace().any(|word| word == forbidden);
        ensure!(!seen, "it has /dev/{forbidden}: {output:?}");
    }
    Ok(())
}

fn an_image_in_an_oci_layout_runs(lab: &mut Lab) -> Outcome {
    let dir = lab.path("layouts/hello");
    let digest = busybox_with("from a layout")?.write_layout(&dir, "latest")?;
    let image = Published { name: format!("oci:{}", dir.display()), digest };
    let bundle = image.attested(lab.keys())?;
    let submission = Submission::of(&image, vec![bundle], &["/bin/cat", "/etc/which"]);
    let (_job, output) = run(lab, &submission)?;
    ensure!(output == "from a layout", "found {output:?}");
    Ok(())
}

fn an_image_behind_an_index_runs(lab: &mut Lab) -> Outcome {
    let layer = nimbus_forge::image::Layer::new().file("etc/which", 0o644, "from an index");
    let built = nimbus_tests::images::on_busybox(layer)?.with_index().build()?;
    let image = lab.publish("apps/index", &built)?;
    let bundle = image.attested(lab.keys())?;
    let submission = Submission::of(&image, vec![bundle], &["/bin/cat", "/etc/which"]);
    let (_job, output) = run(lab, &submission)?;
    ensure!(output == "from an index", "found {output:?}");
    Ok(())
}

fn a_young_logged_attestation_is_enough(lab: &mut Lab) -> Outcome {
    let image = lab.publish("fresh/young", &busybox_with("young")?)?;
    let bundle = image.logged(lab.keys(), at(-60))?;
    run(lab, &Submission::of(&image, vec![bundle], &["/bin/true"])).map(drop)
}

fn an_image_attested_by_nimbusctl_runs(lab: &mut Lab) -> Outcome {
    let image = lab.unattested("by-nimbusctl")?;
    let key = lab.path("files/release.key");
    fs::write(&key, lab.keys().release.private_pem()?)?;
    let out = lab.path("files/by-nimbusctl.json");
    lab.ctl().attest(&image.reference(), &key, &out)?;
    let bundle = fs::read(&out)?;
    run(lab, &Submission::of(&image, vec![bundle], &["/bin/true"])).map(drop)
}

fn a_receipt_says_what_ran_and_verifies(lab: &mut Lab) -> Outcome {
    let submission = lab.good(&["/bin/true"])?;
    let (job, _output) = run(lab, &submission)?;
    let shown = lab.job(&job)?;
    let receipt = nimbus_tests::ctl::receipt(&shown)?;
    let text = fs::read_to_string(lab.node_dir().join("identity.key"))?;
    let key = SigningKey::from_file_text(&text)?.verifying_key();
    let receipt = Receipt::verify(&receipt, &key)?;
    let [subject] = &receipt.subject;
    let digest = lab.hello()?.digest;
    ensure!(subject.digest.sha256 == digest.hex(), "it is about {}", subject.digest.sha256);
    ensure!(receipt.predicate.job.as_str() == job, "it names {}", receipt.predicate.job);
    ensure!(receipt.predicate.policy_serial == lab.serial(), "found {receipt:?}");
    Ok(())
}

fn another_orgs_job_is_as_if_it_were_not_there(lab: &mut Lab) -> Outcome {
    let submission = lab.good(&["/bin/true"])?;
    let (job, _output) = run(lab, &submission)?;
    let file = lab.path("files/stranger.json");
    if !file.exists() {
        let mut command = std::process::Command::new(lab.program("nimbus-control"));
        command.arg("credentials").arg("--data-dir").arg(lab.control_dir());
        command.args(["--org", "strangers", "--user", "eve", "--out"]).arg(&file);
        Said::by(&mut command)?.good().during("nimbus-control credentials")?;
    }
    let eve = lab.ctl().with_credentials(&file);
    for verb in ["get", "logs", "cancel"] {
        let name = format!("orgs/default/jobs/{job}");
        let said = eve.run(&[verb, &name])?;
        ensure!(said.refusal() == Some(RefusalCode::JobNotFound), "{verb}: {said:?}");
    }
    let absent = eve.run(&["get", &format!("orgs/default/jobs/{}", mint::job_id()?)])?;
    ensure!(absent.refusal() == Some(RefusalCode::JobNotFound), "found {absent:?}");
    Ok(())
}

fn a_tag_that_moves_after_submit_changes_nothing(lab: &mut Lab) -> Outcome {
    let first = lab.publish("apps/moving", &busybox_with("first")?)?;
    let bundle = first.attested(lab.keys())?;
    let mut submission = Submission::of(&first, vec![bundle], &["/bin/cat", "/etc/which"]);
    submission.image = format!("{}:latest", first.name);
    lab.stop_node()?;
    let job = lab.submit(&submission)?.job()?;
    let second = lab.publish("apps/moving", &busybox_with("second")?)?;
    ensure!(first.digest != second.digest, "the two images are one");
    lab.start_node()?;
    lab.wait_connected()?;
    lab.wait_ended(&job)?.expect_exit(0)?;
    let output = lab.output(&job)?;
    ensure!(output == "first", "found {output:?}");
    Ok(())
}

fn a_list_of_nodes_shows_which_policy_is_in_force(lab: &mut Lab) -> Outcome {
    lab.apply_policy()?;
    let (ctl, serial) = (lab.ctl(), lab.serial());
    until("the node to be listed with its new policy", || {
        let nodes = ctl.json(&["node", "list"])?;
        let found = find(&nodes, "policy_serial").and_then(Value::as_u64);
        Ok((found == Some(serial)).then_some(()))
    })
}

fn a_running_jobs_lease_is_extended(lab: &mut Lab) -> Outcome {
    let submission = lab.good(&["/bin/sleep", "30"])?;
    let job = lab.submit(&submission)?.job()?;
    let ended = lab.wait_ended(&job)?;
    ended.expect_exit(0)?;
    ensure!(ended.attempts().len() == 1, "it was tried again: {}", ended.job);
    Ok(())
}

fn a_job_whose_node_agent_is_dead_ends_at_its_deadline(lab: &mut Lab) -> Outcome {
    let mut submission = lab.good(&["/bin/sleep", "600"])?;
    submission.max_attempts = Some(1);
    let job = lab.submit(&submission)?.job()?;
    let id = lab.wait_running(&job)?;
    lab.kill_node()?;
    until("the job's processes to be gone while no agent runs", || {
        Ok(proc::inside(&id).is_empty().then_some(()))
    })?;
    lab.start_node()?;
    lab.wait_connected()?;
    let ended = lab.wait_ended(&job)?;
    ensure!(ended.state == "DEAD", "found {}", ended.job);
    lab.nothing_left_of(&id)
}

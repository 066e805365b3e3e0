//! Output in the format that kubelet reads.

use std::fs;
use std::time::Duration;

use k8s_cri::v1::ReopenContainerLogRequest;
use nimbus_tests::cri::log::Entry;
use nimbus_tests::cri::{Handler, Node, Seen, log};
use nimbus_tests::wait::{until, until_within};
use nimbus_tests::{Failure, Lab, ensure};

use crate::{Scenario, scenarios};

/// Lines that are written by the thousand.
const MANY: usize = 3_000;

pub(crate) fn scenarios() -> Vec<(&'static str, Scenario)> {
    scenarios![
        both_streams_are_logged_line_by_line,
        a_long_line_is_logged_in_parts,
        a_log_is_rotated_without_losing_a_line,
        nothing_is_lost_of_much_output,
    ]
}

fn brief(entries: &[Entry]) -> Vec<String> {
    entries.iter().map(Entry::brief).collect()
}

fn both_streams_are_logged_line_by_line(lab: &mut Lab, handler: Handler) -> Result<Seen, Failure> {
    let node = Node::of(lab, handler)?;
    let mut seen = Seen::default();
    let pod = node.pod("streams")?;
    let script = "echo one; echo; echo two words; echo oops >&2; printf 'no end'";
    let container = pod.sh("main", script)?;
    container.ended()?;
    let entries = until("both streams to be logged", || {
        let entries = container.output()?;
        Ok((entries.len() >= 5).then_some(entries))
    })?;
    let of = |stream: &str| -> Vec<_> {
        let of_it = entries.iter().filter(|entry| entry.stream == stream);
        of_it.map(Entry::brief).collect()
    };
    let out = of("stdout");
    ensure!(out.starts_with(&["stdout F one".to_owned()]), "found {out:?}");
    ensure!(of("stderr") == ["stderr F oops"], "found {entries:?}");
    seen.note("stdout", out);
    pod.end()?;
    Ok(seen)
}

fn a_long_line_is_logged_in_parts(lab: &mut Lab, handler: Handler) -> Result<Seen, Failure> {
    let node = Node::of(lab, handler)?;
    let mut seen = Seen::default();
    let pod = node.pod("long")?;
    let container = pod.sh("main", "head -c 40000 /dev/zero | tr '\\0' x; echo; echo end")?;
    container.ended()?;
    container.says("end")?;
    let entries = container.output()?;
    let length: usize = entries.iter().map(|entry| entry.text.len()).sum();
    ensure!(length == 40_003, "there are {length} bytes: {:?}", brief(&entries));
    ensure!(entries.iter().any(|entry| !entry.full), "it is one part: {:?}", brief(&entries));
    seen.note("entries", brief(&entries));
    pod.end()?;
    Ok(seen)
}

fn a_log_is_rotated_without_losing_a_line(
    lab: &mut Lab,
    handler: Handler,
) -> Result<Seen, Failure> {
    let node = Node::of(lab, handler)?;
    let mut seen = Seen::default();
    let pod = node.pod("rotated")?;
    let script = "i=0; while :; do i=$((i+1)); echo line $i; sleep 0.01; done";
    let config = pod.wish("main", script)?;
    let container = pod.start(&config)?;
    container.says("line 5")?;
    let log = pod.log(&config);
    let old = log.with_extension("log.1");
    fs::rename(&log, &old)?;
    let container_id = container.id().to_owned();
    node.cri().reopen_container_log(ReopenContainerLogRequest { container_id })?;
    until("lines in the new log", || Ok((container.output()?.len() > 5).then_some(())))?;
    container.stop(0)?;
    container.ended()?;
    let entries = [log::read(&old)?, container.output()?].concat();
    for (number, entry) in entries.iter().enumerate() {
        let wanted = format!("line {}", number + 1);
        ensure!(entry.text == wanted, "expected {wanted:?}, found {entry:?}");
    }
    seen.note("rotated", true);
    pod.end()?;
    Ok(seen)
}

fn nothing_is_lost_of_much_output(lab: &mut Lab, handler: Handler) -> Result<Seen, Failure> {
    let node = Node::of(lab, handler)?;
    let mut seen = Seen::default();
    let pod = node.pod("talkative")?;
    let container = pod.sh("main", &format!("seq {MANY}; exit 9"))?;
    let ended = container.ended()?;
    ensure!(ended.exit_code == 9, "found {ended:?}");
    let mut last = Vec::new();
    let all = until_within("the last line to be logged", Duration::from_secs(10), || {
        last = container.output()?;
        Ok((last.len() >= MANY).then_some(()))
    });
    ensure!(all.is_ok(), "there are {} lines, the last is {:?}", last.len(), last.last());
    let entries = last;
    let wrong = entries.iter().zip(1..).find(|(entry, number)| entry.text != number.to_string());
    ensure!(wrong.is_none(), "found {wrong:?}");
    seen.note("entries", entries.len());
    pod.end()?;
    Ok(seen)
}

//! Lane `network` (part of `security`): what a job with an allow-list reaches, tried from inside it, and
//! what it does not.
//!
//! The whole lane lives in a network namespace of its own, which ends with it: the "node" is that namespace,
//! and what jobs may or may not reach are web servers in it and in a second one, the "world". The host's
//! devices, routes, rules and parameters are never touched. That a server can be reached at all is shown
//! first, from the node, so that a refusal is one.
#![forbid(unsafe_code)]

use std::fs;
use std::process::{Command, ExitCode};

use nimbus_api::RefusalCode;
use nimbus_tests::child::Program;
use nimbus_tests::ctr::Said;
use nimbus_tests::demo::complain;
use nimbus_tests::failure::During as _;
use nimbus_tests::lab::Submission;
use nimbus_tests::wait::until;
use nimbus_tests::{Failure, Lab, Outcome, Setting, cases, ensure, lane, proc};
use nix::sched::CloneFlags;
use serde_json::Value;

/// Where servers listen. All say [`SAID`].
const PORT: u16 = 8080;
/// Another port of the world's.
const OTHER_PORT: u16 = 8081;
const SAID: &str = "reached";
/// The world, and what else it answers as.
const WORLD: [&str; 2] = ["192.0.2.10", "2001:db8:1::10"];
const NEIGHBOUR: [&str; 2] = ["192.0.2.20", "2001:db8:1::20"];
const METADATA: [&str; 2] = ["169.254.169.254", "fd00:ec2::254"];
/// The node, on the world's side and on its jobs'.
const NODE: [&str; 2] = ["192.0.2.1", "2001:db8:1::1"];
const GATEWAY: [&str; 2] = ["10.213.92.1", "fd6e:696d:6275:7300::1"];

fn main() -> ExitCode {
    let all = cases![
        own[
            a_node_that_does_not_forward_says_so_and_changes_nothing,
            an_agent_that_is_killed_keeps_what_runs_to_its_rules_and_removes_the_rest,
        ]
        shared[
            the_lane_could_reach_everything_if_nothing_stopped_it,
            an_allowed_address_is_reached_and_nothing_else_on_both_families,
            a_job_that_may_reach_everything_reaches_no_metadata_and_no_node,
            a_job_without_an_allow_list_has_a_loopback_and_nothing_else,
            one_job_does_not_reach_another,
            a_spoofed_source_reaches_nothing,
            root_in_the_job_cannot_undo_it,
            what_no_job_may_reach_is_refused_at_submit,
            the_rules_come_back_when_somebody_removes_them,
            nothing_of_a_network_is_left_after_its_job,
        ]
        own(with_gate)[an_agent_that_is_killed_before_admission_leaves_nothing]
    ];
    let list = std::env::args().any(|arg| arg == "--list");
    if list || !nix::unistd::Uid::effective().is_root() {
        return lane::main("network", &all);
    }
    // Before there is a second thread; everything that is started is in it too.
    let unshared = nix::sched::unshare(CloneFlags::CLONE_NEWNET).map_err(Failure::from);
    let world = match unshared.and_then(|()| World::begin()) {
        Ok(world) => world,
        Err(failure) => {
            complain(&format!("network: {}", failure.text()));
            return ExitCode::FAILURE;
        }
    };
    let code = lane::main("network", &all);
    drop(world);
    code
}

fn with_gate() -> Setting {
    Setting { gate: true, ..Setting::default() }
}

/// The servers that the lane owns, and the namespace of those outside the node.
#[derive(Debug)]
struct World {
    dir: tempfile::TempDir,
    programs: Vec<Program>,
}

impl World {
    fn begin() -> Result<Self, Failure> {
        let dir = tempfile::tempdir()?;
        fs::write(dir.path().join("index.html"), SAID)?;
        let mut world = Self { dir, programs: Vec::new() };
        let pid =
            world.start("world", Command::new("unshare").args(["--net", "sleep", "86400"]))?;
        let own = fs::read_link("/proc/self/ns/net")?;
        let net = format!("/proc/{pid}/ns/net");
        until("the world's network", || Ok(fs::read_link(&net).ok().filter(|net| *net != own)))?;
        ip(&["link", "set", "lo", "up"])?;
        ip(&["link", "add", "node0", "type", "veth", "peer", "name", "world0", "netns", &pid])?;
        for address in ["192.0.2.1/24", "2001:db8:1::1/64"] {
            ip(&["address", "add", address, "dev", "node0", "nodad"])?;
        }
        ip(&["link", "set", "node0", "up"])?;
        let inside = |args: &[&str]| {
            let enter = ["--net", "--target", &pid, "ip"];
            said(Command::new("nsenter").args(enter).args(args)).map(drop)
        };
        inside(&["link", "set", "lo", "up"])?;
        inside(&["link", "set", "world0", "up"])?;
        for address in WORLD.iter().chain(&NEIGHBOUR) {
            let prefix = if address.contains(':') { 64 } else { 24 };
            inside(&["address", "add", &format!("{address}/{prefix}"), "dev", "world0", "nodad"])?;
        }
        for address in METADATA {
            let length = if address.contains(':') { 128 } else { 32 };
            inside(&["address", "add", &format!("{address}/{length}"), "dev", "world0", "nodad"])?;
            ip(&["route", "add", &format!("{address}/{length}"), "dev", "node0"])?;
        }
        for port in [PORT, OTHER_PORT] {
            world.serve(Some(&pid), port)?;
        }
        world.serve(None, PORT)?;
        Ok(world)
    }

    fn start(&mut self, name: &str, command: &mut Command) -> Result<String, Failure> {
        let program = Program::start(name, command, &self.dir.path().join("log"))?;
        let pid = program.pid().to_string();
        self.programs.push(program);
        Ok(pid)
    }

    fn serve(&mut self, namespace: Option<&str>, port: u16) -> Outcome {
        let mut command = Command::new("busybox");
        if let Some(pid) = namespace {
            command = Command::new("nsenter");
            command.args(["--net", "--target", pid, "busybox"]);
        }
        command.args(["httpd", "-f", "-p", &format!("[::]:{port}"), "-h"]).arg(self.dir.path());
        self.start("httpd", &mut command).map(drop)
    }
}

fn said(command: &mut Command) -> Result<String, Failure> {
    Said::by(command)?.good().during(&format!("{command:?}"))
}

fn ip(args: &[&str]) -> Outcome {
    said(Command::new("ip").args(args)).map(drop)
}

fn nft(args: &[&str]) -> Result<String, Failure> {
    said(Command::new("nft").args(args))
}

/// Forwarding of this namespace: what an administrator switches on once.
fn forward(on: bool) -> Outcome {
    let value = if on { "1" } else { "0" };
    fs::write("/proc/sys/net/ipv4/ip_forward", value)?;
    fs::write("/proc/sys/net/ipv6/conf/all/forwarding", value)?;
    Ok(())
}

fn forwards() -> Result<[String; 2], Failure> {
    let read = |path: &str| Ok::<_, Failure>(fs::read_to_string(path)?.trim().to_owned());
    Ok([read("/proc/sys/net/ipv4/ip_forward")?, read("/proc/sys/net/ipv6/conf/all/forwarding")?])
}

/// A script that tries each and says which were reached.
fn probes<'a>(targets: impl IntoIterator<Item = &'a (String, u16)>) -> String {
    let probe = |(address, port): &(String, u16)| {
        // busybox's wget has a time limit that crashes it.
        format!(
            "printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 3 {address} {port} 2>/dev/null | \
             grep -q {SAID} && echo {address} {port}; "
        )
    };
    let all: String = targets.into_iter().map(probe).collect();
    format!("{all} echo end")
}

/// What a script said it reached.
fn reached(output: &str) -> Result<Vec<(String, u16)>, Failure> {
    ensure!(output.trim_end().ends_with("end"), "it did not get to its end: {output:?}");
    let pair = |line: &str| {
        let (address, port) = line.split_once(' ')?;
        Some((address.to_owned(), port.parse().ok()?))
    };
    Ok(output.lines().filter_map(pair).collect())
}

fn at(addresses: &[&str], port: u16) -> Vec<(String, u16)> {
    addresses.iter().map(|address| ((*address).to_owned(), port)).collect()
}

/// Everything that the lane's servers answer on.
fn everything() -> Vec<(String, u16)> {
    let ports = [&WORLD[..], &NEIGHBOUR, &METADATA, &NODE].map(|addresses| at(addresses, PORT));
    let mut all = ports.concat();
    all.extend(at(&WORLD, OTHER_PORT));
    all
}

/// What a job must not reach in any case. The gateway is there as soon as there has been a job.
fn never() -> Vec<(String, u16)> {
    [&METADATA[..], &NODE, &GATEWAY, &["127.0.0.1", "::1"]].map(|a| at(a, PORT)).concat()
}

fn allowing(lab: &mut Lab, allow: &[&str], script: &str) -> Result<Submission, Failure> {
    forward(true)?;
    let mut submission = lab.good(&["/bin/sh", "-c", script])?;
    submission.allow = allow.iter().map(|rule| (*rule).to_owned()).collect();
    submission.max_attempts = Some(1);
    Ok(submission)
}

/// Runs a script to its end under an allow-list; what it printed.
fn run(lab: &mut Lab, allow: &[&str], script: &str) -> Result<String, Failure> {
    let submission = allowing(lab, allow, script)?;
    let job = lab.submit(&submission)?.job()?;
    let ended = lab.wait_ended(&job)?;
    ended.expect_exit(0)?;
    nothing_left(lab)?;
    lab.output(&job)
}

/// Starts a script that stays until it is cancelled; the job and its container.
fn stay(lab: &mut Lab, allow: &[&str], script: &str) -> Result<(String, String), Failure> {
    let submission = allowing(lab, allow, &format!("{script} while :; do sleep 1; done"))?;
    let job = lab.submit(&submission)?.job()?;
    let container = lab.wait_running(&job)?;
    Ok((job, container))
}

fn end(lab: &mut Lab, job: &str) -> Outcome {
    lab.cancel(job)?;
    lab.wait_ended(job).map(drop)
}

/// The records of networks, by container.
fn records(lab: &Lab) -> Result<Vec<Value>, Failure> {
    let mut found = Vec::new();
    for entry in fs::read_dir(lab.node_dir().join("network"))? {
        let path = entry?.path();
        if path.extension().is_some_and(|kind| kind == "json") {
            found.push(serde_json::from_slice(&fs::read(path)?)?);
        }
    }
    Ok(found)
}

/// Addresses that `host-local` holds.
fn taken(lab: &Lab) -> Vec<String> {
    let dir = lab.node_dir().join("network/addresses/nimbus");
    let names = fs::read_dir(dir).into_iter().flatten().flatten();
    let names = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter(|name| name != "lock" && !name.starts_with("last_reserved_ip")).collect()
}

fn left(lab: &Lab) -> Result<Vec<String>, Failure> {
    let mut left: Vec<String> =
        records(lab)?.iter().map(|record| format!("record {record}")).collect();
    left.extend(taken(lab).into_iter().map(|address| format!("address {address}")));
    let links = said(Command::new("ip").args(["-o", "link"]))?;
    left.extend(links.lines().filter(|line| line.contains(" veth")).map(str::to_owned));
    let tables = nft(&["list", "tables"])?;
    left.extend(tables.lines().filter(|line| line.contains("nimbus")).map(str::to_owned));
    Ok(left)
}

/// A job's end is told when its network is gone, so there is nothing to wait for; but not every end is
/// told by a live agent.
fn nothing_left(lab: &Lab) -> Outcome {
    let mut last = Vec::new();
    let gone = until("nothing to be left of a network", || {
        last = left(lab)?;
        Ok(last.is_empty().then_some(()))
    });
    ensure!(gone.is_ok(), "left: {}", last.join(", "));
    Ok(())
}

/// The init of a container.
fn init(container: &str) -> Result<String, Failure> {
    let found = until("the job's process", || Ok(proc::inside(container).first().map(|p| p.pid)))?;
    Ok(found.to_string())
}

/// Runs a script in a job's network namespace with all privileges, which no job has.
fn as_host_root(pid: &str, script: &str) -> Result<String, Failure> {
    let enter = ["--net", "--target", pid, "busybox", "sh", "-c"];
    said(Command::new("nsenter").args(enter).arg(script))
}

fn a_node_that_does_not_forward_says_so_and_changes_nothing(lab: &mut Lab) -> Outcome {
    let submission = allowing(lab, &["192.0.2.0/24:8080/tcp"], "true")?;
    forward(false)?;
    let ended = lab.outcome(&submission)?;
    ended.expect_refused(RefusalCode::NetworkUnavailable)?;
    ensure!(ended.message.contains("net.ipv4.ip_forward"), "it says {:?}", ended.message);
    ensure!(forwards()? == ["0", "0"], "the node forwards now: {:?}", forwards()?);
    nothing_left(lab)
}

fn the_lane_could_reach_everything_if_nothing_stopped_it(_lab: &mut Lab) -> Outcome {
    let all = everything();
    let found = until("every server to answer the node", || {
        let output = said(Command::new("busybox").args(["sh", "-c", &probes(&all)]))?;
        let found = reached(&output)?;
        Ok((found == all).then_some(found))
    })?;
    ensure!(found.len() == 10, "there are {}", found.len());
    Ok(())
}

fn an_allowed_address_is_reached_and_nothing_else_on_both_families(lab: &mut Lab) -> Outcome {
    let mut all = everything();
    all.extend(never());
    let script = probes(&all);
    let both = ["192.0.2.10:8080/tcp", "[2001:db8:1::10]:8080/tcp"];
    let found = reached(&run(lab, &both, &script)?)?;
    ensure!(found == at(&WORLD, PORT), "reached {found:?}");
    let found = reached(&run(lab, &both[..1], &script)?)?;
    ensure!(found == at(&WORLD[..1], PORT), "reached {found:?}");
    let found = reached(&run(lab, &both[1..], &script)?)?;
    ensure!(found == at(&WORLD[1..], PORT), "reached {found:?}");
    let udp = ["192.0.2.10:8080/udp", "[2001:db8:1::10]:8080/udp"];
    let found = reached(&run(lab, &udp, &script)?)?;
    ensure!(found.is_empty(), "reached {found:?} by another protocol");
    Ok(())
}

fn a_job_that_may_reach_everything_reaches_no_metadata_and_no_node(lab: &mut Lab) -> Outcome {
    let mut all = everything();
    all.extend(never());
    let found =
        reached(&run(lab, &["0.0.0.0/0:1-65535/tcp", "[::/0]:1-65535/tcp"], &probes(&all))?)?;
    let wanted = [at(&WORLD, PORT), at(&NEIGHBOUR, PORT), at(&WORLD, OTHER_PORT)].concat();
    ensure!(found == wanted, "reached {found:?}");
    Ok(())
}

fn a_job_without_an_allow_list_has_a_loopback_and_nothing_else(lab: &mut Lab) -> Outcome {
    let script = format!("ls /sys/class/net; {}", probes(&everything()));
    let output = run(lab, &[], &script)?;
    ensure!(output == "lo\nend\n", "found {output:?}");
    Ok(())
}

fn one_job_does_not_reach_another(lab: &mut Lab) -> Outcome {
    let all = ["0.0.0.0/0:1-65535/tcp", "[::/0]:1-65535/tcp"];
    let serve = format!("echo {SAID} > /run/index.html; httpd -p [::]:{PORT} -h /run;");
    let (server, container) = stay(lab, &all, &serve)?;
    let addresses = addresses(lab)?;
    let targets: Vec<_> = addresses.into_iter().map(|address| (address, PORT)).collect();
    // It does serve.
    let pid = init(&container)?;
    until("the job to serve itself", || {
        let found = reached(&as_host_root(&pid, &probes(&targets))?)?;
        Ok((found == targets).then_some(()))
    })?;
    let (client, container) = stay(lab, &all, "")?;
    let pid = init(&container)?;
    let found = reached(&as_host_root(&pid, &probes(&targets))?)?;
    ensure!(found.is_empty(), "reached {found:?}");
    // Nor by a way through the gateway, which takes a privilege that no job has.
    for (address, gateway) in targets.iter().map(|(address, _)| address).zip(GATEWAY) {
        let length = if address.contains(':') { 128 } else { 32 };
        let route = format!("ip route add {address}/{length} via {gateway} dev eth0");
        as_host_root(&pid, &route)?;
    }
    let found = reached(&as_host_root(&pid, &probes(&targets))?)?;
    ensure!(found.is_empty(), "reached {found:?} through the gateway");
    // Nor from the node.
    let output = said(Command::new("busybox").args(["sh", "-c", &probes(&targets)]))?;
    ensure!(reached(&output)?.is_empty(), "the node reached the job");
    end(lab, &client)?;
    end(lab, &server)?;
    nothing_left(lab)
}

/// The addresses of the only job with a network.
fn addresses(lab: &Lab) -> Result<[String; 2], Failure> {
    let records = records(lab)?;
    let found = records.first().and_then(|record| record.pointer("/attached/addresses"));
    let found = found.and_then(Value::as_array).into_iter().flatten();
    let found: Vec<String> = found.filter_map(Value::as_str).map(str::to_owned).collect();
    let two = found.try_into();
    two.map_err(|other| Failure::new(format!("it has {other:?}: {records:?}")))
}

/// A script that takes a job's addresses away and gives it others, with the same ways out.
fn readdress(old: [&str; 2], new: [&str; 2]) -> String {
    const IP: &str = "/usr/sbin/ip";
    let [gateway4, gateway6] = GATEWAY;
    let ([old4, old6], [new4, new6]) = (old, new);
    format!(
        "{IP} address del {old4}/23 dev eth0; {IP} address del {old6}/64 dev eth0; \
         {IP} address add {new4}/23 dev eth0; {IP} address add {new6}/64 dev eth0 nodad; \
         {IP} route replace {gateway4} dev eth0; {IP} route replace {gateway6} dev eth0; \
         {IP} route replace default via {gateway4}; {IP} -6 route replace default via {gateway6}; "
    )
}

fn a_spoofed_source_reaches_nothing(lab: &mut Lab) -> Outcome {
    let all = ["0.0.0.0/0:1-65535/tcp", "[::/0]:1-65535/tcp"];
    let (job, container) = stay(lab, &all, "")?;
    let pid = init(&container)?;
    let own = addresses(lab)?;
    let own = own.each_ref().map(String::as_str);
    let targets = at(&WORLD, PORT);
    let try_all =
        |script: &str| reached(&as_host_root(&pid, &format!("{script} {}", probes(&targets)))?);
    let found = try_all("")?;
    ensure!(found == targets, "it reached only {found:?}");
    // Another's address of the same network, and one from elsewhere.
    for other in [["10.213.93.77", "fd6e:696d:6275:7300::77"], ["198.51.100.7", "2001:db8:2::7"]] {
        let found = try_all(&readdress(own, other))?;
        ensure!(found.is_empty(), "as {other:?} it reached {found:?}");
        let found = try_all(&readdress(other, own))?;
        ensure!(found == targets, "as itself again it reached only {found:?}");
    }
    let found = try_all("/usr/sbin/ip link set eth0 address 02:00:00:00:00:77;")?;
    ensure!(found.is_empty(), "with another hardware address it reached {found:?}");
    end(lab, &job)?;
    nothing_left(lab)
}

fn root_in_the_job_cannot_undo_it(lab: &mut Lab) -> Outcome {
    let script = "id -u; \
        ip address add 10.213.93.77/32 dev eth0 2>/dev/null && echo could-address; \
        ip route add 169.254.169.254/32 dev eth0 2>/dev/null && echo could-route; \
        ip link set eth0 down 2>/dev/null && echo could-link; \
        nsenter --net=/proc/1/ns/net true 2>/dev/null && echo could-enter; \
        unshare --net true 2>/dev/null && echo could-unshare; \
        echo 1 2>/dev/null > /proc/sys/net/ipv4/ip_forward && echo could-write; echo end";
    let output = run(lab, &["192.0.2.10:8080/tcp"], script)?;
    ensure!(output == "0\nend\n", "found {output:?}");
    Ok(())
}

fn what_no_job_may_reach_is_refused_at_submit(lab: &mut Lab) -> Outcome {
    for rule in ["169.254.169.254:80/tcp", "[::1]:80/tcp", "127.0.0.0/8:1-65535/tcp"] {
        let submission = allowing(lab, &[rule], "true")?;
        let said = lab.try_submit(&submission)?;
        ensure!(said.refusal() == Some(RefusalCode::RequestInvalid), "{rule}: {said:?}");
        ensure!(said.stderr.contains("spec.egress"), "{rule}: {said:?}");
    }
    Ok(())
}

fn the_rules_come_back_when_somebody_removes_them(lab: &mut Lab) -> Outcome {
    let (job, container) = stay(lab, &["192.0.2.10:8080/tcp"], "")?;
    let before = nft(&["list", "table", "inet", "nimbus"])?;
    for family in ["inet", "bridge"] {
        nft(&["delete", "table", family, "nimbus"])?;
        until(
            "the rules to be there again",
            || Ok(nft(&["list", "table", family, "nimbus"]).ok()),
        )?;
    }
    let after = nft(&["list", "table", "inet", "nimbus"])?;
    ensure!(after == before, "they are others now:\n{before}\n{after}");
    let pid = init(&container)?;
    let found = reached(&as_host_root(&pid, &probes(&everything()))?)?;
    ensure!(found == at(&WORLD[..1], PORT), "reached {found:?}");
    end(lab, &job)?;
    nothing_left(lab)
}

fn nothing_of_a_network_is_left_after_its_job(lab: &mut Lab) -> Outcome {
    let (job, container) = stay(lab, &["192.0.2.10:8080/tcp"], "")?;
    ensure!(!left(lab)?.is_empty(), "there is no network to be left");
    let net = fs::read_link(format!("/proc/{}/ns/net", init(&container)?))?;
    end(lab, &job)?;
    // Before the end is told, and not some time after.
    let left = left(lab)?;
    ensure!(left.is_empty(), "left: {}", left.join(", "));
    for process in proc::processes() {
        let its = fs::read_link(format!("/proc/{}/ns/net", process.pid)).ok();
        ensure!(its.as_ref() != Some(&net), "{process:?} is in the job's network");
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    ensure!(!mounts.contains(&*net.to_string_lossy()), "its namespace is mounted: {mounts}");
    Ok(())
}

fn an_agent_that_is_killed_keeps_what_runs_to_its_rules_and_removes_the_rest(
    lab: &mut Lab,
) -> Outcome {
    let (job, container) = stay(lab, &["192.0.2.10:8080/tcp"], "")?;
    let before = nft(&["list", "table", "inet", "nimbus"])?;
    lab.kill_node()?;
    let pid = init(&container)?;
    let only = |when: &str| {
        let found = reached(&as_host_root(&pid, &probes(&everything()))?)?;
        ensure!(found == at(&WORLD[..1], PORT), "{when} it reached {found:?}");
        Ok(())
    };
    only("without an agent")?;
    // What a kill in the middle leaves of another job: a record.
    let record = records(lab)?.pop().ok_or_else(|| Failure::new("no record"))?;
    let mut stale = record.clone();
    for (field, value) in [("lease", Value::from("lstale")), ("attached", Value::Null)] {
        if let Some(slot) = stale.get_mut(field) {
            *slot = value;
        }
    }
    fs::write(lab.node_dir().join("network/lstale.json"), stale.to_string())?;
    lab.start_node()?;
    lab.wait_connected()?;
    ensure!(records(lab)?.len() == 1, "the record of a job that is over is left");
    ensure!(nft(&["list", "table", "inet", "nimbus"])? == before, "the rules are others now");
    only("after a restart")?;
    end(lab, &job)?;
    nothing_left(lab)
}

fn an_agent_that_is_killed_before_admission_leaves_nothing(lab: &mut Lab) -> Outcome {
    // The first job brings everything that is needed of containerd.
    run(lab, &["192.0.2.10:8080/tcp"], "true")?;
    let submission = allowing(lab, &["192.0.2.10:8080/tcp"], "true")?;
    lab.gate()?.hold();
    let job = lab.submit(&submission)?.job()?;
    until("the network of a job that containerd has not heard of", || {
        let attached = |record: &Value| record.get("attached").is_some_and(Value::is_object);
        Ok(records(lab)?.iter().any(attached).then_some(()))
    })?;
    lab.kill_node()?;
    lab.gate()?.release();
    lab.start_node()?;
    lab.wait_connected()?;
    lab.wait_ended(&job)?;
    nothing_left(lab)
}

//! A container whose plan has an allow-list lives in the network namespace that came with it.
#![forbid(unsafe_code)]
#![expect(
    clippy::tests_outside_test_module,
    clippy::unwrap_used,
    reason = "all of an integration test is one"
)]

mod support;

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt as _;
use std::process::Command;

use nimbus_api::RefusalCode;
use nimbus_api::egress::EgressRules;
use nimbus_api::lease::LeasedEgress;
use nimbus_api::plan::JoinedNamespace;
use nimbus_api::runtime::RuntimeVerb;
use nix::sched::CloneFlags;
use support::Host;

/// A network namespace with a device `probe0`, held by nothing but the file.
fn namespace() -> File {
    let made = std::thread::spawn(|| {
        nix::sched::unshare(CloneFlags::CLONE_NEWNET).unwrap();
        let add = ["link", "add", "probe0", "type", "veth", "peer", "name", "probe1"];
        assert!(Command::new("ip").args(add).status().unwrap().success());
        File::open("/proc/thread-self/ns/net").unwrap()
    });
    made.join().unwrap()
}

fn with(network: Option<File>, script: &str) -> Host {
    let mut host = Host::shell(script);
    let rules = EgressRules::sorted(vec!["192.0.2.0/24:443/tcp".parse().unwrap()]).unwrap();
    host.plan.egress = LeasedEgress::Allow(rules);
    host.plan.joins = vec![JoinedNamespace::Network];
    host.joins.extend(network);
    host
}

fn refused(host: &Host) -> RefusalCode {
    let (code, cause) = host.try_create().err().unwrap();
    assert!(!cause.is_empty());
    host.assert_nothing_left();
    code
}

#[test]
fn it_is_exactly_in_the_namespace_that_came_and_its_loopback_is_up() {
    let network = namespace();
    let wanted = format!("net:[{}]", network.metadata().unwrap().ino());
    let script = "readlink /proc/self/ns/net; ls /sys/class/net; cat /sys/class/net/lo/flags";
    let host = with(Some(network), script);
    let created = host.create();
    let found = fs::read_link(format!("/proc/{}/ns/net", created.pid)).unwrap();
    assert_eq!(found.to_str().unwrap(), wanted);
    host.ask(RuntimeVerb::Start);
    let ended = created.wait();
    let lines: Vec<_> = ended.out.lines().collect();
    assert_eq!(lines, [wanted.as_str(), "lo", "probe0", "probe1", "0x9"], "{ended:?}");
    host.delete();
}

#[test]
fn the_hosts_own_network_is_refused() {
    let own = File::open("/proc/self/ns/net").unwrap();
    assert_eq!(refused(&with(Some(own), "true")), RefusalCode::RuntimeUnproven);
}

#[test]
fn what_is_no_network_namespace_is_refused() {
    for path in ["/proc/self/ns/uts", "/proc/self/ns/mnt", "/etc/passwd", "/proc/self/ns"] {
        refused(&with(Some(File::open(path).unwrap()), "true"));
    }
}

#[test]
fn a_network_without_an_allow_list_and_an_allow_list_without_a_network_are_refused() {
    assert_eq!(refused(&with(None, "true")), RefusalCode::RuntimeFailed);
    let mut host = with(Some(namespace()), "true");
    host.plan.egress = LeasedEgress::None;
    assert_eq!(refused(&host), RefusalCode::RuntimeFailed);
}

#[test]
fn nobody_in_the_container_holds_the_namespace_by_a_descriptor() {
    let host = with(Some(namespace()), "ls -l /proc/self/fd");
    let created = host.create();
    for fd in fs::read_dir(format!("/proc/{}/fd", created.pid)).unwrap().flatten() {
        let target = fs::read_link(fd.path()).unwrap();
        assert!(!target.to_string_lossy().starts_with("net:"), "{target:?}");
    }
    host.ask(RuntimeVerb::Start);
    let ended = created.wait();
    assert!(!ended.out.contains("net:"), "{ended:?}");
    host.delete();
}

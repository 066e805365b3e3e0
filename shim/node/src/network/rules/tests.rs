//! The script is what it is meant to be, and what `nft` takes.

use std::io::Write as _;
use std::process::{Command, Stdio};

use super::*;

fn attached(number: u8) -> Attached {
    let json = serde_json::json!({
        "device": format!("veth0000000{number}"),
        "mac": format!("02:00:00:00:00:0{number}"),
        "addresses": [format!("10.213.92.{number}"), format!("fd6e:696d:6275:7300::{number}")],
    });
    serde_json::from_value(json).unwrap()
}

fn allowed(rules: &[&str]) -> EgressRules {
    EgressRules::sorted(rules.iter().map(|rule| rule.parse().unwrap()).collect()).unwrap()
}

fn two() -> String {
    let one = (attached(2), allowed(&["192.0.2.0/24:443/tcp", "[2001:db8::/32]:53-54/udp"]));
    let other = (attached(3), allowed(&["0.0.0.0/0:1-65535/tcp"]));
    let ports = [&one, &other].map(|(attached, rules)| Port { attached, rules });
    let never = vec!["10.0.0.0/8".parse().unwrap(), "2001:db8:ff::/48".parse().unwrap()];
    script(&NetworkConfig { never, ..NetworkConfig::default() }, &ports)
}

/// Has `nft` look at a script in a network namespace of its own.
fn nft(script: &str) -> (bool, String) {
    let mut child = Command::new("unshare")
        .args(["--net", "nft", "-f", "-"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    let ended = child.wait_with_output().unwrap();
    (ended.status.success(), String::from_utf8_lossy(&ended.stderr).into_owned())
}

/// The lines of one chain, set or map of a table.
fn part<'a>(script: &'a str, table: &str, name: &str) -> Vec<&'a str> {
    let mut lines = script.lines();
    lines.find(|line| *line == format!("table {table} nimbus {{")).unwrap();
    lines.find(|line| line.trim() == format!("{name} {{")).unwrap();
    lines.map(str::trim).take_while(|line| *line != "}").collect()
}

#[test]
fn nft_takes_what_is_written_for_none_one_and_many() {
    let empty = script(&NetworkConfig::default(), &[]);
    let (taken, said) = nft(&empty);
    assert!(taken, "{said}");
    // A second time it replaces the first; without jobs it removes it.
    let all = format!("{0}{0}{empty}{0}", two());
    let (taken, said) = nft(&all);
    assert!(taken, "{said}\n{all}");
    let v6 = Attached { addresses: attached(2).addresses.split_off(1), ..attached(2) };
    let rules = allowed(&["[2001:db8::/32]:53/udp"]);
    let one = script(&NetworkConfig::default(), &[Port { attached: &v6, rules: &rules }]);
    let (taken, said) = nft(&one);
    assert!(taken, "{said}\n{one}");
}

#[test]
fn a_job_has_its_own_rules_and_the_rest_is_refused() {
    let script = two();
    let chain = part(&script, "inet", "chain job_veth00000002");
    let wanted = [
        "ip daddr 192.0.2.0/24 tcp dport 443 accept",
        "ip6 daddr 2001:db8::/32 udp dport 53-54 accept",
        "goto refused",
    ];
    assert_eq!(chain, wanted);
    let doors = part(&script, "inet", "map jobs4").concat();
    assert!(doors.contains("10.213.92.2 : goto job_veth00000002"), "{doors}");
    assert!(doors.contains("10.213.92.3 : goto job_veth00000003"), "{doors}");
}

#[test]
fn what_is_never_open_is_refused_before_any_job_is_asked() {
    let script = two();
    let chain = part(&script, "inet", "chain from_jobs");
    let place = |text: &str| chain.iter().position(|line| line.contains(text)).unwrap();
    for shut in ["fib daddr type { local", "ip daddr @never4", "ip6 daddr @never6", "invalid drop"]
    {
        assert!(place(shut) < place("vmap @jobs4"), "{shut}");
    }
    assert_eq!(chain.last(), Some(&"drop"));
    let never = [part(&script, "inet", "set never4"), part(&script, "inet", "set never6")].concat();
    let never = never.concat();
    for network in [
        "169.254.0.0/16",
        "127.0.0.0/8",
        "fe80::/10",
        "fd00:ec2::/32",
        "10.213.92.0/23",
        "fd6e:696d:6275:7300::/64",
        "10.0.0.0/8",
        "2001:db8:ff::/48",
    ] {
        assert!(never.contains(network), "{network} not in {never}");
    }
}

#[test]
fn frames_of_a_device_carry_its_own_addresses_only() {
    let script = two();
    let chain = part(&script, "bridge", "chain port_veth00000002");
    assert_eq!(chain.first(), Some(&"ether saddr != 02:00:00:00:00:02 drop"));
    assert_eq!(chain.last(), Some(&"drop"));
    for line in chain.iter().filter(|line| line.ends_with("accept")) {
        let own = line.contains("10.213.92.2 ")
            || line.contains("fd6e:696d:6275:7300::2 ")
            || line.contains("fe80::ff:fe00:2 ");
        assert!(own, "{line}");
    }
}

#[test]
fn only_our_two_tables_are_touched() {
    for line in two().lines().filter(|line| line.contains("table") || line.contains("flush")) {
        let ours = line.contains(" bridge nimbus") || line.contains(" inet nimbus");
        assert!(ours && !line.contains("flush"), "{line}");
    }
}

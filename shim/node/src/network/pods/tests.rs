//! Against real pairs, bridges and `nft`, in network namespaces of the tests' own.

use std::io::Write as _;
use std::process::{Command, Stdio};

use super::*;

/// Runs a shell script in a fresh network namespace, which stands for the host.
fn on_a_host(script: &str, input: &str) -> String {
    let mut child = Command::new("unshare")
        .args(["--net", "--mount", "sh", "-ec", script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let ended = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert!(ended.status.success(), "{said}\n{input}");
    String::from_utf8(ended.stdout).unwrap()
}

fn known(device: &str, addresses: &[&str]) -> BTreeMap<LeaseId, Vec<Pair>> {
    let addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
    let pair = Pair { device: device.to_owned(), addresses };
    BTreeMap::from([("l1".parse().unwrap(), vec![pair])])
}

fn config() -> NetworkConfig {
    NetworkConfig { pod_local: vec!["10.9.0.53/32".parse().unwrap()], ..NetworkConfig::default() }
}

#[test]
fn nft_takes_what_is_written_twice_over_and_for_none() {
    let none = script(&config(), &BTreeMap::new());
    let both = script(&config(), &known("veth0", &["10.9.0.2", "fd00:9::2", "fe80::2"]));
    let v6 = script(&config(), &known("veth0", &["fd00:9::2"]));
    let bare = script(&config(), &known("veth0", &[]));
    on_a_host("nft -f -", &format!("{none}{both}{both}{v6}{bare}{none}"));
}

/// A pod behind a bridge or a bare pair; the host listens on 8080 everywhere, and has the addresses of
/// metadata and of a local cache besides its own. Prints who answered.
fn answers(is_bridged: bool, rules: &str) -> Vec<String> {
    let link = if is_bridged {
        "ip link add br0 type bridge; ip link set br0 up; ip link set veth0 master br0; on=br0"
    } else {
        "on=veth0"
    };
    let script = format!(
        "mount -t tmpfs none /run; ip link set lo up; ip netns add pod
         ip link add veth0 type veth peer name eth0 netns pod; {link}
         ip addr add 10.9.0.1/24 dev $on; ip link set veth0 up
         ip addr add 169.254.169.254/32 dev lo; ip addr add 10.9.0.53/32 dev lo
         ip -n pod addr add 10.9.0.2/24 dev eth0; ip -n pod link set eth0 up
         ip -n pod link set lo up; ip -n pod route add default via 10.9.0.1
         nft -f -
         busybox nc -ll -p 8080 -e /bin/echo yes & server=$!
         ip netns exec pod busybox nc -ll -p 9090 -e /bin/echo yes & inside=$!
         sleep 0.5
         ask() {{ ip netns exec pod busybox nc -w 2 $1 8080 < /dev/null 2> /dev/null | grep -q yes; }}
         for to in 10.9.0.1 169.254.169.254 10.9.0.53; do ask $to && echo $to || true; done
         busybox nc -w 2 10.9.0.2 9090 < /dev/null | grep -q yes && echo probe || true
         ip -n pod addr add 10.9.0.77/32 dev eth0
         ip -n pod route add 10.9.0.53 via 10.9.0.1 src 10.9.0.77
         ask 10.9.0.53 && echo forged || true
         kill $server $inside"
    );
    on_a_host(&script, rules).lines().map(str::to_owned).collect()
}

#[test]
fn a_pod_reaches_neither_metadata_nor_the_node_and_is_reached_by_probes() {
    for is_bridged in [false, true] {
        let open = answers(is_bridged, "");
        assert_eq!(open, ["10.9.0.1", "169.254.169.254", "10.9.0.53", "probe", "forged"]);
        let rules = script(&config(), &known("veth0", &["10.9.0.2"]));
        assert_eq!(answers(is_bridged, &rules), ["10.9.0.53", "probe"], "bridged: {is_bridged}");
    }
}

#[test]
fn a_device_is_a_pair_only_when_both_ends_say_so() {
    let link = |ifindex, name: &str, other| Link {
        ifindex,
        ifname: name.to_owned(),
        peer: other,
        flags: Vec::new(),
        addr_info: vec![Address { local: Some("10.9.0.2".parse().unwrap()) }],
    };
    let hosts = [link(5, "veth5", Some(2)), link(6, "veth6", Some(9)), link(7, "ve\"7", Some(3))];
    let found = pair(&link(2, "eth0", Some(5)), &hosts).unwrap();
    assert_eq!(found.device, "veth5");
    for (index, other) in [(2, Some(6)), (2, None), (3, Some(5)), (3, Some(7)), (2, Some(99))] {
        let refused = pair(&link(index, "eth0", other), &hosts).unwrap_err();
        assert_eq!(refused.code, RefusalCode::NetworkUnavailable);
    }
}

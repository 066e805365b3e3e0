//! Rules are read in one way or not at all.

use proptest::prelude::*;

use super::*;
use crate::lease::LeasedEgress;
use crate::strict_json::{self, Limits};

fn rule(text: &str) -> EgressRule {
    text.parse().unwrap()
}

#[test]
fn what_people_write_becomes_the_one_spelling() {
    for (written, signed) in [
        ("192.0.2.0/24:443/tcp", "192.0.2.0/24:443/tcp"),
        ("192.0.2.7:53/udp", "192.0.2.7/32:53/udp"),
        ("0.0.0.0/0:1-65535/tcp", "0.0.0.0/0:1-65535/tcp"),
        ("192.0.2.7:80-80/tcp", "192.0.2.7/32:80/tcp"),
        ("[2001:DB8:0:0::/32]:8000-8100/udp", "[2001:db8::/32]:8000-8100/udp"),
        ("[2001:db8::1]:443/tcp", "[2001:db8::1/128]:443/tcp"),
        ("[::/0]:443/tcp", "[::/0]:443/tcp"),
    ] {
        assert_eq!(rule(written).to_string(), signed, "{written}");
    }
}

#[test]
fn what_can_be_misread_is_not_read() {
    for bad in [
        "",
        "192.0.2.0/24",
        "192.0.2.0/24:443",
        "192.0.2.0/24:443/icmp",
        "192.0.2.0/24:443/TCP",
        "192.0.2.0/24:0/tcp",
        "192.0.2.0/24:0-5/tcp",
        "192.0.2.0/24:9-5/tcp",
        "192.0.2.0/24:65536/tcp",
        "192.0.2.0/24:+5/tcp",
        "192.0.2.0/24:05/tcp",
        "192.0.2.0/24:5-/tcp",
        "192.0.2.0/024:5/tcp",
        "192.0.2.0/33:5/tcp",
        "192.0.2.1/24:5/tcp",
        "192.0.2:5/tcp",
        "192.000.2.0/24:5/tcp",
        "3221225985:5/tcp",
        "0x7f.1:5/tcp",
        "[192.0.2.0/24]:5/tcp",
        "2001:db8::1:443/tcp",
        "[2001:db8::/129]:5/tcp",
        "[fe80::1%eth0]:5/tcp",
        "[2001:db8::1]/64:5/tcp",
        "example.org:443/tcp",
        " 192.0.2.0/24:5/tcp",
        "192.0.2.0/24:5/tcp\n",
    ] {
        assert!(bad.parse::<EgressRule>().is_err(), "{bad:?}");
    }
}

#[test]
fn a_lease_is_read_in_its_canonical_form_only() {
    let read =
        |text: &str| strict_json::parse::<LeasedEgress>(text.as_bytes(), Limits::bytes(4096));
    assert_eq!(read(r#""none""#).unwrap(), LeasedEgress::None);
    let good = r#"{"allow":["192.0.2.0/24:443/tcp","[2001:db8::/32]:53/udp"]}"#;
    let found = read(good).unwrap();
    assert_eq!(serde_json::to_string(&found).unwrap(), good);
    for bad in [
        r#"{"allow":[]}"#,
        r#"{"allow":["[2001:db8::/32]:53/udp","192.0.2.0/24:443/tcp"]}"#,
        r#"{"allow":["192.0.2.0/24:443/tcp","192.0.2.0/24:443/tcp"]}"#,
        r#"{"allow":["192.0.2.7:443/tcp"]}"#,
        r#"{"allow":["192.0.2.0/24:443-443/tcp"]}"#,
        r#"{"allow":["[2001:DB8::/32]:53/udp"]}"#,
        r#"{"allow":{"rules":[]}}"#,
        r#"{"allow":["192.0.2.0/24:443/tcp"],"names":[]}"#,
        r#"{"any":null}"#,
        r#""any""#,
        "null",
    ] {
        assert!(read(bad).is_err(), "{bad}");
    }
    let many: Vec<_> =
        (0..=EGRESS_RULES_MAX).map(|n| format!("\"192.0.2.{n}/32:1/tcp\"")).collect();
    assert!(read(&format!("{{\"allow\":[{}]}}", many[1..].join(","))).is_ok());
    assert!(read(&format!("{{\"allow\":[{}]}}", many.join(","))).is_err());
}

#[test]
fn the_networks_that_are_never_open_are_networks() {
    for (network, reason) in NEVER {
        assert_eq!(Network::new(network.address(), network.prefix()), Ok(network), "{reason}");
    }
}

#[test]
fn what_lies_wholly_in_a_forbidden_network_is_forbidden() {
    for (text, forbidden) in [
        ("127.0.0.1:80/tcp", true),
        ("127.0.0.0/9:80/tcp", true),
        ("169.254.169.254:80/tcp", true),
        ("169.254.0.0/16:80/tcp", true),
        ("0.0.0.0:80/tcp", true),
        ("224.0.0.251:5353/udp", true),
        ("255.255.255.255:67/udp", true),
        ("100.100.100.200:80/tcp", true),
        ("[::]:80/tcp", true),
        ("[::1]:80/tcp", true),
        ("[::ffff:169.254.169.254]:80/tcp", true),
        ("[64:ff9b::a9fe:a9fe]:80/tcp", true),
        ("[2002:a9fe:a9fe::]:80/tcp", true),
        ("[fe80::1]:80/tcp", true),
        ("[ff02::1]:80/udp", true),
        ("[fd00:ec2::254]:80/tcp", true),
        ("0.0.0.0/0:80/tcp", false),
        ("168.0.0.0/6:80/tcp", false),
        ("100.100.100.0/24:80/tcp", false),
        ("10.0.0.1:80/tcp", false),
        ("[::/0]:80/tcp", false),
        ("[fd00::/8]:80/tcp", false),
        ("[2001:db8::1]:80/tcp", false),
    ] {
        assert_eq!(rule(text).forbidden().is_some(), forbidden, "{text}");
    }
}

fn any_rule() -> impl Strategy<Value = EgressRule> {
    let v4 = (any::<u32>(), 0..=32_u8).prop_map(|(a, p)| (IpAddr::V4(a.into()), p));
    let v6 = (any::<u128>(), 0..=128_u8).prop_map(|(a, p)| (IpAddr::V6(a.into()), p));
    let ports = (1..=u16::MAX, 1..=u16::MAX).prop_map(|(a, b)| Ports::new(a.min(b), a.max(b)));
    let protocol = prop_oneof![Just(Protocol::Tcp), Just(Protocol::Udp)];
    (prop_oneof![v4, v6], protocol, ports).prop_map(|((address, prefix), protocol, ports)| {
        let to = Network { address: masked(address, prefix), prefix };
        EgressRule { to, protocol, ports: ports.unwrap() }
    })
}

proptest! {
    #[test]
    fn every_rule_is_read_back_as_it_was_written(rule in any_rule()) {
        let text = rule.to_string();
        prop_assert!(text.len() <= RULE_BYTES_MAX, "{text}");
        prop_assert_eq!(text.parse::<EgressRule>(), Ok(rule));
        let json = serde_json::to_string(&rule).unwrap();
        prop_assert_eq!(serde_json::from_str::<EgressRule>(&json).unwrap(), rule);
    }

    #[test]
    fn no_text_is_read_and_written_otherwise_than_once(text in "[0-9a-f:./\\[\\]tcpu-]{0,40}") {
        if let Ok(rule) = text.parse::<EgressRule>() {
            prop_assert_eq!(rule.to_string().parse::<EgressRule>(), Ok(rule));
        }
    }

    #[test]
    fn a_network_contains_what_its_addresses_do(rule in any_rule(), bits in any::<u128>()) {
        let whole = |network: Network| if network.is_ipv4() { 32 } else { 128 };
        let inside = match rule.to.address() {
            IpAddr::V4(a) => {
                let low = u32::MAX.checked_shr(rule.to.prefix().into()).unwrap_or(0);
                IpAddr::V4((u32::from(a) | (u32::try_from(bits >> 96).unwrap() & low)).into())
            }
            IpAddr::V6(a) => {
                let low = u128::MAX.checked_shr(rule.to.prefix().into()).unwrap_or(0);
                IpAddr::V6((u128::from(a) | (bits & low)).into())
            }
        };
        let host = Network::new(inside, whole(rule.to)).unwrap();
        prop_assert!(rule.to.contains(&host));
        prop_assert_eq!(host.contains(&rule.to), rule.to.prefix() == whole(rule.to));
    }

    #[test]
    fn a_sorted_list_is_a_list_whatever_order_it_had(rules in prop::collection::vec(any_rule(), 1..12)) {
        let mut turned = rules.clone();
        turned.reverse();
        prop_assert_eq!(EgressRules::sorted(rules), EgressRules::sorted(turned));
    }
}

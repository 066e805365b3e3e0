//! The rules of the firewall, as a pure function of who is connected and what each may do.
//!
//! Output: one script for `nft -f -`, which the kernel takes as a whole or not at all. It replaces our two
//! tables and touches no other. What is not allowed here is not reached:
//!
//! - table `bridge nimbus` looks at frames as they come from a job's device: hardware address, source
//!   address, ARP and neighbour discovery must be the job's own. Nothing goes from job to job.
//! - table `inet nimbus` looks at what a job asks for before anybody has translated it (`prerouting`), and
//!   again where it would go (`forward`): the node's own addresses and what is never open are refused,
//!   then the job's own chain allows what its lease does. Towards a job go answers and nothing else.
//!
//! Addresses are checked in both tables, so that a job is known by its device and nothing that it writes.
//! Deliberately absent: state. Reading rules back is for tests.

use std::fmt::{self, Write as _};
use std::net::IpAddr;

use nimbus_api::egress::{EgressRule, EgressRules, NEVER, Network};

use super::plugin::Attached;
use crate::config::NetworkConfig;

/// The name of both tables.
pub const TABLE: &str = "nimbus";
/// A chain that is there whenever a job is connected.
pub const WITNESS: &str = "from_jobs";

/// One connected job.
#[derive(Debug, Clone, Copy)]
pub struct Port<'a> {
    /// How it is connected.
    pub attached: &'a Attached,
    /// What it may connect to.
    pub rules: &'a EgressRules,
}

/// The script for these jobs; with none it removes the tables.
pub fn script(config: &NetworkConfig, ports: &[Port<'_>]) -> String {
    let mut out = String::new();
    for family in ["bridge", "inet"] {
        // Adding what is there is no error, deleting what is not would be one.
        let _fits = writeln!(out, "add table {family} {TABLE}\ndelete table {family} {TABLE}");
    }
    if !ports.is_empty() {
        let _fits = bridge(&mut out, ports).and_then(|()| inet(&mut out, config, ports));
    }
    out
}

/// Elements of a set or map; an empty list has no line.
fn elements(out: &mut String, all: impl Iterator<Item = String>) -> fmt::Result {
    let all: Vec<String> = all.collect();
    if all.is_empty() { Ok(()) } else { writeln!(out, "    elements = {{ {} }}", all.join(", ")) }
}

fn bridge(out: &mut String, ports: &[Port<'_>]) -> fmt::Result {
    let name = |port: &Port<'_>| port.attached.device.as_str().to_owned();
    writeln!(out, "table bridge {TABLE} {{")?;
    writeln!(out, "  set members {{\n    type ifname")?;
    elements(out, ports.iter().map(|port| format!("\"{}\"", name(port))))?;
    writeln!(out, "  }}\n  map ports {{\n    type ifname : verdict")?;
    elements(out, ports.iter().map(|port| format!("\"{0}\" : goto port_{0}", name(port))))?;
    writeln!(out, "  }}")?;
    writeln!(out, "  chain prerouting {{")?;
    writeln!(out, "    type filter hook prerouting priority -300; policy accept;")?;
    writeln!(out, "    iifname vmap @ports\n  }}")?;
    writeln!(out, "  chain forward {{")?;
    writeln!(out, "    type filter hook forward priority -300; policy accept;")?;
    writeln!(out, "    iifname @members drop\n    oifname @members drop\n  }}")?;
    for port in ports {
        frames(out, port.attached)?;
    }
    writeln!(out, "}}")
}

/// What a job's device may send: its own addresses and nobody else's.
fn frames(out: &mut String, attached: &Attached) -> fmt::Result {
    let Attached { device, mac, addresses } = attached;
    writeln!(out, "  chain port_{} {{", device.as_str())?;
    writeln!(out, "    ether saddr != {mac} drop")?;
    for address in addresses {
        match address {
            IpAddr::V4(a) => {
                writeln!(out, "    arp saddr ether {mac} arp saddr ip {a} accept")?;
                writeln!(out, "    ip saddr {a} accept")?;
            }
            IpAddr::V6(a) => {
                // An advertisement for another's address would turn the other's answers to this job.
                let target = u128::from(*a);
                let local = mac.link_local();
                writeln!(out, "    icmpv6 type nd-neighbor-advert @th,64,128 != {target:#x} drop")?;
                writeln!(out, "    icmpv6 type {{ nd-router-advert, nd-redirect }} drop")?;
                writeln!(out, "    ip6 saddr {a} accept")?;
                writeln!(out, "    ip6 saddr {local} icmpv6 type nd-neighbor-solicit accept")?;
            }
        }
    }
    writeln!(out, "    drop\n  }}")
}

fn inet(out: &mut String, config: &NetworkConfig, ports: &[Port<'_>]) -> fmt::Result {
    let bridge = &config.bridge;
    writeln!(out, "table inet {TABLE} {{")?;
    let own = [config.ipv4, config.ipv6];
    let shut: Vec<Network> =
        NEVER.iter().map(|(network, _)| *network).chain(own).chain(config.never.clone()).collect();
    for (set, kind, is_ipv4) in [("never4", "ipv4_addr", true), ("never6", "ipv6_addr", false)] {
        writeln!(out, "  set {set} {{\n    type {kind}\n    flags interval\n    auto-merge")?;
        elements(out, shut.iter().filter(|n| n.is_ipv4() == is_ipv4).map(ToString::to_string))?;
        writeln!(out, "  }}")?;
    }
    for (map, kind, is_ipv4) in [("jobs4", "ipv4_addr", true), ("jobs6", "ipv6_addr", false)] {
        writeln!(out, "  map {map} {{\n    type {kind} : verdict")?;
        elements(out, ports.iter().flat_map(|port| doors(port, is_ipv4)))?;
        writeln!(out, "  }}")?;
    }
    // Before any translation of addresses (-100), after connections are known (-200).
    writeln!(out, "  chain prerouting {{")?;
    writeln!(out, "    type filter hook prerouting priority -150; policy accept;")?;
    writeln!(out, "    iifname \"{bridge}\" jump {WITNESS}\n  }}")?;
    writeln!(out, "  chain {WITNESS} {{")?;
    writeln!(out, "    icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert }} accept")?;
    writeln!(out, "    ct state invalid drop")?;
    writeln!(out, "    fib daddr type {{ local, broadcast, anycast, multicast }} goto refused")?;
    writeln!(out, "    ip daddr @never4 goto refused\n    ip6 daddr @never6 goto refused")?;
    writeln!(out, "    ip saddr vmap @jobs4\n    ip6 saddr vmap @jobs6\n    drop\n  }}")?;
    writeln!(out, "  chain refused {{\n    reject with icmpx admin-prohibited\n  }}")?;
    // Where a translation by somebody else would take it.
    writeln!(out, "  chain input {{")?;
    writeln!(out, "    type filter hook input priority -150; policy accept;")?;
    writeln!(out, "    iifname != \"{bridge}\" accept")?;
    writeln!(out, "    icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert }} accept")?;
    writeln!(out, "    drop\n  }}")?;
    writeln!(out, "  chain forward {{")?;
    writeln!(out, "    type filter hook forward priority -150; policy accept;")?;
    // Neighbour discovery is the link's own and goes nowhere.
    writeln!(out, "    iifname \"{bridge}\" meta l4proto ipv6-icmp drop")?;
    writeln!(out, "    iifname \"{bridge}\" ip daddr @never4 drop")?;
    writeln!(out, "    iifname \"{bridge}\" ip6 daddr @never6 drop")?;
    writeln!(out, "    oifname != \"{bridge}\" accept")?;
    writeln!(out, "    iifname \"{bridge}\" drop")?;
    answers(out)?;
    writeln!(out, "    drop\n  }}")?;
    writeln!(out, "  chain output {{")?;
    writeln!(out, "    type filter hook output priority -150; policy accept;")?;
    writeln!(out, "    oifname != \"{bridge}\" accept")?;
    writeln!(out, "    meta l4proto {{ icmp, ipv6-icmp }} accept\n    drop\n  }}")?;
    writeln!(out, "  chain postrouting {{")?;
    writeln!(out, "    type nat hook postrouting priority srcnat; policy accept;")?;
    writeln!(out, "    ip saddr {} oifname != \"{bridge}\" masquerade", config.ipv4)?;
    writeln!(out, "    ip6 saddr {} oifname != \"{bridge}\" masquerade\n  }}", config.ipv6)?;
    for port in ports {
        writeln!(out, "  chain job_{} {{", port.attached.device.as_str())?;
        for rule in port.rules.as_slice() {
            allow(out, rule)?;
        }
        writeln!(out, "    goto refused\n  }}")?;
    }
    writeln!(out, "}}")
}

/// What comes back to a job: what belongs to its own connections.
fn answers(out: &mut String) -> fmt::Result {
    writeln!(out, "    ct state established ct direction reply accept")?;
    writeln!(out, "    ct state related meta l4proto {{ icmp, ipv6-icmp }} accept")
}

fn doors(port: &Port<'_>, is_ipv4: bool) -> impl Iterator<Item = String> {
    let device = port.attached.device.as_str();
    let its = port.attached.addresses.iter().filter(move |a| a.is_ipv4() == is_ipv4);
    its.map(move |address| format!("{address} : goto job_{device}"))
}

fn allow(out: &mut String, rule: &EgressRule) -> fmt::Result {
    let family = if rule.to.is_ipv4() { "ip" } else { "ip6" };
    let EgressRule { to, protocol, ports } = rule;
    writeln!(out, "    {family} daddr {to} {} dport {ports} accept", protocol.as_str())
}

#[cfg(test)]
mod tests;

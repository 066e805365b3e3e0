//! What pods never reach, whatever their cluster's network gives them: cloud metadata and what listens on
//! the node itself.
//!
//! A pod's devices are the cluster's (CNI); nothing of them is changed. Rules of ours stand beside them on
//! the host's side of each pair, known by the pair's device and the pod's addresses, so that nothing in
//! the pod has a hand in them. A pod whose devices are not pairs with an end on this node is refused.
//!
//! Two tables, replaced as a whole: `bridge nimbus_pods` for pairs that are ports of a bridge (metadata and
//! forged senders are dropped before the bridge looks at them), `inet nimbus_pods` for the rest. Answers of
//! a pod to who may connect to it (kubelet's probes, services) pass.
//!
//! Deliberately absent: an allow-list for pods, which is the cluster's network policy. A service's address
//! that the cluster translates to the node's own is the cluster's decision too, and passes.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::net::IpAddr;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use nimbus_api::egress::Network;
use nimbus_api::error::Chain;
use nimbus_api::id::LeaseId;
use nimbus_api::{Refusal, RefusalCode};
use serde::Deserialize;

use crate::agent::lock;
use crate::config::NetworkConfig;
use crate::program::{self, Call};

/// The name of both tables.
pub const TABLE: &str = "nimbus_pods";
/// A chain that is there whenever a pod is.
const WITNESS: &str = "from_pods";
/// Where each cloud answers what a machine is, and with whose keys.
const METADATA: [Network; 12] = [
    Network::v4([169, 254, 169, 254], 32),
    Network::v4([169, 254, 169, 253], 32),
    Network::v4([169, 254, 170, 2], 32),
    Network::v4([169, 254, 170, 23], 32),
    Network::v4([100, 100, 100, 200], 32),
    Network::v4([168, 63, 129, 16], 32),
    Network::v4([192, 0, 0, 192], 32),
    Network::v6([0xfd00, 0xec2, 0, 0, 0, 0, 0, 0], 32),
    Network::v6([0xfd00, 0xc1, 0, 0, 0, 0, 0, 0], 32),
    Network::v6([0xfd00, 0x42, 0, 0, 0, 0, 0, 0], 32),
    Network::v6([0xfd00, 0xa9fe, 0xa9fe, 0, 0, 0, 0, 0x1], 128),
    Network::v6([0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254], 128),
];
/// Most devices and most addresses of one that a pod may have.
const DEVICES_MAX: usize = 16;
/// Longest name of a network device.
const NAME_BYTES_MAX: usize = 15;
const LOOPBACK: &str = "LOOPBACK";

/// One pair of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Pair {
    /// The host's end.
    device: String,
    /// The pod's addresses on its own end.
    addresses: Vec<IpAddr>,
}

/// The pods of this node that have a network.
#[derive(Debug)]
pub struct PodNetworks {
    config: NetworkConfig,
    nsenter: PathBuf,
    runtime: tokio::runtime::Handle,
    /// Held while rules are changed.
    turn: Mutex<()>,
    known: Mutex<BTreeMap<LeaseId, Vec<Pair>>>,
}

/// A device as `ip -j addr show` and `ip -j link show` tell of it.
#[derive(Debug, Deserialize)]
struct Link {
    ifindex: u32,
    ifname: String,
    /// Of the other end of a pair, in its own namespace.
    #[serde(default, rename = "link_index")]
    peer: Option<u32>,
    #[serde(default)]
    flags: Vec<String>,
    #[serde(default)]
    addr_info: Vec<Address>,
}

#[derive(Debug, Deserialize)]
struct Address {
    #[serde(default)]
    local: Option<IpAddr>,
}

impl PodNetworks {
    /// None is known yet.
    pub fn new(config: NetworkConfig, runtime: tokio::runtime::Handle) -> Self {
        let nsenter = PathBuf::from("/usr/bin/nsenter");
        Self { config, nsenter, runtime, turn: Mutex::default(), known: Mutex::default() }
    }

    /// Puts the rules of a pod in force before anybody is in its namespace. Blocks.
    pub fn guard(&self, lease: &LeaseId, namespace: &OwnedFd) -> Result<(), Refusal> {
        let _turn = lock(&self.turn);
        let pairs = self.pairs(namespace)?;
        lock(&self.known).insert(lease.clone(), pairs);
        self.apply().inspect_err(|_not| drop(lock(&self.known).remove(lease)))
    }

    /// Whether the rules of a pod are among those in force.
    pub fn knows(&self, lease: &LeaseId) -> bool {
        lock(&self.known).contains_key(lease)
    }

    /// Forgets pods that are over. Blocks when there are any.
    pub fn keep(&self, lives: impl Fn(&LeaseId) -> bool) {
        let over = |known: &BTreeMap<LeaseId, Vec<Pair>>| known.keys().any(|lease| !lives(lease));
        if !over(&lock(&self.known)) {
            return;
        }
        let _turn = lock(&self.turn);
        lock(&self.known).retain(|lease, _| lives(lease));
        if let Err(refusal) = self.apply() {
            tracing::error!(%refusal, "rules of pods that are over stay");
        }
    }

    /// Sees that the rules are there, and puts them back. Blocks.
    pub fn watch(&self) {
        let _turn = lock(&self.turn);
        if lock(&self.known).is_empty() {
            return;
        }
        let seen = [("bridge", "prerouting"), ("inet", WITNESS)]
            .iter()
            .all(|(family, chain)| self.nft(&["list", "chain", family, TABLE, chain], "").is_ok());
        if seen {
            return;
        }
        tracing::error!("somebody has removed the rules of running pods, putting them back");
        if let Err(refusal) = self.apply() {
            tracing::error!(%refusal, "they cannot be put back");
        }
    }

    fn apply(&self) -> Result<(), Refusal> {
        let text = script(&self.config, &lock(&self.known));
        self.nft(&["-f", "-"], &text).map_err(|error| unavailable(&Chain(&error)))
    }

    /// The host's ends of what is in a namespace.
    fn pairs(&self, namespace: &OwnedFd) -> Result<Vec<Pair>, Refusal> {
        let fd = namespace.as_fd().as_raw_fd();
        let inside = format!("--net=/proc/{}/fd/{fd}", std::process::id());
        let ip = self.config.ip.to_string_lossy();
        let args = [inside.as_str(), "--", &ip, "-j", "addr", "show"];
        let links = self.links(&self.nsenter, &args)?;
        let own: Vec<_> = links.iter().filter(|link| !link.is_loopback()).collect();
        if own.len() > DEVICES_MAX || own.iter().any(|l| l.addr_info.len() > DEVICES_MAX) {
            return Err(unavailable(&format_args!("more than {DEVICES_MAX} devices or addresses")));
        }
        if own.is_empty() {
            return Ok(Vec::new());
        }
        let hosts = self.links(&self.config.ip, &["-j", "link", "show", "type", "veth"])?;
        own.into_iter().map(|link| pair(link, &hosts)).collect()
    }

    fn links(&self, program: &Path, args: &[&str]) -> Result<Vec<Link>, Refusal> {
        let call = Call { program, args, env: &[], input: Vec::new() };
        let said =
            program::run(&self.runtime, call).map_err(|error| unavailable(&Chain(&error)))?;
        let links: Vec<Link> =
            serde_json::from_slice(&said).map_err(|error| unavailable(&Chain(&error)))?;
        // `ip` prints an empty object for what it leaves out; it has no name.
        Ok(links.into_iter().filter(|link| !link.ifname.is_empty()).collect())
    }

    fn nft(&self, args: &[&str], input: &str) -> Result<(), program::ProgramError> {
        let input = input.as_bytes().to_vec();
        let call = Call { program: &self.config.nft, args, env: &[], input };
        program::run(&self.runtime, call).map(drop)
    }
}

impl Link {
    fn is_loopback(&self) -> bool {
        self.flags.iter().any(|flag| flag == LOOPBACK)
    }
}

/// The other end of a pod's device, which must name this one as its other end.
fn pair(inside: &Link, hosts: &[Link]) -> Result<Pair, Refusal> {
    let is_other =
        |host: &&Link| Some(host.ifindex) == inside.peer && host.peer == Some(inside.ifindex);
    let plain = |name: &str| {
        let word = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
        (1..=NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(word)
    };
    let Some(host) = hosts.iter().find(is_other).filter(|host| plain(&host.ifname)) else {
        let found = format!("the pod's device {:?} is no pair with this node", inside.ifname);
        return Err(unavailable(&found));
    };
    let addresses = inside.addr_info.iter().filter_map(|address| address.local).collect();
    Ok(Pair { device: host.ifname.clone(), addresses })
}

fn unavailable(found: &dyn fmt::Display) -> Refusal {
    Refusal::with(RefusalCode::NetworkUnavailable, found)
}

/// The script for these pods; with none it removes the tables.
fn script(config: &NetworkConfig, pods: &BTreeMap<LeaseId, Vec<Pair>>) -> String {
    let mut out = String::new();
    for family in ["bridge", "inet"] {
        let _fits = writeln!(out, "add table {family} {TABLE}\ndelete table {family} {TABLE}");
    }
    let pairs: Vec<&Pair> = pods.values().flatten().collect();
    if !pairs.is_empty() {
        let _fits = bridge(&mut out, &pairs).and_then(|()| inet(&mut out, config, &pairs));
    }
    out
}

fn list<T: fmt::Display>(all: impl IntoIterator<Item = T>) -> String {
    let all: Vec<String> = all.into_iter().map(|one| one.to_string()).collect();
    all.join(", ")
}

fn members(pairs: &[&Pair]) -> String {
    let names = pairs.iter().map(|pair| format!("\"{}\"", pair.device));
    format!("{{ {} }}", list(names))
}

fn metadata(is_ipv4: bool) -> String {
    list(METADATA.iter().filter(|network| network.is_ipv4() == is_ipv4))
}

fn bridge(out: &mut String, pairs: &[&Pair]) -> fmt::Result {
    writeln!(out, "table bridge {TABLE} {{")?;
    writeln!(out, "  chain prerouting {{")?;
    writeln!(out, "    type filter hook prerouting priority -300; policy accept;")?;
    writeln!(out, "    iifname {} jump {WITNESS}\n  }}", members(pairs))?;
    writeln!(out, "  chain {WITNESS} {{")?;
    writeln!(out, "    ip daddr {{ {} }} drop", metadata(true))?;
    writeln!(out, "    ip6 daddr {{ {} }} drop", metadata(false))?;
    for pair in pairs {
        senders(out, pair)?;
    }
    writeln!(out, "  }}\n}}")
}

/// What comes from a pair has its own sender; neighbour discovery may have none yet, or a local one.
fn senders(out: &mut String, pair: &Pair) -> fmt::Result {
    let from = format!("iifname \"{}\"", pair.device);
    writeln!(out, "    {from} ip6 saddr {{ ::, fe80::/10 }} meta l4proto ipv6-icmp accept")?;
    for (family, is_ipv4) in [("ip", true), ("ip6", false)] {
        let own = list(pair.addresses.iter().filter(|address| address.is_ipv4() == is_ipv4));
        let other =
            if own.is_empty() { String::new() } else { format!("{family} saddr != {{ {own} }} ") };
        writeln!(out, "    {from} meta protocol {family} {other}drop")?;
    }
    Ok(())
}

fn inet(out: &mut String, config: &NetworkConfig, pairs: &[&Pair]) -> fmt::Result {
    writeln!(out, "table inet {TABLE} {{")?;
    writeln!(out, "  chain prerouting {{")?;
    // Before any translation of addresses (-100), after connections are known (-200).
    writeln!(out, "    type filter hook prerouting priority -150; policy accept;")?;
    writeln!(out, "    iifname {} jump senders", members(pairs))?;
    writeln!(out, "    iifname {} jump {WITNESS}", members(pairs))?;
    for (family, is_ipv4) in [("ip", true), ("ip6", false)] {
        let all = pairs.iter().flat_map(|pair| &pair.addresses);
        let all = list(all.filter(|address| address.is_ipv4() == is_ipv4));
        if !all.is_empty() {
            writeln!(out, "    {family} saddr {{ {all} }} jump {WITNESS}")?;
        }
    }
    writeln!(out, "  }}\n  chain senders {{")?;
    for pair in pairs {
        senders(out, pair)?;
    }
    writeln!(out, "  }}\n  chain {WITNESS} {{")?;
    writeln!(
        out,
        "    icmpv6 type {{ nd-router-solicit, nd-neighbor-solicit, nd-neighbor-advert }} accept"
    )?;
    writeln!(out, "    ip daddr {{ {} }} goto refused", metadata(true))?;
    writeln!(out, "    ip6 daddr {{ {} }} goto refused", metadata(false))?;
    writeln!(out, "    ct state {{ established, related }} accept")?;
    for network in &config.pod_local {
        let family = if network.is_ipv4() { "ip" } else { "ip6" };
        writeln!(out, "    {family} daddr {network} accept")?;
    }
    writeln!(out, "    fib daddr type local goto refused\n  }}")?;
    writeln!(out, "  chain refused {{\n    reject with icmpx admin-prohibited\n  }}\n}}")
}

#[cfg(test)]
mod tests;

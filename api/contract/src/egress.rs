//! What a job may connect to: an allow-list of networks, protocols and ports.
//!
//! A rule is a text, the same for `nimbusctl`, control, leases and plans:
//! `192.0.2.0/24:443/tcp`, `[2001:db8::/32]:8000-8100/udp`. People may leave a host's prefix out; in a
//! lease only the canonical spelling is read, so that one allow-list has one encoding: no host bits,
//! the shortest IPv6 text, sorted, none twice. Limits: [`EGRESS_RULES_MAX`] rules, [`RULE_BYTES_MAX`]
//! bytes each.
//!
//! [`NEVER`] is what no rule can open. A rule that lies wholly in it is refused, because it could only
//! be a mistake or an attack; of a wider one (`0.0.0.0/0`) the node leaves these parts shut.
//!
//! Deliberately absent: names. A rule for a name would need a resolver of ours on the node, whose answers
//! the rules follow; until there is one a job names addresses.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Most rules of one lease: with the longest of each it stays within the size of a token.
pub const EGRESS_RULES_MAX: usize = 16;
/// Longest rule: `[` an IPv6 network with all digits `]:65535-65535/udp`.
pub const RULE_BYTES_MAX: usize = 64;
const V4_BITS: u8 = 32;
const V6_BITS: u8 = 128;

/// An IPv4 or IPv6 network; its host bits are zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Network {
    address: IpAddr,
    prefix: u8,
}

/// What no job reaches, whatever its lease says, and why.
pub const NEVER: [(Network, &str); 22] = [
    (Network::v4([0, 0, 0, 0], 8), "the unspecified address"),
    (Network::v4([127, 0, 0, 0], 8), "loopback"),
    (Network::v4([169, 254, 0, 0], 16), "link-local, cloud metadata"),
    (Network::v4([224, 0, 0, 0], 4), "multicast"),
    (Network::v4([240, 0, 0, 0], 4), "reserved, broadcast"),
    (Network::v4([100, 100, 100, 200], 32), "cloud metadata"),
    (Network::v4([168, 63, 129, 16], 32), "cloud metadata"),
    (Network::v4([192, 0, 0, 192], 32), "cloud metadata"),
    (Network::v6([0, 0, 0, 0, 0, 0, 0, 0], 96), "the unspecified address, loopback"),
    (Network::v6([0, 0, 0, 0, 0, 0xffff, 0, 0], 96), "IPv4 in the clothes of IPv6"),
    (Network::v6([0, 0, 0, 0, 0xffff, 0, 0, 0], 96), "IPv4 in the clothes of IPv6"),
    (Network::v6([0x64, 0xff9b, 0, 0, 0, 0, 0, 0], 96), "IPv4 behind a translator"),
    (Network::v6([0x64, 0xff9b, 1, 0, 0, 0, 0, 0], 48), "IPv4 behind a translator"),
    (Network::v6([0x2001, 0, 0, 0, 0, 0, 0, 0], 32), "IPv4 in a tunnel"),
    (Network::v6([0x2002, 0, 0, 0, 0, 0, 0, 0], 16), "IPv4 in a tunnel"),
    (Network::v6([0xfe80, 0, 0, 0, 0, 0, 0, 0], 10), "link-local"),
    (Network::v6([0xff00, 0, 0, 0, 0, 0, 0, 0], 8), "multicast"),
    (Network::v6([0xfd00, 0xec2, 0, 0, 0, 0, 0, 0], 32), "cloud metadata"),
    (Network::v6([0xfd00, 0xc1, 0, 0, 0, 0, 0, 0], 32), "cloud metadata"),
    (Network::v6([0xfd00, 0x42, 0, 0, 0, 0, 0, 0], 32), "cloud metadata"),
    (Network::v6([0xfd00, 0xa9fe, 0xa9fe, 0, 0, 0, 0, 0x1], 128), "cloud metadata"),
    (Network::v6([0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254], 128), "cloud metadata"),
];

/// A text is not what it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EgressError {
    /// Not the grammar.
    #[error(
        "expected NETWORK:PORTS/PROTOCOL such as 192.0.2.0/24:443/tcp or [2001:db8::/32]:53/udp"
    )]
    Grammar,
    /// Not a network.
    #[error("expected an IPv4 or IPv6 address with or without a prefix length")]
    Network,
    /// An address of a host and a prefix of a network.
    #[error("there are bits behind the prefix, meant is perhaps {0}")]
    HostBits(Network),
    /// Not ports.
    #[error("expected a port or FIRST-LAST, 1 to 65535")]
    Ports,
    /// Neither tcp nor udp.
    #[error("expected tcp or udp")]
    Protocol,
    /// Another spelling of a rule than the one that is signed.
    #[error("expected {0}")]
    Spelling(EgressRule),
    /// None, or more than there may be.
    #[error("found {0} rules, expected 1 to {EGRESS_RULES_MAX}")]
    Count(usize),
    /// Not sorted, or one twice.
    #[error("the rules are not sorted or one is there twice")]
    Order,
}

impl Network {
    /// An IPv4 network of a constant, whose host bits whoever writes it has left zero.
    pub const fn v4(octets: [u8; 4], prefix: u8) -> Self {
        Self { address: IpAddr::V4(Ipv4Addr::from_octets(octets)), prefix }
    }

    /// An IPv6 network of a constant, likewise.
    pub const fn v6(segments: [u16; 8], prefix: u8) -> Self {
        Self { address: IpAddr::V6(Ipv6Addr::from_segments(segments)), prefix }
    }

    /// A network, if no bit is set behind the prefix.
    pub fn new(address: IpAddr, prefix: u8) -> Result<Self, EgressError> {
        let most = if address.is_ipv4() { V4_BITS } else { V6_BITS };
        if prefix > most {
            return Err(EgressError::Network);
        }
        let network = Self { address: masked(address, prefix), prefix };
        if network.address == address { Ok(network) } else { Err(EgressError::HostBits(network)) }
    }

    /// Its first address.
    pub const fn address(&self) -> IpAddr {
        self.address
    }

    /// Bits that all its addresses have in common.
    pub const fn prefix(&self) -> u8 {
        self.prefix
    }

    /// Whether it is of IPv4.
    pub const fn is_ipv4(&self) -> bool {
        self.address.is_ipv4()
    }

    /// Whether an address lies in it.
    pub fn holds(&self, address: IpAddr) -> bool {
        let prefix = if address.is_ipv4() { V4_BITS } else { V6_BITS };
        self.contains(&Self { address, prefix })
    }

    /// Whether all of `other` lies in it.
    pub fn contains(&self, other: &Self) -> bool {
        self.is_ipv4() == other.is_ipv4()
            && self.prefix <= other.prefix
            && masked(other.address, self.prefix) == self.address
    }
}

fn masked(address: IpAddr, prefix: u8) -> IpAddr {
    let cut = u32::from(prefix);
    match address {
        IpAddr::V4(a) => {
            let mask = u32::MAX.checked_shl(u32::from(V4_BITS).saturating_sub(cut)).unwrap_or(0);
            Ipv4Addr::from(u32::from(a) & mask).into()
        }
        IpAddr::V6(a) => {
            let mask = u128::MAX.checked_shl(u32::from(V6_BITS).saturating_sub(cut)).unwrap_or(0);
            Ipv6Addr::from(u128::from(a) & mask).into()
        }
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl FromStr for Network {
    type Err = EgressError;

    fn from_str(text: &str) -> Result<Self, EgressError> {
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_unread| EgressError::Network)?;
        let most = if address.is_ipv4() { V4_BITS } else { V6_BITS };
        let prefix = prefix.map_or(Some(most.into()), |text| number(text, most.into()));
        let prefix = prefix.and_then(|prefix| u8::try_from(prefix).ok());
        Self::new(address, prefix.ok_or(EgressError::Network)?)
    }
}

impl Serialize for Network {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Network {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// Decimal digits without leading zeroes.
fn number(text: &str, most: u16) -> Option<u16> {
    let plain = text.bytes().all(|b| b.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    text.parse().ok().filter(|found| plain && *found <= most)
}

/// Transport of a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Protocol {
    /// `tcp` or `udp`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

/// Ports of a rule: never 0, never turned round.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ports {
    first: u16,
    last: u16,
}

impl Ports {
    /// From the first to the last.
    pub fn new(first: u16, last: u16) -> Result<Self, EgressError> {
        if first == 0 || last < first { Err(EgressError::Ports) } else { Ok(Self { first, last }) }
    }
}

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.first)?;
        if self.last == self.first { Ok(()) } else { write!(f, "-{}", self.last) }
    }
}

impl FromStr for Ports {
    type Err = EgressError;

    fn from_str(text: &str) -> Result<Self, EgressError> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let port = |text: &str| number(text, u16::MAX).ok_or(EgressError::Ports);
        Self::new(port(first)?, port(last)?)
    }
}

/// One thing that a job may connect to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EgressRule {
    /// Where.
    pub to: Network,
    /// By what.
    pub protocol: Protocol,
    /// On which ports.
    pub ports: Ports,
}

impl EgressRule {
    /// Why no job may have it, if none may.
    pub fn forbidden(&self) -> Option<&'static str> {
        let found = NEVER.iter().find(|(network, _)| network.contains(&self.to));
        found.map(|(_, reason)| *reason)
    }
}

impl fmt::Display for EgressRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { to, protocol, ports } = self;
        match to.address {
            IpAddr::V4(_) => write!(f, "{to}:{ports}/{}", protocol.as_str()),
            IpAddr::V6(_) => write!(f, "[{to}]:{ports}/{}", protocol.as_str()),
        }
    }
}

impl FromStr for EgressRule {
    type Err = EgressError;

    fn from_str(text: &str) -> Result<Self, EgressError> {
        if text.len() > RULE_BYTES_MAX {
            return Err(EgressError::Grammar);
        }
        let (rest, protocol) = text.rsplit_once('/').ok_or(EgressError::Grammar)?;
        let (to, ports) = rest.rsplit_once(':').ok_or(EgressError::Grammar)?;
        let bare = to.strip_prefix('[').and_then(|to| to.strip_suffix(']'));
        let network: Network = bare.unwrap_or(to).parse()?;
        // IPv6 in brackets and nothing else, or its last group could be taken for a port.
        if network.is_ipv4() == bare.is_some() {
            return Err(EgressError::Grammar);
        }
        let protocol = match protocol {
            "tcp" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            _other => return Err(EgressError::Protocol),
        };
        Ok(Self { to: network, protocol, ports: ports.parse()? })
    }
}

impl Serialize for EgressRule {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for EgressRule {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        let rule: Self = text.parse().map_err(serde::de::Error::custom)?;
        if rule.to_string() != text {
            return Err(serde::de::Error::custom(EgressError::Spelling(rule)));
        }
        Ok(rule)
    }
}

/// An allow-list: 1 to [`EGRESS_RULES_MAX`] rules, sorted, none twice.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<EgressRule>", into = "Vec<EgressRule>")]
pub struct EgressRules(Vec<EgressRule>);

impl EgressRules {
    /// Puts what a person wrote into order.
    pub fn sorted(mut rules: Vec<EgressRule>) -> Result<Self, EgressError> {
        rules.sort_unstable();
        rules.dedup();
        Self::try_from(rules)
    }

    /// The rules.
    pub fn as_slice(&self) -> &[EgressRule] {
        &self.0
    }
}

impl TryFrom<Vec<EgressRule>> for EgressRules {
    type Error = EgressError;

    fn try_from(rules: Vec<EgressRule>) -> Result<Self, EgressError> {
        if rules.is_empty() || rules.len() > EGRESS_RULES_MAX {
            return Err(EgressError::Count(rules.len()));
        }
        let ascending = rules.iter().zip(rules.iter().skip(1)).all(|(one, next)| one < next);
        if ascending { Ok(Self(rules)) } else { Err(EgressError::Order) }
    }
}

impl From<EgressRules> for Vec<EgressRule> {
    fn from(rules: EgressRules) -> Self {
        rules.0
    }
}

#[cfg(test)]
mod tests;

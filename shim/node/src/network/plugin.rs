//! Debian's CNI plugins `bridge` and `host-local`: what they are told, and what they answer.
//!
//! Their answer comes from a program of the host, but what is made of it ends in rules of the firewall:
//! it is read strictly, and every part that is used becomes a type that can hold nothing else.

use std::net::IpAddr;
use std::path::Path;

use nimbus_api::strict_json::{self, Limits, StrictJsonError};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::config::NetworkConfig;
use crate::program::OUTPUT_BYTES_MAX;

/// The version of CNI that is spoken.
pub const CNI_VERSION: &str = "1.0.0";
/// Name of the network: of the directory in which `host-local` keeps addresses.
pub const NETWORK: &str = "nimbus";
/// The job's device, as the job sees it.
pub const INSIDE: &str = "eth0";
/// Longest name of a device.
const DEVICE_BYTES_MAX: usize = 15;
/// Octets of a hardware address.
const MAC_BYTES: usize = 6;

/// Which addresses a job gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Families {
    /// One of IPv4.
    pub ipv4: bool,
    /// One of IPv6.
    pub ipv6: bool,
}

/// A device on the host's side of a pair; its name is safe in a rule.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Device(String);

impl Device {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Device {
    type Error = AnswerError;

    fn try_from(name: String) -> Result<Self, AnswerError> {
        let plain = name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        if plain && name.starts_with("veth") && name.len() <= DEVICE_BYTES_MAX {
            return Ok(Self(name));
        }
        Err(AnswerError::Unexpected("the name of a device"))
    }
}

impl From<Device> for String {
    fn from(device: Device) -> Self {
        device.0
    }
}

/// A hardware address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mac([u8; MAC_BYTES]);

impl Mac {
    /// The IPv6 link-local address that the kernel makes of it.
    pub fn link_local(self) -> IpAddr {
        let mut octets = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0xff, 0xfe, 0, 0, 0];
        for (number, octet) in self.0.iter().enumerate() {
            let place = if number < 3 { 8 + number } else { 10 + number };
            if let Some(slot) = octets.get_mut(place) {
                *slot ^= octet;
            }
        }
        std::net::Ipv6Addr::from_octets(octets).into()
    }
}

impl std::fmt::Display for Mac {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let pairs = self.0.map(|octet| format!("{octet:02x}"));
        f.write_str(&pairs.join(":"))
    }
}

impl TryFrom<String> for Mac {
    type Error = AnswerError;

    fn try_from(text: String) -> Result<Self, AnswerError> {
        let mut bytes = [0; MAC_BYTES];
        let joined: String = text.split(':').filter(|part| part.len() == 2).collect();
        let found = hex::decode_to_slice(&joined, &mut bytes).map(|()| Self(bytes));
        let exact = found.ok().filter(|mac| mac.to_string() == text.to_ascii_lowercase());
        exact.ok_or(AnswerError::Unexpected("a hardware address"))
    }
}

impl From<Mac> for String {
    fn from(mac: Mac) -> Self {
        mac.to_string()
    }
}

/// How a job is connected.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attached {
    /// The host's side of its pair.
    pub device: Device,
    /// The hardware address of its own side.
    pub mac: Mac,
    /// Its addresses: one of each family that it has.
    pub addresses: Vec<IpAddr>,
}

/// An answer is not what a plugin answers.
#[derive(Debug, thiserror::Error)]
pub enum AnswerError {
    /// Not the JSON of a result.
    #[error("the plugin's answer cannot be read")]
    Json(#[source] StrictJsonError),
    /// A part of it.
    #[error("the plugin's answer has something else than {0}")]
    Unexpected(&'static str),
}

/// What the plugins are told of the network.
pub fn configuration(config: &NetworkConfig, families: Families, addresses: &Path) -> Vec<u8> {
    let wanted = [(families.ipv4, config.ipv4, "0.0.0.0/0"), (families.ipv6, config.ipv6, "::/0")];
    let wanted = wanted.iter().filter(|(wanted, _, _)| *wanted);
    let ranges: Vec<Value> =
        wanted.clone().map(|(_, network, _)| json!([{"subnet": network.to_string()}])).collect();
    let routes: Vec<Value> = wanted.map(|(_, _, all)| json!({"dst": all})).collect();
    // No ipMasq: the plugin would use iptables, and what translates addresses is ours. With isGateway it
    // would switch the host's forwarding on; that it is on has been checked before.
    let told = json!({
        "cniVersion": CNI_VERSION,
        "name": NETWORK,
        "type": "bridge",
        "bridge": config.bridge,
        "isGateway": true,
        "ipMasq": false,
        "hairpinMode": false,
        "ipam": {
            "type": "host-local",
            "dataDir": addresses.to_string_lossy(),
            "ranges": ranges,
            "routes": routes,
        },
    });
    serde_json::to_vec(&told).unwrap_or_default()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Answer {
    cni_version: String,
    interfaces: Vec<Interface>,
    ips: Vec<Given>,
    #[serde(default)]
    #[expect(dead_code, reason = "known, and not used")]
    routes: Value,
    #[serde(default)]
    #[expect(dead_code, reason = "known, and not used")]
    dns: Value,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Interface {
    name: String,
    mac: String,
    #[serde(default)]
    sandbox: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Given {
    interface: Option<usize>,
    address: String,
    #[serde(default)]
    gateway: String,
}

/// Reads the answer to ADD.
pub fn attached(
    answer: &[u8],
    config: &NetworkConfig,
    families: Families,
) -> Result<Attached, AnswerError> {
    let answer: Answer =
        strict_json::parse(answer, Limits::bytes(OUTPUT_BYTES_MAX)).map_err(AnswerError::Json)?;
    if answer.cni_version != CNI_VERSION {
        return Err(AnswerError::Unexpected("the version of CNI that was asked for"));
    }
    let wrong = AnswerError::Unexpected("a bridge and a pair of devices");
    let Ok([bridge, outside, inside]) = <[Interface; 3]>::try_from(answer.interfaces) else {
        return Err(wrong);
    };
    let here = bridge.sandbox.is_empty() && outside.sandbox.is_empty();
    if bridge.name != config.bridge || !here || inside.sandbox.is_empty() || inside.name != INSIDE {
        return Err(wrong);
    }
    let mut addresses = Vec::new();
    for one in answer.ips {
        let (text, prefix) =
            one.address.split_once('/').ok_or(AnswerError::Unexpected("an address"))?;
        let address: IpAddr = text.parse().map_err(|_no| AnswerError::Unexpected("an address"))?;
        let range = if address.is_ipv4() { config.ipv4 } else { config.ipv6 };
        let is_gateway = one.gateway.parse() == Ok(address);
        let fits = range.holds(address) && prefix == range.prefix().to_string() && !is_gateway;
        if !fits || one.interface.is_some_and(|number| number != 2) {
            return Err(AnswerError::Unexpected("an address of the configured range"));
        }
        addresses.push(address);
    }
    addresses.sort_unstable();
    let found: Vec<bool> = addresses.iter().map(IpAddr::is_ipv4).collect();
    let wanted: Vec<bool> = [(families.ipv4, true), (families.ipv6, false)]
        .iter()
        .filter(|f| f.0)
        .map(|f| f.1)
        .collect();
    if found != wanted {
        return Err(AnswerError::Unexpected("one address of each family"));
    }
    Ok(Attached { device: outside.name.try_into()?, mac: inside.mac.try_into()?, addresses })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BOTH: Families = Families { ipv4: true, ipv6: true };
    /// What the plugin of containernetworking-plugins 1.1.1 printed.
    const ANSWER: &str = r#"{"cniVersion":"1.0.0","interfaces":[
        {"name":"nimbus0","mac":"ca:2d:5b:4d:9c:3f"},
        {"name":"veth0a1b2c3d","mac":"ca:2d:5b:4d:9c:3f"},
        {"name":"eth0","mac":"0e:99:32:05:6d:e1","sandbox":"/proc/7/fd/9"}],
        "ips":[{"interface":2,"address":"10.213.92.2/23","gateway":"10.213.92.1"},
        {"interface":2,"address":"fd6e:696d:6275:7300::2/64","gateway":"fd6e:696d:6275:7300::1"}],
        "routes":[{"dst":"0.0.0.0/0"}],"dns":{}}"#;

    fn read(text: &str, families: Families) -> Result<Attached, AnswerError> {
        attached(text.as_bytes(), &NetworkConfig::default(), families)
    }

    #[test]
    fn an_answer_becomes_what_the_rules_need() {
        let found = read(ANSWER, BOTH).unwrap();
        assert_eq!(found.device.as_str(), "veth0a1b2c3d");
        assert_eq!(found.mac.to_string(), "0e:99:32:05:6d:e1");
        assert_eq!(found.mac.link_local().to_string(), "fe80::c99:32ff:fe05:6de1");
        let wanted: [IpAddr; 2] =
            ["10.213.92.2".parse().unwrap(), "fd6e:696d:6275:7300::2".parse().unwrap()];
        assert_eq!(found.addresses, wanted);
        let text = serde_json::to_string(&found).unwrap();
        assert_eq!(serde_json::from_str::<Attached>(&text).unwrap(), found);
    }

    #[test]
    fn an_answer_that_is_not_about_this_network_is_not_believed() {
        for (part, other) in [
            ("\"cniVersion\":\"1.0.0\"", "\"cniVersion\":\"0.4.0\""),
            ("\"cniVersion\":\"1.0.0\"", "\"cniVersion\":\"1.0.0\",\"more\":1"),
            ("\"name\":\"nimbus0\"", "\"name\":\"docker0\""),
            ("veth0a1b2c3d", "eth7"),
            ("veth0a1b2c3d", "veth0; flush ruleset"),
            ("veth0a1b2c3d", "veth\\\" drop"),
            ("veth0a1b2c3d", "veth0123456789abcdef"),
            ("0e:99:32:05:6d:e1", "0e:99:32:05:6d"),
            ("0e:99:32:05:6d:e1", "0e:99:32:05:6d:zz"),
            ("0e:99:32:05:6d:e1", "0e9932056de1"),
            (",\"sandbox\":\"/proc/7/fd/9\"", ""),
            ("10.213.92.2/23", "10.213.92.1/23"),
            ("10.213.92.2/23", "10.213.94.2/23"),
            ("10.213.92.2/23", "10.213.92.2/8"),
            ("10.213.92.2/23", "127.0.0.1/23"),
            ("10.213.92.2/23", "fd6e:696d:6275:7300::3/64"),
            ("fd6e:696d:6275:7300::2/64", "::1/64"),
            ("\"interface\":2", "\"interface\":1"),
        ] {
            assert!(ANSWER.contains(part), "{part}");
            assert!(read(&ANSWER.replace(part, other), BOTH).is_err(), "{other}");
        }
        assert!(read(ANSWER, Families { ipv4: true, ipv6: false }).is_err());
        assert!(read("", BOTH).is_err());
    }

    #[test]
    fn a_job_gets_addresses_of_the_families_that_it_was_allowed_and_no_others() {
        let config = NetworkConfig::default();
        let told = |ipv4, ipv6| {
            let told = configuration(&config, Families { ipv4, ipv6 }, Path::new("/d"));
            String::from_utf8(told).unwrap()
        };
        assert!(told(true, false).contains("10.213.92.0/23") && !told(true, false).contains("::"));
        assert!(told(false, true).contains("fd6e:") && !told(false, true).contains("10.213"));
    }

    proptest! {
        #[test]
        fn no_answer_panics_the_reader(text in "\\PC{0,200}", at in 0..ANSWER.len(), c in "\\PC") {
            let _refused = read(&text, BOTH);
            let mut changed = ANSWER.to_owned();
            changed.replace_range(at..=at, &c);
            if let Ok(found) = read(&changed, BOTH) {
                prop_assert!(!found.device.as_str().contains([' ', ';', '"', '\n']));
            }
        }
    }
}

//! The node's configuration: one strict TOML file, read before anything else happens.
//!
//! Every key has a default but none is guessed: an unknown key is an error. Sizes are bytes, cpu is
//! thousandths of a core. Paths must be absolute, because the agent passes them to containerd.

use std::path::{Path, PathBuf};

use nimbus_api::egress::Network;
use nimbus_api::id::ContainerKey;
use nimbus_api::proto::control::v1::Resources;
use serde::Deserialize;

use crate::files::{self, FileError};

/// containerd's directory of blobs, below its root.
const CONTENT_PLUGIN: &str = "io.containerd.content.v1.content";
/// The CRI plugin's directory, below containerd's root and below its state, in all versions.
const CRI_PLUGIN: &str = "io.containerd.grpc.v1.cri";
/// Longest configuration file.
pub const CONFIG_BYTES_MAX: usize = 64 << 10;
/// Most jobs that one node may be told to hold: each keeps a connection and a thread.
pub const MAX_JOBS_LIMIT: u32 = 200;

/// Longest name of a network device.
const DEVICE_NAME_BYTES_MAX: usize = 15;
/// What is shut unless the administrator says otherwise: private networks, in which the node's neighbours,
/// its management and control itself are likely to be.
const PRIVATE: [Network; 5] = [
    Network::v4([10, 0, 0, 0], 8),
    Network::v4([172, 16, 0, 0], 12),
    Network::v4([192, 168, 0, 0], 16),
    Network::v4([100, 64, 0, 0], 10),
    Network::v6([0xfc00, 0, 0, 0, 0, 0, 0, 0], 7),
];
/// Most networks that a node may shut besides those that are never open.
const NEVER_MAX: usize = 256;
/// Addresses of jobs: room for 509, which is more than [`MAX_JOBS_LIMIT`].
const IPV4_DEFAULT: Network = Network::v4([10, 213, 92, 0], 23);
/// A unique local network; its digits spell "nimbus".
const IPV6_DEFAULT: Network = Network::v6([0xfd6e, 0x696d, 0x6275, 0x7300, 0, 0, 0, 0], 64);

/// What a node is told.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NodeConfig {
    /// Identity, ledger, spool, images and logs.
    pub data_dir: PathBuf,
    /// Sockets.
    pub run_dir: PathBuf,
    /// containerd's gRPC socket.
    pub containerd_address: PathBuf,
    /// containerd's `root`: its content, and what the CRI plugin keeps of pods.
    pub containerd_root: PathBuf,
    /// containerd's `state`.
    pub containerd_state: PathBuf,
    /// kubelet's `--root-dir`.
    pub kubelet_root: PathBuf,
    /// File with the policy key: 64 hex digits.
    pub policy_key: PathBuf,
    /// Registries (`host:port`) that may be asked in plain HTTP.
    pub insecure_registries: Vec<String>,
    /// Directories below which OCI layouts may be read.
    pub layout_roots: Vec<PathBuf>,
    /// Directories below which containerd clients make stdio fifos.
    pub fifo_roots: Vec<PathBuf>,
    /// What the node has for jobs.
    pub capacity: Capacity,
    /// How jobs with an allow-list are connected.
    pub network: NetworkConfig,
    /// How writable space on disk is made.
    pub scratch: ScratchConfig,
}

/// How writable space on disk is made.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ScratchConfig {
    /// The program `mkfs.ext4`.
    pub mkfs: PathBuf,
    /// The program `losetup`.
    pub losetup: PathBuf,
}

impl Default for ScratchConfig {
    fn default() -> Self {
        Self {
            mkfs: PathBuf::from("/usr/sbin/mkfs.ext4"),
            losetup: PathBuf::from("/usr/sbin/losetup"),
        }
    }
}

/// What a node has for jobs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Capacity {
    /// Thousandths of a core.
    pub cpu_millis: u32,
    /// Memory.
    pub memory_bytes: u64,
    /// Tasks.
    pub pids: u32,
    /// Jobs at one time.
    pub max_jobs: u32,
}

/// How jobs with an allow-list are connected. Jobs without one need none of it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NetworkConfig {
    /// The bridge that their devices are ports of; it is made when the first comes.
    pub bridge: String,
    /// Where their IPv4 addresses are from; nobody else's on this node, and never seen outside it.
    pub ipv4: Network,
    /// The same for IPv6.
    pub ipv6: Network,
    /// What no job of this node reaches, whatever its lease says, besides what none ever does.
    pub never: Vec<Network>,
    /// Addresses of this node that pods may reach, such as a node-local DNS cache.
    pub pod_local: Vec<Network>,
    /// Directory with the CNI plugins `bridge` and `host-local`.
    pub plugins: PathBuf,
    /// The program `nft`.
    pub nft: PathBuf,
    /// The program `ip`.
    pub ip: PathBuf,
}

impl Default for NetworkConfig {
    fn default() -> Self {
        Self {
            bridge: "nimbus0".to_owned(),
            ipv4: IPV4_DEFAULT,
            ipv6: IPV6_DEFAULT,
            never: PRIVATE.to_vec(),
            pod_local: Vec::new(),
            plugins: PathBuf::from("/usr/lib/cni"),
            nft: PathBuf::from("/usr/sbin/nft"),
            ip: PathBuf::from("/usr/sbin/ip"),
        }
    }
}

impl NetworkConfig {
    fn check(&self) -> Result<(), ConfigError> {
        let wrong = |key: &'static str, problem: String| ConfigError::Invalid { key, problem };
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        if !(1..=DEVICE_NAME_BYTES_MAX).contains(&self.bridge.len())
            || !self.bridge.bytes().all(plain)
        {
            let problem = format!("{:?} is not 1 to 15 of [a-z0-9-]", self.bridge);
            return Err(wrong("network.bridge", problem));
        }
        let of = |network: Network, is_ipv4: bool, key: &'static str| {
            let room = if is_ipv4 { 16..=24 } else { 48..=112 };
            if network.is_ipv4() == is_ipv4 && room.contains(&network.prefix()) {
                return Ok(());
            }
            let (least, most) = (room.start(), room.end());
            let problem = format!("{network} is of the other kind or not of /{least} to /{most}");
            Err(wrong(key, problem))
        };
        of(self.ipv4, true, "network.ipv4")?;
        of(self.ipv6, false, "network.ipv6")?;
        for (key, list) in [("network.never", &self.never), ("network.pod_local", &self.pod_local)]
        {
            if list.len() > NEVER_MAX {
                let problem = format!("at most {NEVER_MAX}, found {}", list.len());
                return Err(wrong(key, problem));
            }
        }
        Ok(())
    }
}

impl Default for NodeConfig {
    fn default() -> Self {
        Self {
            data_dir: PathBuf::from("/var/lib/nimbus/node"),
            run_dir: PathBuf::from("/run/nimbus"),
            containerd_address: PathBuf::from("/run/containerd/containerd.sock"),
            containerd_root: PathBuf::from("/var/lib/containerd"),
            containerd_state: PathBuf::from("/run/containerd"),
            kubelet_root: PathBuf::from("/var/lib/kubelet"),
            policy_key: PathBuf::from("/etc/nimbus/policy.pub"),
            insecure_registries: Vec::new(),
            layout_roots: Vec::new(),
            fifo_roots: vec![PathBuf::from("/run/containerd/fifo")],
            capacity: Capacity::default(),
            network: NetworkConfig::default(),
            scratch: ScratchConfig::default(),
        }
    }
}

impl Default for Capacity {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let cpu_millis = u32::try_from(cores.saturating_mul(1000)).unwrap_or(u32::MAX);
        Self { cpu_millis, memory_bytes: 4 << 30, pids: 4096, max_jobs: 16 }
    }
}

/// Why a configuration was not taken.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file.
    #[error("cannot read the configuration")]
    File(#[source] FileError),
    /// There is none.
    #[error("there is no configuration file {path:?}")]
    Absent {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// Not UTF-8 or not the TOML of a configuration.
    #[error("configuration is not valid: {0}")]
    Malformed(String),
    /// TOML of the right shape that says something impossible.
    #[error("configuration key {key}: {problem}")]
    Invalid {
        /// Which key.
        key: &'static str,
        /// What is wrong with it.
        problem: String,
    },
}

impl NodeConfig {
    /// Reads and checks a file.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let bytes = files::read_bounded(path, CONFIG_BYTES_MAX).map_err(ConfigError::File)?;
        let bytes = bytes.ok_or_else(|| ConfigError::Absent { path: path.to_owned() })?;
        let text = String::from_utf8(bytes)
            .map_err(|error| ConfigError::Malformed(error.utf8_error().to_string()))?;
        Self::parse(&text)
    }

    /// Reads and checks a text.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let config: Self =
            toml::from_str(text).map_err(|error| ConfigError::Malformed(error.to_string()))?;
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), ConfigError> {
        let paths = [
            ("data_dir", &self.data_dir),
            ("run_dir", &self.run_dir),
            ("containerd_address", &self.containerd_address),
            ("containerd_root", &self.containerd_root),
            ("containerd_state", &self.containerd_state),
            ("kubelet_root", &self.kubelet_root),
            ("policy_key", &self.policy_key),
            ("network.plugins", &self.network.plugins),
            ("network.nft", &self.network.nft),
            ("network.ip", &self.network.ip),
            ("scratch.mkfs", &self.scratch.mkfs),
            ("scratch.losetup", &self.scratch.losetup),
        ];
        let lists = [("layout_roots", &self.layout_roots), ("fifo_roots", &self.fifo_roots)];
        let listed = lists.iter().flat_map(|(key, list)| list.iter().map(move |path| (*key, path)));
        for (key, path) in paths.into_iter().chain(listed) {
            let text = path.to_str().unwrap_or_default();
            let clean = text.starts_with('/') && !text.split('/').any(|part| part == "..");
            if !clean || (text.ends_with('/') && text.len() > 1) {
                let problem =
                    format!("{text:?} is not an absolute path without \"..\" and final slash");
                return Err(ConfigError::Invalid { key, problem });
            }
        }
        self.network.check()?;
        let Capacity { cpu_millis, memory_bytes, pids, max_jobs } = self.capacity;
        if cpu_millis == 0 || memory_bytes == 0 || pids == 0 || max_jobs == 0 {
            let problem = "nothing in it may be zero".to_owned();
            return Err(ConfigError::Invalid { key: "capacity", problem });
        }
        if max_jobs > MAX_JOBS_LIMIT {
            let problem = format!("at most {MAX_JOBS_LIMIT}, found {max_jobs}");
            return Err(ConfigError::Invalid { key: "capacity.max_jobs", problem });
        }
        Ok(())
    }

    /// Where the agent keeps jobs' output.
    pub fn log_root(&self) -> PathBuf {
        self.data_dir.join("logs")
    }

    /// Where containerd keeps blobs, as `blobs/sha256/HEX`.
    pub fn content_dir(&self) -> PathBuf {
        self.containerd_root.join(CONTENT_PLUGIN)
    }

    /// What the CRI plugin keeps of pods until they are removed.
    pub fn cri_root(&self) -> PathBuf {
        self.containerd_root.join(CRI_PLUGIN)
    }

    /// What the CRI plugin keeps of pods until the next boot.
    pub fn cri_state(&self) -> PathBuf {
        self.containerd_state.join(CRI_PLUGIN)
    }

    /// Directories that sources of binds are below.
    pub fn bind_roots(&self) -> Vec<PathBuf> {
        vec![self.cri_state(), self.cri_root(), self.kubelet_root.join("pods")]
    }

    /// Directories that stdio fifos are below: those of `ctr` and other clients, and the CRI plugin's.
    pub fn fifo_roots(&self) -> Vec<PathBuf> {
        let mut roots = self.fifo_roots.clone();
        roots.push(self.cri_state().join("containers"));
        roots
    }

    /// Where `nimbus-runtime` keeps its state of a container while there is one.
    pub fn runtime_dir(&self, container: &ContainerKey) -> PathBuf {
        let below = self.run_dir.join("runtime").join(container.namespace.as_str());
        below.join(container.id.as_str())
    }

    /// Where the shim finds the agent.
    pub fn socket(&self) -> PathBuf {
        self.run_dir.join("node.sock")
    }
}

impl From<&Capacity> for Resources {
    fn from(capacity: &Capacity) -> Self {
        Self {
            cpu_millis: capacity.cpu_millis,
            memory_bytes: capacity.memory_bytes,
            pids: capacity.pids,
            scratch_bytes: 0,
            scratch: 0,
            log_bytes: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_file_gives_the_defaults() {
        assert_eq!(NodeConfig::parse("").unwrap(), NodeConfig::default());
    }

    #[test]
    fn keys_are_read() {
        let text = r#"
            data_dir = "/d"
            insecure_registries = ["127.0.0.1:5000"]
            [capacity]
            max_jobs = 3
        "#;
        let config = NodeConfig::parse(text).unwrap();
        assert_eq!(config.log_root(), Path::new("/d/logs"));
        assert_eq!(config.capacity.max_jobs, 3);
    }

    #[test]
    fn unknown_keys_relative_paths_and_zeros_are_refused() {
        for bad in [
            "colour = 1",
            "[capacity]\nshoes = 2",
            "data_dir = \"d\"",
            "run_dir = \"/a/../b\"",
            "layout_roots = [\"x\"]",
            "data_dir = \"/d/\"",
            "[capacity]\npids = 0",
            "[capacity]\nmax_jobs = 100000",
            "[network]\nbridge = \"a b\"",
            "[network]\nbridge = \"nimbus0123456789\"",
            "[network]\nipv4 = \"fd00::/64\"",
            "[network]\nipv4 = \"10.0.0.1/16\"",
            "[network]\nipv4 = \"10.0.0.0/30\"",
            "[network]\nipv6 = \"10.0.0.0/16\"",
            "[network]\nnever = [\"example.org\"]",
            "[network]\nnft = \"nft\"",
            "[network]\ndns = true",
        ] {
            assert!(NodeConfig::parse(bad).is_err(), "{bad}");
        }
    }
}

//! Where things are: sockets, runtime state and the sibling program.
//!
//! The run directory is [`RUN_DIR`] unless `NIMBUS_RUN_DIR` in the environment (containerd's, which
//! the shim inherits) says otherwise. Nothing here touches a file but [`Paths::runtime_program`].

use std::env;
use std::path::{Path, PathBuf};

use nimbus_api::Digest;
use nimbus_api::id::{ContainerId, ContainerKey};

/// Default run directory.
pub(crate) const RUN_DIR: &str = "/run/nimbus";
/// Overrides [`RUN_DIR`].
pub(crate) const RUN_DIR_VARIABLE: &str = "NIMBUS_RUN_DIR";
/// Where packages put `nimbus-runtime`, for a shim that does not lie beside it.
const RUNTIME_INSTALLED: &str = "/usr/libexec/nimbus/nimbus-runtime";
const RUNTIME_NAME: &str = "nimbus-runtime";
/// Hex digits of the hash in a socket's name: enough against accidents, short enough for `sun_path`.
const SOCKET_NAME_DIGITS: usize = 16;
/// How the address of a socket's path begins.
const ADDRESS_SCHEME: &str = "unix://";

/// The directories and programs of this installation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Paths {
    run_dir: PathBuf,
}

impl Paths {
    /// From the environment.
    pub(crate) fn from_environment() -> Self {
        let run_dir = env::var_os(RUN_DIR_VARIABLE).filter(|value| !value.is_empty());
        Self { run_dir: run_dir.map_or_else(|| PathBuf::from(RUN_DIR), PathBuf::from) }
    }

    /// Below this run directory.
    #[cfg(test)]
    pub(crate) fn at(run_dir: &Path) -> Self {
        Self { run_dir: run_dir.to_owned() }
    }

    /// Where the node agent listens.
    pub(crate) fn agent_socket(&self) -> PathBuf {
        self.run_dir.join("node.sock")
    }

    /// Where shims listen.
    pub(crate) fn socket_dir(&self) -> PathBuf {
        self.run_dir.join("s")
    }

    /// Where the shim of this container, or of the group that it is in, of the containerd at `address`
    /// listens.
    pub(crate) fn socket(
        &self,
        address: &str,
        key: &ContainerKey,
        group: Option<&ContainerId>,
    ) -> PathBuf {
        let whole = format!("{address}/{}/{}", key.namespace, group.unwrap_or(&key.id));
        let digits: String =
            Digest::of(whole.as_bytes()).hex().chars().take(SOCKET_NAME_DIGITS).collect();
        self.socket_dir().join(digits)
    }

    /// The socket of an address that was told, when it can be one of ours.
    pub(crate) fn socket_told(&self, address: &str) -> Option<PathBuf> {
        let path = Path::new(address.trim().strip_prefix(ADDRESS_SCHEME)?);
        let name = path.file_name()?.to_str()?;
        let ours = name.len() == SOCKET_NAME_DIGITS && name.bytes().all(|b| b.is_ascii_hexdigit());
        (ours && path == self.socket_dir().join(name)).then(|| path.to_owned())
    }

    /// Below what `nimbus-runtime` keeps its state.
    pub(crate) fn state_root(&self) -> PathBuf {
        self.run_dir.join("runtime")
    }

    /// What `nimbus-runtime` keeps of this container, while there is one.
    pub(crate) fn container_state(&self, key: &ContainerKey) -> PathBuf {
        self.state_root().join(key.namespace.as_str()).join(key.id.as_str())
    }

    /// `nimbus-runtime`: beside this very program, else where packages put it.
    pub(crate) fn runtime_program() -> PathBuf {
        let beside = env::current_exe()
            .ok()
            .and_then(|exe| exe.parent().map(|dir| dir.join(RUNTIME_NAME)))
            .filter(|path| path.is_file());
        beside.unwrap_or_else(|| PathBuf::from(RUNTIME_INSTALLED))
    }
}

/// What containerd is told: the path of a socket as an address.
pub(crate) fn address_of(socket: &Path) -> String {
    format!("{ADDRESS_SCHEME}{}", socket.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(namespace: &str, id: &str) -> ContainerKey {
        ContainerKey { namespace: namespace.parse().unwrap(), id: id.parse().unwrap() }
    }

    #[test]
    fn another_containerd_namespace_or_container_has_another_socket() {
        let paths = Paths::at(Path::new("/run/nimbus"));
        let ours = paths.socket("/c.sock", &key("a", "b"), None);
        assert_eq!(ours, paths.socket("/c.sock", &key("a", "b"), None));
        assert_ne!(ours, paths.socket("/d.sock", &key("a", "b"), None));
        assert_ne!(ours, paths.socket("/c.sock", &key("a", "c"), None));
        assert_ne!(ours, paths.socket("/c.sock", &key("b", "b"), None));
    }

    #[test]
    fn containers_of_one_group_have_one_socket_and_another_group_has_another() {
        let paths = Paths::at(Path::new("/run/nimbus"));
        let of =
            |id, group: &str| paths.socket("/c.sock", &key("a", id), group.parse().ok().as_ref());
        assert_eq!(of("x", "g"), of("y", "g"));
        assert_ne!(of("x", "g"), of("x", "h"));
    }

    #[test]
    fn only_an_address_that_could_be_ours_is_taken_for_one() {
        let paths = Paths::at(Path::new("/run/nimbus"));
        let socket = paths.socket("/c.sock", &key("a", "b"), None);
        assert_eq!(paths.socket_told(&address_of(&socket)), Some(socket));
        for other in [
            "",
            "unix:///run/nimbus/s/0123",
            "unix:///run/nimbus/s/../s/0123456789abcdef",
            "unix:///run/other/s/0123456789abcdef",
            "vsock:///run/nimbus/s/0123456789abcdef",
        ] {
            assert_eq!(paths.socket_told(other), None, "{other}");
        }
    }

    #[test]
    fn a_socket_of_the_default_run_directory_fits_a_socket_address() {
        const SUN_PATH_MAX: usize = 106;
        let long = "x".repeat(76);
        let socket = Paths::at(Path::new(RUN_DIR)).socket("/c.sock", &key(&long, &long), None);
        assert_eq!(socket.parent(), Some(Path::new("/run/nimbus/s")));
        assert!(address_of(&socket).len() < SUN_PATH_MAX);
        assert!(address_of(&socket).starts_with("unix:///run/nimbus/s/"));
    }
}

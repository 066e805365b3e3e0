//! `cargo xtask setup`: the Debian packages that building and testing need.
//!
//! Intent: one table, each package with its reason; nothing is installed that is there. No service
//! is started or enabled: maintainer scripts are told so by a `policy-rc.d` that is removed again,
//! and what they have enabled all the same is disabled where systemd runs.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::run::{RunError, complain, run, say};

/// Debian packages, and what each is for.
const PACKAGES: &[(&str, &str)] = &[
    ("gcc", "builds aws-lc, SQLite and zstd, and links"),
    ("g++", "builds libFuzzer"),
    ("libc6-dev", "headers for the same"),
    ("protobuf-compiler", "build script of the crate containerd-client"),
    ("libprotobuf-dev", "google/protobuf/*.proto for the same"),
    ("containerd", "the containerd that the lanes drive, and ctr"),
    ("runc", "peer of the benchmarks and of the conformance lane"),
    ("crun", "peer of the benchmarks"),
    ("docker-registry", "the loopback registry of the lanes"),
    ("umoci", "makes and unpacks images for comparison in the image store's tests"),
    ("skopeo", "pushes to the registry in the image store's tests"),
    ("strace", "shows which sync control's database uses"),
    ("busybox-static", "the root file system of test images"),
    ("util-linux", "unshare, for crun on hosts with hybrid cgroups"),
    ("nftables", "nft: the rules of jobs with an allow-list"),
    (
        "containernetworking-plugins",
        "the CNI plugins bridge and host-local, which connect them; portmap for pods",
    ),
    ("iptables", "what these plugins write the rules of pods with"),
    ("iproute2", "ip, which removes their devices, and makes the networks of the tests"),
    ("ca-certificates", "cargo's downloads"),
];
/// What lane `vm` needs besides.
const VM_PACKAGES: &[(&str, &str)] = &[
    ("qemu-system-x86", "emulates the machines"),
    ("debootstrap", "makes their disks"),
    ("e2fsprogs", "makes file systems without mounting them, and reads them"),
];
/// What `package` needs besides.
const DEB_PACKAGES: &[(&str, &str)] = &[
    ("dpkg-dev", "dpkg-shlibdeps names the libraries that a program needs"),
    ("binutils", "strip, and objdump for the same"),
];
/// Services that come with them.
const SERVICES: &[&str] = &["containerd", "docker-registry"];
/// Where maintainer scripts ask whether they may start a service.
const POLICY: &str = "/usr/sbin/policy-rc.d";

/// Installs what is missing.
pub(crate) fn setup() -> Result<(), RunError> {
    components()?;
    install_missing(PACKAGES)
}

/// Installs what is missing for lane `vm`.
pub(crate) fn setup_vm() -> Result<(), RunError> {
    install_missing(VM_PACKAGES)
}

/// Installs what is missing for making packages.
pub(crate) fn setup_packages() -> Result<(), RunError> {
    install_missing(DEB_PACKAGES)
}

fn install_missing(packages: &[(&'static str, &str)]) -> Result<(), RunError> {
    let missing = missing(packages)?;
    if missing.is_empty() {
        return Ok(());
    }
    for (name, reason) in packages.iter().filter(|(name, _)| missing.contains(name)) {
        say(format_args!("needs {name}: {reason}"));
    }
    let guard = NoServices::enter()?;
    let done = install(&missing);
    guard.close()?;
    done
}

fn missing(packages: &[(&'static str, &str)]) -> Result<Vec<&'static str>, RunError> {
    let mut missing = Vec::new();
    for (name, _reason) in packages {
        let mut query = Command::new("dpkg-query");
        query.args(["-W", "-f=${Status}", name]).stderr(Stdio::null());
        let answer = query
            .output()
            .map_err(|source| RunError::Start { program: "dpkg-query".into(), source })?;
        if answer.stdout != b"install ok installed" {
            missing.push(*name);
        }
    }
    Ok(missing)
}

fn install(missing: &[&str]) -> Result<(), RunError> {
    let mut install = apt(&["install", "--yes", "--no-install-recommends"]);
    install.args(missing);
    if run(&mut install).is_err() {
        // The package lists may be old or absent: one update, one more try.
        run(&mut apt(&["update"]))?;
        run(&mut install)?;
    }
    if Path::new("/run/systemd/system").is_dir() {
        for service in SERVICES.iter().filter(|service| missing.contains(service)) {
            run(&mut root("systemctl", &["disable", service]))?;
        }
    }
    Ok(())
}

fn apt(args: &[&str]) -> Command {
    let mut command = root("env", &["DEBIAN_FRONTEND=noninteractive", "apt-get", "--quiet"]);
    command.args(args);
    command
}

/// A command as root: directly, or by sudo.
pub(crate) fn root(program: &str, args: &[&str]) -> Command {
    let id = Command::new("id").arg("-u").output();
    let is_root = id.is_ok_and(|answer| answer.stdout.trim_ascii() == b"0");
    let mut command = Command::new(if is_root { program } else { "sudo" });
    if !is_root {
        command.arg(program);
    }
    command.args(args);
    command
}

/// rustfmt and clippy.
fn components() -> Result<(), RunError> {
    let present = |name: &str| {
        let mut probe = Command::new("cargo");
        probe.args([name, "--version"]).stdout(Stdio::null()).stderr(Stdio::null());
        probe.status().is_ok_and(|status| status.success())
    };
    if present("fmt") && present("clippy") {
        return Ok(());
    }
    run(Command::new("rustup").args(["component", "add", "rustfmt", "clippy"]))
}

/// While it lives, maintainer scripts start no service.
struct NoServices {
    ours: bool,
}

impl NoServices {
    fn enter() -> Result<Self, RunError> {
        if Path::new(POLICY).exists() {
            return Ok(Self { ours: false });
        }
        let script =
            format!("umask 022; printf '#!/bin/sh\\nexit 101\\n' >{POLICY} && chmod 755 {POLICY}");
        run(&mut root("sh", &["-c", &script]))?;
        Ok(Self { ours: true })
    }

    fn close(mut self) -> Result<(), RunError> {
        if !self.ours {
            return Ok(());
        }
        self.ours = false;
        run(&mut root("rm", &["-f", POLICY]))
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if self.ours
            && let Err(error) = run(&mut root("rm", &["-f", POLICY]))
        {
            complain(format_args!("xtask: {POLICY} is left behind: {error}"));
        }
    }
}

//! What is in which package, as a table. `nimbus-oci` and the programs of tests are in none.
//!
//! A daemon and its helpers lie in a directory of their own below `/usr/libexec/nimbus`, because they find
//! each other beside themselves, and `/usr/bin` has links: so two packages can ship `nimbus-verify`, each
//! the one that it was built and tested with.

/// One package.
#[derive(Debug)]
pub(super) struct Package {
    pub(super) name: &'static str,
    pub(super) summary: &'static str,
    pub(super) description: &'static str,
    /// What `dpkg-shlibdeps` cannot know.
    pub(super) depends: &'static [&'static str],
    /// What only some jobs need.
    pub(super) recommends: &'static [&'static str],
    /// Programs and the directory that they lie in.
    pub(super) programs: (&'static str, &'static [&'static str]),
    /// Links: where, and to what.
    pub(super) links: &'static [(&'static str, &'static str)],
    /// Files of the repository's `packaging`, and where they go.
    pub(super) files: &'static [(&'static str, &'static str)],
    /// Empty directories, which may be in several packages.
    pub(super) dirs: &'static [&'static str],
    /// Files that an administrator changes.
    pub(super) conffiles: &'static [&'static str],
    /// Maintainer scripts in `packaging/deb/NAME`.
    pub(super) scripts: &'static [&'static str],
}

/// All of them.
pub(super) const PACKAGES: &[Package] = &[
    Package {
        name: "nimbus-node",
        summary: "node agent and containerd runtime class for strangers' jobs",
        description: "A job starts only if its image is attested under a signed policy and a live \
                      lease names it. The agent decides, containerd-shim-nimbus-v1 obeys and \
                      nimbus-runtime contains.",
        // Writable space on disk: mkfs.ext4, losetup; a pod's devices: nsenter.
        depends: &[
            "containerd (>= 1.6) | containerd.io (>= 1.6)",
            "e2fsprogs",
            "init-system-helpers",
            "mount",
            "util-linux",
        ],
        // Jobs with an allow-list and pods with a network, docs/network.md.
        recommends: &["containernetworking-plugins", "iproute2", "nftables"],
        programs: (
            "usr/libexec/nimbus/node",
            &["nimbus-node", "containerd-shim-nimbus-v1", "nimbus-runtime", "nimbus-verify"],
        ),
        links: &[
            ("usr/bin/nimbus-node", "../libexec/nimbus/node/nimbus-node"),
            (
                "usr/bin/containerd-shim-nimbus-v1",
                "../libexec/nimbus/node/containerd-shim-nimbus-v1",
            ),
        ],
        files: &[
            ("systemd/nimbus-node.service", "usr/lib/systemd/system/nimbus-node.service"),
            ("deb/nimbus-node/node.toml", "etc/nimbus/node.toml"),
            ("containerd/version-2.toml", "usr/share/nimbus/containerd/version-2.toml"),
            ("containerd/version-3.toml", "usr/share/nimbus/containerd/version-3.toml"),
            ("kubernetes/runtimeclass.yaml", "usr/share/nimbus/kubernetes/runtimeclass.yaml"),
            (
                "kubernetes/validatingadmissionpolicy.yaml",
                "usr/share/nimbus/kubernetes/validatingadmissionpolicy.yaml",
            ),
        ],
        dirs: &["var/lib/nimbus"],
        conffiles: &["/etc/nimbus/node.toml"],
        scripts: &["postinst", "prerm", "postrm"],
    },
    Package {
        name: "nimbus-control",
        summary: "control service of Nimbus: queue, quotas, leases, keys",
        description: "Takes jobs, checks them against policy, and signs the leases without which no \
                      node starts anything.",
        depends: &["init-system-helpers", "passwd"],
        recommends: &[],
        programs: ("usr/libexec/nimbus/control", &["nimbus-control", "nimbus-verify"]),
        links: &[("usr/bin/nimbus-control", "../libexec/nimbus/control/nimbus-control")],
        files: &[
            ("systemd/nimbus-control.service", "usr/lib/systemd/system/nimbus-control.service"),
            ("deb/nimbus-control/nimbus-control.default", "etc/default/nimbus-control"),
        ],
        dirs: &["var/lib/nimbus"],
        conffiles: &["/etc/default/nimbus-control"],
        scripts: &["postinst", "prerm", "postrm"],
    },
    Package {
        name: "nimbusctl",
        summary: "command line of Nimbus",
        description: "Submits jobs, attests images, signs policies and shows what runs.",
        depends: &[],
        recommends: &[],
        programs: ("usr/bin", &["nimbusctl"]),
        links: &[],
        files: &[],
        dirs: &[],
        conffiles: &[],
        scripts: &[],
    },
];

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn no_file_is_in_two_packages_and_no_program_of_tests_in_any() {
        let mut paths = BTreeSet::new();
        for package in PACKAGES {
            let (dir, programs) = package.programs;
            assert!(!programs.contains(&"nimbus-oci"));
            let programs = programs.iter().map(|program| format!("{dir}/{program}"));
            let links = package.links.iter().map(|(at, _to)| (*at).to_owned());
            let files = package.files.iter().map(|(_from, at)| (*at).to_owned());
            for path in programs.chain(links).chain(files) {
                assert!(paths.insert(path.clone()), "{path}");
            }
        }
    }
}

//! Files and directories that kubelet and the CRI plugin made for a pod, opened for a container.
//!
//! A source is opened below a root that the node's configuration names, component by component without
//! following a link, and cloned as a detached mount; what is handed over is that mount, so nothing that
//! happens to the path later changes what the container gets (rule 6). Which sources a container may ask
//! for has been decided before: by `nimbus_hooks`.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use nimbus_api::plan::PlanBind;
use nimbus_api::{Refusal, RefusalCode};
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, fstat, openat2};
use rustix::mount::{OpenTreeFlags, open_tree};

/// The tmpfs of a pod's `/dev/shm` is a mount below its root, so other file systems are let in.
const INSIDE: ResolveFlags =
    ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS);

/// One detached mount.
pub fn open(roots: &[PathBuf], bind: &PlanBind) -> Result<OwnedFd, Refusal> {
    let refuse = |found: String| Refusal::with(RefusalCode::SpecBindForbidden, found);
    let source = Path::new(&bind.source);
    let below = roots.iter().find_map(|root| Some((root, source.strip_prefix(root).ok()?)));
    let Some((root, rest)) = below.filter(|(_, rest)| !rest.as_os_str().is_empty()) else {
        return Err(refuse(format!("{:?} is below no root of this node", bind.source)));
    };
    let failed = |error: rustix::io::Errno| refuse(format!("opening {:?}: {error}", bind.source));
    let root_flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(root, root_flags, Mode::empty()).map_err(failed)?;
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let found = openat2(&root, rest, flags, Mode::empty(), INSIDE).map_err(failed)?;
    let kind = FileType::from_raw_mode(fstat(&found).map_err(failed)?.st_mode);
    if !matches!(kind, FileType::Directory | FileType::RegularFile) {
        return Err(refuse(format!("{:?} is neither a file nor a directory", bind.source)));
    }
    let below = if bind.recursive { OpenTreeFlags::AT_RECURSIVE } else { OpenTreeFlags::empty() };
    let clone = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    open_tree(&found, "", clone | below).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn bind(source: &Path) -> PlanBind {
        PlanBind {
            source: source.to_str().unwrap().to_owned(),
            destination: "/x".to_owned(),
            read_only: true,
            recursive: false,
        }
    }

    #[test]
    fn what_is_below_a_root_is_opened_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let (root, outside) = (dir.path().join("pods"), dir.path().join("outside"));
        std::fs::create_dir_all(root.join("uid/volumes")).unwrap();
        std::fs::create_dir(&outside).unwrap();
        std::fs::write(root.join("uid/hosts"), "x").unwrap();
        symlink(&outside, root.join("uid/out")).unwrap();
        symlink("volumes", root.join("uid/in")).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, root.join("uid/fifo"), Mode::RUSR).unwrap();
        let roots = [root.clone()];
        for good in ["uid/hosts", "uid/volumes"] {
            open(&roots, &bind(&root.join(good))).unwrap();
        }
        let bad = ["", "uid/out", "uid/out/x", "uid/in", "uid/fifo", "uid/absent", "../outside"];
        for bad in bad.map(|bad| root.join(bad)).iter().chain([&outside]) {
            let refused = open(&roots, &bind(bad)).unwrap_err();
            assert_eq!(refused.code, RefusalCode::SpecBindForbidden, "{bad:?}");
        }
    }
}

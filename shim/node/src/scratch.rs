//! Writable space on disk: for each container a fresh file system in a file of the agent's, of exactly
//! the size that its lease gives, handed over as a detached mount.
//!
//! The file has no name any more when the mount is handed over, and its loop device goes with the mount:
//! when the container's mount namespace ends, however it ends, nothing is left to clean up. What a crash
//! of the agent leaves in between is let go of when it starts ([`Scratches::open`]).
//!
//! The file is sparse: it takes as much of the disk as the container has written. A container is refused
//! when less is free than it may write; two that both write may still fill the disk together, and get
//! errors of their own then.
//!
//! Deliberately absent: a journal, and any care for what is in it after the container. Also project
//! quotas, which would need a file system of the node's that has them switched on.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use nimbus_api::error::Chain;
use nimbus_api::{Refusal, RefusalCode};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount,
    fsopen,
};
use tokio::runtime::Handle;

use crate::config::ScratchConfig;
use crate::files::{self, FileError};
use crate::program::{self, Call, ProgramError};

/// Bytes of space for each inode of it: builds make many small files.
const BYTES_PER_INODE: &str = "8192";
/// What ext4 has by default and throw-away space does not need.
const WITHOUT: &str = "^has_journal,^resize_inode";
/// Tables that the kernel would fill in the background are left as the sparse file has them: zero.
const FORMAT: &str = "lazy_itable_init=1,nodiscard,root_owner=0:0";
/// Longest name of a loop device.
const DEVICE_BYTES_MAX: usize = 32;

/// The maker of writable space.
#[derive(Debug)]
pub struct Scratches {
    dir: PathBuf,
    config: ScratchConfig,
    runtime: Handle,
}

/// A loop device that goes when nothing is mounted from it any more.
struct Device<'a> {
    of: &'a Scratches,
    path: String,
}

impl Drop for Device<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.of.losetup(&["--detach", &self.path]) {
            tracing::warn!(device = self.path, error = %Chain(&error), "a loop device stays");
        }
    }
}

impl Scratches {
    /// Takes its directory, and lets go of what an earlier run left there.
    pub fn open(dir: &Path, config: ScratchConfig, runtime: Handle) -> Result<Self, FileError> {
        files::ensure_dir(dir)?;
        let failed = |error| FileError::new("empty", dir, error);
        let mut left = false;
        for file in fs::read_dir(dir).map_err(failed)? {
            files::remove(&file.map_err(failed)?.path())?;
            left = true;
        }
        let scratches = Self { dir: dir.to_owned(), config, runtime };
        if left {
            scratches.let_go();
        }
        Ok(scratches)
    }

    /// One more. Blocks.
    pub fn make(&self, bytes: u64) -> Result<OwnedFd, Refusal> {
        let failed =
            |found: &dyn std::fmt::Display| Refusal::with(RefusalCode::NodeScratchFailed, found);
        let disk = rustix::fs::statvfs(&self.dir).map_err(|error| failed(&error))?;
        let free = disk.f_bavail.saturating_mul(disk.f_frsize);
        if free < bytes {
            return Err(failed(&format_args!("{bytes} bytes are leased, the disk has {free}")));
        }
        let name = File(self.dir.join(uuid::Uuid::new_v4().to_string()));
        let file = fs::File::options().write(true).create_new(true).mode(0o600).open(&name.0);
        file.and_then(|file| file.set_len(bytes)).map_err(|error| failed(&error))?;
        let path = name.0.to_str().unwrap_or_default();
        let device = self.format(path).map_err(|error| failed(&Chain(&error)))?;
        drop(name);
        mount(&device.path).map_err(|error| failed(&format_args!("mounting it: {error}")))
    }

    fn format(&self, path: &str) -> Result<Device<'_>, ProgramError> {
        let options = ["-q", "-F", "-m", "0", "-i", BYTES_PER_INODE, "-O", WITHOUT, "-E", FORMAT];
        let args: Vec<&str> = options.into_iter().chain([path]).collect();
        self.run(&self.config.mkfs, &args)?;
        // Direct: its pages are the container's, cached once and counted in its memory.
        let said = self.losetup(&["--find", "--show", "--direct-io=on", path])?;
        let device = String::from_utf8_lossy(&said).trim().to_owned();
        let number = device.strip_prefix("/dev/loop").unwrap_or_default();
        let plain = !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit());
        if plain && device.len() <= DEVICE_BYTES_MAX {
            return Ok(Device { of: self, path: device });
        }
        let said = std::io::Error::other(format!("it named {device:?} as the loop device"));
        Err(ProgramError::Run { program: self.config.losetup.clone(), source: said })
    }

    /// Loop devices over files of ours: one that is mounted goes with its mount, another at once.
    fn let_go(&self) {
        let listed =
            self.losetup(&["--list", "--noheadings", "--raw", "--output", "NAME,BACK-FILE"]);
        let listed = listed.unwrap_or_default();
        let below = format!("{}/", self.dir.display());
        for line in String::from_utf8_lossy(&listed).lines() {
            let Some((device, file)) = line.split_once(' ') else { continue };
            if file.starts_with(&below) {
                drop(Device { of: self, path: device.to_owned() });
            }
        }
    }

    fn losetup(&self, args: &[&str]) -> Result<Vec<u8>, ProgramError> {
        self.run(&self.config.losetup, args)
    }

    fn run(&self, program: &Path, args: &[&str]) -> Result<Vec<u8>, ProgramError> {
        program::run(&self.runtime, Call { program, args, env: &[], input: Vec::new() })
    }
}

/// A file with a name for a moment.
struct File(PathBuf);

impl Drop for File {
    fn drop(&mut self) {
        if let Err(error) = files::remove(&self.0) {
            tracing::warn!(error = %Chain(&error), "a file of writable space stays");
        }
    }
}

fn mount(device: &str) -> rustix::io::Result<OwnedFd> {
    let context = fsopen("ext4", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&context, "source", device)?;
    fsconfig_set_string(&context, "errors", "remount-ro")?;
    fsconfig_create(&context)?;
    let closed = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOATIME;
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, closed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;
    use rustix::fs::{Mode, OFlags, StatVfsMountFlags, fstatvfs, openat};
    use rustix::io::Errno;

    const BYTES: u64 = 8 << 20;

    /// Loop devices over files in a directory, the removed ones included.
    fn devices(scratches: &Scratches) -> Vec<String> {
        let listed =
            scratches.losetup(&["--list", "--noheadings", "--raw", "--output", "BACK-FILE"]);
        let listed = String::from_utf8(listed.unwrap()).unwrap();
        let below = scratches.dir.to_str().unwrap().to_owned();
        listed.lines().filter(|line| line.starts_with(&below)).map(str::to_owned).collect()
    }

    fn until_none(scratches: &Scratches) {
        for _ in 0..200 {
            if devices(scratches).is_empty() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        panic!("{:?}", devices(scratches));
    }

    #[test]
    fn it_is_as_large_as_leased_and_nothing_is_left_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let scratches = testing::scratch(dir.path());
        let mount = scratches.make(BYTES).unwrap();
        assert_eq!(fs::read_dir(&scratches.dir).unwrap().count(), 0, "no name is left");
        assert_eq!(devices(&scratches).len(), 1);
        let found = fstatvfs(&mount).unwrap();
        assert!(found.f_blocks * found.f_frsize <= BYTES);
        assert!(found.f_flag.contains(StatVfsMountFlags::NOSUID | StatVfsMountFlags::NODEV));
        let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC;
        let file = openat(&mount, "f", flags, Mode::RUSR).unwrap();
        let chunk = vec![1; 1 << 20];
        let mut written = 0;
        let full = loop {
            match rustix::io::write(&file, &chunk) {
                Ok(bytes) => written += u64::try_from(bytes).unwrap(),
                Err(error) => break error,
            }
        };
        assert_eq!(full, Errno::NOSPC);
        assert!(written > BYTES / 2 && written <= BYTES, "{written}");
        drop((file, mount));
        until_none(&scratches);
    }

    #[test]
    fn what_the_disk_has_not_and_what_is_no_file_system_is_refused_without_a_trace() {
        let dir = tempfile::tempdir().unwrap();
        let scratches = testing::scratch(dir.path());
        for bytes in [u64::MAX, 4096] {
            let refused = scratches.make(bytes).unwrap_err();
            assert_eq!(refused.code, RefusalCode::NodeScratchFailed);
            assert_eq!(fs::read_dir(&scratches.dir).unwrap().count(), 0);
        }
        until_none(&scratches);
    }

    #[test]
    fn what_a_crash_left_is_let_go_of_at_the_next_start() {
        let dir = tempfile::tempdir().unwrap();
        let scratches = testing::scratch(dir.path());
        let file = scratches.dir.join("left");
        fs::File::create(&file).unwrap().set_len(BYTES).unwrap();
        scratches.losetup(&["--find", file.to_str().unwrap()]).unwrap();
        assert_eq!(devices(&scratches).len(), 1);
        let scratches = testing::scratch(dir.path());
        assert_eq!(fs::read_dir(&scratches.dir).unwrap().count(), 0);
        until_none(&scratches);
    }
}

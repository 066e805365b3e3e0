//! A container whose writable space is a file system that comes with its plan.
#![forbid(unsafe_code)]
#![expect(
    clippy::tests_outside_test_module,
    clippy::unwrap_used,
    reason = "all of an integration test is one"
)]

mod support;

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};

use nimbus_api::RefusalCode;
use nimbus_api::lease::ScratchMedium;
use nimbus_api::runtime::RuntimeVerb;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount,
    fsopen,
};
use support::Host;

const MEBI: u64 = 1 << 20;
const CLOSED: MountAttrFlags =
    MountAttrFlags::MOUNT_ATTR_NOSUID.union(MountAttrFlags::MOUNT_ATTR_NODEV);

/// A detached file system of this size. The runtime is not to care what it is made of.
fn file_system(bytes: u64, attributes: MountAttrFlags) -> OwnedFd {
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).unwrap();
    fsconfig_set_string(context.as_fd(), "size", bytes.to_string()).unwrap();
    fsconfig_create(context.as_fd()).unwrap();
    fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes).unwrap()
}

fn on_disk(bytes: u64, scratch: OwnedFd, script: &str) -> Host {
    let mut host = Host::shell(script);
    host.plan.rootfs.scratch = ScratchMedium::Disk;
    host.plan.rootfs.scratch_bytes = bytes;
    host.scratch = Some(scratch);
    host
}

#[test]
fn what_a_container_writes_is_in_the_file_system_that_came_and_ends_with_it() {
    let scratch = file_system(4 * MEBI, CLOSED);
    let script = "echo kept > /note; cat /note; dd if=/dev/zero of=/big bs=64k 2>&1 | tail -1; \
                  wc -c < /big; touch /x || echo full";
    let host = on_disk(4 * MEBI, scratch, script);
    let created = host.create();
    host.ask(RuntimeVerb::Start);
    let ended = created.wait();
    let mut lines = ended.out.lines();
    assert_eq!(lines.next(), Some("kept"), "{ended:?}");
    let written: u64 = lines.find_map(|line| line.parse().ok()).unwrap();
    assert!(written > 3 * MEBI && written <= 4 * MEBI, "{ended:?}");
    host.delete();
    host.assert_nothing_left();
}

#[test]
fn a_file_system_that_is_larger_than_leased_or_open_is_refused() {
    let read_only = MountAttrFlags::MOUNT_ATTR_RDONLY;
    let cases = [
        file_system(8 * MEBI, CLOSED),
        file_system(4 * MEBI, MountAttrFlags::MOUNT_ATTR_NOSUID),
        file_system(4 * MEBI, MountAttrFlags::MOUNT_ATTR_NODEV),
        file_system(4 * MEBI, CLOSED | read_only),
        File::open("/").unwrap().into(),
    ];
    for scratch in cases {
        let host = on_disk(4 * MEBI, scratch, "true");
        let (code, cause) = host.try_create().err().unwrap();
        assert_eq!(code, RefusalCode::RuntimeUnproven, "{cause}");
        host.assert_nothing_left();
    }
}

#[test]
fn a_plan_on_disk_without_a_file_system_and_one_in_memory_with_one_are_refused() {
    let mut host = on_disk(4 * MEBI, file_system(4 * MEBI, CLOSED), "true");
    host.scratch = None;
    assert_eq!(host.try_create().err().unwrap().0, RefusalCode::RuntimeFailed);
    host.assert_nothing_left();
    let mut host = on_disk(4 * MEBI, file_system(4 * MEBI, CLOSED), "true");
    host.plan.rootfs.scratch = ScratchMedium::Memory;
    assert_eq!(host.try_create().err().unwrap().0, RefusalCode::RuntimeFailed);
    host.assert_nothing_left();
}

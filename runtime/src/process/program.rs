//! The program that a process of the container is to be: finding its file, and what it finds open.
#![forbid(unsafe_code)]

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use rustix::fs::{
    Access, AtFlags, CWD, FileType, Gid, Mode, OFlags, ResolveFlags, Uid, accessat, fchown, fstat,
    major, minor, open, openat2,
};
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout, stderr, stdin, stdout};

use crate::error::{Doing as _, RuntimeError};

/// Exit status when the program is not there, as in a shell.
pub(crate) const EXIT_NOT_FOUND: i32 = 127;
/// Exit status when it cannot be executed.
pub(crate) const EXIT_NOT_EXECUTABLE: i32 = 126;
/// Major and minor number of `/dev/null`.
const NULL_DEVICE: (u32, u32) = (1, 3);
/// Where programs are looked for when the environment does not say.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

pub(crate) fn c_strings(texts: &[String]) -> Option<Vec<CString>> {
    texts.iter().map(|text| CString::new(text.as_str()).ok()).collect()
}

/// A process owns its pipes, so that it can open `/dev/stdout` whoever it runs as.
pub(crate) fn give_pipes(stdio: &[OwnedFd; 3], uid: u32, gid: u32) -> Result<(), RuntimeError> {
    for end in stdio {
        let stat = fstat(end).doing("look at a standard descriptor")?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::Fifo {
            fchown(end, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))
                .doing("give the job its pipes")?;
        }
    }
    Ok(())
}

/// The file that a name means: itself when it has a slash, else the first executable of that name
/// along PATH.
pub(crate) fn find(name: &str, env: &[String]) -> Result<CString, Errno> {
    if name.is_empty() {
        return Err(Errno::ENOENT);
    }
    if name.contains('/') {
        let path = CString::new(name).map_err(|_nul| Errno::EINVAL)?;
        return executable(&path).map(|()| path);
    }
    let path = env.iter().rev().find_map(|one| one.strip_prefix("PATH=")).unwrap_or(DEFAULT_PATH);
    let mut worst = Errno::ENOENT;
    for dir in path.split(':') {
        let dir = if dir.is_empty() { "." } else { dir };
        let candidate = CString::new(format!("{dir}/{name}")).map_err(|_nul| Errno::EINVAL)?;
        match executable(&candidate) {
            Ok(()) => return Ok(candidate),
            Err(Errno::ENOENT | Errno::ENOTDIR) => {}
            Err(errno) => worst = errno,
        }
    }
    Err(worst)
}

/// A program is never reached through a magic link: `/proc/self/exe` is this program still.
fn executable(path: &CStr) -> Result<(), Errno> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let file = openat2(CWD, path, flags, Mode::empty(), ResolveFlags::NO_MAGICLINKS);
    let file = file.map_err(to_errno)?;
    let found = fstat(&file).map_err(to_errno)?;
    if FileType::from_raw_mode(found.st_mode) != FileType::RegularFile {
        return Err(Errno::EACCES);
    }
    accessat(CWD, path, Access::EXEC_OK, AtFlags::EACCESS).map_err(to_errno)
}

/// Puts the container's own null device in the place of every standard descriptor that is the host's.
pub(crate) fn null_stdio() -> Result<(), Errno> {
    let is_null = |fd: BorrowedFd<'_>| {
        let stat = fstat(fd).map_err(to_errno)?;
        let character = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice;
        Ok::<_, Errno>(character && (major(stat.st_rdev), minor(stat.st_rdev)) == NULL_DEVICE)
    };
    let null = |access| {
        // Not by whatever the job has put there: a fifo would hang this process.
        let flags = access | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::NOFOLLOW;
        let null = open(c"/dev/null", flags, Mode::empty()).map_err(to_errno)?;
        if is_null(null.as_fd())? { Ok(null) } else { Err(Errno::ENODEV) }
    };
    if is_null(stdin())? {
        dup2_stdin(null(OFlags::RDONLY)?).map_err(to_errno)?;
    }
    if is_null(stdout())? {
        dup2_stdout(null(OFlags::WRONLY)?).map_err(to_errno)?;
    }
    if is_null(stderr())? {
        dup2_stderr(null(OFlags::WRONLY)?).map_err(to_errno)?;
    }
    Ok(())
}

fn to_errno(errno: rustix::io::Errno) -> Errno {
    Errno::from_raw(errno.raw_os_error())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn a_name_means_the_first_executable_file_along_the_path() {
        let dir = tempfile::tempdir().unwrap();
        let at = |sub: &str| dir.path().join(sub);
        for sub in ["a", "b", "c"] {
            std::fs::create_dir(at(sub)).unwrap();
        }
        std::fs::create_dir(at("a/tool")).unwrap();
        std::fs::write(at("b/tool"), "#!/bin/sh\n").unwrap();
        let path =
            |dirs: &str| vec![format!("PATH={}", dirs.replace('@', dir.path().to_str().unwrap()))];
        assert_eq!(find("tool", &path("@/a:@/b")), Err(Errno::EACCES));
        assert_eq!(find("tool", &path("@/c:@/none")), Err(Errno::ENOENT));
        std::fs::set_permissions(at("b/tool"), std::fs::Permissions::from_mode(0o755)).unwrap();
        let found = find("tool", &path("@/none:@/a:@/b")).unwrap();
        assert_eq!(found.to_str().unwrap(), at("b/tool").to_str().unwrap());
        assert_eq!(find("", &[]), Err(Errno::ENOENT));
        assert_eq!(find("./none/x", &[]), Err(Errno::ENOENT));
        assert!(find("/bin/sh", &[]).is_ok());
    }
}

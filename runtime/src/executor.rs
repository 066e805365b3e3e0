//! The last steps of a container's init process: find the program, put on the filter, wait for Start
//! (libcontainer does), execute.
//!
//! The filter is loaded in libcontainer's `validate` step, after capabilities were dropped and before
//! the process says that it is ready: from then on it only writes to a socket, accepts, reads,
//! closes and executes, which every profile that lets a program start and talk allows. The parent
//! reads back that it is on before it answers Created (see [`crate::proof`]).
//!
//! Failures of the program itself (not there, not executable) go to the parent by a FIFO, as one
//! [`Report`]; the process then ends with 127 or 126 as a shell's would.
#![forbid(unsafe_code)]

use std::cell::RefCell;
use std::ffi::{CStr, CString};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::rc::Rc;

use libcontainer::workload::{
    Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError,
};
use nix::errno::Errno;
use oci_spec::runtime::Spec;
use rustix::fs::{
    Access, AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, accessat, fstat, major, minor,
    open, openat2,
};
use rustix::stdio::{dup2_stderr, dup2_stdout, stderr, stdout};

use crate::report::{Report, Stage};
use crate::sys::seccomp::Program;
use crate::sys::{fd, signal};

/// Exit status when the program is not there, as in a shell.
const EXIT_NOT_FOUND: i32 = 127;
/// Exit status when it cannot be executed.
const EXIT_NOT_EXECUTABLE: i32 = 126;
/// Major and minor number of `/dev/null`.
const NULL_DEVICE: (u32, u32) = (1, 3);
/// Where programs are looked for when the environment does not say.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Runs one job's program under one filter.
#[derive(Debug, Clone)]
pub(crate) struct JobExecutor {
    program: Option<Rc<Program>>,
    report: Rc<OwnedFd>,
    resolved: Rc<RefCell<CString>>,
}

impl JobExecutor {
    /// An executor that loads this filter and reports to this FIFO.
    pub(crate) fn new(program: Option<Program>, report: Rc<OwnedFd>) -> Self {
        Self { program: program.map(Rc::new), report, resolved: Rc::default() }
    }

    fn failed(&self, stage: Stage, errno: Errno) -> ExecutorValidationError {
        Report { stage, errno: errno as i32 }.send(&self.report);
        ExecutorValidationError::ArgValidationError(format!("{}: {errno}", stage.sentence()))
    }
}

impl Executor for JobExecutor {
    fn validate(&self, spec: &Spec) -> Result<(), ExecutorValidationError> {
        let (args, env) = command(spec);
        if c_strings(&args).is_none() || c_strings(&env).is_none() {
            return Err(self.failed(Stage::Find, Errno::EINVAL));
        }
        let name = args.first().map(String::as_str).unwrap_or_default();
        // Before anything is looked for by a path that the job has chosen.
        let leave = |error: std::io::Error| Errno::from_raw(error.raw_os_error().unwrap_or(0));
        fd::close_all_but_channels().map_err(|error| self.failed(Stage::Find, leave(error)))?;
        let found = find(name, &env).map_err(|errno| self.failed(Stage::Find, errno))?;
        null_outputs().map_err(|errno| self.failed(Stage::Find, errno))?;
        self.resolved.replace(found);
        rustix::thread::set_no_new_privs(true)
            .map_err(|errno| self.failed(Stage::Filter, Errno::from_raw(errno.raw_os_error())))?;
        if let Some(program) = &self.program {
            program.load().map_err(|error| {
                self.failed(Stage::Filter, Errno::from_raw(error.raw_os_error().unwrap_or(0)))
            })?;
        }
        Ok(())
    }

    /// The environment is handed to execve; this process's own stays empty.
    fn setup_envs(
        &self,
        _envs: std::collections::HashMap<String, String>,
    ) -> Result<(), ExecutorSetEnvsError> {
        Ok(())
    }

    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        let (args, env) = command(spec);
        let args = c_strings(&args).ok_or(ExecutorError::InvalidArg)?;
        let env = c_strings(&env).ok_or(ExecutorError::InvalidArg)?;
        signal::reset_all();
        let errno = match nix::unistd::execve(&self.resolved.borrow(), &args, &env) {
            Err(errno) => errno,
            Ok(never) => match never {},
        };
        Report { stage: Stage::Execute, errno: errno as i32 }.send(&self.report);
        signal::exit_now(if errno == Errno::ENOENT { EXIT_NOT_FOUND } else { EXIT_NOT_EXECUTABLE })
    }
}

fn command(spec: &Spec) -> (Vec<String>, Vec<String>) {
    let process = spec.process().as_ref();
    let args = process.and_then(|process| process.args().clone()).unwrap_or_default();
    let env = process.and_then(|process| process.env().clone()).unwrap_or_default();
    (args, env)
}

fn c_strings(texts: &[String]) -> Option<Vec<CString>> {
    texts.iter().map(|text| CString::new(text.as_str()).ok()).collect()
}

/// The file that a name means: itself when it has a slash, else the first executable of that name
/// along PATH.
fn find(name: &str, env: &[String]) -> Result<CString, Errno> {
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

/// libcontainer puts the container's own null device, opened for reading, in the place of every
/// standard descriptor that was one; an output is written to.
fn null_outputs() -> Result<(), Errno> {
    let is_null = |fd: BorrowedFd<'_>| {
        let stat = fstat(fd).map_err(to_errno)?;
        let character = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice;
        Ok::<_, Errno>(character && (major(stat.st_rdev), minor(stat.st_rdev)) == NULL_DEVICE)
    };
    let null = || open(c"/dev/null", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty());
    if is_null(stdout())? {
        dup2_stdout(null().map_err(to_errno)?).map_err(to_errno)?;
    }
    if is_null(stderr())? {
        dup2_stderr(null().map_err(to_errno)?).map_err(to_errno)?;
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

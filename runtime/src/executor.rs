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
use std::ffi::CString;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use libcontainer::workload::{
    Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError,
};
use nix::errno::Errno;
use oci_spec::runtime::Spec;

use crate::process::program::{EXIT_NOT_EXECUTABLE, EXIT_NOT_FOUND, c_strings, find, null_stdio};
use crate::report::{Report, Stage};
use crate::sys::seccomp::Program;
use crate::sys::{fd, signal};

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
        null_stdio().map_err(|errno| self.failed(Stage::Find, errno))?;
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

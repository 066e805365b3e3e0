//! `containerd-shim-nimbus-v1`: the task service of one job, or of the containers of one pod.
//!
//! containerd runs it three ways: `start` (spawn a server or find the pod's, print its address), `delete`
//! (clean up a container, mostly after a server that is gone) and `-info`; without an action it is that server. Whether a
//! container may be made is never decided here: the server asks the node agent in `Create`, obeys
//! the plan that comes back and kills what runs at its deadline. Everything that changes a
//! container is done by `nimbus-runtime`, one short process a verb.
//!
//! Deliberately absent: checkpoints (answered Unimplemented), the sandbox service, and any use of the
//! mounts that a client sends.
#![forbid(unsafe_code)]

mod args;
mod ask;
mod bootstrap;
mod cgroup;
mod delete;
mod exec_state;
mod exit_code;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod group;
mod info;
mod log;
mod paths;
mod process;
mod runtime;
mod serve;
mod socket;
mod start;
mod state;
mod stats;
mod status;
mod stdio;

use std::error::Error;
use std::io::Write as _;
use std::process::ExitCode;

use args::Invocation;
use exit_code::Code;
use nimbus_api::error::Chain;

/// The whole program.
pub fn run() -> ExitCode {
    let invocation = match Invocation::parse(std::env::args_os().skip(1)) {
        Ok(invocation) => invocation,
        Err(error) => return complain(&error, Code::Usage),
    };
    let done = match invocation {
        Invocation::Version => info::print_version().map_err(boxed),
        Invocation::Info => info::print_info().map_err(boxed),
        Invocation::Start(identity) => start::start(&identity).map_err(boxed),
        Invocation::Delete(identity) => delete::delete(&identity).map_err(boxed),
        Invocation::Serve(identity) => serve::serve(identity).map_err(boxed),
    };
    match done {
        Ok(()) => Code::Ok.into(),
        Err(error) => complain(error.as_ref(), Code::Failed),
    }
}

fn boxed(error: impl Error + 'static) -> Box<dyn Error> {
    Box::new(error)
}

/// containerd shows what a failed `start` or `delete` writes here; a server's goes nowhere.
fn complain(error: &dyn Error, code: Code) -> ExitCode {
    let _unheard = writeln!(std::io::stderr().lock(), "{}", Chain(error));
    code.into()
}

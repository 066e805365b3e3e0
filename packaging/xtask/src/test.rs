//! `cargo xtask test`: the tests, lane by lane, with one count at the end.
//!
//! Intent: `cargo test` does the work; its output is passed on as it comes and its closing lines are
//! added up. Lane `unit` is every crate's own tests; the others are test targets of the package
//! `nimbus-tests`, which drive the built programs and need root and the packages of `setup`.
//! Lane `vm` runs the same programs in a virtual machine. A lane without content (`load`) is absent.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use clap::ValueEnum;

use crate::count::Count;
use crate::run::{RunError, Workspace, complain, say, shown};
use crate::vm::{Chosen, Machine};
use crate::{setup, vm};

/// What to test.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// One lane; none means all that CI runs
    #[arg(value_enum)]
    pub(crate) lane: Option<Lane>,
    /// Only tests whose name contains this
    #[arg(long, value_name = "TEXT")]
    pub(crate) filter: Option<String>,
    /// Which machine lane `vm` boots
    #[arg(long, value_enum, default_value_t = Machine::Debian12)]
    pub(crate) vm: Machine,
    /// Only test programs of lane `vm` whose name contains this
    #[arg(long, value_name = "TEXT")]
    pub(crate) program: Option<String>,
}

/// A group of tests that need the same things.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Lane {
    /// Every crate's own tests
    Unit,
    /// The whole way of a job
    E2e,
    /// Everything that must be refused
    Security,
    /// Vectors that somebody else wrote
    Conformance,
    /// kill -9 and recovery
    Fault,
    /// Pods, by the calls that kubelet makes
    Kubernetes,
    /// The same in a virtual machine with cgroup v2 alone
    Vm,
}

impl Default for Args {
    fn default() -> Self {
        Self { lane: None, filter: None, vm: Machine::Debian12, program: None }
    }
}

impl Lane {
    /// All that CI runs, in this order.
    const CI: [Self; 6] =
        [Self::Unit, Self::E2e, Self::Security, Self::Conformance, Self::Fault, Self::Kubernetes];

    const fn name(self) -> &'static str {
        match self {
            Self::Unit => "unit",
            Self::E2e => "e2e",
            Self::Security => "security",
            Self::Conformance => "conformance",
            Self::Fault => "fault",
            Self::Kubernetes => "kubernetes",
            Self::Vm => "vm",
        }
    }

    fn run(self, workspace: &Workspace, args: &Args, programs: &Path) -> Result<Count, RunError> {
        let filter = args.filter.as_deref();
        let mut words = vec!["test", "--locked", "--no-fail-fast"];
        match self {
            Self::Vm => {
                let chosen = Chosen { program: args.program.as_deref(), filter };
                return vm::test(workspace, args.vm, chosen);
            }
            Self::Unit => words.extend(["--workspace", "--exclude", "nimbus-tests", "--tests"]),
            Self::E2e | Self::Security | Self::Conformance | Self::Fault | Self::Kubernetes => {
                words.extend(["--package", "nimbus-tests", "--test", self.name()]);
                if self == Self::Security {
                    // A program of its own, because it lives in a network namespace.
                    words.extend(["--test", "network"]);
                }
            }
        }
        words.push("--");
        words.extend(filter);
        let mut command = workspace.cargo(words);
        command.env("NIMBUS_BIN_DIR", programs);
        counted(&mut command, filter.is_some())
    }
}

/// Runs the lanes and closes with the count.
pub(crate) fn test(workspace: &Workspace, args: &Args) -> Result<Count, RunError> {
    setup::setup()?;
    let programs = workspace.build_programs()?;
    let lanes = args.lane.map_or_else(|| Lane::CI.to_vec(), |lane| vec![lane]);
    let mut total = Count::default();
    let mut lines = Vec::new();
    for lane in lanes {
        let begun = Instant::now();
        let count = lane.run(workspace, args, &programs)?;
        lines.push(format!("{:12} {count} ({} s)", lane.name(), begun.elapsed().as_secs()));
        total += count;
    }
    for line in lines {
        say(line);
    }
    if total.passed == 0 && total.failed == 0 {
        complain("xtask: no test ran");
    }
    say(total);
    Ok(total)
}

/// Runs one `cargo test` and counts. A program that fails without a failed test of its own (it did
/// not compile, it crashed) counts as one failed test.
fn counted(command: &mut Command, filtered: bool) -> Result<Count, RunError> {
    let program = shown(command);
    complain(format_args!("$ {program}"));
    let started = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
    let mut child =
        started.map_err(|source| RunError::Start { program: program.clone(), source })?;
    let mut count = Count::default();
    if let Some(stdout) = child.stdout.take() {
        for line in BufReader::new(stdout).split(b'\n') {
            let line =
                line.map_err(|source| RunError::Read { program: program.clone(), source })?;
            let line = String::from_utf8_lossy(&line);
            if let Some(more) = Count::of_line(&line) {
                count += more;
            }
            say(line);
        }
    }
    let status = child.wait().map_err(|source| RunError::Read { program, source })?;
    if !status.success() && count.failed == 0 {
        count.failed = 1;
    }
    if count == Count::default() && !filtered {
        complain("xtask: this lane has run no test");
        count.failed = 1;
    }
    Ok(count)
}

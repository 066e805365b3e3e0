//! Running other programs, and saying things to a person.
//!
//! Intent: each command is shown before it runs, inherits the terminal, and its failure names it.

use std::ffi::OsStr;
use std::fmt;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

use serde_json::Value;

/// The package of the runtime.
const RUNTIME: &str = "nimbus-runtime";

/// Why a program did not do its work.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RunError {
    /// It could not be started.
    #[error("cannot start {program}")]
    Start {
        /// Which.
        program: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Its output could not be read.
    #[error("cannot read what {program} says")]
    Read {
        /// Which.
        program: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It said no.
    #[error("`{program}` ended with {status}")]
    Status {
        /// With arguments.
        program: String,
        /// How.
        status: ExitStatus,
    },
    /// Files could not be made or read.
    #[error("cannot make or read {what}")]
    Files {
        /// Which.
        what: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Its answer was not what it should be.
    #[error("cannot understand what {program} says: {problem}")]
    Answer {
        /// Which.
        program: String,
        /// What is wrong.
        problem: String,
    },
}

/// One line to stdout. A reader that has gone away is no error of ours.
pub(crate) fn say(text: impl fmt::Display) {
    let written = writeln!(io::stdout().lock(), "{text}");
    drop(written);
}

/// One line to stderr.
pub(crate) fn complain(text: impl fmt::Display) {
    let written = writeln!(io::stderr().lock(), "{text}");
    drop(written);
}

/// The workspace that this program is part of.
#[derive(Debug)]
pub(crate) struct Workspace {
    root: PathBuf,
    metadata: Value,
}

impl Workspace {
    /// Asks cargo.
    pub(crate) fn find() -> Result<Self, RunError> {
        let mut command = Command::new(cargo());
        command.args(["metadata", "--locked", "--no-deps", "--format-version", "1"]);
        let text = output(&mut command)?;
        let answer =
            |problem: String| RunError::Answer { program: "cargo metadata".into(), problem };
        let metadata: Value =
            serde_json::from_str(&text).map_err(|error| answer(error.to_string()))?;
        let root = metadata
            .get("workspace_root")
            .and_then(Value::as_str)
            .ok_or_else(|| answer("no workspace_root".into()))?;
        Ok(Self { root: PathBuf::from(root), metadata })
    }

    /// Its folder.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// What `cargo metadata --no-deps` says.
    pub(crate) const fn metadata(&self) -> &Value {
        &self.metadata
    }

    /// Where everything is built.
    pub(crate) fn target(&self) -> PathBuf {
        let target = self.metadata.get("target_directory").and_then(Value::as_str);
        target.map_or_else(|| self.root.join("target"), PathBuf::from)
    }

    /// Where programs of this profile (`debug`, `release`) are built.
    pub(crate) fn programs(&self, profile: &str) -> PathBuf {
        self.target().join(profile)
    }

    /// A cargo command in the workspace's folder.
    pub(crate) fn cargo<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new(cargo());
        command.args(args).current_dir(&self.root);
        command
    }

    /// Builds every program of the workspace and returns the folder they are in.
    pub(crate) fn build_programs(&self) -> Result<PathBuf, RunError> {
        run(&mut self.cargo(["build", "--locked", "--workspace", "--bins"]))?;
        Ok(self.programs("debug"))
    }

    /// Builds every program as it is shipped and returns the folder they are in. Those of the runtime
    /// are linked statically: one is started for every verb, twice where it enters a container, and
    /// the dynamic linker takes a third of a start.
    pub(crate) fn build_release(&self) -> Result<PathBuf, RunError> {
        let release = ["--locked", "--release"];
        let others = ["--workspace", "--exclude", RUNTIME, "--bins"];
        run(self.cargo(["build"]).args(release).args(others))?;
        for program in ["nimbus-runtime", "nimbus-oci"] {
            let one = ["--package", RUNTIME, "--bin", program];
            let linked = ["--", "-C", "target-feature=+crt-static"];
            run(self.cargo(["rustc"]).args(release).args(one).args(linked))?;
        }
        Ok(self.programs("release"))
    }
}

fn cargo() -> std::ffi::OsString {
    std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}

/// The command as a person would type it.
pub(crate) fn shown(command: &Command) -> String {
    let program = Path::new(command.get_program());
    let mut text = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
    for arg in command.get_args() {
        text.push(' ');
        text.push_str(&arg.to_string_lossy());
    }
    text
}

/// Shows and runs a command; anything but exit 0 is an error.
pub(crate) fn run(command: &mut Command) -> Result<(), RunError> {
    let program = shown(command);
    complain(format_args!("$ {program}"));
    let status = status(command)?;
    if status.success() { Ok(()) } else { Err(RunError::Status { program, status }) }
}

/// Runs a command and returns how it ended.
pub(crate) fn status(command: &mut Command) -> Result<ExitStatus, RunError> {
    command.status().map_err(|source| RunError::Start { program: shown(command), source })
}

/// Runs a command quietly and returns its stdout; anything but exit 0 is an error.
pub(crate) fn output(command: &mut Command) -> Result<String, RunError> {
    let program = shown(command);
    let result = command
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .map_err(|source| RunError::Start { program: program.clone(), source })?;
    if !result.status.success() {
        return Err(RunError::Status { program, status: result.status });
    }
    String::from_utf8(result.stdout)
        .map_err(|error| RunError::Answer { program, problem: error.to_string() })
}

//! The command line of `nimbus-oci`, as much of runc's as benchmarks and suites use. Pure.
#![forbid(unsafe_code)]

use std::path::PathBuf;

/// Where containers are kept when `--root` does not say.
const DEFAULT_ROOT: &str = "/run/nimbus-oci";

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verb {
    /// Make a container; with `wait`, also start it, wait and delete it.
    Make {
        id: String,
        bundle: PathBuf,
        pid_file: Option<PathBuf>,
        filter: Option<PathBuf>,
        console: Option<PathBuf>,
        wait: bool,
    },
    /// Let it run.
    Start { id: String },
    /// Say how it is.
    State { id: String },
    /// Run one more process in it; with `detach`, do not wait for it.
    Exec {
        id: String,
        /// A file with an OCI process; else the container's own with another command.
        process: Option<PathBuf>,
        command: Vec<String>,
        filter: Option<PathBuf>,
        pid_file: Option<PathBuf>,
        detach: bool,
    },
    /// Send a signal.
    Kill { id: String, signal: String, all: bool },
    /// Remove it.
    Delete { id: String, force: bool },
}

/// A command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Args {
    pub(crate) root: PathBuf,
    pub(crate) verb: Verb,
}

/// A command line that is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0}\nusage: nimbus-oci [--root DIR] create|run [-b BUNDLE] [--pid-file FILE] [--seccomp-bpf FILE] [--console-socket FILE] ID\n       nimbus-oci [--root DIR] exec [-d] [-p PROCESS.json] [--pid-file FILE] [--seccomp-bpf FILE] ID [COMMAND...]\n       nimbus-oci [--root DIR] start|state ID | kill [--all] ID [SIGNAL] | delete [-f] ID"
)]
pub(crate) struct Usage(String);

#[derive(Debug, Default)]
struct Found {
    root: Option<PathBuf>,
    bundle: Option<PathBuf>,
    pid_file: Option<PathBuf>,
    filter: Option<PathBuf>,
    process: Option<PathBuf>,
    console: Option<PathBuf>,
    all: bool,
    detach: bool,
    force: bool,
    words: Vec<String>,
}

/// Reads the arguments after the program's name.
pub(crate) fn parse(args: impl IntoIterator<Item = String>) -> Result<Args, Usage> {
    let mut found = Found::default();
    let mut args = args.into_iter();
    while let Some(arg) = args.next() {
        if found.words.len() >= 2 && found.words.first().is_some_and(|word| word == "exec") {
            // A command of the container's, whose options are its own.
            found.words.push(arg);
            continue;
        }
        let (name, mut inline) = match arg.split_once('=') {
            Some((name, value)) if name.starts_with("--") => {
                (name.to_owned(), Some(value.to_owned()))
            }
            _ => (arg, None),
        };
        let mut value = || {
            inline
                .take()
                .or_else(|| args.next())
                .ok_or_else(|| Usage(format!("{name} needs a value")))
        };
        match name.as_str() {
            "--root" => found.root = Some(value()?.into()),
            "-b" | "--bundle" => found.bundle = Some(value()?.into()),
            "--pid-file" => found.pid_file = Some(value()?.into()),
            "-p" | "--process" => found.process = Some(value()?.into()),
            "-d" | "--detach" => found.detach = true,
            "--console-socket" => found.console = Some(value()?.into()),
            "--seccomp-bpf" => found.filter = Some(value()?.into()),
            // Accepted because every caller of runc sends them; errors go to stderr alone.
            "--log" | "--log-format" => drop(value()?),
            "-a" | "--all" => found.all = true,
            "-f" | "--force" => found.force = true,
            flag if flag.starts_with('-') => return Err(Usage(format!("unknown option {flag}"))),
            _word => found.words.push(name),
        }
    }
    let root = found.root.take().unwrap_or_else(|| DEFAULT_ROOT.into());
    Ok(Args { root, verb: verb(found)? })
}

fn verb(found: Found) -> Result<Verb, Usage> {
    let Found { bundle, pid_file, filter, console, process, all, detach, force, words, .. } = found;
    let mut words = words.into_iter();
    let name = words.next().ok_or_else(|| Usage("no command".to_owned()))?;
    let id = words.next().ok_or_else(|| Usage("no container id".to_owned()))?;
    if name == "exec" {
        let command: Vec<String> = words.collect();
        if process.is_none() && command.is_empty() {
            return Err(Usage("neither a process nor a command".to_owned()));
        }
        return Ok(Verb::Exec { id, process, command, filter, pid_file, detach });
    }
    let extra = words.next();
    if words.next().is_some() || (extra.is_some() && name != "kill") {
        return Err(Usage("too many arguments".to_owned()));
    }
    match name.as_str() {
        "create" | "run" => {
            let bundle = bundle.unwrap_or_else(|| ".".into());
            Ok(Verb::Make { id, bundle, pid_file, filter, console, wait: name == "run" })
        }
        "start" => Ok(Verb::Start { id }),
        "state" => Ok(Verb::State { id }),
        "kill" => Ok(Verb::Kill { id, signal: extra.unwrap_or_else(|| "TERM".to_owned()), all }),
        "delete" => Ok(Verb::Delete { id, force }),
        _ => Err(Usage(format!("unknown command {name}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Result<Args, Usage> {
        parse(line.split(' ').map(str::to_owned))
    }

    #[test]
    fn runcs_command_lines_are_understood() {
        let args = read("--root /r --log=/l --log-format json create --bundle /b --pid-file /p x");
        let verb = Verb::Make {
            id: "x".into(),
            bundle: "/b".into(),
            pid_file: Some("/p".into()),
            filter: None,
            console: None,
            wait: false,
        };
        assert_eq!(args, Ok(Args { root: "/r".into(), verb }));
        let kill = Verb::Kill { id: "x".into(), signal: "9".into(), all: true };
        assert_eq!(read("kill --all x 9").map(|args| args.verb), Ok(kill));
        let exec = Verb::Exec {
            id: "x".into(),
            process: None,
            command: vec!["ls".into(), "--all".into(), "-d".into()],
            filter: None,
            pid_file: Some("/p".into()),
            detach: true,
        };
        let line = "exec -d --pid-file /p x ls --all -d";
        assert_eq!(read(line).map(|args| args.verb), Ok(exec));
        let delete = Verb::Delete { id: "x".into(), force: true };
        assert_eq!(read("delete -f x").map(|args| args.verb), Ok(delete));
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        for bad in [
            "",
            "create",
            "frob x",
            "start x y",
            "--odd start x",
            "create x -b",
            "kill x 9 1",
            "exec x",
        ] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }
}

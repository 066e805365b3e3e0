//! Every difference from runc that is meant, with the reason: data that the lane checks and the
//! document shows.

/// One difference.
#[derive(Debug, Clone, Copy)]
pub(super) struct Explained {
    /// In which scenario.
    pub(super) scenario: &'static str,
    /// What of it.
    pub(super) what: &'static str,
    /// What runc gives.
    pub(super) runc: &'static str,
    /// What we give.
    pub(super) nimbus: &'static str,
    /// Why that is meant.
    pub(super) why: &'static str,
}

impl Explained {
    /// A difference.
    pub(super) const fn new(
        scenario: &'static str,
        what: &'static str,
        runc: &'static str,
        nimbus: &'static str,
        why: &'static str,
    ) -> Self {
        Self { scenario, what, runc, nimbus, why }
    }
}

/// The explanation of one thing that was seen.
pub(super) fn of<'a>(
    explained: &'a [Explained],
    scenario: &str,
    what: &str,
) -> Option<&'a Explained> {
    explained.iter().find(|one| one.scenario == scenario && one.what == what)
}

const PHASE: &str =
    "containerd's shim hands on runc's sentence without a code; ours says that the phase is wrong";
const DENIED: &str = "refused, with our code in the text; containerd 1.6 knows no PERMISSION_DENIED and says Unknown";
const PROGRAM: &str = "containerd's shim hands on runc's sentence without a code; ours has one, and our code in the text";
const UNKNOWN_SIGNAL: &str =
    "a number that is no signal is the caller's mistake, whatever the process is";
const PID_ONE: &str = "runc's waiting init is a Go program that SIGTERM ends; ours is the container's first process, which the kernel spares what it has no handler for, as it does once the job runs";
const NEVER_STARTED: &str = "a container that is deleted before it ran was killed: Delete says the same status as the exit event";
const BEFORE_THE_JOB: &str = "nothing runs in a container before its own program has been started and the node agent was told";
const TWO_FILES: &str =
    "runc's shim writes both to the file of stdout; ours to the file that was named for each";
const ONE_STREAM: &str = "runc's shim wants both or none; ours takes what is there";
const HOST_PROGRAM: &str =
    "a logger is a program of the host run as root at a client's word: never run";
const TIGHTENED: &str = "no_new_privs is always set (rule 3: what is weaker is tightened)";
const CAPABILITY: &str = "an added process may have no more than the container (rule 3)";
const NETWORK: &str = "more than runc's shim gives: what went through the container's interfaces";
const BEYOND: &str = "no limit of a container ends above what its lease gives (rule 3)";
const NO_RESOURCES: &str = "both refuse what is no LinuxResources; ours says which rule it breaks";
const NO_CHECKPOINT: &str =
    "not offered: what is restored was never admitted; runc has it where CRIU works, not here";
const NOT_A_SIGNAL: &str = "0 is no signal: State says whether a process lives";

const PRECONDITION: &str = "FailedPrecondition";
const EXEC_FAILED: &str = "FailedPrecondition runtime.exec_failed";
const STDIO: &str = "Unknown spec.stdio_forbidden";
const UNKNOWN: &str = "Unknown";
const BEYOND_LEASE: &str = "Unknown spec.resources_forbidden";
const NONE: &str = "–";

/// An answer that differs by its code alone because the phase is wrong.
const fn phase(scenario: &'static str, what: &'static str) -> Explained {
    Explained::new(scenario, what, UNKNOWN, PRECONDITION, PHASE)
}

/// A step that runc gets to and we do not.
const fn beyond(
    scenario: &'static str,
    what: &'static str,
    runc: &'static str,
    why: &'static str,
) -> Explained {
    Explained::new(scenario, what, runc, NONE, why)
}

/// All of them.
pub(super) const EXPLAINED: &[Explained] = &[
    phase("created_only", "Pause"),
    phase("created_only", "Resume"),
    Explained::new("created_only", "it ends", "yes", "no", PID_ONE),
    Explained::new("created_only", "Start afterwards", UNKNOWN, "ok", PID_ONE),
    phase("start_twice", "second Start"),
    phase("start_twice", "Start after the exit"),
    Explained::new("delete_created", "Delete", "ok, 0", "ok, 137", NEVER_STARTED),
    Explained::new(
        "delete_created",
        "events",
        "create, exit 137 (no time), delete 0",
        "create, exit 137, delete 137",
        NEVER_STARTED,
    ),
    phase("delete_running", "Delete"),
    Explained::new("program_missing", "create", UNKNOWN, EXEC_FAILED, PROGRAM),
    Explained::new("program_not_executable", "create", UNKNOWN, EXEC_FAILED, PROGRAM),
    Explained::new("no_arguments", "create", UNKNOWN, EXEC_FAILED, PROGRAM),
    Explained::new(
        "kill_unknown_signal",
        "Kill with 1000",
        UNKNOWN,
        "InvalidArgument",
        UNKNOWN_SIGNAL,
    ),
    Explained::new("kill_signal_zero", "Kill with 0", "ok", "InvalidArgument", NOT_A_SIGNAL),
    phase("pause_wrongly", "Resume of what runs"),
    phase("pause_wrongly", "second Pause"),
    phase("pause_wrongly", "Pause after the exit"),
    phase("pause_wrongly", "Resume after the exit"),
    phase("delete_paused", "Delete"),
    Explained::new("exec_missing_program", "Start", UNKNOWN, EXEC_FAILED, PROGRAM),
    phase("exec_start_twice", "second Start"),
    phase("exec_start_twice", "Start after the exit"),
    phase("exec_delete_running", "Delete"),
    Explained::new(
        "exec_kill",
        "Kill with 1000 after the exit",
        "NotFound",
        "InvalidArgument",
        UNKNOWN_SIGNAL,
    ),
    Explained::new("exec_in_created", "Start before the init", "ok", PRECONDITION, BEFORE_THE_JOB),
    Explained::new(
        "exec_in_created",
        "State afterwards",
        "stopped 3",
        "created (no pid)",
        BEFORE_THE_JOB,
    ),
    phase("exec_in_paused", "Start"),
    phase("exec_in_paused", "Exec when paused"),
    phase("exec_in_stopped", "Exec"),
    phase("exec_not_started_when_init_ends", "Start"),
    Explained::new(
        "exec_with_more_capabilities",
        "with CAP_SYS_ADMIN, which the container has not",
        "ok, 0; CapEff: 0000000000200020",
        "Unknown spec.capability_forbidden",
        CAPABILITY,
    ),
    Explained::new(
        "exec_spec_not_json",
        "Exec of a text",
        UNKNOWN,
        "Unknown spec.malformed",
        DENIED,
    ),
    Explained::new("output_by_file", "out", "to stderr ⏎ to stdout", "to stdout", TWO_FILES),
    Explained::new("output_by_file", "err", "", "to stderr", TWO_FILES),
    Explained::new("stdout_without_stderr", "create", UNKNOWN, "ok", ONE_STREAM),
    Explained::new("stdout_without_stderr", "Start", NONE, "ok", ONE_STREAM),
    Explained::new("stdout_without_stderr", "Wait", NONE, "ok, 0", ONE_STREAM),
    Explained::new("stdout_without_stderr", "Delete", NONE, "ok, 0", ONE_STREAM),
    Explained::new("fifo_missing", "create", UNKNOWN, STDIO, DENIED),
    Explained::new("binary_logger", "create", "ok", STDIO, HOST_PROGRAM),
    beyond("binary_logger", "Start", "ok", HOST_PROGRAM),
    beyond("binary_logger", "Wait", "ok, 0", HOST_PROGRAM),
    beyond("binary_logger", "Delete", "ok, 0", HOST_PROGRAM),
    Explained::new("binary_logger", "a program of the host has run", "yes", "no", HOST_PROGRAM),
    Explained::new(
        "no_new_privileges",
        "exit; output",
        "ok, 0; NoNewPrivs: 0",
        "ok, 0; NoNewPrivs: 1",
        TIGHTENED,
    ),
    Explained::new("stats", "of the network, when it runs", "none", "some", NETWORK),
    Explained::new("update", "more memory than at Create", "ok", BEYOND_LEASE, BEYOND),
    Explained::new("update", "no limits at all", UNKNOWN, "Unknown spec.malformed", NO_RESOURCES),
    Explained::new("checkpoint", "Checkpoint", UNKNOWN, "Unimplemented", NO_CHECKPOINT),
];

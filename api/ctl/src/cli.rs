//! The command line: one table from which arguments, help, completions and man pages come.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use nimbus_api::egress::EgressRule;
use nimbus_api::lease::SECCOMP_PROFILES;

use crate::image::ImageRef;
use crate::units::{self, User};

/// The predicate type that is attested when none is named.
pub(crate) const DEFAULT_PREDICATE_TYPE: &str = "https://slsa.dev/provenance/v1";
/// Jobs that are listed when no number is given.
const LIST_DEFAULT: u32 = 50;

const EXAMPLES: &str = "\
Examples:
  nimbusctl submit --wait --bundle app.sigstore.json \\
      registry.example/team/app@sha256:... -- /bin/app --once
  nimbusctl logs -f j0123...
  nimbusctl node token worker-1";

const SUBMIT_HELP: &str = "\
Exit codes with --wait:
  0      the job ended with exit code 0
  3      it was refused, is dead or was cancelled
  other  the job's own exit code
Without --wait: 0 queued, 1 failed, 2 wrong arguments, 3 refused.

Examples:
  nimbusctl submit --wait 127.0.0.1:5000/apps/hello:latest --bundle hello.json -- /bin/hello
  nimbusctl submit --cpu 500m --memory 256MiB --env MODE=fast oci:/srv/layouts/app -- /bin/app
  nimbusctl submit --allow 192.0.2.0/24:443/tcp --allow '[2001:db8::53]:53/udp' \\
      127.0.0.1:5000/apps/hello:latest --bundle hello.json -- /bin/hello";

const ATTEST_HELP: &str = "\
Examples:
  nimbusctl attest keygen --out release
  nimbusctl attest --key release.pem 127.0.0.1:5000/apps/hello:latest -o hello.sigstore.json";

/// Submit jobs to Nimbus and see what becomes of them
#[derive(Debug, Parser)]
#[command(name = "nimbusctl", version, after_help = EXAMPLES, propagate_version = true)]
pub(crate) struct Cli {
    /// File with endpoint and certificates; NIMBUS_CREDENTIALS names it too
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) credentials: Option<PathBuf>,
    /// Print one JSON object instead of text for people
    #[arg(long, global = true)]
    pub(crate) json: bool,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a command in an attested image
    Submit(SubmitArgs),
    /// Show one job
    Get(JobArgs),
    /// List jobs, newest first
    List(ListArgs),
    /// Print a job's output
    Logs(LogsArgs),
    /// Cancel a job
    Cancel(JobArgs),
    /// Attest an image with a managed key
    Attest(AttestArgs),
    /// Nodes
    #[command(subcommand)]
    Node(NodeCommand),
    /// The policy that says which attestations an image needs
    #[command(subcommand)]
    Policy(PolicyCommand),
    /// Tickets: what pods show to be an org's, where the policy does not say whose they are
    #[command(subcommand)]
    Ticket(TicketCommand),
    /// Quotas of orgs
    #[command(subcommand)]
    Quota(QuotaCommand),
    /// Print a completion script
    Completions {
        /// For which shell
        shell: clap_complete::Shell,
    },
    /// Write man pages
    Man {
        /// Directory to write one page a command to; without it, the main page goes to stdout
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
    },
}

#[derive(Debug, Args)]
#[command(after_help = SUBMIT_HELP)]
pub(crate) struct SubmitArgs {
    /// The org that the job is of
    #[arg(long)]
    pub(crate) org: Option<String>,
    /// CPU: 500m, 2, 1.5
    #[arg(long, value_parser = units::cpu)]
    pub(crate) cpu: Option<u32>,
    /// Memory: 256MiB
    #[arg(long, value_parser = units::size, value_name = "SIZE")]
    pub(crate) memory: Option<u64>,
    /// Most processes and threads
    #[arg(long, value_name = "N")]
    pub(crate) pids: Option<u32>,
    /// Writable space of the root file system: 64MiB
    #[arg(long, value_parser = units::size, value_name = "SIZE")]
    pub(crate) scratch: Option<u64>,
    /// Writable space in memory, counted in the job's, instead of on disk
    #[arg(long)]
    pub(crate) scratch_in_memory: bool,
    /// Output that is kept: 1MiB
    #[arg(long, value_parser = units::size, value_name = "SIZE")]
    pub(crate) log: Option<u64>,
    /// Environment; exactly what is given, and PATH where none is
    #[arg(long, value_parser = units::env, value_name = "KEY=VALUE")]
    pub(crate) env: Vec<String>,
    /// Working directory
    #[arg(long, value_name = "DIR", default_value = "/")]
    pub(crate) cwd: String,
    /// Numeric user and group; the group is the user's number when it is left out
    #[arg(long, value_parser = units::user, value_name = "UID[:GID]")]
    pub(crate) user: Option<User>,
    /// Seccomp profile: default is containerd's, nimbus-strict takes away what few jobs need
    #[arg(long, value_name = "PROFILE", value_parser = SECCOMP_PROFILES)]
    pub(crate) seccomp: Option<String>,
    /// What the job may connect to: NETWORK:PORTS/PROTOCOL, IPv6 in brackets; may be given several
    /// times, and without it the job has no network. Names are not resolved: give addresses
    #[arg(long, value_name = "RULE")]
    pub(crate) allow: Vec<EgressRule>,
    /// Sigstore bundle that attests the image; may be given several times
    #[arg(long = "bundle", value_name = "FILE")]
    pub(crate) bundles: Vec<PathBuf>,
    /// OS/ARCHITECTURE[/VARIANT]
    #[arg(long, default_value = host_platform())]
    pub(crate) platform: String,
    /// The job is killed after this time of one attempt: 10m, 90s, 90
    #[arg(long, alias = "max-runtime-seconds", value_parser = units::seconds, value_name = "TIME")]
    pub(crate) max_runtime: Option<u32>,
    /// Attempts before the job is given up, 1 to 10
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10))]
    pub(crate) max_attempts: Option<u32>,
    /// Wait for the end and exit as the job does
    #[arg(long)]
    pub(crate) wait: bool,
    /// UUID that makes a repeated submission the same job
    #[arg(long, value_name = "UUID")]
    pub(crate) request_id: Option<uuid::Uuid>,
    /// HOST/REPOSITORY@DIGEST, HOST/REPOSITORY:TAG or oci:/DIRECTORY
    pub(crate) image: ImageRef,
    /// The whole command
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub(crate) args: Vec<String>,
}

/// The platform that this program was built for, in the words of images.
const fn host_platform() -> &'static str {
    if cfg!(target_arch = "aarch64") { "linux/arm64" } else { "linux/amd64" }
}

#[derive(Debug, Args)]
pub(crate) struct JobArgs {
    /// orgs/ORG/jobs/JOB, or JOB alone for the org of the credentials
    pub(crate) job: String,
}

#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    /// The org whose jobs are listed; - for all
    #[arg(long)]
    pub(crate) org: Option<String>,
    /// Only jobs in this state; may be given several times
    #[arg(long, value_enum, value_name = "STATE")]
    pub(crate) state: Vec<State>,
    /// Most jobs to list
    #[arg(long, default_value_t = LIST_DEFAULT)]
    pub(crate) limit: u32,
}

/// A job's state, as it is asked for.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub(crate) enum State {
    Queued,
    Leased,
    Running,
    Done,
    Dead,
    Cancelled,
}

#[derive(Debug, Args)]
pub(crate) struct LogsArgs {
    /// Go on until the job has ended
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// Which attempt; the newest when left out
    #[arg(long, value_name = "N")]
    pub(crate) attempt: Option<u32>,
    /// Pass control characters on to a terminal; a job's output can then do anything to it
    #[arg(long)]
    pub(crate) raw: bool,
    /// orgs/ORG/jobs/JOB, or JOB alone for the org of the credentials
    pub(crate) job: String,
}

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
#[command(after_help = ATTEST_HELP)]
pub(crate) struct AttestArgs {
    #[command(subcommand)]
    pub(crate) command: Option<AttestCommand>,
    /// Private key: ECDSA P-256, PKCS#8 in PEM
    #[arg(long, value_name = "FILE", required = true)]
    pub(crate) key: Option<PathBuf>,
    /// Predicate type
    #[arg(long = "type", value_name = "URI", default_value = DEFAULT_PREDICATE_TYPE)]
    pub(crate) predicate_type: String,
    /// JSON file with the predicate; an empty object when left out
    #[arg(long, value_name = "FILE")]
    pub(crate) predicate: Option<PathBuf>,
    /// Where the bundle goes; stdout when left out
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
    /// HOST/REPOSITORY@DIGEST, HOST/REPOSITORY:TAG or oci:/DIRECTORY
    #[arg(required = true)]
    pub(crate) image: Option<ImageRef>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum AttestCommand {
    /// Make a key pair: NAME.pem (secret) and NAME.pub.pem (for the policy)
    Keygen(KeygenArgs),
}

#[derive(Debug, Args)]
pub(crate) struct KeygenArgs {
    /// Path of the files, without their ending
    #[arg(long, value_name = "NAME")]
    pub(crate) out: PathBuf,
}

#[derive(Debug, Subcommand)]
pub(crate) enum NodeCommand {
    /// List nodes
    List,
    /// Make a token with which one machine may join
    Token {
        /// The name that the node will have
        name: String,
        /// How long the token is good for
        #[arg(long, value_parser = units::seconds, value_name = "TIME")]
        ttl: Option<u32>,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum PolicyCommand {
    /// Make the policy key: NAME.key (keep it offline) and NAME.pub (for /etc/nimbus of each node)
    Keygen(KeygenArgs),
    /// Check a policy document and sign it
    Sign {
        /// The policy key
        #[arg(long, value_name = "FILE")]
        key: PathBuf,
        /// The TOML document
        document: PathBuf,
        /// Where the signed policy goes; stdout when left out
        #[arg(short, long, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// Hand a signed policy to the control service, which hands it to every node
    Apply {
        /// What sign wrote
        file: PathBuf,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum TicketCommand {
    /// Make a ticket and print it, once: it goes into the pod's annotation nimbus.io/job
    Create(TicketArgs),
    /// List tickets, newest first
    List {
        /// Whose; the org of the credentials when left out
        #[arg(long)]
        org: Option<String>,
    },
    /// Lease no further container by a ticket; what runs goes on
    Revoke {
        /// orgs/ORG/tickets/TICKET, or TICKET alone for the org of the credentials
        ticket: String,
    },
}

#[derive(Debug, Args)]
pub(crate) struct TicketArgs {
    /// Whose pods; the org of the credentials when left out
    #[arg(long)]
    pub(crate) org: Option<String>,
    /// Pods that may show it, 1 to 1000
    #[arg(long, value_name = "N", default_value_t = 1,
        value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) uses: u32,
    /// How long a pod may begin to show it, at most 168h
    #[arg(long, value_parser = units::seconds, value_name = "TIME", default_value = "1h")]
    pub(crate) ttl: u32,
    /// Sigstore bundle that attests an image of the pod; may be given several times
    #[arg(long = "bundle", value_name = "FILE")]
    pub(crate) bundles: Vec<PathBuf>,
    /// The only node that it is good on
    #[arg(long, value_name = "NODE")]
    pub(crate) node: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum QuotaCommand {
    /// Show a quota
    Get {
        /// Whose; the org of the credentials when left out
        #[arg(long)]
        org: Option<String>,
    },
    /// Change a quota
    Set {
        /// Whose; the org of the credentials when left out
        #[arg(long)]
        org: Option<String>,
        /// Jobs that may run at one time
        #[arg(long, value_name = "N", required_unless_present = "max_queued")]
        max_running: Option<u32>,
        /// Jobs that may wait
        #[arg(long, value_name = "N")]
        max_queued: Option<u32>,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_holds_together() {
        Cli::command().debug_assert();
    }

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split(' '))
    }

    #[test]
    fn the_usual_lines_are_read() {
        for line in [
            "nimbusctl submit 127.0.0.1:5000/a:x -- /bin/true",
            "nimbusctl --json submit --cpu 1000m --memory 256MiB --env A=b --user 1:2 \
             --seccomp nimbus-strict --bundle f.json --max-runtime-seconds 20 --max-attempts 2 oci:/a -- /bin/sh -c x",
            "nimbusctl get j1 --json",
            "nimbusctl logs -f --attempt 1 j1",
            "nimbusctl submit --allow 192.0.2.0/24:443/tcp --allow [2001:db8::1]:1-9/udp oci:/a -- x",
            "nimbusctl attest 127.0.0.1:5000/a:x --key k --output o",
            "nimbusctl attest keygen --out k",
            "nimbusctl policy sign --key k p.toml -o p.dsse",
            "nimbusctl quota set --max-running 3",
            "nimbusctl node token n --ttl 10m",
            "nimbusctl ticket create --org acme --uses 3 --ttl 2h --bundle f.json --node n1",
            "nimbusctl ticket create",
            "nimbusctl ticket list --json",
            "nimbusctl ticket revoke t1",
            "nimbusctl completions bash",
        ] {
            let line = line.split_whitespace().collect::<Vec<_>>().join(" ");
            assert!(parse(&line).is_ok(), "{line}: {}", parse(&line).unwrap_err());
        }
        for bad in [
            "nimbusctl submit 127.0.0.1:5000/a:x",
            "nimbusctl submit busybox -- /bin/true",
            "nimbusctl submit --max-attempts 11 127.0.0.1:5000/a:x -- /bin/true",
            "nimbusctl submit --seccomp unconfined 127.0.0.1:5000/a:x -- /bin/true",
            "nimbusctl submit --request-id 7 127.0.0.1:5000/a:x -- /bin/true",
            "nimbusctl submit --allow example.org:443/tcp 127.0.0.1:5000/a:x -- /bin/true",
            "nimbusctl submit --allow 192.0.2.1/24:443/tcp 127.0.0.1:5000/a:x -- /bin/true",
            "nimbusctl attest 127.0.0.1:5000/a:x",
            "nimbusctl attest --key k",
            "nimbusctl quota set",
            "nimbusctl ticket create --uses 0",
            "nimbusctl ticket create --uses 1001",
            "nimbusctl ticket create --ttl never",
            "nimbusctl ticket revoke",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}

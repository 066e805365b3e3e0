//! Every limit of the control service, by name (rule 13). Reaching one is a refusal.

use std::time::Duration;

/// Longest message that is read, both listeners.
pub(crate) const MESSAGE_BYTES_MAX: usize = 8 << 20;
/// Bytes of jobs in one answer from which on a list goes on in the next page.
pub(crate) const LIST_BYTES_MAX: usize = 4 << 20;
/// Longest message that the join listener reads.
pub(crate) const JOIN_MESSAGE_BYTES_MAX: usize = 64 << 10;
/// Longest certificate signing request.
pub(crate) const CSR_BYTES_MAX: usize = 8 << 10;

/// Most connections to the API listener at one time.
pub(crate) const API_CONNECTIONS_MAX: usize = 4096;
/// Most connections to the join listener at one time.
pub(crate) const JOIN_CONNECTIONS_MAX: usize = 64;
/// Most calls at one time on one connection.
pub(crate) const STREAMS_PER_CONNECTION_MAX: u32 = 256;
/// Longest TLS handshake.
pub(crate) const HANDSHAKE_MAX: Duration = Duration::from_secs(10);
/// Longest list of request headers.
pub(crate) const HEADER_BYTES_MAX: u32 = 16 << 10;
/// Most streams a peer may reset before we have seen them.
pub(crate) const PENDING_RESETS_MAX: usize = 64;
/// Most streams that we reset because of a peer's errors.
pub(crate) const LOCAL_RESETS_MAX: usize = 256;
/// A connection on which nothing comes back for this long is closed.
pub(crate) const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);
/// How often a silent connection is asked whether it lives.
pub(crate) const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
/// How long a graceful stop waits for calls that are under way.
pub(crate) const STOP_MAX: Duration = Duration::from_secs(10);

/// Most watchers and log followers at one time.
pub(crate) const WATCHERS_MAX: usize = 8192;
/// Messages that wait for a slow reader of a stream.
pub(crate) const STREAM_QUEUE: usize = 16;
/// Longest wait for a slow reader before its stream is ended.
pub(crate) const SLOW_READER_MAX: Duration = Duration::from_secs(30);

/// Most bundles of a job.
pub(crate) const BUNDLES_MAX: usize = 64;
/// All bundles of a job together.
pub(crate) const BUNDLE_BYTES_MAX: usize = 3 << 20;
/// Most arguments, and most variables, of a job.
pub(crate) const WORDS_MAX: usize = 1024;
/// Arguments of a job together, and variables together.
pub(crate) const WORD_BYTES_MAX: usize = 128 << 10;
/// Longest image name and working directory.
pub(crate) const NAME_BYTES_MAX: usize = 1024;
/// An image's name and its job's allow-list, or the names of the container that it was claimed for,
/// together: with the rest of the claims a lease of these is
/// within the size of a token.
pub(crate) const LEASE_TEXT_BYTES_MAX: usize = 1536;
/// User and group ids are below this.
pub(crate) const UID_END: u32 = 1 << 31;
/// Most attempts of a job.
pub(crate) const ATTEMPTS_MAX: u32 = 10;
/// Attempts of a job that names none.
pub(crate) const ATTEMPTS_DEFAULT: u32 = 3;
/// Longest run of a job.
pub(crate) const RUNTIME_SECONDS_MAX: u32 = 7 * 24 * 3600;
/// Longest run of a job that names none.
pub(crate) const RUNTIME_SECONDS_DEFAULT: u32 = 3600;
/// Most CPU of a job, thousandths of a core.
pub(crate) const CPU_MILLIS_MAX: u32 = 1_024_000;
/// Most memory and scratch of a job.
pub(crate) const MEMORY_BYTES_MAX: u64 = 1 << 45;
/// Least memory of a job.
pub(crate) const MEMORY_BYTES_MIN: u64 = 4 << 20;
/// Most tasks of a job.
pub(crate) const PIDS_MAX: u32 = 1 << 20;
/// Most output of a job.
pub(crate) const LOG_BYTES_MAX: u64 = 1 << 30;

/// Jobs on a page of a list that names no size.
pub(crate) const PAGE_DEFAULT: u32 = 50;
/// Most entries on a page.
pub(crate) const PAGE_MAX: u32 = 500;
/// Longest page token.
pub(crate) const PAGE_TOKEN_BYTES_MAX: usize = 512;

/// How long a request id is remembered.
pub(crate) const REQUEST_ID_KEPT_MS: i64 = 24 * 3600 * 1000;
/// Running jobs of an org that has no quota of its own.
pub(crate) const QUOTA_RUNNING_DEFAULT: u32 = 16;
/// Waiting jobs of an org that has no quota of its own.
pub(crate) const QUOTA_QUEUED_DEFAULT: u32 = 10_000;

/// Life of a join token that names none, seconds.
pub(crate) const TOKEN_SECONDS_DEFAULT: u32 = 600;
/// Longest life of a join token, seconds.
pub(crate) const TOKEN_SECONDS_MAX: u32 = 86_400;
/// Tickets of an org that are not forgotten.
pub(crate) const TICKETS_PER_ORG_MAX: i64 = 1000;
/// Most pods that may show one ticket.
pub(crate) const TICKET_USES_MAX: u32 = 1000;
/// Life of a ticket that names none, seconds.
pub(crate) const TICKET_SECONDS_DEFAULT: u32 = 3600;
/// Longest life of a ticket, seconds.
pub(crate) const TICKET_SECONDS_MAX: u32 = 7 * 24 * 3600;
/// How long a ticket is remembered after its end, and as long as a pod runs by it.
pub(crate) const TICKET_KEPT_MS: i64 = 24 * 3600 * 1000;
/// Longest node name: it stands in a host name label.
pub(crate) const NODE_NAME_BYTES_MAX: usize = 63;

/// How often a node says that it lives.
pub(crate) const HEARTBEAT: Duration = Duration::from_secs(2);
/// A node whose newest nonce is older gets no lease and no extension.
pub(crate) const NONCE_FRESH: Duration = Duration::from_secs(6);
/// A session on which no heartbeat comes for this long is ended.
pub(crate) const SESSION_SILENCE_MAX: Duration = Duration::from_secs(20);
/// Longest wait for a session's first message.
pub(crate) const HELLO_MAX: Duration = Duration::from_secs(10);
/// Commands that wait for one session; one more ends it, and the next one is told again.
pub(crate) const SESSION_COMMANDS: usize = 1024;
/// Messages on their way to one node.
pub(crate) const SESSION_OUTBOX: usize = 64;
/// Leases that a hello may list.
pub(crate) const HELD_MAX: usize = 4096;
/// Claims of one session that are not yet answered; one more is refused as busy.
pub(crate) const CLAIMS_IN_WORK: usize = 256;
/// Longest id of a claim.
pub(crate) const CLAIM_ID_BYTES_MAX: usize = 128;
/// Longest name of Kubernetes.
pub(crate) const KUBERNETES_NAME_BYTES_MAX: usize = 253;
/// Longest uid of a pod.
pub(crate) const POD_UID_BYTES_MAX: usize = 64;
/// Longest ticket as a pod shows it.
pub(crate) const TICKET_BYTES_MAX: usize = 128;
/// Log messages of one session that are not yet durable.
pub(crate) const LOGS_IN_FLIGHT: usize = 32;
/// Bytes in one log message.
pub(crate) const LOG_DATA_BYTES_MAX: usize = 64 << 10;
/// Log messages, of all nodes, that wait for the disk.
pub(crate) const LOG_QUEUE: usize = 1024;
/// Log messages that one sync makes durable.
pub(crate) const LOG_BATCH: usize = 256;
/// Characters of a node's message that are kept.
pub(crate) const NODE_MESSAGE_CHARS_MAX: usize = 1000;
/// Longest receipt envelope.
pub(crate) const RECEIPT_ENVELOPE_BYTES_MAX: usize = 512 << 10;

/// Requests that wait for the writer.
pub(crate) const WRITE_QUEUE: usize = 4096;
/// Requests in one transaction.
pub(crate) const WRITE_BATCH: usize = 256;
/// Connections that read.
pub(crate) const READERS: usize = 4;
/// Leases made in one transaction.
pub(crate) const LEASE_BATCH: usize = 64;
/// Waiting jobs of one org that are looked at for one that fits.
pub(crate) const SCAN_PER_ORG: usize = 32;
/// Orgs looked at in one transaction.
pub(crate) const SCAN_ORGS: usize = 256;
/// Leases ended in one transaction of the sweeper.
pub(crate) const SWEEP_BATCH: usize = 256;
/// How often the sweeper looks for leases that have run out.
pub(crate) const SWEEP: Duration = Duration::from_secs(1);
/// How often keys, certificates and old request ids are looked after.
pub(crate) const HOUSEKEEPING: Duration = Duration::from_secs(10);

/// Time after a lease's end in which the node must have killed its job (rule 10).
pub(crate) const GRACE_SECONDS: i64 = 30;
/// What clocks may differ by (rule 10).
pub(crate) const SKEW_SECONDS: i64 = 2;
/// After a start of control nodes have this long to come back before their leases count as run out.
pub(crate) const RETURN_SECONDS: i64 = 30;
/// The latest start after a lease was made, whatever its life.
pub(crate) const START_SECONDS_MAX: i64 = 300;
/// How far the clock may be behind the last time in the store.
pub(crate) const CLOCK_BACK_MS_MAX: i64 = 30_000;
/// First wait before a new attempt; each next one is four times as long.
pub(crate) const RETRY_MS_FIRST: i64 = 500;
/// Longest wait before a new attempt.
pub(crate) const RETRY_MS_MAX: i64 = 60_000;

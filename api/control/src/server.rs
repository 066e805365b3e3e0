//! Starting and stopping the service.
//!
//! The order of a start: data directory and lock, store (schema, clock), keys, CA, sockets, loops,
//! first admin's file, and last `endpoints.json`, which says that all else is ready. A stop ends the
//! streams, waits for calls under way, then closes logs and store.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use nimbus_api::clock::Clock;
use nimbus_api::error::Chain;
use nimbus_api::proto::control::v1::jobs_server::JobsServer;
use nimbus_api::proto::control::v1::keys_server::KeysServer;
use nimbus_api::proto::control::v1::logs_server::LogsServer;
use nimbus_api::proto::control::v1::nodes_server::NodesServer;
use nimbus_api::proto::control::v1::policies_server::PoliciesServer;
use nimbus_api::proto::control::v1::quotas_server::QuotasServer;
use nimbus_api::proto::control::v1::tickets_server::TicketsServer;
use nimbus_api::proto::node::v1::enrollment_server::EnrollmentServer;
use nimbus_api::proto::node::v1::sessions_server::SessionsServer;
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Server as Grpc;

use crate::api::{
    self, EnrollmentService, JobsService, KeysService, LogsService, NodesService, PoliciesService,
    QuotasService, TicketsService,
};
use crate::app::{App, Parts, Terms, stopped};
use crate::config::ServeArgs;
use crate::credentials::{self, CredentialsError};
use crate::data_dir::{DataDir, DataDirError};
use crate::exit::Exit;
use crate::keyring::{KeyRing, KeyRingError};
use crate::limits::{
    API_CONNECTIONS_MAX, HEADER_BYTES_MAX, JOIN_CONNECTIONS_MAX, JOIN_MESSAGE_BYTES_MAX,
    KEEPALIVE_INTERVAL, KEEPALIVE_TIMEOUT, LOCAL_RESETS_MAX, MESSAGE_BYTES_MAX, PENDING_RESETS_MAX,
    STOP_MAX, STREAMS_PER_CONNECTION_MAX,
};
use crate::listener::{self, Listener};
use crate::logs::Logs;
use crate::pki::{Ca, PkiError, ServerIdentity};
use crate::scheduler;
use crate::session::SessionService;
use crate::store::{OpenError, Store};

/// Name of the file that says where the service listens.
const ENDPOINTS: &str = "endpoints.json";

/// Where the service listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Endpoints {
    /// The API, mutual TLS.
    pub api: SocketAddr,
    /// Where nodes join.
    pub join: SocketAddr,
}

/// What tells one boot of the machine from another.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Why the service did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The data directory.
    #[error("cannot use the data directory")]
    DataDir(#[source] DataDirError),
    /// The store.
    #[error("cannot open the store")]
    Store(#[source] OpenError),
    /// The store does not answer.
    #[error("cannot read the store")]
    Read,
    /// The keys.
    #[error("cannot use the keys")]
    Keys(#[source] KeyRingError),
    /// The CA.
    #[error("cannot use the CA")]
    Pki(#[source] PkiError),
    /// An address.
    #[error("cannot listen on {address}")]
    Listen {
        /// Which.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The first admin's file.
    #[error("cannot write the first admin's credentials")]
    Admin(#[source] CredentialsError),
    /// The log writer.
    #[error("cannot start the log writer")]
    Logs(#[source] io::Error),
    /// Which boot of the machine this is.
    #[error("cannot read {BOOT_ID}")]
    Boot(#[source] io::Error),
    /// Times that make no sense together.
    #[error("leases of {ttl} s cannot be extended every {every} s; the second must be less")]
    Terms {
        /// Life of a lease.
        ttl: u32,
        /// How often it is extended.
        every: u32,
    },
}

impl StartError {
    /// The exit code that goes with it.
    pub fn exit(&self) -> Exit {
        match self {
            Self::DataDir(error)
            | Self::Keys(KeyRingError::DataDir(error))
            | Self::Pki(PkiError::DataDir(error))
            | Self::Admin(CredentialsError::DataDir(error)) => of_data_dir(error),
            Self::Store(OpenError::SchemaNewer { .. }) => Exit::SchemaNewer,
            Self::Store(OpenError::ClockBack { .. }) => Exit::ClockBack,
            Self::Store(OpenError::Sqlite { .. } | OpenError::Thread(_)) | Self::Read => {
                Exit::Store
            }
            Self::Keys(KeyRingError::NotAKey { .. } | KeyRingError::Set(_))
            | Self::Pki(PkiError::File { .. }) => Exit::KeyFile,
            Self::Listen { .. } => Exit::Listen,
            Self::Terms { .. } | Self::Keys(KeyRingError::Domain { .. }) => Exit::Usage,
            Self::Keys(KeyRingError::Name)
            | Self::Pki(_)
            | Self::Admin(_)
            | Self::Logs(_)
            | Self::Boot(_) => Exit::Failed,
        }
    }
}

fn of_data_dir(error: &DataDirError) -> Exit {
    match error {
        DataDirError::Io { .. } | DataDirError::NotPrivate { .. } => Exit::DataDir,
        DataDirError::SecretExposed { .. } | DataDirError::NotASecret { .. } => Exit::KeyFile,
        DataDirError::Locked { .. } => Exit::Locked,
    }
}

/// The running service.
pub struct Server {
    app: Arc<App>,
    endpoints: Endpoints,
    stop: watch::Sender<bool>,
    tasks: Vec<JoinHandle<()>>,
    // Last: the lock is held until everything else is closed.
    data: DataDir,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("endpoints", &self.endpoints).finish_non_exhaustive()
    }
}

struct Sockets {
    api: TcpListener,
    join: TcpListener,
    endpoints: Endpoints,
}

async fn bind(args: &ServeArgs) -> Result<Sockets, StartError> {
    let failed = |address| move |source| StartError::Listen { address, source };
    let (api, api_at) = listener::bind(args.listen).await.map_err(failed(args.listen))?;
    let (join, join_at) =
        listener::bind(args.join_listen).await.map_err(failed(args.join_listen))?;
    Ok(Sockets { api, join, endpoints: Endpoints { api: api_at, join: join_at } })
}

impl Server {
    /// Starts the service; when this returns it answers.
    pub async fn start(args: &ServeArgs, clock: Arc<dyn Clock>) -> Result<Self, StartError> {
        let terms = Terms {
            ttl_seconds: args.lease_ttl_seconds,
            extension_seconds: args.lease_extension_seconds,
        };
        if terms.extension_seconds >= terms.ttl_seconds {
            let (ttl, every) = (terms.ttl_seconds, terms.extension_seconds);
            return Err(StartError::Terms { ttl, every });
        }
        let (now, now_ms) = (clock.unix(), clock.unix_millis());
        let boot_id = std::fs::read_to_string(BOOT_ID).map_err(StartError::Boot)?;
        let data = DataDir::open(&args.data_dir).map_err(StartError::DataDir)?;
        // An old one would say "ready" while we are not.
        data.remove(ENDPOINTS).map_err(StartError::DataDir)?;
        let store = Store::open(&data.join("control.db"), now_ms).map_err(StartError::Store)?;
        let read = |_error| StartError::Read;
        let (generation, serial) = store.key_state().await.map_err(read)?;
        let policy = store.policy().await.map_err(read)?;
        let keys = KeyRing::open(&data, &args.trust_domain, generation, serial, now)
            .map_err(StartError::Keys)?;
        store.note_key_set(keys.serial(), now_ms).await.map_err(read)?;
        let ca = Ca::open(&data, &args.trust_domain, now).map_err(StartError::Pki)?;
        let logs = data.folder("logs").map_err(StartError::DataDir)?;
        let logs = Logs::start(logs).map_err(StartError::Logs)?;
        let sockets = bind(args).await?;
        let endpoints = sockets.endpoints;
        let addresses = vec![endpoints.api.ip(), endpoints.join.ip()];
        let identity = ServerIdentity::new(&ca, addresses, now).map_err(StartError::Pki)?;
        let (stop, stopping) = watch::channel(false);
        let api_address = endpoints.api.to_string();
        let stop_on = stopping.clone();
        let parts =
            Parts { clock, store, logs, keys, ca, terms, stop: stopping, api_address, policy };
        let app = App::new(parts);
        let tasks = run_all(&app, sockets, (Arc::new(identity), boot_id), stop_on)?;
        credentials::keep_admin(&data, &app.ca, &endpoints.api.to_string(), now)
            .map_err(StartError::Admin)?;
        let text = serde_json::to_vec(&endpoints).unwrap_or_default();
        data.write_public(ENDPOINTS, &text).map_err(StartError::DataDir)?;
        tracing::info!(api = %endpoints.api, join = %endpoints.join, "ready");
        Ok(Self { app, endpoints, stop, tasks, data })
    }

    /// Where it listens.
    pub const fn endpoints(&self) -> Endpoints {
        self.endpoints
    }

    /// Stops gracefully: streams end, calls under way are answered, all is closed.
    pub async fn stop(self) {
        self.stop.send_replace(true);
        for mut task in self.tasks {
            if tokio::time::timeout(STOP_MAX, &mut task).await.is_err() {
                tracing::warn!("a task did not end in time and is cut off");
                task.abort();
            }
        }
        if let Err(error) = self.data.remove(ENDPOINTS) {
            tracing::warn!(error = %Chain(&error), "an old file is left");
        }
        self.app.logs.close().await;
        self.app.store.close().await;
        tracing::info!("stopped");
    }
}

fn run_all(
    app: &Arc<App>,
    sockets: Sockets,
    (identity, boot_id): (Arc<ServerIdentity>, String),
    stop: watch::Receiver<bool>,
) -> Result<Vec<JoinHandle<()>>, StartError> {
    let own = Arc::clone(&identity);
    let api = Listener::mutual(sockets.api, &app.ca, own, API_CONNECTIONS_MAX)
        .map_err(StartError::Pki)?;
    let own = Arc::clone(&identity);
    let join =
        Listener::server_only(sockets.join, own, JOIN_CONNECTIONS_MAX).map_err(StartError::Pki)?;
    Ok(vec![
        tokio::spawn(serve_api(Arc::clone(app), api, stop.clone())),
        tokio::spawn(serve_join(Arc::clone(app), join, stop)),
        tokio::spawn(scheduler::dispatch(Arc::clone(app))),
        tokio::spawn(scheduler::sweep(Arc::clone(app), boot_id.trim().to_owned())),
        tokio::spawn(scheduler::keep_house(Arc::clone(app), identity)),
    ])
}

/// A server with every limit of HTTP/2 set.
fn grpc() -> Grpc {
    Grpc::builder()
        .max_concurrent_streams(STREAMS_PER_CONNECTION_MAX)
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .http2_max_pending_accept_reset_streams(Some(PENDING_RESETS_MAX))
        .http2_max_local_error_reset_streams(Some(LOCAL_RESETS_MAX))
        .http2_max_header_list_size(HEADER_BYTES_MAX)
        .accept_http1(false)
}

macro_rules! service {
    ($door:path, $clock:expr, $server:expr) => {{
        let clock = Arc::clone(&$clock);
        let server = $server
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        InterceptedService::new(server, move |request| $door(request, &clock))
    }};
}

async fn serve_api(app: Arc<App>, listener: Listener, mut stop: watch::Receiver<bool>) {
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<JobsServer<JobsService>>().await;
    health.set_serving::<SessionsServer<SessionService>>().await;
    let clock = Arc::clone(&app.clock);
    let door = Arc::clone(&clock);
    let router = grpc()
        .add_service(InterceptedService::new(health_service, move |request| {
            api::anybody(request, &door)
        }))
        .add_service(service!(api::people, clock, JobsServer::new(JobsService(Arc::clone(&app)))))
        .add_service(service!(api::people, clock, LogsServer::new(LogsService(Arc::clone(&app)))))
        .add_service(service!(api::people, clock, NodesServer::new(NodesService(Arc::clone(&app)))))
        .add_service(service!(
            api::people,
            clock,
            QuotasServer::new(QuotasService(Arc::clone(&app)))
        ))
        .add_service(service!(
            api::people,
            clock,
            PoliciesServer::new(PoliciesService(Arc::clone(&app)))
        ))
        .add_service(service!(api::people, clock, KeysServer::new(KeysService(Arc::clone(&app)))))
        .add_service(service!(
            api::people,
            clock,
            TicketsServer::new(TicketsService(Arc::clone(&app)))
        ))
        .add_service(service!(
            api::nodes,
            clock,
            SessionsServer::new(SessionService(Arc::clone(&app)))
        ));
    let stopping = async {
        stopped(&mut stop).await;
        health.set_not_serving::<JobsServer<JobsService>>().await;
        health.set_not_serving::<SessionsServer<SessionService>>().await;
    };
    if let Err(error) = router.serve_with_incoming_shutdown(listener.connections(), stopping).await
    {
        tracing::error!(%error, "the API listener ended");
    }
}

async fn serve_join(app: Arc<App>, listener: Listener, mut stop: watch::Receiver<bool>) {
    let service = EnrollmentServer::new(EnrollmentService(app))
        .max_decoding_message_size(JOIN_MESSAGE_BYTES_MAX);
    let stopping = async { stopped(&mut stop).await };
    let served = grpc().add_service(service);
    if let Err(error) = served.serve_with_incoming_shutdown(listener.connections(), stopping).await
    {
        tracing::error!(%error, "the join listener ended");
    }
}

//! A small client: people's calls, and a node made of a key and a stream.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use nimbus_api::Digest;
use nimbus_api::clock::{SystemClock, UnixSeconds};
use nimbus_api::dsse::{Envelope, SigningKey, VerifyingKey};
use nimbus_api::keys::KeySet;
use nimbus_api::lease::{LeaseClaims, LeaseToken};
use nimbus_api::proto::control::v1::jobs_client::JobsClient;
use nimbus_api::proto::control::v1::{
    GetJobRequest, Image, Job, JobSpec, JobState, Resources, SubmitJobRequest,
};
use nimbus_api::proto::node::v1::sessions_client::SessionsClient;
use nimbus_api::proto::node::v1::{
    Claim, ControlMessage, Event, Finished, Grant, Heartbeat, HeldLease, Hello, LogData,
    NodeMessage, PodContainer, Started, claim_answer, control_message, event, node_message,
};
use nimbus_api::receipt::{
    RECEIPT_TYPE, Receipt, ReceiptPredicate, STATEMENT_TYPE, Subject, SubjectDigest,
};
use nimbus_control::{ServeArgs, Server};
use serde::Deserialize;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

pub(crate) const MESSAGE_BYTES_MAX: usize = 8 << 20;

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Credentials {
    pub(crate) endpoint: String,
    pub(crate) ca_pem: String,
    pub(crate) cert_pem: String,
    pub(crate) key_pem: String,
    pub(crate) org: String,
}

impl Credentials {
    pub(crate) fn read(path: &Path) -> Self {
        serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
    }

    pub(crate) async fn connect(&self) -> Channel {
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(&self.ca_pem))
            .identity(Identity::from_pem(&self.cert_pem, &self.key_pem));
        let url = format!("https://{}", self.endpoint);
        Endpoint::from_shared(url).unwrap().tls_config(tls).unwrap().connect().await.unwrap()
    }
}

/// Port 0 on loopback, and defaults for the rest.
pub(crate) fn args(data_dir: PathBuf) -> ServeArgs {
    let any = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
    ServeArgs {
        data_dir,
        listen: any,
        join_listen: any,
        trust_domain: "nimbus.test".parse().unwrap(),
        lease_ttl_seconds: 900,
        lease_extension_seconds: 300,
    }
}

pub(crate) async fn start(folder: &Path) -> Server {
    start_with(folder, |_args| {}).await
}

pub(crate) async fn start_with(folder: &Path, change: impl FnOnce(&mut ServeArgs)) -> Server {
    let mut args = args(folder.join("data"));
    change(&mut args);
    Server::start(&args, Arc::new(SystemClock)).await.unwrap()
}

pub(crate) fn data(folder: &Path) -> PathBuf {
    folder.join("data")
}

pub(crate) async fn admin(folder: &Path) -> Channel {
    Credentials::read(&data(folder).join("admin.json")).connect().await
}

pub(crate) fn jobs(channel: &Channel) -> JobsClient<Channel> {
    JobsClient::new(channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX)
}

pub(crate) fn spec() -> JobSpec {
    JobSpec {
        image: Some(Image {
            name: "127.0.0.1:5000/demo/hello".to_owned(),
            digest: Digest::of(b"image").to_string(),
            platform: "linux/amd64".to_owned(),
        }),
        args: vec!["/bin/hello".to_owned()],
        bundles: vec![b"{}".to_vec()],
        resources: Some(Resources { memory_bytes: 64 << 20, ..Resources::default() }),
        ..JobSpec::default()
    }
}

pub(crate) fn submission() -> SubmitJobRequest {
    SubmitJobRequest {
        parent: "orgs/default".to_owned(),
        spec: Some(spec()),
        request_id: uuid::Uuid::new_v4().to_string(),
    }
}

/// A policy whose namespace `ci` is org `acme`'s, whose namespace `tickets` is whoever's ticket it is.
pub(crate) fn claim_policy(serial: u64) -> Vec<u8> {
    let most = "most = { cpu_millis = 1000, memory_bytes = 67108864, pids = 64, \
        scratch_bytes = 8388608 }\n";
    let text = format!(
        "version = 1\nid = \"p\"\nserial = {serial}\nnot_after = 2099-01-01T00:00:00Z\n\
         [trust.t]\nkind = \"key\"\nkey = \"k\"\ntlog = \"off\"\n[need.n]\ntrust = \"t\"\n\
         predicate = [\"x\"]\n[[rule]]\nimages = [\"127.0.0.1:5000/**\"]\nrequire = [\"n\"]\n\
         [[claim]]\nnamespace = \"k8s.io\"\nkubernetes = [\"ci\"]\norg = \"acme\"\n\
         network = \"pod\"\n{most}\
         [[claim]]\nnamespace = \"k8s.io\"\nkubernetes = [\"tickets\"]\n{most}"
    );
    let key = SigningKey::from_seed([5; 32]);
    nimbus_api::policy::sign(text.as_bytes(), &key).unwrap().to_json()
}

/// What a node claims for a container `app` of a pod in Kubernetes namespace `ci`.
pub(crate) fn claim(container: &str) -> Claim {
    Claim {
        id: uuid::Uuid::new_v4().to_string(),
        namespace: "k8s.io".to_owned(),
        container: container.to_owned(),
        image: spec().image,
        process_sha256: Digest::of(b"process").hex(),
        args: vec!["/bin/hello".to_owned()],
        cwd: "/".to_owned(),
        uid: 1,
        gid: 2,
        resources: None,
        pod: Some(PodContainer {
            sandbox: format!("sandbox-{container}"),
            namespace: "ci".to_owned(),
            name: "build".to_owned(),
            uid: "u-1".to_owned(),
            container: "app".to_owned(),
            restart: 0,
        }),
        ticket: String::new(),
    }
}

pub(crate) async fn submit(channel: &Channel) -> Job {
    jobs(channel).submit_job(submission()).await.unwrap().into_inner()
}

pub(crate) async fn get(channel: &Channel, name: &str) -> Job {
    jobs(channel).get_job(GetJobRequest { name: name.to_owned() }).await.unwrap().into_inner()
}

/// Waits, by watching, until the job is in this state.
pub(crate) async fn reach(channel: &Channel, name: &str, state: JobState) -> Job {
    let request = nimbus_api::proto::control::v1::WatchJobRequest { name: name.to_owned() };
    let mut watch = jobs(channel).watch_job(request).await.unwrap().into_inner();
    while let Some(job) = watch.message().await.unwrap() {
        if job.state() == state {
            return job;
        }
    }
    panic!("{name} never got to {state:?}: {:?}", get(channel, name).await);
}

/// A node: its identity key, its credentials and what it would keep on disk.
pub(crate) struct Node {
    pub(crate) credentials: Credentials,
    pub(crate) key: SigningKey,
    pub(crate) key_pem: String,
    pub(crate) root: VerifyingKey,
    pub(crate) spki: Vec<u8>,
    pub(crate) seq: u64,
}

pub(crate) fn request_for(key: &rcgen::KeyPair) -> Vec<u8> {
    rcgen::CertificateParams::default().serialize_request(key).unwrap().der().to_vec()
}

impl Node {
    pub(crate) async fn join(folder: &Path, name: &str) -> Self {
        use nimbus_api::proto::control::v1::{CreateJoinTokenRequest, nodes_client::NodesClient};
        use nimbus_api::proto::node::v1::{JoinRequest, enrollment_client::EnrollmentClient};
        let admin = Credentials::read(&data(folder).join("admin.json"));
        let request = CreateJoinTokenRequest { node: name.to_owned(), ttl_seconds: 0 };
        let mut nodes = NodesClient::new(admin.connect().await);
        let token = nodes.create_join_token(request).await.unwrap().into_inner().token;
        let parts: Vec<_> = token.split('.').collect();
        assert_eq!((parts.len(), parts[0], parts[2].len()), (3, "nj1", 64));
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        let channel = join_channel(folder, &admin).await;
        let secret = parts[1].to_owned();
        let joined = EnrollmentClient::new(channel)
            .join(JoinRequest { secret, csr: request_for(&key) })
            .await
            .unwrap()
            .into_inner();
        let certificate = joined.certificate.unwrap();
        assert_eq!((joined.node.as_str(), joined.trust_domain.as_str()), (name, "nimbus.test"));
        let credentials = Credentials {
            endpoint: joined.api_address,
            ca_pem: certificate.ca_pem,
            cert_pem: certificate.chain_pem,
            key_pem: key.serialize_pem(),
            org: String::new(),
        };
        let root = VerifyingKey::from_bytes(joined.root_key.try_into().unwrap());
        KeySet::verify(&joined.key_set, &root).unwrap();
        let spki = rcgen::PublicKeyData::subject_public_key_info(&key);
        Self { credentials, key: seed_of(&key), key_pem: key.serialize_pem(), root, spki, seq: 0 }
    }

    /// After a restart of control on another port.
    pub(crate) fn moved_to(&mut self, server: &Server) {
        self.credentials.endpoint = server.endpoints().api.to_string();
    }

    pub(crate) async fn session(&self, held: Vec<HeldLease>) -> Session {
        let channel = self.credentials.connect().await;
        let (sender, receiver) = mpsc::channel(64);
        let hello = Hello {
            version: "test".to_owned(),
            boot_id: "boot".to_owned(),
            lease_versions: vec![1],
            held,
            policy_serial: 0,
            capacity: Some(Resources {
                cpu_millis: 8000,
                memory_bytes: 8 << 30,
                pids: 10_000,
                ..Resources::default()
            }),
            max_jobs: 8,
            platform: "linux/amd64".to_owned(),
            nonce: uuid::Uuid::new_v4().as_bytes().to_vec(),
        };
        let nonce = hello.nonce.clone();
        sender.send(message(node_message::Kind::Hello(hello))).await.unwrap();
        let inbound = SessionsClient::new(channel)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .session(ReceiverStream::new(receiver))
            .await
            .unwrap()
            .into_inner();
        Session { sender, inbound, nonce, root: self.root, keys: None }
    }

    pub(crate) fn receipt(&self, claims: &LeaseClaims) -> Vec<u8> {
        let image = &claims.images[0];
        let receipt = Receipt {
            statement_type: STATEMENT_TYPE.to_owned(),
            subject: [Subject {
                name: image.name.clone(),
                digest: SubjectDigest { sha256: image.digest.hex() },
            }],
            predicate_type: RECEIPT_TYPE.to_owned(),
            predicate: ReceiptPredicate {
                lease_id: claims.lease_id.clone(),
                job: claims.job.clone(),
                attempt: claims.attempt,
                org: claims.org.clone(),
                node: Digest::of(&self.spki),
                container: nimbus_api::id::ContainerKey {
                    namespace: "nimbus".parse().unwrap(),
                    id: format!("{}-{}", claims.job, claims.attempt).parse().unwrap(),
                },
                rootfs_sha256: Digest::of(b"r"),
                plan_sha256: Digest::of(b"p"),
                seccomp_sha256: Digest::of(b"s"),
                attestations: vec![],
                policy_serial: 1,
                tightened: vec![],
                started_at: UnixSeconds(1),
            },
        };
        let envelope: Envelope = receipt.sign(&self.key);
        envelope.to_json()
    }

    pub(crate) fn started(&mut self, claims: &LeaseClaims, receipt: Vec<u8>) -> Event {
        let started = Started { receipt, chain_pem: self.credentials.cert_pem.clone() };
        self.event(claims, event::Kind::Started(started))
    }

    pub(crate) fn finished(
        &mut self,
        claims: &LeaseClaims,
        exit_code: Option<i32>,
        reason: &str,
    ) -> Event {
        let finished = Finished {
            exit_code,
            reason: reason.to_owned(),
            message: String::new(),
            oom_killed: false,
        };
        self.event(claims, event::Kind::Finished(finished))
    }

    fn event(&mut self, claims: &LeaseClaims, kind: event::Kind) -> Event {
        self.seq += 1;
        Event {
            seq: self.seq,
            lease_id: claims.lease_id.to_string(),
            job: claims.job.to_string(),
            attempt: claims.attempt,
            at_ms: nimbus_api::clock::Clock::unix_millis(&SystemClock),
            kind: Some(kind),
        }
    }
}

pub(crate) async fn join_channel(folder: &Path, admin: &Credentials) -> Channel {
    let endpoints = std::fs::read(data(folder).join("endpoints.json")).unwrap();
    let endpoints: serde_json::Value = serde_json::from_slice(&endpoints).unwrap();
    let url = format!("https://{}", endpoints["join"].as_str().unwrap());
    let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(&admin.ca_pem));
    Endpoint::from_shared(url).unwrap().tls_config(tls).unwrap().connect().await.unwrap()
}

/// The seed is the last 32 bytes of the private key's innermost string (RFC 8410).
fn seed_of(key: &rcgen::KeyPair) -> SigningKey {
    let der = key.serialize_der();
    let at = der.windows(4).position(|window| window == [0x04, 0x22, 0x04, 0x20]).unwrap() + 4;
    SigningKey::from_seed(der[at..at + 32].try_into().unwrap())
}

pub(crate) fn message(kind: node_message::Kind) -> NodeMessage {
    NodeMessage { kind: Some(kind) }
}

pub(crate) struct Session {
    sender: mpsc::Sender<NodeMessage>,
    inbound: Streaming<ControlMessage>,
    pub(crate) nonce: Vec<u8>,
    root: VerifyingKey,
    pub(crate) keys: Option<KeySet>,
}

pub(crate) use control_message::Kind;

impl Session {
    pub(crate) async fn next(&mut self) -> Kind {
        self.try_next().await.expect("the session ended")
    }

    /// The next message; none when the session has ended.
    pub(crate) async fn try_next(&mut self) -> Option<Kind> {
        let wait = std::time::Duration::from_mins(1);
        let next =
            tokio::time::timeout(wait, self.inbound.message()).await.expect("no message came");
        let kind = next.ok()??.kind?;
        if let Kind::KeySet(envelope) = &kind {
            self.keys = Some(KeySet::verify(envelope, &self.root).unwrap());
        }
        Some(kind)
    }

    /// Skips to the first message that this makes something of.
    pub(crate) async fn find<T>(&mut self, wanted: impl Fn(Kind) -> Option<T>) -> T {
        loop {
            let kind = self.next().await;
            if let Some(found) = wanted(kind) {
                return found;
            }
        }
    }

    pub(crate) async fn grant(&mut self) -> (LeaseClaims, Grant) {
        let grant =
            self.find(|kind| if let Kind::Grant(grant) = kind { Some(grant) } else { None }).await;
        let keys = self.keys.as_ref().expect("the key set comes before the first grant");
        let lease = LeaseToken::unchecked(grant.lease.clone()).verify(keys).unwrap();
        (lease.claims, grant)
    }

    /// Claims, and waits for the answer to it.
    pub(crate) async fn claim(&mut self, claim: Claim) -> Result<(LeaseClaims, Grant), String> {
        let id = claim.id.clone();
        self.send(node_message::Kind::Claim(claim)).await;
        loop {
            let (answered, outcome) = self.answer().await;
            if answered == id {
                return outcome;
            }
        }
    }

    /// The next answer to a claim: its id, and a lease or a code.
    pub(crate) async fn answer(&mut self) -> (String, Result<(LeaseClaims, Grant), String>) {
        let wanted = |kind| {
            assert!(!matches!(kind, Kind::Grant(_)), "what is claimed is never granted unasked");
            if let Kind::ClaimAnswer(answer) = kind { Some(answer) } else { None }
        };
        let answer = self.find(wanted).await;
        let outcome = match answer.kind.unwrap() {
            claim_answer::Kind::Grant(grant) => {
                let keys = self.keys.as_ref().expect("the key set comes before the first lease");
                let lease = LeaseToken::unchecked(grant.lease.clone()).verify(keys).unwrap();
                Ok((lease.claims, grant))
            }
            claim_answer::Kind::Refused(refused) => {
                assert!(refused.message.starts_with(&format!("[{}] ", refused.reason)));
                Err(refused.reason)
            }
        };
        (answer.id, outcome)
    }

    /// A way to say things while the answers are read.
    pub(crate) fn sender(&self) -> mpsc::Sender<NodeMessage> {
        self.sender.clone()
    }

    pub(crate) async fn acked(&mut self, seq: u64) {
        let reached = |kind| matches!(kind, Kind::EventAck(ack) if ack.seq >= seq).then_some(());
        self.find(reached).await;
    }

    pub(crate) async fn revoked(&mut self) -> (String, String) {
        let wanted = |kind| {
            if let Kind::Revocation(revoked) = kind {
                Some((revoked.lease_id, revoked.reason))
            } else {
                None
            }
        };
        self.find(wanted).await
    }

    pub(crate) async fn heartbeat(&mut self) {
        self.nonce = uuid::Uuid::new_v4().as_bytes().to_vec();
        self.send(node_message::Kind::Heartbeat(Heartbeat {
            nonce: self.nonce.clone(),
            policy_serial: None,
        }))
        .await;
    }

    pub(crate) async fn event(&self, event: Event) {
        self.send(node_message::Kind::Event(event)).await;
    }

    pub(crate) async fn log(&self, log: LogData) {
        self.send(node_message::Kind::Log(log)).await;
    }

    async fn send(&self, kind: node_message::Kind) {
        // A session that has ended shows when it is read.
        drop(self.sender.send(message(kind)).await);
    }
}

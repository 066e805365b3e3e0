//! Values, and in-memory parts of an agent, that several tests need. The decision is the real one.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nimbus_api::clock::{BootNanos, ManualClock, UnixSeconds};
use nimbus_api::dsse::SigningKey;
use nimbus_api::id::ContainerKey;
use nimbus_api::keys::{HotKey, KeyPurpose, KeySet};
use nimbus_api::lease::{
    GpuMode, LeaseClaims, LeaseToken, LeasedEgress, LeasedGpu, LeasedImage, LeasedResources,
    LeasedSeccomp, ScratchMedium,
};
use nimbus_api::policy;
use nimbus_api::process::ProcessIdentity;
use nimbus_api::proto::control::v1::JobSpec;
use nimbus_api::verify::{BundleOutcome, VerifiedAttestation, VerifyReply, VerifyRequest};
use nimbus_api::{Digest, Refusal, RefusalCode};
use nimbus_hooks::facts::MeasuredImage;

use crate::agent::{Agent, Filter, Filters, Images, PLATFORM, Parts};
use crate::bundles::BundleStore;
use crate::claims::record::{Annotations, Record, Records};
use crate::config::{NetworkConfig, NodeConfig, ScratchConfig};
use crate::identity::{Identity, IdentityRecord, pkcs8_der};
use crate::image::Stop;
use crate::ledger::Ledger;
use crate::network::Networks;
use crate::network::pods::PodNetworks;
use crate::scratch::Scratches;
use crate::spool::Spool;
use crate::trust::TrustStore;
use crate::verify::{Attestations, Verifier};

pub(crate) const ROOT: [u8; 32] = [1; 32];
pub(crate) const HOT: [u8; 32] = [2; 32];
pub(crate) const POLICY: [u8; 32] = [3; 32];
pub(crate) const NODE: [u8; 32] = [4; 32];
pub(crate) const LAYERS: usize = 3;
pub(crate) const BUNDLE: &[u8] = b"a bundle";
const NOW: i64 = 1_800_000_000;

pub(crate) fn container(id: &str) -> ContainerKey {
    ContainerKey { namespace: "nimbus".parse().unwrap(), id: id.parse().unwrap() }
}

pub(crate) fn job() -> JobSpec {
    JobSpec { args: vec!["/bin/true".to_owned()], ..JobSpec::default() }
}

pub(crate) fn claims() -> LeaseClaims {
    LeaseClaims {
        ver: 1,
        lease_id: "l1".parse().unwrap(),
        job: "j1".parse().unwrap(),
        attempt: 1,
        org: "default".parse().unwrap(),
        node: crate::identity::thumbprint(&SigningKey::from_seed(NODE).verifying_key()),
        images: vec![LeasedImage {
            name: "localhost:5000/a".to_owned(),
            digest: Digest::of(b"image"),
            platform: PLATFORM.to_owned(),
        }],
        process_sha256: ProcessIdentity::from(&job()).digest(),
        resources: LeasedResources {
            cpu_millis: 1000,
            memory_bytes: 64 << 20,
            pids: 64,
            scratch_bytes: 1 << 20,
            scratch: ScratchMedium::Memory,
            log_bytes: 1 << 20,
        },
        gpu: LeasedGpu { mode: GpuMode::None },
        seccomp: LeasedSeccomp { profile: "default".to_owned(), sha256: None },
        egress: LeasedEgress::None,
        capabilities: vec![],
        policy: None,
        claim: None,
        generation: 1,
        nonce: "00".repeat(16),
        iat: UnixSeconds(NOW),
        nbf: UnixSeconds(NOW),
        start_by: UnixSeconds(NOW + 100),
        exp: UnixSeconds(NOW + 900),
    }
}

pub(crate) fn sign(claims: &LeaseClaims) -> LeaseToken {
    let domain = "nimbus.test".parse().unwrap();
    LeaseToken::sign(claims, &SigningKey::from_seed(HOT), &domain).unwrap()
}

pub(crate) fn measured() -> MeasuredImage {
    let image = claims().images.remove(0);
    MeasuredImage {
        name: image.name,
        digest: image.digest,
        manifest: image.digest,
        platform: image.platform,
        layers: (0..LAYERS).map(|n| Digest::of(n.to_string().as_bytes())).collect(),
        rootfs: Digest::of(b"rootfs"),
        hostile_mount_point: None,
    }
}

pub(crate) fn policy_document(serial: u64) -> Vec<u8> {
    format!(
        r#"
version = 1
id = "test"
serial = {serial}
not_after = 2100-01-01T00:00:00Z
[trust.k]
kind = "key"
key = "pem"
tlog = "off"
[need.n]
trust = "k"
predicate = ["p"]
[[rule]]
images = ["localhost:5000/**"]
require = ["n"]
[[claim]]
namespace = "testing"
org = "default"
most = {{ cpu_millis = 1000, memory_bytes = 67108864, pids = 64, scratch_bytes = 8388608 }}
[[claim]]
namespace = "k8s.io"
kubernetes = ["ci"]
org = "default"
network = "pod"
most = {{ cpu_millis = 1000, memory_bytes = 67108864, pids = 64, scratch_bytes = 8388608 }}
"#
    )
    .into_bytes()
}

/// An image store with one image, whose layers are empty files.
pub(crate) struct OneImage;

impl Images for OneImage {
    fn prepare(&self, image: &LeasedImage, _stop: &Stop) -> Result<MeasuredImage, Refusal> {
        self.measured(image)
    }

    fn prepare_content(
        &self,
        image: &LeasedImage,
        _content: &Path,
        _stop: &Stop,
    ) -> Result<MeasuredImage, Refusal> {
        self.measured(image)
    }

    fn measured(&self, image: &LeasedImage) -> Result<MeasuredImage, Refusal> {
        let measured = measured();
        if measured.digest == image.digest {
            return Ok(measured);
        }
        Err(Refusal::new(RefusalCode::ImageMissing))
    }

    fn open_layers(&self, _image: &MeasuredImage) -> Result<Vec<OwnedFd>, Refusal> {
        Ok((0..LAYERS).map(|_| tempfile::tempfile().unwrap().into()).collect())
    }
}

/// An image store whose registries do not answer: who asks waits for as long as it is wanted.
#[derive(Default)]
pub(crate) struct NoAnswer {
    /// Set, they say no.
    pub(crate) answer: AtomicBool,
    /// How many wait now.
    pub(crate) waiting: AtomicUsize,
}

impl Images for NoAnswer {
    fn prepare(&self, _image: &LeasedImage, stop: &Stop) -> Result<MeasuredImage, Refusal> {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        while !stop.is_cancelled() && !self.answer.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(1));
        }
        self.waiting.fetch_sub(1, Ordering::SeqCst);
        Err(Refusal::new(RefusalCode::ImageFetchFailed))
    }

    fn prepare_content(
        &self,
        image: &LeasedImage,
        _content: &Path,
        stop: &Stop,
    ) -> Result<MeasuredImage, Refusal> {
        self.prepare(image, stop)
    }

    fn measured(&self, _image: &LeasedImage) -> Result<MeasuredImage, Refusal> {
        Err(Refusal::new(RefusalCode::ImageMissing))
    }

    fn open_layers(&self, _image: &MeasuredImage) -> Result<Vec<OwnedFd>, Refusal> {
        Err(Refusal::new(RefusalCode::ImageMissing))
    }
}

/// Records of containers that a test has written down.
#[derive(Debug, Default)]
pub(crate) struct Known(pub(crate) Mutex<HashMap<ContainerKey, Record>>);

impl Records for Known {
    fn of(&self, container: &ContainerKey, _annotations: &Annotations) -> Result<Record, Refusal> {
        let known = self.0.lock().unwrap();
        known.get(container).cloned().ok_or_else(|| Refusal::new(RefusalCode::ClaimMalformed))
    }
}

/// A compiler of one profile.
pub(crate) struct OneFilter;

impl Filters for OneFilter {
    fn compile(&self, profile: &str, _capabilities: &[String]) -> Result<Filter, Refusal> {
        if profile != "default" {
            return Err(Refusal::new(RefusalCode::LeaseUnsupported));
        }
        let program = vec![6, 0, 0, 0, 0, 0, 255, 127];
        Ok(Filter {
            program_sha256: Digest::of(&program),
            program,
            profile_sha256: Digest::of(b"default"),
            instructions: 1,
        })
    }
}

/// A verifier that knows one good bundle, and counts.
#[derive(Debug, Default, Clone)]
pub(crate) struct OneBundle(pub(crate) Arc<AtomicUsize>);

impl Verifier for OneBundle {
    fn ask(&self, request: &VerifyRequest, _budget: Duration) -> Result<VerifyReply, Refusal> {
        use base64::Engine as _;
        self.0.fetch_add(1, Ordering::SeqCst);
        let outcomes = request.bundles.iter().map(|text| {
            let bytes = base64::engine::general_purpose::STANDARD.decode(text).unwrap();
            let bundle = Digest::of(&bytes);
            if bytes != BUNDLE {
                let refusal = Refusal::new(RefusalCode::ImageBundleInvalid);
                return BundleOutcome::Rejected { bundle, refusal };
            }
            BundleOutcome::Verified(VerifiedAttestation {
                bundle,
                subject: request.subjects[0],
                predicate_type: "p".to_owned(),
                needs: vec!["n".to_owned()],
                signed_at: None,
            })
        });
        Ok(VerifyReply::Outcomes(outcomes.collect()))
    }

    fn fingerprint(&self) -> String {
        "fake".to_owned()
    }
}

pub(crate) fn identity() -> Identity {
    let key = SigningKey::from_seed(NODE);
    let pair = rcgen::KeyPair::from_pkcs8_der_and_sign_algo(&pkcs8_der(&key), &rcgen::PKCS_ED25519)
        .unwrap();
    let certificate = rcgen::CertificateParams::default().self_signed(&pair).unwrap();
    let record = IdentityRecord {
        version: 1,
        node: "n1".parse().unwrap(),
        trust_domain: "nimbus.test".parse().unwrap(),
        chain_pem: certificate.pem(),
        ca_pem: certificate.pem(),
        root_key: SigningKey::from_seed(ROOT).verifying_key(),
        api_address: "127.0.0.1:1".to_owned(),
    };
    Identity::of(record, key).unwrap()
}

/// No program is run without a runtime.
fn runtime() -> tokio::runtime::Handle {
    tokio::runtime::Handle::try_current().unwrap_or_else(|_none| {
        static SHARED: std::sync::OnceLock<tokio::runtime::Runtime> = std::sync::OnceLock::new();
        SHARED.get_or_init(|| tokio::runtime::Runtime::new().unwrap()).handle().clone()
    })
}

pub(crate) fn scratch(dir: &Path) -> Scratches {
    Scratches::open(&dir.join("scratch"), ScratchConfig::default(), runtime()).unwrap()
}

fn networks(dir: &Path) -> Networks {
    Networks::open(&dir.join("network"), NetworkConfig::default(), "boot".to_owned(), runtime())
        .unwrap()
}

pub(crate) struct World {
    pub(crate) clock: Arc<ManualClock>,
    pub(crate) verifier: OneBundle,
    pub(crate) images: Arc<dyn Images>,
    pub(crate) records: Arc<Known>,
}

impl World {
    pub(crate) fn new() -> Self {
        let clock = ManualClock::at(BootNanos(0).plus_seconds(1000), UnixSeconds(NOW));
        Self {
            clock: Arc::new(clock),
            verifier: OneBundle::default(),
            images: Arc::new(OneImage),
            records: Arc::default(),
        }
    }

    /// An agent on this directory: joined, with key set and policy. Opening it again is a restart.
    pub(crate) fn agent(&self, dir: &Path) -> Arc<Agent> {
        let policy_key = dir.join("policy.pub");
        std::fs::write(&policy_key, SigningKey::from_seed(POLICY).verifying_key().hex()).unwrap();
        let config = NodeConfig {
            data_dir: dir.to_owned(),
            run_dir: dir.to_owned(),
            policy_key: policy_key.clone(),
            ..NodeConfig::default()
        };
        let root = SigningKey::from_seed(ROOT);
        let domain: nimbus_api::id::TrustDomain = "nimbus.test".parse().unwrap();
        let pinned = Some((root.verifying_key(), domain.clone()));
        let mut trust = TrustStore::open(&dir.join("trust"), &policy_key, pinned).unwrap();
        let hot = SigningKey::from_seed(HOT).verifying_key();
        let keys = KeySet {
            version: 1,
            trust_domain: domain,
            serial: 1,
            generation: 1,
            issued_at: UnixSeconds(0),
            keys: vec![HotKey {
                kid: hot.key_id().parse().unwrap(),
                key: hot,
                purpose: KeyPurpose::Lease,
                nbf: UnixSeconds(0),
                exp: UnixSeconds(i64::MAX),
                generation: 1,
            }],
        };
        trust.take_key_set(&keys.sign(&root).to_json()).unwrap();
        let signed = policy::sign(&policy_document(1), &SigningKey::from_seed(POLICY)).unwrap();
        trust.take_policy(&signed.to_json()).unwrap();
        let clock: Arc<dyn nimbus_api::clock::Clock> = Arc::<ManualClock>::clone(&self.clock);
        Agent::new(Parts {
            config,
            boot_id: "boot".to_owned(),
            identity: Some(identity()),
            trust,
            ledger: Ledger::open(&dir.join("ledger")).unwrap(),
            spool: Spool::open(&dir.join("spool")).unwrap(),
            bundles: BundleStore::open(&dir.join("bundles")).unwrap(),
            networks: networks(dir),
            pod_networks: PodNetworks::new(NetworkConfig::default(), runtime()),
            scratch: scratch(dir),
            images: Arc::clone(&self.images),
            records: Arc::clone(&self.records) as Arc<dyn Records>,
            filters: Arc::new(OneFilter),
            attestations: Attestations::new(Box::new(self.verifier.clone()), Arc::clone(&clock)),
            admission: Arc::new(nimbus_hooks::admit),
            clock,
        })
    }

    /// Grants a lease whose nonce this agent has sent, with the good bundle.
    pub(crate) fn grant(agent: &Agent) -> LeaseClaims {
        let mut claims = claims();
        claims.nonce = hex::encode(agent.new_nonce());
        assert!(agent.ledger.grant(claims.clone()).unwrap());
        agent.bundles.keep(&claims.lease_id, vec![BUNDLE.to_vec()]).unwrap();
        claims
    }
}

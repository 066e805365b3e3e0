//! What somebody can do who holds everything that control holds: its keys are read from its data
//! directory, and leases of any content are signed with them.

use std::fs;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use nimbus_api::clock::{Clock as _, SystemClock, UnixSeconds};
use nimbus_api::dsse::SigningKey;
use nimbus_api::id::{JobId, LeaseId, TrustDomain};
use nimbus_api::lease::{LeaseClaims, LeaseToken};
use pasetors::keys::AsymmetricSecretKey;
use pasetors::version4::{PublicToken, V4};

use crate::Failure;
use crate::failure::During as _;

/// Bytes of the signature at the end of a token's body.
const SIGNATURE_BYTES: usize = 64;
/// What every token of this kind begins with.
const HEADER: &str = "v4.public.";

/// The keys of a control service.
#[derive(Debug)]
pub struct Stolen {
    /// Signs key sets.
    pub root: SigningKey,
    /// Signs leases now.
    pub hot: SigningKey,
    domain: TrustDomain,
}

impl Stolen {
    /// Reads them; the newest of the hot keys is the present one.
    pub fn from(data_dir: &Path, domain: &str) -> Result<Self, Failure> {
        let read = |path: &Path| -> Result<SigningKey, Failure> {
            let text = fs::read_to_string(path).during(&path.display().to_string())?;
            Ok(SigningKey::from_file_text(&text)?)
        };
        let mut hot: Vec<_> = fs::read_dir(data_dir.join("hot"))
            .during("control's hot keys")?
            .filter_map(Result::ok)
            .map(|entry| entry.path())
            .filter(|path| path.extension().is_some_and(|extension| extension == "key"))
            .collect();
        hot.sort_by_key(|path| fs::metadata(path).and_then(|meta| meta.modified()).ok());
        let newest = hot.last().ok_or_else(|| Failure::new("control has no hot key"))?;
        Ok(Self {
            root: read(&data_dir.join("root.key"))?,
            hot: read(newest)?,
            domain: domain.parse()?,
        })
    }

    /// Signs claims with the hot key.
    pub fn sign(&self, claims: &LeaseClaims) -> Result<LeaseToken, Failure> {
        self.sign_with(claims, &self.hot)
    }

    /// Signs claims with any key.
    pub fn sign_with(&self, claims: &LeaseClaims, key: &SigningKey) -> Result<LeaseToken, Failure> {
        Ok(LeaseToken::sign(claims, key, &self.domain)?)
    }
}

impl Stolen {
    /// Signs a payload of any shape as a lease: what claims of a type cannot say.
    pub fn sign_text(&self, payload: &str) -> Result<LeaseToken, Failure> {
        let secret = AsymmetricSecretKey::<V4>::from(&self.hot.secret_bytes())?;
        let footer = self.hot.verifying_key().key_id();
        let assertion = format!("nimbus-lease-v1 {}", self.domain);
        let (footer, assertion) = (Some(footer.as_bytes()), Some(assertion.as_bytes()));
        let token = PublicToken::sign(&secret, payload.as_bytes(), footer, assertion)?;
        Ok(LeaseToken::unchecked(token))
    }

    /// The same keys in another trust domain.
    pub fn in_domain(&self, domain: &str) -> Result<Self, Failure> {
        let copy = |key: &SigningKey| SigningKey::from_seed(key.seed());
        Ok(Self { root: copy(&self.root), hot: copy(&self.hot), domain: domain.parse()? })
    }
}

/// The claims of a token, unverified.
pub fn claims_in(token: &str) -> Result<LeaseClaims, Failure> {
    let body = token.strip_prefix(HEADER).and_then(|rest| rest.split('.').next());
    let body = body.ok_or_else(|| Failure::new(format!("not a {HEADER} token")))?;
    let bytes = URL_SAFE_NO_PAD.decode(body)?;
    let end = bytes.len().saturating_sub(SIGNATURE_BYTES);
    Ok(serde_json::from_slice(bytes.get(..end).unwrap_or_default())?)
}

/// 32 hex digits that nobody has used.
pub fn unique() -> Result<String, Failure> {
    let uuid = fs::read_to_string("/proc/sys/kernel/random/uuid")?;
    Ok(uuid.trim().replace('-', ""))
}

/// A job id of control's form.
pub fn job_id() -> Result<JobId, Failure> {
    Ok(format!("j{}", unique()?).parse()?)
}

/// A lease id of control's form.
pub fn lease_id() -> Result<LeaseId, Failure> {
    Ok(format!("l{}", unique()?).parse()?)
}

/// Now.
pub fn now() -> UnixSeconds {
    SystemClock.unix()
}

/// Seconds from now; negative is before.
pub fn at(seconds: i64) -> UnixSeconds {
    UnixSeconds(now().0.saturating_add(seconds))
}

//! A container that the node agent made, caught alive: its specification and its lease are what an
//! attacker begins with.
//!
//! Intent: every attack is this specimen with exactly one thing changed. One test shows that the
//! specimen itself, with nothing changed but its ids, lacks nothing but a grant, another that it runs
//! when it is granted. So an attack that is refused is refused for what was changed.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

use nimbus_api::id::LeaseId;
use nimbus_api::lease::{LEASE_ANNOTATION, LeaseClaims, LeaseToken, LeasedImage};
use nimbus_api::process::ProcessIdentity;
use nimbus_api::proto::control::v1::{Image, JobSpec};
use serde_json::{Value, json};

use crate::failure::During as _;
use crate::mint::{self, Stolen, at};
use crate::{Failure, Lab, ensure};

/// How the program of an attack ends when it runs.
pub const RAN: i32 = 42;
/// Between two looks at the clock.
const EXPIRY_INTERVAL: Duration = Duration::from_millis(100);
/// How long an attack's lease lasts.
const LIFETIME_SECONDS: i64 = 600;

/// A caught container.
#[derive(Debug, Clone)]
pub struct Specimen {
    id: String,
    spec: Value,
    claims: LeaseClaims,
    token: String,
    attestations: Attestations,
}

/// The attestations that came with a grant, as the node agent keeps them for the lease.
#[derive(Debug, Clone)]
struct Attestations {
    dir: PathBuf,
    bytes: Vec<u8>,
    images: Vec<LeasedImage>,
}

impl Attestations {
    fn file(dir: &Path, lease: &LeaseId) -> PathBuf {
        dir.join(format!("{lease}.pb"))
    }

    /// Those of a lease that the agent holds.
    fn of(dir: PathBuf, claims: &LeaseClaims) -> Result<Self, Failure> {
        let file = Self::file(&dir, &claims.lease_id);
        let bytes = fs::read(file).during("the attestations of a grant")?;
        Ok(Self { dir, bytes, images: claims.images.clone() })
    }

    /// Puts them where a grant of control would have put them for this lease, if it is for the image
    /// that they are about.
    fn grant(&self, claims: &LeaseClaims) -> Result<(), Failure> {
        if claims.images == self.images {
            fs::write(Self::file(&self.dir, &claims.lease_id), &self.bytes)?;
        }
        Ok(())
    }
}

/// A container somebody tries to start.
#[derive(Debug, Clone)]
pub struct Attack {
    /// Container id.
    pub id: String,
    /// Its lease's claims, to be signed.
    pub claims: LeaseClaims,
    /// Its specification, without the lease.
    pub spec: Value,
    attestations: Attestations,
}

impl Specimen {
    /// Takes the specification of a running container of the node agent.
    pub fn of(lab: &Lab, id: &str) -> Result<Self, Failure> {
        let spec = lab.ctr().spec(id)?;
        let token = spec.get("annotations").and_then(|all| all.get(LEASE_ANNOTATION));
        let token = token.and_then(Value::as_str).unwrap_or_default().to_owned();
        ensure!(!token.is_empty(), "container {id} has no lease in its annotations: {spec}");
        let claims = mint::claims_in(&token)?;
        let attestations = Attestations::of(lab.node_dir().join("bundles"), &claims)?;
        Ok(Self { id: id.to_owned(), spec, claims, token, attestations })
    }

    /// The lease that the container has.
    pub fn token(&self) -> LeaseToken {
        LeaseToken::unchecked(self.token.clone())
    }

    /// Its claims.
    pub const fn claims(&self) -> &LeaseClaims {
        &self.claims
    }

    /// The very same container, claims and program, under another id.
    pub fn copy(&self) -> Result<Attack, Failure> {
        let id = format!("{}-1", mint::job_id()?);
        let text = self.spec.to_string().replace(&self.id, &id);
        let mut copy = Attack {
            id,
            claims: self.claims.clone(),
            spec: serde_json::from_str(&text)?,
            attestations: self.attestations.clone(),
        };
        copy.remove("/annotations", LEASE_ANNOTATION);
        Ok(copy)
    }

    /// A container like it with ids, lease and program of its own: nothing is wrong with it yet.
    pub fn attack(&self) -> Result<Attack, Failure> {
        let mut attack = self.copy()?;
        let claims = &mut attack.claims;
        claims.lease_id = mint::lease_id()?;
        claims.job = attack.id.trim_end_matches("-1").parse()?;
        claims.attempt = 1;
        (claims.iat, claims.nbf) = (at(0), at(-5));
        (claims.start_by, claims.exp) = (at(LIFETIME_SECONDS), at(LIFETIME_SECONDS));
        let script = format!("exit {RAN}");
        attack.program(&["/bin/sh", "-c", &script])?;
        Ok(attack)
    }
}

impl Attack {
    /// Sets what is run, in the specification and in the lease.
    pub fn program(&mut self, args: &[&str]) -> Result<(), Failure> {
        self.set("/process/args", json!(args))?;
        self.claims.process_sha256 = identity(&self.spec)?.digest();
        Ok(())
    }

    /// Makes the lease one of a second, and waits until it has ended. A lease of long ago would not do:
    /// it would be older than the key that signed it.
    pub fn expire(&mut self) {
        let claims = &mut self.claims;
        (claims.iat, claims.nbf) = (at(0), at(0));
        (claims.start_by, claims.exp) = (at(1), at(1));
        while at(0) <= claims.exp {
            sleep(EXPIRY_INTERVAL);
        }
    }

    /// Sets a field, by JSON pointer; its parent must be there.
    pub fn set(&mut self, at: &str, value: Value) -> Result<(), Failure> {
        let (parent, name) = at.rsplit_once('/').unwrap_or_default();
        let place = self.spec.pointer_mut(parent).and_then(Value::as_object_mut);
        let place = place.ok_or_else(|| Failure::new(format!("no {parent} in the spec")))?;
        place.insert(name.to_owned(), value);
        Ok(())
    }

    /// Appends to a list, which is made when it is not there.
    pub fn push(&mut self, at: &str, value: Value) -> Result<(), Failure> {
        if let Some(list) = self.spec.pointer_mut(at).and_then(Value::as_array_mut) {
            list.push(value);
            return Ok(());
        }
        self.set(at, json!([value]))
    }

    /// Removes a field.
    pub fn remove(&mut self, parent: &str, name: &str) {
        if let Some(place) = self.spec.pointer_mut(parent).and_then(Value::as_object_mut) {
            place.remove(name);
        }
    }

    /// The specification with this lease in it.
    pub fn with_token(&self, token: &LeaseToken) -> Result<Vec<u8>, Failure> {
        let mut sealed = self.clone();
        if sealed.spec.get("annotations").is_none_or(Value::is_null) {
            sealed.set("/annotations", json!({}))?;
        }
        let annotations = sealed.spec.pointer_mut("/annotations").and_then(Value::as_object_mut);
        let annotations = annotations.ok_or_else(|| Failure::new("annotations are no object"))?;
        annotations.insert(LEASE_ANNOTATION.to_owned(), json!(token.as_str()));
        Ok(sealed.spec.to_string().into_bytes())
    }

    /// The job that a grant of its lease is for.
    pub fn job(&self, bundles: Vec<Vec<u8>>) -> Result<JobSpec, Failure> {
        let process = identity(&self.spec)?;
        let image = self.claims.images.first().map(|image| Image {
            name: image.name.clone(),
            digest: image.digest.to_string(),
            platform: image.platform.clone(),
        });
        Ok(JobSpec {
            image,
            args: process.args,
            env: process.env,
            cwd: process.cwd,
            uid: process.uid,
            gid: process.gid,
            bundles,
            ..JobSpec::default()
        })
    }

    /// The specification with the claims signed by these keys. Whoever holds them can have control
    /// grant the lease too, so the image's attestations are where a grant would put them.
    pub fn sealed(&self, keys: &Stolen) -> Result<Vec<u8>, Failure> {
        self.attestations.grant(&self.claims)?;
        self.with_token(&keys.sign(&self.claims)?)
    }
}

/// What a specification runs, as a lease names it.
fn identity(spec: &Value) -> Result<ProcessIdentity, Failure> {
    let strings = |at: &str| -> Result<Vec<String>, Failure> {
        let list = spec.pointer(at).cloned().unwrap_or_else(|| json!([]));
        Ok(serde_json::from_value(list)?)
    };
    let number = |at: &str| {
        let number = spec.pointer(at).and_then(Value::as_u64).unwrap_or(0);
        u32::try_from(number).unwrap_or(u32::MAX)
    };
    Ok(ProcessIdentity {
        args: strings("/process/args")?,
        env: strings("/process/env")?,
        cwd: spec.pointer("/process/cwd").and_then(Value::as_str).unwrap_or("/").to_owned(),
        uid: number("/process/user/uid"),
        gid: number("/process/user/gid"),
        additional_gids: Vec::new(),
        binds: Vec::new(),
    })
}

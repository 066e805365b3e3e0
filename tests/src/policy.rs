//! The keys and the policy of a lab.
//!
//! Images below `apps/` need provenance signed by the release key; images below `fresh/` need it
//! logged, too, not longer ago than [`MAX_AGE_SECONDS`]. No other image has a rule.

use std::fmt::Write as _;

use nimbus_api::clock::UnixSeconds;
use nimbus_api::dsse::SigningKey;
use nimbus_forge::{KeyPair, SLSA_PROVENANCE, TestLog};

use crate::Failure;
use crate::mint::at;

/// How old an attestation of a `fresh/` image may be.
pub const MAX_AGE_SECONDS: i64 = 3600;
/// How long a policy is valid from now on.
pub const VALID_SECONDS: i64 = 24 * 3600;

/// Everything that may sign, or pretend to.
#[derive(Debug)]
pub struct Keys {
    /// Signs policies; its public half is pinned by the node.
    pub policy: SigningKey,
    /// Signs attestations that the policy believes.
    pub release: KeyPair,
    /// Signs attestations that nobody believes.
    pub stranger: KeyPair,
    /// The transparency log that the policy believes.
    pub log: TestLog,
}

impl Keys {
    /// New ones.
    pub fn generate() -> Result<Self, Failure> {
        Ok(Self {
            policy: SigningKey::generate(),
            release: KeyPair::generate()?,
            stranger: KeyPair::generate()?,
            log: TestLog::new(KeyPair::generate()?),
        })
    }

    /// The lab's policy for images of this registry and below this directory.
    pub fn document(&self, serial: u64, registry: &str, layouts: &str) -> Result<String, Failure> {
        self.document_until(serial, at(VALID_SECONDS), registry, layouts)
    }

    /// The same with another end.
    pub fn document_until(
        &self,
        serial: u64,
        not_after: UnixSeconds,
        registry: &str,
        layouts: &str,
    ) -> Result<String, Failure> {
        let key = self.release.public_pem()?;
        let root = self.log.trusted_root()?;
        let mut text = format!(
            "version = 1\nid = \"lab\"\nserial = {serial}\nnot_after = {not_after}\n\n\
             [trust.release]\nkind = \"key\"\nkey = '''\n{key}'''\ntlog = \"off\"\n\n\
             [trust.logged]\nkind = \"key\"\nkey = '''\n{key}'''\ntlog = \"require\"\ntrusted_root = '''\n{root}'''\n\n"
        );
        write!(
            text,
            "[need.provenance]\ntrust = \"release\"\npredicate = [\"{SLSA_PROVENANCE}\"]\n\n\
             [need.fresh]\ntrust = \"logged\"\npredicate = [\"{SLSA_PROVENANCE}\"]\nmax_age_seconds = {MAX_AGE_SECONDS}\n\n\
             [[rule]]\nimages = [\"{registry}/fresh/**\"]\nrequire = [\"fresh\"]\n\n\
             [[rule]]\nimages = [\"{registry}/apps/**\", \"oci:{layouts}/**\"]\nrequire = [\"provenance\"]\n"
        )?;
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nimbus_api::policy::Policy;

    #[test]
    fn the_labs_policy_is_one_and_knows_its_images() {
        let keys = Keys::generate().unwrap();
        let text = keys.document(3, "127.0.0.1:5000", "/tmp/lab/layouts").unwrap();
        let policy = Policy::parse(text.as_bytes()).unwrap();
        let need = |image: &str| policy.rule_for(image, &[]).map(|rule| rule.require.concat());
        assert_eq!(need("127.0.0.1:5000/apps/hello").as_deref(), Some("provenance"));
        assert_eq!(need("127.0.0.1:5000/fresh/hello").as_deref(), Some("fresh"));
        assert_eq!(need("oci:/tmp/lab/layouts/hello").as_deref(), Some("provenance"));
        assert_eq!(need("127.0.0.1:5000/else/hello"), None);
    }
}

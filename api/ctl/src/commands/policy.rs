//! `policy`: keys and signatures are made here, never by the control service (rule 11).

use std::path::{Path, PathBuf};

use nimbus_api::dsse::{ENVELOPE_BYTES_MAX, SigningKey};
use nimbus_api::policy::{POLICY_BYTES_MAX, sign};
use nimbus_api::proto::control::v1::ApplyPolicyRequest;
use nimbus_api::proto::control::v1::policies_client::PoliciesClient;
use serde_json::json;

use super::Session;
use crate::cli::{Cli, PolicyCommand};
use crate::client::timely;
use crate::error::CtlError;
use crate::exit::Exit;
use crate::files;
use crate::keys::KEY_BYTES_MAX;
use crate::output::{self, escaped};
use crate::view;

pub(super) async fn run(cli: &Cli, command: &PolicyCommand) -> Result<Exit, CtlError> {
    match command {
        PolicyCommand::Keygen(args) => keygen(cli, &args.out),
        PolicyCommand::Sign { key, document, output } => {
            sign_document(cli, key, document, output.as_deref())
        }
        PolicyCommand::Apply { file } => apply(&Session::open(cli).await?, file).await,
    }
}

/// The path with an ending put behind it, whatever dots it has already.
pub(super) fn with_ending(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(ending);
    PathBuf::from(name)
}

/// `NAME.key` and `NAME.pub`; neither may exist.
fn keygen(cli: &Cli, out: &Path) -> Result<Exit, CtlError> {
    let key = SigningKey::generate();
    let (private, public) = (with_ending(out, "key"), with_ending(out, "pub"));
    files::write_secret(&private, key.to_file_text().as_bytes())?;
    files::write_new(&public, format!("{}\n", key.verifying_key().hex()).as_bytes())?;
    if cli.json {
        let key_id = key.verifying_key().key_id();
        output::print_json(&json!({"private": private, "public": public, "key_id": key_id}))?;
    } else {
        let shown = format!(
            "{} (secret, keep it offline) and {} (for every node)",
            private.display(),
            public.display()
        );
        output::print(&format!("{}\n", escaped(&shown)))?;
    }
    Ok(Exit::Done)
}

fn sign_document(
    cli: &Cli,
    key: &Path,
    document: &Path,
    output: Option<&Path>,
) -> Result<Exit, CtlError> {
    let text = files::read_text(key, KEY_BYTES_MAX)?;
    let key = SigningKey::from_file_text(&text)
        .map_err(|source| CtlError::KeyFile { path: key.to_owned(), source })?;
    let document = files::read(document, POLICY_BYTES_MAX)?;
    let envelope = sign(&document, &key).map_err(CtlError::Policy)?;
    let Some(path) = output else {
        output::print_json(&envelope)?;
        return Ok(Exit::Done);
    };
    files::write(path, &envelope.to_json())?;
    if cli.json {
        let sha256 = nimbus_api::Digest::of(&document);
        output::print_json(&json!({"policy": path, "sha256": sha256}))?;
    } else {
        output::print(&format!("signed: {}\n", escaped(&path.display().to_string())))?;
    }
    Ok(Exit::Done)
}

/// Nothing is checked here: control says what it makes of it, and nodes check the signature.
async fn apply(session: &Session, file: &Path) -> Result<Exit, CtlError> {
    let envelope = files::read(file, ENVELOPE_BYTES_MAX)?;
    let request = timely(ApplyPolicyRequest { envelope });
    let mut client = PoliciesClient::new(session.channel.clone());
    let policy = client.apply_policy(request).await?.into_inner();
    let not_after = view::time(policy.not_after_ms).unwrap_or_default();
    if session.json {
        output::print_json(&json!({
            "id": policy.id,
            "serial": policy.serial,
            "not_after": not_after,
        }))?;
    } else {
        let shown =
            format!("policy {:?}, serial {}, good until {not_after}", policy.id, policy.serial);
        output::print(&format!("{}\n", escaped(&shown)))?;
    }
    Ok(Exit::Done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ending_is_added_and_none_is_replaced() {
        assert_eq!(with_ending(Path::new("a/b.c"), "key"), Path::new("a/b.c.key"));
    }
}

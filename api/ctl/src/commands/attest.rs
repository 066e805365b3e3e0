//! `attest`: keys and bundles, without the control service.

use nimbus_api::strict_json::{self, Limits};
use serde_json::{Value, json};

use crate::bundle;
use crate::cli::{AttestArgs, AttestCommand, Cli};
use crate::error::CtlError;
use crate::exit::Exit;
use crate::files;
use crate::keys::{AttestKey, KEY_BYTES_MAX};
use crate::output::{self, escaped};

/// Longest predicate.
const PREDICATE_BYTES_MAX: usize = 1 << 20;

pub(super) async fn run(cli: &Cli, args: &AttestArgs) -> Result<Exit, CtlError> {
    if let Some(AttestCommand::Keygen(keygen)) = &args.command {
        return keys(cli, &keygen.out);
    }
    let (Some(key), Some(image)) = (&args.key, &args.image) else {
        return Err(CtlError::Argument("a key and an image are needed".to_owned()));
    };
    let key = AttestKey::from_pem(&files::read(key, KEY_BYTES_MAX)?)?;
    let predicate = match &args.predicate {
        Some(path) => {
            let text = files::read(path, PREDICATE_BYTES_MAX)?;
            strict_json::value(&text, Limits::bytes(PREDICATE_BYTES_MAX))
                .map_err(|source| CtlError::Json { path: path.clone(), source })?
        }
        None => Value::Object(serde_json::Map::new()),
    };
    let image = image.resolve().await?;
    let bundle = bundle::make(&image, &args.predicate_type, &predicate, &key)?;
    let Some(path) = &args.output else {
        output::print_json(&bundle)?;
        return Ok(Exit::Done);
    };
    files::write(path, format!("{bundle}\n").as_bytes())?;
    if cli.json {
        output::print_json(&json!({
            "image": image.name,
            "digest": image.digest,
            "predicate_type": args.predicate_type,
            "bundle": path,
        }))?;
    } else {
        let shown = format!("{}@{} attested in {}", image.name, image.digest, path.display());
        output::print(&format!("{}\n", escaped(&shown)))?;
    }
    Ok(Exit::Done)
}

/// `NAME.pem` and `NAME.pub.pem`; neither may exist.
fn keys(cli: &Cli, out: &std::path::Path) -> Result<Exit, CtlError> {
    let key = AttestKey::generate()?;
    let private = super::policy::with_ending(out, "pem");
    let public = super::policy::with_ending(out, "pub.pem");
    files::write_secret(&private, key.private_pem()?.as_bytes())?;
    files::write_new(&public, key.public_pem()?.as_bytes())?;
    if cli.json {
        let hint = key.hint()?;
        output::print_json(&json!({"private": private, "public": public, "hint": hint}))?;
    } else {
        let shown = format!("{} (secret) and {}", private.display(), public.display());
        output::print(&format!("{}\n", escaped(&shown)))?;
    }
    Ok(Exit::Done)
}

//! `-info` and `-v`: what this runtime is.
//!
//! containerd 2.2 and later asks `-info` before the first container of a runtime and waits for the
//! answer, a protobuf `RuntimeInfo`.

use std::io::{self, Write as _};

use containerd_shim_protos::protobuf::{self, Message as _};
use containerd_shim_protos::types::introspection::{RuntimeInfo, RuntimeVersion};

/// The name of this runtime in containerd.
pub(crate) const RUNTIME_NAME: &str = "io.containerd.nimbus.v1";
/// The version of this build.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Why nothing could be printed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InfoError {
    /// The message could not be encoded.
    #[error("cannot encode the runtime's description")]
    Encode(#[source] protobuf::Error),
    /// stdout is gone.
    #[error("cannot write to stdout")]
    Write(#[source] io::Error),
}

/// A line for people.
pub(crate) fn print_version() -> Result<(), InfoError> {
    let line = format!("containerd-shim-nimbus-v1 {VERSION} ({RUNTIME_NAME})\n");
    write_out(line.as_bytes())
}

/// A `RuntimeInfo` for containerd. No features are listed: containers are judged at Create.
pub(crate) fn print_info() -> Result<(), InfoError> {
    write_out(&runtime_info().write_to_bytes().map_err(InfoError::Encode)?)
}

fn runtime_info() -> RuntimeInfo {
    let version = RuntimeVersion { version: VERSION.to_owned(), ..RuntimeVersion::default() };
    RuntimeInfo {
        name: RUNTIME_NAME.to_owned(),
        version: Some(version).into(),
        ..RuntimeInfo::default()
    }
}

fn write_out(bytes: &[u8]) -> Result<(), InfoError> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(bytes).and_then(|()| stdout.flush()).map_err(InfoError::Write)
}

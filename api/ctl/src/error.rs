//! What can go wrong, for the person in front of the terminal.

use std::io;
use std::path::PathBuf;

use nimbus_api::Refusal;

use crate::exit::Exit;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CtlError {
    /// No asynchronous runtime.
    #[error("cannot start")]
    Runtime(#[source] io::Error),
    /// A file.
    #[error("cannot {what} {}", path.display())]
    File {
        /// "read", "write".
        what: &'static str,
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// stdout.
    #[error("cannot write to standard output")]
    Output(#[source] io::Error),
    /// The credentials file.
    #[error("{} holds no credentials", path.display())]
    Credentials {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: nimbus_api::strict_json::StrictJsonError,
    },
    /// No credentials anywhere.
    #[error("no credentials: give --credentials FILE or set NIMBUS_CREDENTIALS")]
    NoCredentials,
    /// The connection.
    #[error("cannot reach the control service at {endpoint}")]
    Connect {
        /// Where.
        endpoint: String,
        /// Why.
        #[source]
        source: tonic::transport::Error,
    },
    /// The control service said no. What it says carries the refusal's code, sentence and advice.
    #[error("{}", status_text(.0))]
    Rpc(Box<tonic::Status>),
    /// Refused by ourselves, as control would.
    #[error("{0}")]
    Refused(Refusal),
    /// An image.
    #[error("image {image:?}: {problem}")]
    Image {
        /// As it was given.
        image: String,
        /// What is wrong.
        problem: String,
    },
    /// A registry.
    #[error("cannot resolve {image:?}")]
    Registry {
        /// As it was given.
        image: String,
        /// Why.
        #[source]
        source: Box<oci_client::errors::OciDistributionError>,
    },
    /// A key.
    #[error("cannot {what} the key")]
    Key {
        /// "read", "make", "use".
        what: &'static str,
    },
    /// A key file of ours.
    #[error("{} is not a key", path.display())]
    KeyFile {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: nimbus_api::dsse::KeyError,
    },
    /// A policy document.
    #[error("cannot sign the policy")]
    Policy(#[source] nimbus_api::policy::PolicyError),
    /// JSON that a person handed over.
    #[error("{} is not strict JSON", path.display())]
    Json {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: nimbus_api::strict_json::StrictJsonError,
    },
    /// Some other argument.
    #[error("{0}")]
    Argument(String),
}

impl CtlError {
    /// The exit code that says so.
    pub(crate) fn exit(&self) -> Exit {
        match self {
            Self::Refused(_) => Exit::Refused,
            Self::Rpc(status) if Refusal::code_in(status.message()).is_some() => Exit::Refused,
            Self::Image { .. } | Self::Argument(_) => Exit::Usage,
            Self::Runtime(_)
            | Self::File { .. }
            | Self::Output(_)
            | Self::Credentials { .. }
            | Self::NoCredentials
            | Self::Connect { .. }
            | Self::Rpc(_)
            | Self::Registry { .. }
            | Self::Key { .. }
            | Self::KeyFile { .. }
            | Self::Policy(_)
            | Self::Json { .. } => Exit::Failed,
        }
    }
}

impl From<tonic::Status> for CtlError {
    fn from(status: tonic::Status) -> Self {
        Self::Rpc(Box::new(status))
    }
}

/// The refusal as control wrote it; the gRPC code only where there is nothing else.
fn status_text(status: &tonic::Status) -> String {
    if status.message().is_empty() {
        return format!("the control service answered {}", status.code());
    }
    status.message().to_owned()
}

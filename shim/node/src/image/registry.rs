//! Registries, by the OCI distribution protocol over HTTP.
//!
//! HTTPS against the machine's trusted roots; plain HTTP only with hosts that the configuration
//! lists, and never as a second try. Redirects are followed to HTTPS (or a listed host), a few
//! times. No answer is read further than its caller allows: manifests and tokens are streamed into
//! capped buffers like blobs, which is why this does not use a registry client crate (those buffer
//! whole bodies).
//!
//! The caller is a thread that may block: each transfer runs on a private single-threaded runtime,
//! so none of this may be called on an async worker.
//!
//! Absent: credentials, proxies, resuming a broken transfer in the middle.

use std::future::Future;
use std::time::Duration;

use nimbus_api::error::Chain;
use nimbus_api::{Digest, Refusal};
use reqwest::header::{ACCEPT, AUTHORIZATION, WWW_AUTHENTICATE};
use reqwest::redirect::Policy;
use reqwest::{Client, Response, StatusCode, Url};

use super::challenge::{self, Challenge};
use super::document::accepted_media;
use super::fetch::{Sink, Transport, TransportError, Wanted};
use super::limits::Deadline;
use super::refuse::{internal, too_large, unfetched};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest silence inside an answer.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
const REDIRECTS_MAX: usize = 5;
const USER_AGENT: &str = concat!("nimbus-node/", env!("CARGO_PKG_VERSION"));

/// One repository of a registry, and what its transfers run on.
#[derive(Debug)]
pub(super) struct Registry {
    /// Taken when it is dropped.
    runtime: Option<tokio::runtime::Runtime>,
    remote: Remote,
}

impl Drop for Registry {
    fn drop(&mut self) {
        // A resolver that does not answer must not be waited for.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

#[derive(Debug)]
struct Remote {
    base: String,
    repository: String,
    insecure: Vec<String>,
    client: Client,
    token: Option<String>,
}

impl Registry {
    pub(super) fn new(host: &str, repository: &str, insecure: &[String]) -> Result<Self, Refusal> {
        let plain = insecure.iter().any(|listed| listed == host);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| internal("starting a runtime", error))?;
        let remote = Remote {
            base: format!("{}://{host}/v2/{repository}", if plain { "http" } else { "https" }),
            repository: repository.to_owned(),
            insecure: insecure.to_vec(),
            client: client(plain, insecure)?,
            token: None,
        };
        Ok(Self { runtime: Some(runtime), remote })
    }
}

impl Remote {
    async fn fetch(
        &mut self,
        wanted: Wanted,
        digest: &Digest,
        sink: &mut dyn Sink,
    ) -> Result<(), TransportError> {
        let kind = match wanted {
            Wanted::Manifest => "manifests",
            Wanted::Blob => "blobs",
        };
        let url = format!("{}/{kind}/{digest}", self.base);
        let mut answer = self.ask(&url, wanted).await?;
        if answer.status() == StatusCode::UNAUTHORIZED && self.token.is_none() {
            let challenge = answer
                .headers()
                .get_all(WWW_AUTHENTICATE)
                .iter()
                .find_map(|header| Challenge::parse(header.to_str().ok()?))
                .ok_or_else(|| unfetched("the registry asks for credentials"))?;
            self.token = Some(self.new_token(&challenge).await?);
            answer = self.ask(&url, wanted).await?;
        }
        expect_success(&answer)?;
        while let Some(bytes) = answer.chunk().await.map_err(broken)? {
            sink.push(&bytes)?;
        }
        Ok(())
    }

    async fn ask(&self, url: &str, wanted: Wanted) -> Result<Response, TransportError> {
        let mut request = self.client.get(url);
        if wanted == Wanted::Manifest {
            request = request.header(ACCEPT, accepted_media());
        }
        if let Some(token) = &self.token {
            request = request.header(AUTHORIZATION, format!("Bearer {token}"));
        }
        request.send().await.map_err(broken)
    }

    async fn new_token(&self, challenge: &Challenge) -> Result<String, TransportError> {
        let mut url = Url::parse(&challenge.realm)
            .map_err(|error| unfetched(format!("the registry's token realm: {error}")))?;
        if !may_go(&url, &self.insecure) {
            return Err(unfetched("the registry's token realm is not HTTPS").into());
        }
        let scope = format!("repository:{}:pull", self.repository);
        url.query_pairs_mut().append_pair("scope", &scope);
        if let Some(service) = &challenge.service {
            url.query_pairs_mut().append_pair("service", service);
        }
        let mut answer = self.client.get(url).send().await.map_err(broken)?;
        expect_success(&answer)?;
        let mut body = Vec::new();
        while let Some(bytes) = answer.chunk().await.map_err(broken)? {
            if body.len().saturating_add(bytes.len()) > challenge::TOKEN_ANSWER_BYTES_MAX {
                return Err(too_large("the answer of the registry's token service").into());
            }
            body.extend_from_slice(&bytes);
        }
        challenge::token(&body)
            .ok_or_else(|| unfetched("the registry's token service sent no token").into())
    }
}

impl Transport for Registry {
    fn get(
        &mut self,
        wanted: Wanted,
        digest: &Digest,
        sink: &mut dyn Sink,
        deadline: &Deadline,
    ) -> Result<(), TransportError> {
        let gone = || internal("fetching", std::io::Error::other("the event loop is gone"));
        let runtime = self.runtime.as_ref().ok_or_else(gone)?;
        runtime.block_on(within(deadline, self.remote.fetch(wanted, digest, sink)))
    }
}

async fn within<T>(
    deadline: &Deadline,
    work: impl Future<Output = Result<T, TransportError>>,
) -> Result<T, TransportError> {
    tokio::select! {
        done = work => done,
        () = deadline.over() => match deadline.check() {
            Err(refusal) => Err(refusal.into()),
            Ok(()) => Err(unfetched("the registry took too long").into()),
        },
    }
}

fn client(plain: bool, insecure: &[String]) -> Result<Client, Refusal> {
    // The program installs its provider at its start; this is for callers that did not.
    if rustls::crypto::CryptoProvider::get_default().is_none() {
        let _raced = rustls::crypto::aws_lc_rs::default_provider().install_default();
    }
    let allowed = insecure.to_vec();
    let redirects = Policy::custom(move |attempt| {
        if attempt.previous().len() > REDIRECTS_MAX {
            attempt.error("too many redirects")
        } else if may_go(attempt.url(), &allowed) {
            attempt.follow()
        } else {
            attempt.error("a redirect to plain HTTP")
        }
    });
    let mut builder = Client::builder()
        .user_agent(USER_AGENT)
        .connect_timeout(CONNECT_TIMEOUT)
        .read_timeout(READ_TIMEOUT)
        .redirect(redirects)
        .http1_only()
        .no_proxy();
    if plain {
        // A plain-HTTP registry needs no roots, and a machine may have none.
        builder = builder.tls_certs_only([]);
    }
    builder.build().map_err(|error| unfetched(format!("preparing HTTP: {}", Chain(&error))))
}

/// HTTPS anywhere, plain HTTP to listed hosts.
fn may_go(url: &Url, insecure: &[String]) -> bool {
    match url.scheme() {
        "https" => true,
        "http" => {
            let host = match (url.host_str(), url.port()) {
                (Some(host), Some(port)) => format!("{host}:{port}"),
                (Some(host), None) => host.to_owned(),
                (None, _) => return false,
            };
            insecure.contains(&host)
        }
        _ => false,
    }
}

fn expect_success(answer: &Response) -> Result<(), TransportError> {
    let status = answer.status();
    if status.is_success() {
        return Ok(());
    }
    let refusal = unfetched(format!("the registry answered {status} for {}", answer.url().path()));
    let may_pass = status.is_server_error()
        || matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT);
    Err(if may_pass { TransportError::Transient(refusal) } else { TransportError::Final(refusal) })
}

/// Without the address: it may hold what a redirect was signed with.
fn broken(error: reqwest::Error) -> TransportError {
    let final_answer = error.is_redirect() || error.is_builder();
    let refusal = unfetched(format!("the transfer broke: {}", Chain(&error.without_url())));
    if final_answer { TransportError::Final(refusal) } else { TransportError::Transient(refusal) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_http_goes_to_listed_hosts_only() {
        let listed = ["127.0.0.1:5000".to_owned(), "plain.example".to_owned()];
        for (url, allowed) in [
            ("https://any.example/x", true),
            ("http://127.0.0.1:5000/x", true),
            ("http://plain.example/x", true),
            ("http://127.0.0.1:5001/x", false),
            ("http://127.0.0.1/x", false),
            ("http://plain.example:81/x", false),
            ("ftp://127.0.0.1:5000/x", false),
            ("file:///etc/passwd", false),
        ] {
            assert_eq!(may_go(&Url::parse(url).unwrap(), &listed), allowed, "{url}");
        }
    }
}

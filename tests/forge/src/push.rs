//! Pushes an image to a registry on loopback, over plain HTTP/1.1 with nothing but `std::net`.
//!
//! One connection a request (`Connection: close`), so answers end where the connection does.
//! Deliberately absent: TLS, authentication, redirects, chunked uploads.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use nimbus_api::Digest;

use crate::{ForgeError, Image};

/// Longest wait for a registry to say or take something.
const IO_TIMEOUT: Duration = Duration::from_secs(20);
const OCTETS: &str = "application/octet-stream";
/// Longest answer that is read.
const ANSWER_BYTES_MAX: u64 = 1 << 20;

impl Image {
    /// Uploads every blob, then the manifest (and the index, if there is one) under `tag`.
    /// `registry` is `host:port`. Returns the digest that the registry knows it by.
    pub fn push(&self, registry: &str, repository: &str, tag: &str) -> Result<Digest, ForgeError> {
        let own = [self.manifest, self.index];
        for (digest, bytes) in &self.blobs {
            if !own.contains(&Some(*digest)) {
                upload(registry, repository, digest, bytes)?;
            }
        }
        if let (Some(_), Some(manifest)) = (self.index, self.manifest) {
            let bytes = self.blobs.get(&manifest).map(Vec::as_slice).unwrap_or_default();
            put_manifest(
                registry,
                repository,
                &manifest.to_string(),
                crate::image::MANIFEST,
                bytes,
            )?;
        }
        let (media_type, bytes) = self.top()?;
        put_manifest(registry, repository, tag, media_type, bytes)?;
        self.digest()
    }
}

/// Uploads one blob: POST for a place, PUT of all of it.
fn upload(
    registry: &str,
    repository: &str,
    digest: &Digest,
    bytes: &[u8],
) -> Result<(), ForgeError> {
    let start = format!("/v2/{repository}/blobs/uploads/");
    let answer =
        send(registry, &Request { method: "POST", path: &start, media_type: OCTETS, body: &[] })?;
    let place = answer.header("location").ok_or_else(|| ForgeError::Registry {
        request: format!("POST {start}"),
        status: "no Location".to_owned(),
    })?;
    // The place may be absolute; it is on the same registry.
    let place = match place.split_once("://") {
        Some((_scheme, rest)) => rest.find('/').and_then(|at| rest.get(at..)).unwrap_or("/"),
        None => place,
    };
    let separator = if place.contains('?') { '&' } else { '?' };
    let path = format!("{place}{separator}digest={digest}");
    send(registry, &Request { method: "PUT", path: &path, media_type: OCTETS, body: bytes })
        .map(drop)
}

/// Puts a manifest under a tag or a digest.
fn put_manifest(
    registry: &str,
    repository: &str,
    reference: &str,
    media_type: &str,
    body: &[u8],
) -> Result<(), ForgeError> {
    let path = format!("/v2/{repository}/manifests/{reference}");
    send(registry, &Request { method: "PUT", path: &path, media_type, body }).map(drop)
}

struct Request<'a> {
    method: &'a str,
    path: &'a str,
    media_type: &'a str,
    body: &'a [u8],
}

struct Answer {
    head: String,
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }
}

fn send(registry: &str, request: &Request<'_>) -> Result<Answer, ForgeError> {
    let io = |operation| ForgeError::io(operation, registry);
    let mut connection = TcpStream::connect(registry).map_err(io("connect to"))?;
    connection.set_read_timeout(Some(IO_TIMEOUT)).map_err(io("connect to"))?;
    connection.set_write_timeout(Some(IO_TIMEOUT)).map_err(io("connect to"))?;
    let Request { method, path, media_type, body } = request;
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: {registry}\r\nConnection: close\r\n\
         Content-Type: {media_type}\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    connection.write_all(head.as_bytes()).map_err(io("write to"))?;
    connection.write_all(body).map_err(io("write to"))?;
    let mut answer = Vec::new();
    connection.take(ANSWER_BYTES_MAX).read_to_end(&mut answer).map_err(io("read from"))?;
    let text = String::from_utf8_lossy(&answer);
    let head = text.split("\r\n\r\n").next().unwrap_or_default().to_owned();
    let status = head.lines().next().unwrap_or_default().to_owned();
    let code = status.split(' ').nth(1).unwrap_or_default();
    if !code.starts_with('2') {
        return Err(ForgeError::Registry { request: format!("{method} {path}"), status });
    }
    Ok(Answer { head })
}

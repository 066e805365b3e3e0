//! Registries: a real one, and some that lie.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::build::*;
use crate::image::*;

/// What a test's registry answers.
enum Reply {
    Body(Vec<u8>),
    /// Says that it sends more than it does.
    Torn(Vec<u8>),
    /// Sends for as long as somebody listens.
    Endless,
    /// Says nothing until nobody listens any more.
    Silence,
    Status(&'static str, Vec<(String, String)>),
}

/// Method, path and the Authorization header of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    path: String,
    authorization: Option<String>,
}

struct Server {
    host: String,
    seen: Arc<Mutex<Vec<Seen>>>,
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Server {
    fn start(answer: impl Fn(&Seen) -> Reply + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let (seen, stop) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let (log, stopped) = (Arc::clone(&seen), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stopped.load(Ordering::SeqCst) {
                    return;
                }
                if let Ok(stream) = stream
                    && let Some(request) = read_request(&stream)
                {
                    log.lock().unwrap().push(request.clone());
                    // The client may hang up in the middle: that is what some tests are about.
                    let _hung_up = send(stream, answer(&request));
                }
            }
        });
        Self { host, seen, stop, thread: Some(thread) }
    }

    /// Has these blobs, as manifests and as blobs.
    fn honest(blobs: Blobs) -> Self {
        Self::start(move |request| {
            let digest = request.path.rsplit('/').next().unwrap().parse::<Digest>();
            match digest.ok().and_then(|digest| blobs.all.get(&digest)) {
                Some(bytes) => Reply::Body(bytes.clone()),
                None => Reply::Status("404 Not Found", Vec::new()),
            }
        })
    }

    fn name(&self) -> String {
        format!("{}/jobs/hello", self.host)
    }

    fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        drop(TcpStream::connect(&self.host));
        self.thread.take().unwrap().join().unwrap();
    }
}

fn read_request(stream: &TcpStream) -> Option<Seen> {
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let mut lines = BufReader::new(stream.take(16 << 10)).split(b'\n');
    let first = String::from_utf8(lines.next()?.ok()?).ok()?;
    let mut words = first.split(' ');
    let path = (words.next() == Some("GET")).then(|| words.next())??.to_owned();
    let mut authorization = None;
    for line in lines {
        let line = String::from_utf8(line.ok()?).ok()?;
        let line = line.trim_end();
        if line.is_empty() {
            return Some(Seen { path, authorization });
        }
        if let Some((name, value)) = line.split_once(": ")
            && name.eq_ignore_ascii_case("authorization")
        {
            authorization = Some(value.to_owned());
        }
    }
    None
}

fn send(mut stream: TcpStream, reply: Reply) -> std::io::Result<()> {
    stream.set_write_timeout(Some(Duration::from_secs(10)))?;
    let mut head = |status: &str, more: &str| {
        write!(stream, "HTTP/1.1 {status}\r\nConnection: close\r\n{more}\r\n")
    };
    match reply {
        Reply::Body(bytes) => {
            head("200 OK", &format!("Content-Length: {}\r\n", bytes.len()))?;
            stream.write_all(&bytes)
        }
        Reply::Torn(bytes) => {
            head("200 OK", &format!("Content-Length: {}\r\n", bytes.len() + 1))?;
            stream.write_all(&bytes)
        }
        Reply::Endless => {
            head("200 OK", "")?;
            let spaces = vec![b' '; 64 << 10];
            loop {
                stream.write_all(&spaces)?;
            }
        }
        Reply::Silence => {
            stream.set_read_timeout(None)?;
            stream.read(&mut [0]).map(drop)
        }
        Reply::Status(status, headers) => {
            let headers: Vec<String> =
                headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
            head(status, &format!("Content-Length: 0\r\n{}", headers.concat()))
        }
    }
}

fn hello() -> Blobs {
    image(&[Layer::gzip(&Tar::default().dir("bin").file("bin/hello", b"hello").end())])
}

/// Prepares the image at this server, which is listed as plain HTTP.
fn prepare_at(server: &Server, digest: Digest) -> Result<MeasuredImage, Refusal> {
    let place = Place::new();
    let store = place.store_with(|config| config.insecure_registries = vec![server.host.clone()]);
    let outcome = store.prepare(&request(&server.name(), digest), &Stop::new());
    assert_eq!(place.leftovers().0, Vec::<String>::new());
    outcome
}

/// A registry that has the image but answers this for paths that contain a text.
fn lying(blobs: Blobs, about: &'static str, lie: fn(&[u8]) -> Reply) -> Server {
    Server::start(move |request| {
        let digest: Digest = request.path.rsplit('/').next().unwrap().parse().unwrap();
        let bytes = &blobs.all[&digest];
        if request.path.contains(about) { lie(bytes) } else { Reply::Body(bytes.clone()) }
    })
}

#[test]
fn an_honest_registry_is_asked_for_each_blob_once() {
    let blobs = hello();
    let server = Server::honest(blobs.clone());
    let measured = prepare_at(&server, blobs.manifest).unwrap();
    assert_eq!(measured.name, server.name());
    let paths: Vec<String> = server.seen().into_iter().map(|seen| seen.path).collect();
    assert_eq!(paths.len(), 3, "{paths:?}");
    assert_eq!(paths[0], format!("/v2/jobs/hello/manifests/{}", blobs.manifest));
}

#[test]
fn eight_threads_do_the_work_once() {
    let blobs = hello();
    let server = Server::honest(blobs.clone());
    let place = Place::new();
    let store = place.store_with(|config| config.insecure_registries = vec![server.host.clone()]);
    let request = request(&server.name(), blobs.manifest);
    let outcomes: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|_| scope.spawn(|| store.prepare(&request, &Stop::new()).unwrap()))
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(outcomes.iter().all(|outcome| *outcome == outcomes[0]));
    assert_eq!(server.seen().len(), 3, "manifest, configuration and layer, once each");
}

#[test]
fn other_bytes_than_asked_for_are_refused() {
    let lies: [fn(&[u8]) -> Reply; 3] = [
        |bytes| Reply::Body(bytes.iter().map(|b| b ^ 1).collect()),
        |bytes| Reply::Body(bytes[..bytes.len() - 1].to_vec()),
        |bytes| Reply::Body([bytes, b" "].concat()),
    ];
    for about in ["manifests", "blobs"] {
        for lie in lies {
            let blobs = hello();
            let server = lying(blobs.clone(), about, lie);
            let refusal = prepare_at(&server, blobs.manifest).unwrap_err();
            assert_eq!(refusal.code, RefusalCode::ImageDigestMismatch, "{about}: {refusal}");
        }
    }
}

#[test]
fn an_endless_answer_is_cut_off() {
    let blobs = hello();
    let server = lying(blobs.clone(), "manifests", |_| Reply::Endless);
    let refusal = prepare_at(&server, blobs.manifest).unwrap_err();
    assert_eq!(refusal.code, RefusalCode::ImageTooLarge);
    let server = lying(blobs.clone(), "blobs", |_| Reply::Endless);
    let refusal = prepare_at(&server, blobs.manifest).unwrap_err();
    assert_eq!(refusal.code, RefusalCode::ImageDigestMismatch);
}

#[test]
fn a_transfer_that_breaks_is_tried_three_times() {
    let blobs = hello();
    for lie in [(|bytes| Reply::Torn(bytes.to_vec())) as fn(&[u8]) -> Reply, |_| {
        Reply::Status("503 Service Unavailable", Vec::new())
    }] {
        let server = lying(blobs.clone(), "manifests", lie);
        let refusal = prepare_at(&server, blobs.manifest).unwrap_err();
        assert_eq!(refusal.code, RefusalCode::ImageFetchFailed);
        assert_eq!(server.seen().len(), 3);
    }
    let server = Server::start(|_| Reply::Status("404 Not Found", Vec::new()));
    let refusal = prepare_at(&server, blobs.manifest).unwrap_err();
    assert_eq!((refusal.code, server.seen().len()), (RefusalCode::ImageFetchFailed, 1));
}

#[test]
fn a_deadline_ends_a_transfer() {
    let blobs = hello();
    let server = Server::honest(blobs.clone());
    let place = Place::new();
    let store = place.store_with(|config| {
        config.insecure_registries = vec![server.host.clone()];
        config.limits.prepare_seconds = 0;
    });
    let refusal =
        store.prepare(&request(&server.name(), blobs.manifest), &Stop::new()).unwrap_err();
    assert_eq!(refusal.code, RefusalCode::ImageFetchFailed);
    assert_eq!(server.seen(), []);
}

/// A registry of an attacker, who has the same image as everybody else but does not give it: when it
/// is asked about this.
#[test]
fn a_registry_that_stays_silent_delays_nobody_but_who_named_it_and_only_while_it_is_wanted() {
    for about in ["manifests", "blobs"] {
        let blobs = hello();
        let silent = lying(blobs.clone(), about, |_| Reply::Silence);
        let honest = Server::honest(blobs.clone());
        let place = Place::new();
        let store = place.store_with(|config| {
            config.insecure_registries = vec![silent.host.clone(), honest.host.clone()];
        });
        let stop = Stop::new();
        let asked = request(&silent.name(), blobs.manifest);
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| store.prepare(&asked, &stop));
            while !silent.seen().iter().any(|seen| seen.path.contains(about)) {
                std::thread::sleep(Duration::from_millis(5));
            }
            let other = store.prepare(&request(&honest.name(), blobs.manifest), &Stop::new());
            assert!(!waiting.is_finished());
            stop.cancel();
            let refusal = waiting.join().unwrap().unwrap_err();
            assert_eq!(refusal.code, RefusalCode::ImageFetchFailed);
            other.unwrap();
        });
        assert_eq!(place.leftovers().0, Vec::<String>::new());
    }
}

/// Two names of one image, prepared at once: neither name is lost.
#[test]
fn names_that_are_learned_at_once_are_all_remembered() {
    let blobs = hello();
    let servers = [0; 4].map(|_| Server::honest(blobs.clone()));
    let place = Place::new();
    let store = place.store_with(|config| {
        config.insecure_registries = servers.iter().map(|server| server.host.clone()).collect();
    });
    std::thread::scope(|scope| {
        for server in &servers {
            let asked = request(&server.name(), blobs.manifest);
            let store = &store;
            scope.spawn(move || store.prepare(&asked, &Stop::new()).unwrap());
        }
    });
    drop(store);
    for server in &servers {
        place.store().measured(&server.name(), &blobs.manifest).unwrap();
    }
}

#[test]
fn an_anonymous_token_is_fetched_and_shown() {
    let blobs = hello();
    let manifest = blobs.manifest;
    let host = Arc::new(Mutex::new(String::new()));
    let realm = Arc::clone(&host);
    let server = Server::start(move |request| {
        if request.path.starts_with("/token") {
            return Reply::Body(br#"{"token":"abc"}"#.to_vec());
        }
        if request.authorization.as_deref() != Some("Bearer abc") {
            let challenge =
                format!("Bearer realm=\"http://{}/token\",service=\"s\"", realm.lock().unwrap());
            let header = ("WWW-Authenticate".to_owned(), challenge);
            return Reply::Status("401 Unauthorized", vec![header]);
        }
        let digest: Digest = request.path.rsplit('/').next().unwrap().parse().unwrap();
        Reply::Body(blobs.all[&digest].clone())
    });
    host.lock().unwrap().clone_from(&server.host);
    prepare_at(&server, manifest).unwrap();
    let asked: Vec<String> = server.seen().into_iter().map(|seen| seen.path).collect();
    assert_eq!(asked[1], "/token?scope=repository%3Ajobs%2Fhello%3Apull&service=s");
    assert_eq!(asked.len(), 5, "401, token, manifest, configuration, layer");
}

#[test]
fn nobody_is_sent_to_plain_http_that_is_not_listed() {
    let blobs = hello();
    let other = Server::honest(blobs.clone());
    let to = format!("http://{}/x", other.host);
    let redirect = Server::start(move |_| {
        Reply::Status("307 Temporary Redirect", vec![("Location".to_owned(), to.clone())])
    });
    let refusal = prepare_at(&redirect, blobs.manifest).unwrap_err();
    assert_eq!(refusal.code, RefusalCode::ImageFetchFailed);
    let place = Place::new();
    let refusal =
        place.store().prepare(&request(&other.name(), blobs.manifest), &Stop::new()).unwrap_err();
    assert_eq!(refusal.code, RefusalCode::ImageFetchFailed, "HTTPS was tried, and not HTTP after");
    assert_eq!(other.seen(), []);
}

/// Debian's registry, killed when dropped.
struct RealRegistry {
    child: Child,
    host: String,
}

impl RealRegistry {
    fn start(dir: &Path) -> Self {
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        let host = free.local_addr().unwrap().to_string();
        drop(free);
        let config = format!(
            "version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: {host}\n",
            dir.join("registry").display()
        );
        let config_path = dir.join("registry.yml");
        std::fs::write(&config_path, config).unwrap();
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(config_path)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let registry = Self { child, host };
        for _ in 0..200 {
            if TcpStream::connect(&registry.host).is_ok() {
                return registry;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("the registry did not start");
    }
}

impl Drop for RealRegistry {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

fn run(program: &str, args: &[&str]) {
    let output = Command::new(program).args(args).output().unwrap();
    assert!(output.status.success(), "{program} {args:?}: {output:?}");
}

#[test]
fn what_umoci_builds_and_skopeo_pushes_comes_out_of_a_real_registry() {
    let place = Place::new();
    let dir = place.dir.path();
    let source = dir.join("source");
    std::fs::create_dir_all(source.join("bin")).unwrap();
    std::fs::write(source.join("bin/hello"), "hello").unwrap();
    std::os::unix::fs::symlink("hello", source.join("bin/hi")).unwrap();
    std::fs::write(dir.join("second"), "second").unwrap();
    let layout = dir.join("layouts/umoci");
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    let tag = format!("{}:latest", text(&layout));
    run("umoci", &["init", "--layout", &text(&layout)]);
    run("umoci", &["new", "--image", &tag]);
    run("umoci", &["insert", "--image", &tag, &text(&source), "/"]);
    run("umoci", &["insert", "--image", &tag, &text(&dir.join("second")), "/bin/second"]);
    run("umoci", &["insert", "--image", &tag, "--whiteout", "/bin/hi"]);
    let index = std::fs::read(layout.join("index.json")).unwrap();
    let index: serde_json::Value = serde_json::from_slice(&index).unwrap();
    let digest: Digest = index["manifests"][0]["digest"].as_str().unwrap().parse().unwrap();
    let registry = RealRegistry::start(dir);
    let target = format!("docker://{}/jobs/hello:1", registry.host);
    let source = format!("oci:{tag}");
    let copy = ["copy", "--preserve-digests", "--dest-tls-verify=false", &source, &target];
    run("skopeo", &copy);
    let store = place.store_with(|config| config.insecure_registries = vec![registry.host.clone()]);
    let from_registry = store
        .prepare(&request(&format!("{}/jobs/hello", registry.host), digest), &Stop::new())
        .unwrap();
    assert_eq!(from_registry.layers.len(), 3);
    let from_layout =
        store.prepare(&request(&format!("oci:{}", layout.display()), digest), &Stop::new());
    assert_eq!(from_layout.unwrap().rootfs, from_registry.rootfs);
    let chain = layers::chain_ids(&from_registry.layers);
    let hello = std::fs::read_to_string(place.tree(&chain[0]).join("bin/hello"));
    assert_eq!(hello.unwrap(), "hello");
    let top = listing(&place.tree(&chain[2]));
    assert!(top.iter().any(|line| line.starts_with("bin/hi") && line.ends_with("device 0")));
    let missing = Digest::of(b"never pushed");
    let refusal = store
        .prepare(&request(&format!("{}/jobs/hello", registry.host), missing), &Stop::new())
        .unwrap_err();
    assert_eq!(refusal.code, RefusalCode::ImageFetchFailed);
}

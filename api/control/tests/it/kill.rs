//! The real program, killed without warning while it takes jobs.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nimbus_api::proto::control::v1::JobState;
use nimbus_api::proto::node::v1::node_message;

use crate::claims::apply_policy;
use crate::client::{self, Credentials, Node};

const ROUNDS: usize = 5;
const CLIENTS: usize = 4;

struct Control(Child);

impl Control {
    fn terminate(&mut self) -> Option<i32> {
        let pid = nix::unistd::Pid::from_raw(self.0.id().try_into().unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        self.0.wait().unwrap().code()
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

async fn spawn(data: &Path) -> Control {
    spawn_by(Command::new(env!("CARGO_BIN_EXE_nimbus-control")), data).await
}

async fn spawn_by(mut command: Command, data: &Path) -> Control {
    let endpoints = data.join("endpoints.json");
    drop(std::fs::remove_file(&endpoints));
    let child = command
        .args(["serve", "--listen", "127.0.0.1:0", "--join-listen", "127.0.0.1:0"])
        .args(["--trust-domain", "nimbus.test", "--data-dir"])
        .arg(data)
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let control = Control(child);
    for _ in 0..600 {
        if endpoints.exists() {
            return control;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("control did not get ready");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_acknowledged_job_is_lost_to_kill_9() {
    let folder = tempfile::tempdir().unwrap();
    let data = client::data(folder.path());
    let mut acknowledged = Vec::new();
    for round in 0..ROUNDS {
        let mut control = spawn(&data).await;
        let channel = Credentials::read(&data.join("admin.json")).connect().await;
        let (sender, mut receiver) = tokio::sync::mpsc::unbounded_channel();
        for _ in 0..CLIENTS {
            let (channel, sender) = (channel.clone(), sender.clone());
            tokio::spawn(async move {
                while let Ok(job) = client::jobs(&channel).submit_job(client::submission()).await {
                    drop(sender.send(job.into_inner().name));
                }
            });
        }
        drop(sender);
        let wanted = 10 + 7 * round;
        for _ in 0..wanted {
            acknowledged.push(receiver.recv().await.expect("control takes jobs"));
        }
        control.0.kill().unwrap();
        control.0.wait().unwrap();
        while let Some(name) = receiver.recv().await {
            acknowledged.push(name);
        }
    }
    let _control = spawn(&data).await;
    let channel = client::admin(folder.path()).await;
    assert!(acknowledged.len() >= ROUNDS * 10);
    for name in &acknowledged {
        assert_eq!(client::get(&channel, name).await.state(), JobState::Queued, "{name}");
    }
}

/// The node has not read its answer when control dies, and asks again.
#[tokio::test(flavor = "multi_thread")]
async fn a_claim_that_was_durable_before_kill_9_is_the_same_lease_after_it() {
    let folder = tempfile::tempdir().unwrap();
    let data = client::data(folder.path());
    let control = spawn(&data).await;
    apply_policy(&client::admin(folder.path()).await, 1).await;
    let mut node = Node::join(folder.path(), "n1").await;
    let session = node.session(vec![]).await;
    let claim = client::claim("c1");
    session.sender().send(client::message(node_message::Kind::Claim(claim.clone()))).await.unwrap();
    let flags = rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY;
    let database = rusqlite::Connection::open_with_flags(data.join("control.db"), flags).unwrap();
    let mut durable = None;
    for _ in 0..600 {
        let read = database.query_row("SELECT lease_id FROM attempts", [], |row| row.get(0));
        if let Ok(lease_id) = read {
            durable = Some(lease_id);
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let durable: String = durable.expect("the claim becomes durable");
    // Dropping kills it.
    drop((control, session, database));
    let _control = spawn(&data).await;
    let endpoint = Credentials::read(&data.join("admin.json")).endpoint;
    node.credentials.endpoint = endpoint;
    let mut session = node.session(vec![]).await;
    session.heartbeat().await;
    let (claims, _grant) = session.claim(claim).await.unwrap();
    assert_eq!(claims.lease_id.as_str(), durable);
    assert_eq!(claims.nonce, hex::encode(&session.nonce));
}

#[tokio::test(flavor = "multi_thread")]
async fn exit_codes_are_stable_and_sigterm_is_a_graceful_stop() {
    let folder = tempfile::tempdir().unwrap();
    let data = client::data(folder.path());
    let mut control = spawn(&data).await;
    let run = || {
        let serve = ["serve", "--listen", "127.0.0.1:0", "--join-listen", "127.0.0.1:0"];
        let domain = ["--trust-domain", "nimbus.test", "--data-dir"];
        let program = env!("CARGO_BIN_EXE_nimbus-control");
        Command::new(program).args(serve).args(domain).arg(&data).output().unwrap()
    };
    let locked = run();
    assert_eq!(locked.status.code(), Some(13));
    assert!(String::from_utf8_lossy(&locked.stderr).contains("another control service uses"));
    assert_eq!(control.terminate(), Some(0));
    assert!(!data.join("endpoints.json").exists());
    let ca = data.join("ca.key");
    std::fs::set_permissions(&ca, std::os::unix::fs::PermissionsExt::from_mode(0o640)).unwrap();
    assert_eq!(run().status.code(), Some(11));
    std::fs::set_permissions(&ca, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let database = rusqlite::Connection::open(data.join("control.db")).unwrap();
    let far = "UPDATE meta SET value = value + 600000 WHERE name = 'last_time_ms'";
    database.execute(far, []).unwrap();
    let back = run();
    assert_eq!(back.status.code(), Some(14), "{}", String::from_utf8_lossy(&back.stderr));
    database.pragma_update(None, "user_version", 1000).unwrap();
    assert_eq!(run().status.code(), Some(12));
}

/// SQLite names no such option in `PRAGMA compile_options`, so the program is asked what it does.
#[tokio::test(flavor = "multi_thread")]
async fn a_commit_syncs_data_and_never_more() {
    let folder = tempfile::tempdir().unwrap();
    let data = client::data(folder.path());
    let trace = folder.path().join("trace");
    let mut strace = Command::new("strace");
    // -D: the process that we start, and end, is the program itself.
    strace.args(["-D", "-f", "-y", "-e", "trace=fsync,fdatasync", "-o"]).arg(&trace);
    strace.arg(env!("CARGO_BIN_EXE_nimbus-control"));
    let mut control = spawn_by(strace, &data).await;
    let channel = client::admin(folder.path()).await;
    client::submit(&channel).await;
    assert_eq!(control.terminate(), Some(0));
    let mut seen = String::new();
    for _ in 0..100 {
        seen = std::fs::read_to_string(&trace).unwrap();
        if seen.contains("+++ exited with 0 +++") {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let of_wal = |call: &str| {
        seen.lines().filter(|line| line.contains(call) && line.contains("control.db-wal>")).count()
    };
    assert!(of_wal(" fdatasync(") > 0, "{seen}");
    assert_eq!(of_wal(" fsync("), 0, "{seen}");
}

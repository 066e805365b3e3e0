//! A stand-in for the node agent: it grants every container as the client described it.
//!
//! Intent: the differential lane compares what a container does, not who may start one. So there is no
//! lease, policy or image here, only the protocol of `node.sock` and a plan made of the client's
//! specification, with a layer that the test made. What the real agent would refuse or tighten is the
//! matter of lanes `e2e` and `security`.

use std::fs::File;
use std::io::Write as _;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use nimbus_api::Digest;
use nimbus_api::frame::{FrameReader, write_frame};
use nimbus_api::proto::admit::v1::{
    Admit, AgentMessage, Granted, ShimMessage, agent_message, shim_message,
};
use prost::Message as _;
use rustix::fs::{CWD, MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use rustix::mount::{OpenTreeFlags, open_tree};

use super::plan;
use crate::failure::During as _;
use crate::{Failure, Outcome};

/// A listening agent; it ends when it is dropped, connections end with their shims.
#[derive(Debug)]
pub(super) struct Agent {
    socket: PathBuf,
    over: Arc<AtomicBool>,
    listening: Option<JoinHandle<()>>,
}

impl Agent {
    /// Listens; every container gets this layer as its root.
    pub(super) fn listen(socket: &Path, layer: &Path) -> Result<Self, Failure> {
        let listener = UnixListener::bind(socket).during("node.sock")?;
        let over = Arc::new(AtomicBool::new(false));
        let (stop, layer) = (Arc::clone(&over), layer.to_owned());
        let listening = std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if stop.load(Ordering::SeqCst) {
                    return;
                }
                let layer = layer.clone();
                // A shim that is not answered refuses: the case that waits for it fails.
                std::thread::spawn(move || drop(serve(&stream, &layer)));
            }
        });
        Ok(Self { socket: socket.to_owned(), over, listening: Some(listening) })
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
        let woken = UnixStream::connect(&self.socket);
        if let (Ok(_stream), Some(thread)) = (woken, self.listening.take()) {
            drop(thread.join());
        }
    }
}

/// Serves one shim until it hangs up.
fn serve(stream: &UnixStream, layer: &Path) -> Outcome {
    let mut reader = FrameReader::default();
    while let Ok(frame) = reader.read(stream) {
        let message = ShimMessage::decode(frame.bytes.as_slice())?;
        if let Some(shim_message::Kind::Admit(admit)) = message.kind {
            grant(stream, &admit, layer)?;
        }
    }
    Ok(())
}

fn grant(stream: &UnixStream, admit: &Admit, layer: &Path) -> Outcome {
    let plan_json = plan::of(admit)?.to_json();
    let plan_sha256 = Digest::of(&plan_json).to_string();
    let granted = agent_message::Kind::Granted(Granted { plan_json, plan_sha256 });
    let bytes = AgentMessage { kind: Some(granted) }.encode_to_vec();
    let fds = [filter()?, detached(layer)?];
    let fds: Vec<_> = fds.iter().map(OwnedFd::as_fd).collect();
    write_frame(stream, &bytes, &fds)?;
    Ok(())
}

/// The program of [`plan::filter`], sealed.
fn filter() -> Result<OwnedFd, Failure> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let mut file = File::from(memfd_create("filter", flags)?);
    file.write_all(&plan::filter())?;
    let seals = SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
    fcntl_add_seals(&file, seals)?;
    Ok(file.into())
}

fn detached(layer: &Path) -> Result<OwnedFd, Failure> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    Ok(open_tree(CWD, layer, flags)?)
}

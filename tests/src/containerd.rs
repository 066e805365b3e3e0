//! A containerd of one's own: its root, state and sockets are in one directory. CRI is off unless it is
//! asked for, because it takes longer to start than all the rest.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::child::Program;
use crate::ctr::Ctr;
use crate::wait::until;
use crate::{Failure, Outcome, cri};

/// containerd's socket in its directory.
pub const SOCKET: &str = "containerd.sock";
/// What shims of ours are given as their run directory, in the same directory.
pub const RUN_DIR: &str = "run";
/// Its root and its state, in the same directory.
pub const ROOT: &str = "containerd";
/// The same.
pub const STATE: &str = "containerd-state";

/// Starts containerd and waits until it answers. Shims are found in the directory of the programs
/// first, and inherit the run directory. With a registry (`host:port`) there is a CRI plugin, which takes
/// its images from there.
pub fn start(
    dir: &Path,
    programs: &Path,
    log: &Path,
    cri: Option<&str>,
) -> Result<Program, Failure> {
    let config = dir.join("containerd.toml");
    write_config(dir, &config, cri)?;
    let path = std::env::var("PATH").unwrap_or_default();
    // containerd leaves what it unpacks of a checkpoint in its temporary directory.
    let temporary = dir.join("containerd-tmp");
    fs::create_dir_all(&temporary)?;
    let mut command = Command::new("containerd");
    command
        .arg("--config")
        .arg(&config)
        .env("PATH", format!("{}:{path}", programs.display()))
        .env("TMPDIR", &temporary)
        .env("NIMBUS_RUN_DIR", dir.join(RUN_DIR));
    let mut program = Program::start("containerd", &mut command, log)?;
    let ctr = Ctr::new(&dir.join(SOCKET), dir);
    until("containerd to answer", || {
        program.check()?;
        Ok(ctr.ask(&["version"])?.good().ok())
    })?;
    Ok(program)
}

fn write_config(dir: &Path, config: &Path, cri: Option<&str>) -> Outcome {
    let text = |name: &str| -> PathBuf { dir.join(name) };
    let mut table = toml::toml! {
        version = 2
    };
    let mut plugins = toml::Table::new();
    if let Some(registry) = cri {
        let (version, found) = cri::config::containerd(dir, registry)?;
        table.insert("version".to_owned(), version.into());
        plugins = found;
        cri::config::write_beside(dir, registry)?;
    } else {
        let disabled = vec!["io.containerd.grpc.v1.cri"];
        table.insert("disabled_plugins".to_owned(), disabled.into());
    }
    let value = |name: &str| toml::Value::from(text(name).display().to_string());
    table.insert("root".to_owned(), value(ROOT));
    table.insert("state".to_owned(), value(STATE));
    for (name, socket) in [("grpc", SOCKET), ("ttrpc", "containerd.sock.ttrpc")] {
        let address = toml::Table::from_iter([("address".to_owned(), value(socket))]);
        table.insert(name.to_owned(), address.into());
    }
    let opt = toml::Table::from_iter([("path".to_owned(), value("opt"))]);
    let plugin = "io.containerd.internal.v1.opt".to_owned();
    plugins.insert(plugin, opt.into());
    table.insert("plugins".to_owned(), plugins.into());
    fs::write(config, table.to_string())?;
    Ok(())
}

//! The disk, kernel and initrd of a machine: made once, kept outside the repository.
//!
//! They are in `$XDG_CACHE_HOME/nimbus/vm`, else `~/.cache/nimbus/vm`, in a folder named by the machine
//! and the digest of its recipe. The packages in it are those of the day it was made: delete the
//! folder to have it made anew. Nothing here deletes the folders of older recipes.

use std::env;
use std::path::PathBuf;

use super::machine::{Machine, SCRIPT};
use crate::run::{RunError, complain, say, status};
use crate::setup;

/// Files of a machine that is ready to be booted.
#[derive(Debug)]
pub(super) struct Image {
    dir: PathBuf,
}

impl Image {
    /// Makes it unless it is there.
    pub(super) fn ready(machine: Machine) -> Result<Self, RunError> {
        let dir = cache().join(format!("{}-{}", machine.name(), machine.digest()?));
        let image = Self { dir };
        if !image.disk().is_file() {
            say(format_args!("making {} in {}", machine.name(), image.dir.display()));
            let mut make = setup::root("sh", &["-c", SCRIPT, "image.sh"]);
            make.args(machine.recipe()).arg(&image.dir);
            // The text of the script is no news to anybody.
            let program =
                format!("image.sh {} {}", machine.recipe().join(" "), image.dir.display());
            complain(format_args!("$ {program}"));
            let status = status(&mut make)?;
            if !status.success() {
                return Err(RunError::Status { program, status });
            }
        }
        Ok(image)
    }

    pub(super) fn disk(&self) -> PathBuf {
        self.dir.join("root.ext4")
    }

    pub(super) fn kernel(&self) -> PathBuf {
        self.dir.join("kernel")
    }

    pub(super) fn initrd(&self) -> PathBuf {
        self.dir.join("initrd")
    }
}

fn cache() -> PathBuf {
    let set = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let base = set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache")));
    base.unwrap_or_else(env::temp_dir).join("nimbus").join("vm")
}

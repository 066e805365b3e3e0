//! The second disk: our programs, the test programs, and what the guest is to do with them.
//!
//! The programs are those that the other lanes run on the host, byte for byte: they are linked against
//! Debian 12's C library, which Debian 13's can stand in for. They are seen in the machine under the
//! path where they were built, because test programs have that path in them.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::package::{self, Profile};
use crate::run::{RunError, Workspace, output, run};

/// Run by the machine.
const GUEST: &str = include_str!("guest.sh");
/// Installs our packages, and what it is called in the list of programs.
const PACKAGES: (&str, &str) = ("packages", include_str!("packages.sh"));
/// What a machine may say, and what a little room costs nothing: the disk is sparse.
const DISK: &str = "3G";
/// Longest time that one test program may take, seconds; it is ended then and counts as failed.
const PROGRAM_SECONDS_MAX: u32 = 900;
/// Names of programs, up to their end, whose tests are about what the kernel of the machine does.
const PARTS: [&str; 3] = ["nimbus-runtime.lib.", "nimbus-runtime.test.", "nimbus-shim.test."];
/// Lanes of `nimbus-tests`, run unchanged.
const LANES: [&str; 3] = ["e2e", "security", "fault"];

/// A test program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Program {
    /// Unique: package and target.
    pub(super) name: String,
    /// A program that cargo has built; the script [`PACKAGES`] has none.
    path: Option<PathBuf>,
}

/// Builds the test programs.
pub(super) fn programs(workspace: &Workspace) -> Result<Vec<Program>, RunError> {
    let flags = ["test", "--locked", "--no-run", "--message-format=json-render-diagnostics"];
    let mut units = workspace.cargo(flags);
    // Selected as lane `unit` selects them, so that nothing is built twice.
    units.args(["--workspace", "--exclude", "nimbus-tests", "--tests"]);
    let mut lanes = workspace.cargo(flags);
    lanes.args(["--package", "nimbus-tests"]);
    lanes.args(LANES.iter().flat_map(|lane| ["--test", lane]));
    let mut found = of_messages(&output(&mut units)?);
    found.retain(|program| PARTS.iter().any(|part| program.name.starts_with(part)));
    found.extend(of_messages(&output(&mut lanes)?));
    Ok(found)
}

/// Installing our packages, as one more program.
pub(super) fn packages() -> Program {
    Program { name: PACKAGES.0.to_owned(), path: None }
}

/// The test programs that cargo says it has built, in its order.
fn of_messages(text: &str) -> Vec<Program> {
    let program = |line: &str| {
        let message: Value = serde_json::from_str(line).ok()?;
        let is_test = message.pointer("/profile/test")?.as_bool()?;
        let path = PathBuf::from(message.get("executable")?.as_str()?);
        let manifest = Path::new(message.get("manifest_path")?.as_str()?).parent()?;
        let target = message.pointer("/target/name")?.as_str()?;
        let kind = message.pointer("/target/kind/0")?.as_str()?;
        let package = message.get("package_id")?.as_str()?;
        // `path+file:///dir/of/package#name@version`, or without the name where the folder has it.
        let package = package.rsplit_once('#')?.1;
        let package = match package.split_once('@') {
            Some((name, _version)) => name,
            None => manifest.file_name()?.to_str()?,
        };
        let name = format!("{package}.{kind}.{target}");
        is_test.then_some(Program { name, path: Some(path) })
    };
    let mut found: Vec<Program> = text.lines().filter_map(program).collect();
    found.sort_by(|a, b| a.name.cmp(&b.name));
    found
}

/// Makes the disk below `dir`.
pub(super) fn make(
    workspace: &Workspace,
    dir: &Path,
    programs: &[Program],
    filter: Option<&str>,
) -> Result<PathBuf, RunError> {
    let tree = dir.join("payload");
    let disk = dir.join("payload.ext4");
    let bin = workspace.programs("debug");
    let mut debs = Vec::new();
    if programs.contains(&packages()) {
        debs = package::make(workspace, Profile::Debug)?;
    }
    fill(&tree, &bin, programs, filter)
        .and_then(|()| link_all(&debs, &tree.join("debs")))
        .and_then(|()| if disk.exists() { fs::remove_file(&disk) } else { Ok(()) })
        .map_err(|source| RunError::Files { what: tree.display().to_string(), source })?;
    run(Command::new("truncate").args(["-s", DISK]).arg(&disk))?;
    run(Command::new("mkfs.ext4").args(["-q", "-m", "0", "-d"]).arg(&tree).arg(&disk))?;
    Ok(disk)
}

fn fill(tree: &Path, bin: &Path, programs: &[Program], filter: Option<&str>) -> io::Result<()> {
    if tree.exists() {
        fs::remove_dir_all(tree)?;
    }
    let (ours, tests) = (tree.join("programs"), tree.join("programs/deps"));
    fs::create_dir_all(&tests)?;
    for entry in fs::read_dir(bin)? {
        let entry = entry?;
        let name = entry.file_name();
        let shown = name.to_string_lossy();
        let is_ours = shown.contains("nimbus") && !shown.contains('.');
        if is_ours && entry.file_type()?.is_file() {
            fs::hard_link(entry.path(), ours.join(&name))?;
        }
    }
    let mut list = Vec::new();
    for program in programs {
        let command = match &program.path {
            None => "/bin/bash /nimbus/packages.sh".to_owned(),
            Some(path) => {
                let file = path.file_name().unwrap_or_default();
                fs::hard_link(path, tests.join(file))?;
                let path = bin.join("deps").join(file);
                format!("{} {}", path.display(), filter.unwrap_or_default())
            }
        };
        list.push(format!("{} {PROGRAM_SECONDS_MAX} {command}", program.name));
    }
    list.push(String::new());
    fs::write(tree.join("list"), list.join("\n"))?;
    fs::write(tree.join("guest.sh"), GUEST)?;
    fs::write(tree.join("packages.sh"), PACKAGES.1)?;
    fs::write(tree.join("environment"), format!("export NIMBUS_BIN_DIR='{}'\n", bin.display()))
}

fn link_all(files: &[PathBuf], dir: &Path) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    files
        .iter()
        .try_for_each(|file| fs::hard_link(file, dir.join(file.file_name().unwrap_or_default())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_programs_are_found_in_what_cargo_says_and_nothing_else_is() {
        let line = |kind: &str, test: bool, target: &str| {
            serde_json::json!({
                "reason": "compiler-artifact", "package_id": "path+file:///a/runtime#nimbus-runtime@0.1.0",
                "manifest_path": "/a/runtime/Cargo.toml", "profile": {"test": test},
                "target": {"name": target, "kind": [kind]}, "executable": format!("/t/{target}-1")
            })
            .to_string()
        };
        let text = [
            line("test", true, "lifecycle"),
            line("bin", false, "nimbus-oci"),
            line("lib", true, "nimbus_runtime"),
            "{\"reason\":\"build-finished\",\"success\":true}".to_owned(),
            "not json".to_owned(),
        ]
        .join("\n");
        let names: Vec<_> = of_messages(&text).into_iter().map(|program| program.name).collect();
        assert_eq!(names, ["nimbus-runtime.lib.nimbus_runtime", "nimbus-runtime.test.lifecycle"]);
    }
}

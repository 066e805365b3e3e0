//! One package: a tree, then `dpkg-deb`.
//!
//! The same sources give the same bytes: every file has the time of the last commit, belongs to root,
//! and has a mode that is given here.

use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::table::Package;
use crate::run::{RunError, output, run};

const MAINTAINER: &str = "The Nimbus engineers <nimbus@localhost>";
const COPYRIGHT: &str = "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\n\
    Upstream-Name: nimbus\n\nFiles: *\nCopyright: the authors of Nimbus\nLicense: Apache-2.0\n \
    On Debian systems, the text is in /usr/share/common-licenses/Apache-2.0.\n";

/// What all packages of one build share.
#[derive(Debug)]
pub(super) struct Build {
    /// The repository.
    pub(super) root: PathBuf,
    /// Where the programs are.
    pub(super) programs: PathBuf,
    /// Where packages go, and the trees they are made of.
    pub(super) out: PathBuf,
    pub(super) version: String,
    pub(super) architecture: String,
    /// An option of `dpkg-deb`.
    pub(super) compression: &'static str,
    /// Seconds since 1970.
    pub(super) epoch: String,
}

impl Build {
    /// Makes the package and returns its file.
    pub(super) fn package(&self, package: &Package) -> Result<PathBuf, RunError> {
        let tree = self.out.join("trees").join(package.name);
        let failed = |source| RunError::Files { what: tree.display().to_string(), source };
        self.fill(package, &tree).map_err(failed)?;
        self.programs(package, &tree)?;
        if package.name == "nimbusctl" {
            self.generated(&tree)?;
        }
        let depends = self.depends(package, &tree)?;
        self.control(package, &tree, &depends).map_err(failed)?;
        let touch = "find \"$1\" -print0 | xargs -0 touch --no-dereference --date=\"@$2\"";
        run(Command::new("sh").args(["-c", touch, "touch"]).arg(&tree).arg(&self.epoch))?;
        let file = format!("{}_{}_{}.deb", package.name, self.version, self.architecture);
        let file = self.out.join(file);
        let mut build = Command::new("dpkg-deb");
        build.args(["--root-owner-group", self.compression, "--build"]).arg(&tree).arg(&file);
        run(build.env("SOURCE_DATE_EPOCH", &self.epoch))?;
        Ok(file)
    }

    fn fill(&self, package: &Package, tree: &Path) -> io::Result<()> {
        if tree.exists() {
            fs::remove_dir_all(tree)?;
        }
        for (from, at) in package.files {
            let to = tree.join(at);
            make_parent(&to)?;
            fs::write(&to, fs::read(self.root.join("packaging").join(from))?)?;
            set_mode(&to, 0o644)?;
        }
        for (at, to) in package.links {
            let at = tree.join(at);
            make_parent(&at)?;
            symlink(to, at)?;
        }
        for dir in package.dirs {
            fs::create_dir_all(tree.join(dir))?;
        }
        let doc = tree.join("usr/share/doc").join(package.name);
        fs::create_dir_all(&doc)?;
        fs::write(doc.join("copyright"), COPYRIGHT)?;
        set_mode(&doc.join("copyright"), 0o644)?;
        let changes = doc.join("changelog");
        fs::write(&changes, fs::read(self.root.join("CHANGELOG.md"))?)?;
        set_mode(&changes, 0o644)
    }

    fn programs(&self, package: &Package, tree: &Path) -> Result<(), RunError> {
        let (dir, programs) = package.programs;
        let doc = tree.join("usr/share/doc").join(package.name).join("changelog");
        run(Command::new("gzip").args(["--best", "--no-name"]).arg(doc))?;
        for program in programs {
            let from = self.programs.join(program);
            let to = tree.join(dir).join(program);
            let mut install = Command::new("install");
            // A release is stripped already; whatever else is packaged for a test is now.
            install.args(["-D", "--mode=755", "--strip"]).arg(from).arg(to);
            run(&mut install)?;
        }
        Ok(())
    }

    /// What the program says about itself.
    fn generated(&self, tree: &Path) -> Result<(), RunError> {
        let program = self.programs.join("nimbusctl");
        let man = tree.join("usr/share/man/man1");
        let failed = |source| RunError::Files { what: tree.display().to_string(), source };
        fs::create_dir_all(&man).map_err(failed)?;
        run(Command::new(&program).args(["man", "--dir"]).arg(&man))?;
        let compress = "gzip --best --no-name \"$1\"/*.1 && chmod 644 \"$1\"/*";
        run(Command::new("sh").args(["-c", compress, "gzip"]).arg(&man))?;
        for (shell, at) in [
            ("bash", "usr/share/bash-completion/completions/nimbusctl"),
            ("zsh", "usr/share/zsh/vendor-completions/_nimbusctl"),
            ("fish", "usr/share/fish/vendor_completions.d/nimbusctl.fish"),
        ] {
            let text = output(Command::new(&program).args(["completions", shell]))?;
            let at = tree.join(at);
            make_parent(&at).and_then(|()| fs::write(&at, text)).map_err(failed)?;
            set_mode(&at, 0o644).map_err(failed)?;
        }
        Ok(())
    }

    /// Libraries that the programs are linked against, as Debian names them, and the package's own.
    fn depends(&self, package: &Package, tree: &Path) -> Result<String, RunError> {
        let (dir, programs) = package.programs;
        // dpkg-shlibdeps wants to be called in a source package.
        let source = self.out.join("trees").join("source");
        let failed = |source| RunError::Files { what: "debian/control".to_owned(), source };
        let control = source.join("debian/control");
        make_parent(&control)
            .and_then(|()| {
                fs::write(&control, "Source: nimbus\n\nPackage: nimbus\nArchitecture: any\n")
            })
            .map_err(failed)?;
        let mut ask = Command::new("dpkg-shlibdeps");
        ask.arg("-O").args(programs.iter().map(|program| tree.join(dir).join(program)));
        let text = output(ask.current_dir(&source))?;
        let found = text.lines().find_map(|line| line.strip_prefix("shlibs:Depends="));
        let found = found.ok_or_else(|| RunError::Answer {
            program: "dpkg-shlibdeps".to_owned(),
            problem: format!("no shlibs:Depends in {text:?}"),
        })?;
        let all: Vec<&str> =
            [found.trim()].into_iter().chain(package.depends.iter().copied()).collect();
        Ok(all.join(", "))
    }

    fn control(&self, package: &Package, tree: &Path, depends: &str) -> io::Result<()> {
        let dir = tree.join("DEBIAN");
        fs::create_dir_all(&dir)?;
        let recommends = match package.recommends {
            [] => String::new(),
            names => format!("Recommends: {}\n", names.join(", ")),
        };
        let text = format!(
            "Package: {}\nVersion: {}\nArchitecture: {}\nMaintainer: {MAINTAINER}\nSection: admin\n\
             Priority: optional\nDepends: {depends}\n{recommends}Description: {}\n {}\n",
            package.name, self.version, self.architecture, package.summary, package.description,
        );
        let mut files = vec![("control".to_owned(), text, 0o644)];
        if !package.conffiles.is_empty() {
            let text = package.conffiles.join("\n") + "\n";
            files.push(("conffiles".to_owned(), text, 0o644));
        }
        for script in package.scripts {
            let from = self.root.join("packaging/deb").join(package.name).join(script);
            files.push(((*script).to_owned(), fs::read_to_string(from)?, 0o755));
        }
        for (name, text, mode) in files {
            let at = dir.join(name);
            fs::write(&at, text)?;
            set_mode(&at, mode)?;
        }
        Ok(())
    }
}

fn make_parent(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), fs::create_dir_all)
}

fn set_mode(path: &Path, mode: u32) -> io::Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

//! Rules for single files: module docs, length, unsafe code, names of machines.

use super::{Finding, Source};

/// Longest Rust file, lines.
const LINES_MAX: usize = 800;
/// Where the word may stand.
const UNSAFE_HOMES: &[&str] = &["runtime/src/sys/", "runtime/src/sys.rs", "shim/node/src/nvml/sys"];
/// The only source of crates.
const CRATES: &str = "registry+https://github.com/rust-lang/crates.io-index";
/// Paths that exist on somebody's machine only, in halves so that this file does not hold them.
const MACHINE_PATHS: &[(&str, &str)] =
    &[("/wo", "rk/"), ("/ho", "me/"), ("/Use", "rs/"), (".cargo/reg", "istry")];

/// Checks every file.
pub(super) fn check(sources: &[Source]) -> Vec<Finding> {
    sources.iter().flat_map(check_one).collect()
}

fn check_one(source: &Source) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut find = |problem: String| findings.push(Finding::new(&*source.path, problem));
    if source.path == "Cargo.lock" {
        let strange = |line: &&str| line.starts_with("source = ") && !line.contains(CRATES);
        source.text.lines().filter(strange).for_each(|line| find(format!("not crates.io: {line}")));
        return findings;
    }
    if source.path == ".cargo/config.toml"
        && ["[source", "[registr", "[http"].iter().any(|table| source.text.contains(table))
    {
        find("names a registry or proxy: that is for a machine's own configuration".to_owned());
    }
    for (head, tail) in MACHINE_PATHS {
        let path = format!("{head}{tail}");
        if source.text.contains(&path) {
            find(format!("holds a path of one machine: {path}"));
        }
    }
    if is_rust(&source.path) {
        if !source.text.trim_start().starts_with("//!") {
            find("does not begin with module documentation (//!)".to_owned());
        }
        let lines = source.text.lines().count();
        if lines > LINES_MAX {
            find(format!("has {lines} lines, at most {LINES_MAX} are allowed"));
        }
        let home = UNSAFE_HOMES.iter().any(|home| source.path.starts_with(home));
        if let Some(line) = (!home).then(|| unsafe_line(&source.text)).flatten() {
            find(format!("line {line}: unsafe code lives in runtime/src/sys only"));
        }
    }
    findings
}

fn is_rust(path: &str) -> bool {
    std::path::Path::new(path).extension().is_some_and(|extension| extension == "rs")
}

/// The first line with the keyword, comments and string literals aside.
fn unsafe_line(text: &str) -> Option<usize> {
    let keyword = |line: &str| {
        let code = line.split("//").next().unwrap_or_default();
        code.split('"').step_by(2).any(|code| {
            code.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == "unsafe")
        })
    };
    text.lines().position(keyword).map(|index| index + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(path: &str, text: &str) -> usize {
        check(&[Source { path: path.to_owned(), text: text.to_owned() }]).len()
    }

    #[test]
    fn unsafe_code_outside_its_home_is_found() {
        let text = "//! docs\nfn f() { unsafe { g() } }\n";
        assert_eq!(problems("shim/task/src/a.rs", text), 1);
        assert_eq!(problems("runtime/src/sys/a.rs", text), 0);
        let words = "//! docs\n#![forbid(unsafe_code)]\n// unsafe\nconst A: &str = \"unsafe\";\n";
        assert_eq!(problems("shim/task/src/a.rs", words), 0);
    }

    #[test]
    fn missing_docs_and_long_files_are_found() {
        assert_eq!(problems("a/b.rs", "use a;\n"), 1);
        assert_eq!(problems("a/b.rs", &format!("//! docs\n{}", "\n".repeat(LINES_MAX))), 1);
    }

    #[test]
    fn machines_and_foreign_registries_are_found() {
        assert_eq!(problems("docs/a.md", &["see /wo", "rk/x"].concat()), 1);
        assert_eq!(problems("Cargo.lock", "source = \"registry+https://mirror/index\"\n"), 1);
        assert_eq!(problems("Cargo.lock", &format!("source = \"{CRATES}\"\n")), 0);
        assert_eq!(problems(".cargo/config.toml", "[source.crates-io]\n"), 1);
    }
}

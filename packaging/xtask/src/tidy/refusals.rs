//! `docs/refusals.md` is the table of `api/contract/src/refusal.rs`, complete and in order.
//!
//! Intent: the table in the source is the only list; the document is generated from it. It is read
//! as text, so that this program needs no crate of the workspace.

use std::fmt::Write as _;

use super::{Finding, Source};

/// The generated document.
pub(super) const DOCUMENT: &str = "docs/refusals.md";
const TABLE: &str = "api/contract/src/refusal.rs";

/// One row of the source's table.
#[derive(Debug, PartialEq, Eq)]
struct Row {
    code: String,
    class: String,
    sentence: String,
    advice: String,
}

/// The document is not what it should be.
#[derive(Debug)]
pub(super) struct Stale {
    pub(super) finding: Finding,
    /// What it should be, when the table could be read.
    pub(super) wanted: Option<String>,
}

/// Compares document and table.
pub(super) fn check(sources: &[Source]) -> Result<(), Stale> {
    let text = |path| sources.iter().find(|source| source.path == path).map(|source| &*source.text);
    let table = text(TABLE).unwrap_or_default();
    let rows = rows(table)
        .map_err(|problem| Stale { finding: Finding::new(TABLE, problem), wanted: None })?;
    let wanted = document(&rows);
    if text(DOCUMENT) == Some(&*wanted) {
        return Ok(());
    }
    let finding = Finding::new(DOCUMENT, "is not what the table says: cargo xtask tidy --fix");
    Err(Stale { finding, wanted: Some(wanted) })
}

/// Reads the rows of the macro's one use.
fn rows(source: &str) -> Result<Vec<Row>, String> {
    let (_, body) = source.split_once("\nrefusals! {\n").ok_or("has no table")?;
    let (body, _) = body.split_once("\n}\n").ok_or("has a table without an end")?;
    let mut rows = Vec::new();
    for line in body.lines().map(str::trim) {
        if line.is_empty() || line.starts_with("//") {
            continue;
        }
        rows.push(row(line).ok_or_else(|| format!("has a row that tidy cannot read: {line}"))?);
    }
    if rows.is_empty() { Err("has an empty table".to_owned()) } else { Ok(rows) }
}

/// `Variant => "code", Class, "sentence", "advice";`
fn row(line: &str) -> Option<Row> {
    let (_variant, rest) = line.strip_suffix(';')?.split_once(" => ")?;
    let (code, rest) = rest.strip_prefix('"')?.split_once("\", ")?;
    let (class, rest) = rest.split_once(", \"")?;
    let (sentence, rest) = rest.split_once("\", \"")?;
    let advice = rest.strip_suffix('"')?;
    let plain = |text: &str| !text.contains(['"', '\\', '|']);
    if ![code, class, sentence, advice].into_iter().all(plain) {
        return None;
    }
    Some(Row {
        code: code.to_owned(),
        class: class.to_owned(),
        sentence: sentence.to_owned(),
        advice: advice.to_owned(),
    })
}

/// The gRPC name of a class.
fn grpc(class: &str) -> &str {
    match class {
        "Permission" => "PERMISSION_DENIED",
        "Precondition" => "FAILED_PRECONDITION",
        "Unavailable" => "UNAVAILABLE",
        "Invalid" => "INVALID_ARGUMENT",
        "NotFound" => "NOT_FOUND",
        "Conflict" => "ALREADY_EXISTS",
        "Exhausted" => "RESOURCE_EXHAUSTED",
        "Unauthenticated" => "UNAUTHENTICATED",
        other => other,
    }
}

fn document(rows: &[Row]) -> String {
    let mut text = String::from(
        "# Refusals\n\n\
         Everything that Nimbus refuses, it refuses with one of these codes. Codes are never renamed\n\
         or reused; programs read the code, never the sentence. containerd shows a refusal as\n\
         `[code] sentence: what was found; advice`.\n\n\
         Generated from `api/contract/src/refusal.rs` by `cargo xtask tidy --fix`; CI fails when they differ.\n",
    );
    let mut prefix = "";
    for row in rows {
        let group = row.code.split('.').next().unwrap_or_default();
        if group != prefix {
            prefix = group;
            text.push_str("\n## ");
            text.push_str(group);
            text.push_str("\n\n| code | gRPC | what happened | what to do |\n|---|---|---|---|\n");
        }
        let written = writeln!(
            text,
            "| `{}` | {} | {} | {} |",
            row.code,
            grpc(&row.class),
            row.sentence,
            row.advice
        );
        debug_assert!(written.is_ok(), "a string takes everything");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCE: &str = "x\nrefusals! {\n    /// doc\n    A => \"a.one\", Permission, \"it, was\", \"do; this\";\n\n    B => \"b.two\", NotFound, \"gone\", \"look\";\n}\n";

    fn sources(document: &str) -> Vec<Source> {
        let source = |path: &str, text: &str| Source { path: path.into(), text: text.into() };
        vec![source(TABLE, SOURCE), source(DOCUMENT, document)]
    }

    #[test]
    fn every_row_is_in_the_document_under_its_group() {
        let rows = rows(SOURCE).unwrap();
        let text = document(&rows);
        assert_eq!(rows.len(), 2);
        assert!(text.contains("## a\n") && text.contains("## b\n"));
        assert!(text.contains("| `a.one` | PERMISSION_DENIED | it, was | do; this |"));
        assert!(check(&sources(&text)).is_ok());
    }

    #[test]
    fn a_document_that_lacks_a_code_is_found() {
        let text = document(&rows(SOURCE).unwrap()).replace("`b.two`", "`b.three`");
        assert!(check(&sources(&text)).is_err());
    }

    #[test]
    fn a_row_that_cannot_be_read_is_no_silent_loss() {
        let odd = SOURCE.replace("\"gone\"", "GONE");
        assert!(rows(&odd).is_err());
        assert!(rows("no table").is_err());
    }
}

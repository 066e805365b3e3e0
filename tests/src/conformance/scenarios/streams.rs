//! stdin, stdout, stderr, terminals.

use std::fs::{self, File};
use std::io::Read as _;

use serde_json::json;

use super::{Scenario, scenarios};
use crate::conformance::run::{INIT, Run, said_status};
use crate::conformance::spec::{process, set, shell, specification};
use crate::conformance::streams::{Output, Uris, fifo, write};
use crate::{Failure, Outcome};

const SLEEPER: &str = "exec sleep 600";
/// Printed without a line's end.
const MUCH: usize = 100_000_000;

pub(super) fn scenarios() -> Vec<Scenario> {
    scenarios!["Streams and terminals";
        output_by_fifo, output_by_file, much_output_by_fifo, much_output_by_file, no_streams,
        stdout_without_stderr, fifo_missing, binary_logger, stdin_of_init, stdin_of_exec, close_io_without_stdin,
        client_disappears, client_comes_back_to_stdin, terminal_of_exec, terminal_of_init,
        resize_without_terminal,
    ]
}

/// Runs it to its end with these streams.
fn to_the_end(run: &mut Run<'_>, script: &str, uris: Uris) {
    let spec = specification(run.id(), &shell(script));
    if run.create_with(&spec, uris) {
        run.see_answer("Start", &run.start(INIT));
        run.see("Wait", said_status(&run.wait(INIT)));
        run.see("Delete", said_status(&run.delete()));
    }
}

fn output_by_fifo(run: &mut Run<'_>) -> Outcome {
    let (uris, out, err) = run.outputs("init")?;
    to_the_end(run, "echo to stdout; echo to stderr >&2; exit 3", uris);
    run.see("stdout", out.end().text);
    run.see("stderr", err.end().text);
    Ok(())
}

fn file_uri(run: &Run<'_>, name: &str) -> String {
    format!("file://{}", run.path(name).display())
}

fn output_by_file(run: &mut Run<'_>) -> Outcome {
    let (stdout, stderr) = (file_uri(run, "out"), file_uri(run, "err"));
    let uris = Uris { stdout, stderr, ..Uris::default() };
    to_the_end(run, "echo to stdout; echo to stderr >&2", uris);
    for name in ["out", "err"] {
        let text = fs::read_to_string(run.path(name)).unwrap_or_default();
        // Two streams are copied beside each other, in no order.
        let mut lines: Vec<_> = text.lines().collect();
        lines.sort_unstable();
        run.see(name, lines.join("\n"));
    }
    Ok(())
}

fn much_output_by_fifo(run: &mut Run<'_>) -> Outcome {
    let (uris, out, _err) = run.outputs("init")?;
    to_the_end(run, &format!("head -c {MUCH} /dev/zero"), uris);
    run.see("bytes", out.end().count.to_string());
    Ok(())
}

fn much_output_by_file(run: &mut Run<'_>) -> Outcome {
    let (stdout, stderr) = (file_uri(run, "out"), file_uri(run, "err"));
    let uris = Uris { stdout, stderr, ..Uris::default() };
    to_the_end(run, &format!("head -c {MUCH} /dev/zero"), uris);
    let length = fs::metadata(run.path("out")).map_or(0, |file| file.len());
    fs::remove_file(run.path("out")).unwrap_or_default();
    run.see("bytes", length.to_string());
    Ok(())
}

fn no_streams(run: &mut Run<'_>) -> Outcome {
    let script = "read line || echo nothing to read; cat; exec sleep 0";
    to_the_end(run, script, Uris::default());
    Ok(())
}

fn stdout_without_stderr(run: &mut Run<'_>) -> Outcome {
    let path = run.path("out");
    let output = Output::read(&path)?;
    let stdout = path.display().to_string();
    to_the_end(run, "echo out; echo err >&2", Uris { stdout, ..Uris::default() });
    drop(output);
    Ok(())
}

fn fifo_missing(run: &mut Run<'_>) -> Outcome {
    let uris = Uris::to(&run.path("nowhere/out"));
    to_the_end(run, "exit 3", uris);
    Ok(())
}

fn binary_logger(run: &mut Run<'_>) -> Outcome {
    // Takes what is on descriptor 3 and says by closing 5 that it is ready.
    let logger = run.path("logger");
    let log = run.path("log");
    fs::write(&logger, format!("#!/bin/sh\ncat <&3 >{} 5>&- &\nexec 5>&-\nwait\n", log.display()))?;
    fs::set_permissions(&logger, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let stdout = format!("binary://{}", logger.display());
    let uris = Uris { stderr: stdout.clone(), stdout, ..Uris::default() };
    to_the_end(run, "echo logged", uris);
    let ran = if log.exists() { "yes" } else { "no" };
    run.see("a program of the host has run", ran);
    Ok(())
}

/// Types something, closes the input, and sees what `cat` made of it.
fn typed(run: &mut Run<'_>, exec: &str, output: Output) -> Outcome {
    let input = run.path("in");
    write(&input, "typed\n")?;
    run.see_answer("CloseIO", &run.close_stdin(exec));
    run.see("Wait", said_status(&run.wait(exec)));
    let deleted = if exec == INIT { run.delete() } else { run.delete_exec(exec) };
    run.see("Delete", said_status(&deleted));
    run.see("output", output.end().text);
    Ok(())
}

fn with_stdin(run: &Run<'_>, mut uris: Uris) -> Result<Uris, Failure> {
    fifo(&run.path("in"))?;
    uris.stdin = run.path("in").display().to_string();
    Ok(uris)
}

fn stdin_of_init(run: &mut Run<'_>) -> Outcome {
    let (uris, out, _err) = run.outputs("init")?;
    let uris = with_stdin(run, uris)?;
    let spec = specification(run.id(), &shell("cat; echo end"));
    run.begin_with(&spec, uris)?;
    typed(run, INIT, out)
}

fn stdin_of_exec(run: &mut Run<'_>) -> Outcome {
    run.begin(&shell(SLEEPER))?;
    let (uris, out, _err) = run.outputs("init")?;
    let uris = with_stdin(run, uris)?;
    run.see_answer("Exec", &run.exec("e1", &process(&["/bin/cat"]), uris));
    run.see_answer("Start", &run.start("e1"));
    typed(run, "e1", out)
}

fn close_io_without_stdin(run: &mut Run<'_>) -> Outcome {
    run.begin(&shell(SLEEPER))?;
    run.see_answer("CloseIO", &run.close_stdin(INIT));
    run.see_answer("CloseIO once more", &run.close_stdin(INIT));
    drop(run.kill9());
    drop(run.wait(INIT));
    run.see_answer("CloseIO after the exit", &run.close_stdin(INIT));
    Ok(())
}

/// A client that goes away in the middle does not kill the job, and one that comes back reads on.
fn client_disappears(run: &mut Run<'_>) -> Outcome {
    let (path, errors) = (run.path("out"), run.path("err"));
    fifo(&path)?;
    let _errors = Output::read(&errors)?;
    let (stdout, stderr) = (path.display().to_string(), errors.display().to_string());
    let uris = Uris { stdout, stderr, ..Uris::default() };
    let script = "i=0; while [ $i -lt 20000 ]; do echo 0123456789; i=$((i+1)); done; exit 3";
    let spec = specification(run.id(), &shell(script));
    let own = path.clone();
    let first = std::thread::spawn(move || {
        let mut some = [0; 1];
        File::open(own).and_then(|mut file| file.read_exact(&mut some))
    });
    run.begin_with(&spec, uris)?;
    let read = first.join().is_ok_and(|read| read.is_ok());
    run.see("the first client has read", if read { "yes" } else { "no" });
    let rest = Output::read_again(&path);
    run.see("Wait", said_status(&run.wait(INIT)));
    run.see("Delete", said_status(&run.delete()));
    let ends = rest.end().count > 100_000;
    run.see("the second client reads on", if ends { "yes" } else { "no" });
    Ok(())
}

fn client_comes_back_to_stdin(run: &mut Run<'_>) -> Outcome {
    let (uris, out, _err) = run.outputs("init")?;
    let uris = with_stdin(run, uris)?;
    let spec = specification(run.id(), &shell("read a; echo first $a; read b; echo second $b"));
    run.begin_with(&spec, uris)?;
    for line in ["one\n", "two\n"] {
        write(&run.path("in"), line)?;
    }
    run.see("Wait", said_status(&run.wait(INIT)));
    run.see("Delete", said_status(&run.delete()));
    run.see("output", out.end().text);
    Ok(())
}

/// What is seen through a terminal.
const SEEN_BY_TERMINAL: &str = "tty; stty size; read line; stty size; echo got $line; exit 6";

/// Waits until the shell reads, resizes, types, and sees what came of it.
fn at_terminal(run: &mut Run<'_>, exec: &str, output: Output) -> Outcome {
    output.wait_for("24 80")?;
    run.see("State", run.state(exec));
    run.see_answer("ResizePty", &run.resize(exec, 132, 50));
    write(&run.path("in"), "hello\n")?;
    run.see("Wait", said_status(&run.wait(exec)));
    let deleted = if exec == INIT { run.delete() } else { run.delete_exec(exec) };
    run.see("Delete", said_status(&deleted));
    let text = output.end().text.replace('\r', "");
    // Where the echo comes depends on who was faster.
    let mut lines: Vec<_> = text.lines().filter(|line| *line != "hello").collect();
    lines.dedup();
    run.see("output", lines.join("\n"));
    Ok(())
}

fn terminal(run: &Run<'_>) -> Result<(Uris, Output, serde_json::Value), Failure> {
    let out = run.path("out");
    let output = Output::read(&out)?;
    let stdout = out.display().to_string();
    let uris = with_stdin(run, Uris { stdout, terminal: true, ..Uris::default() })?;
    let mut process = shell(SEEN_BY_TERMINAL);
    set(&mut process, "/terminal", true.into());
    set(&mut process, "/consoleSize", json!({"height": 24, "width": 80}));
    Ok((uris, output, process))
}

fn terminal_of_exec(run: &mut Run<'_>) -> Outcome {
    run.begin(&shell(SLEEPER))?;
    let (uris, output, process) = terminal(run)?;
    run.see_answer("Exec", &run.exec("e1", &process, uris));
    run.see_answer("Start", &run.start("e1"));
    at_terminal(run, "e1", output)
}

fn terminal_of_init(run: &mut Run<'_>) -> Outcome {
    let (uris, output, process) = terminal(run)?;
    let spec = specification(run.id(), &process);
    if run.create_with(&spec, uris) {
        run.see_answer("Start", &run.start(INIT));
        return at_terminal(run, INIT, output);
    }
    Ok(())
}

fn resize_without_terminal(run: &mut Run<'_>) -> Outcome {
    run.begin(&shell(SLEEPER))?;
    run.exec_started("e1", &shell(SLEEPER))?;
    run.see_answer("ResizePty of the init", &run.resize(INIT, 80, 25));
    run.see_answer("ResizePty of an exec", &run.resize("e1", 80, 25));
    Ok(())
}

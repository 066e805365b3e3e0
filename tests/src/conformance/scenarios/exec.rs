//! Processes that are added to a container.

use serde_json::json;

use super::{Scenario, scenarios};
use crate::conformance::run::{INIT, KILL, Run, TERM, said, said_status};
use crate::conformance::spec::{process, set, shell};
use crate::conformance::streams::Uris;
use crate::wait::until;
use crate::{Failure, Outcome};

const SLEEPER: &str = "exec sleep 600";

pub(super) fn scenarios() -> Vec<Scenario> {
    scenarios!["Processes that are added (exec)";
        exec_life, exec_exit_codes, exec_missing_program, exec_duplicate_id, exec_start_twice,
        exec_delete_running, exec_delete_not_started, exec_delete_twice, exec_kill, exec_unknown,
        exec_id_used_again, exec_odd_ids, exec_in_created, exec_in_paused, exec_in_stopped,
        exec_outlives_init, exec_not_started_when_init_ends, exec_as_user, exec_with_more_capabilities,
        exec_spec_not_json, exec_grandchild_keeps_stdout,
    ]
}

fn exec_life(run: &mut Run<'_>) -> Outcome {
    run.begin(&shell(SLEEPER))?;
    run.see_answer("Exec", &run.exec("e1", &shell(SLEEPER), Uris::default()));
    run.see("State after Exec", run.state("e1"));
    run.see_answer("Start", &run.start("e1"));
    run.see("State after Start", run.state("e1"));
    run.see("processes", run.processes());
    run.see_answer("Kill", &run.kill("e1", KILL, false));
    run.see("Wait", said_status(&run.wait("e1")));
    run.see("State after the exit", run.state("e1"));
    run.see("Delete", said_status(&run.delete_exec("e1")));
    run.see("State after Delete", run.state("e1"));
    run.see("State of the init", run.state(INIT));
    drop(run.kill9());
    drop(run.wait(INIT));
    drop(run.delete());
    run.see_events();
    Ok(())
}

/// Adds, starts, waits, deletes; what it printed and its exit status.
fn printed(run: &mut Run<'_>, exec: &str, process: &serde_json::Value) -> Result<String, Failure> {
    let (uris, output, _errors) = run.outputs(exec)?;
    for answer in [run.exec(exec, process, uris), run.start(exec).map(drop)] {
        if answer.is_err() {
            return Ok(said(&answer));
        }
    }
    let ended = run.wait(exec);
    drop(run.delete_exec(exec));
    Ok(format!("{}; {}", said_status(&ended), output.end().text))
}

fn exec_exit_codes(run: &mut Run<'_>) -> Outcome {
    run.begin(&shell(SLEEPER))?;
    for (exec, script) in [("e1", "echo out; exit 0"), ("e2", "exit 7"), ("e3", "kill -9 $$")] {
        let found = printed(run, exec, &shell(script))?;
        run.see(script, found);
    }
    Ok(())
}

fn exec_missing_program(run: &mut Run<'_>) -> Outcome {
    run.begin(&shell(SLEEPER))?;
    run.see_answer("Exec", &run.exec("e1", &process(&["/bin/none"]), Uris::default()));
    run.see_answer("Start", &run.start("e1"));
    run.see("State afterwards", run.state("e1"));
    run.see("Delete", said_status(&run.delete_exec("e1")));
    run.see("State of the init", run.state(INIT));
    Ok(())
}

fn exec_duplicate_id(run: &mut Run<'_>) -> Outcome {
    run.begin(&shell(SLEEPER))?;
    run.exec_started("e1", &shell(SLEEPER))?;
    run.see_answer("Exec of the same id", &run.exec("e1", &shell("true"), Uris::default()));
    run.see("State afterwards", run.state("e1"));
    Ok(())
}

fn exec_start_twice(run: &mut Run<'_>) -> Outcome {
    run.begin(&shell(SLEEPER))?;
    run.exec_started("e1", &shell(SLEEPER))?;
    run.see_answer("second Start", &run.start("e1"));
    run.see("State afterwards", run.state("e1"));
    drop(run.kill("e1", KILL, false));
    drop(run.wait("e1"));
    run.see_answer("Start after the exit", &run.start("e1"));
    Ok(())
}

fn exec_delete_running(run: &mut Run<'_>) -> Outcome {
    run.begin(&shell(SLEEPER))?;
    run.exec_started("e1", &shell(SLEEPER))?;
    run.see("Delete", said_status(&run.delete_exec("e1")));
    run.see("State afterwards", run.state("e1"));
    Ok(())
}

fn exec_delete_not_started(run: &mut Run<'_>) -> Outcome {
    run.begin(&shell(SLEEPER))?;
    run.see_answer("Exec", &run.exec("e1", &shell("true"), Uris::default()));
    run.see_answer("Kill", &run.kill("e1", KILL, false));
    run.see("State after Kill", run.state("e1"));
    run.see("Delete", said_status(&run.delete_exec("e1")));
    run.see("State afterwards", run.state("e1"));
    Ok(())
}

fn exec_delete_twice(run: &mut Run<'_>) -> Outcome {
    run.begin(&shell(SLEEPER))?;
    run.exec_started("e1", &shell("exit 4"))?;
    drop(run.wait("e1"));
    run.see("Delete", said_status(&run.delete_exec("e1")));
    run.see("second Delete", said_status(&run.delete_exec("e1")));
    run.see("Wait afterwards", said_status(&run.wait("e1")));
    Ok(())
}

fn exec_kill(run: &mut Run<'_>) -> Outcome {
    run.begin(&shell(SLEEPER))?;
    run.exec_started("e1", &shell(SLEEPER))?;
    run.see_answer("Kill with SIGTERM", &run.kill("e1", TERM, false));
    run.see("Wait", said_status(&run.wait("e1")));
    run.see_answer("Kill after the exit", &run.kill("e1", TERM, false));
    run.see_answer("Kill with 1000 after the exit", &run.kill("e1", 1000, false));
    run.see("Delete", said_status(&run.delete_exec("e1")));
    run.see_answer("Kill after Delete", &run.kill("e1", TERM, false));
    Ok(())
}

fn exec_unknown(run: &mut Run<'_>) -> Outcome {
    run.begin(&shell(SLEEPER))?;
    run.see("State", run.state("e1"));
    run.see_answer("Start", &run.start("e1"));
    run.see_answer("Kill", &run.kill("e1", KILL, false));
    run.see("Wait", said_status(&run.wait("e1")));
    run.see("Delete", said_status(&run.delete_exec("e1")));
    run.see_answer("CloseIO", &run.close_stdin("e1"));
    run.see_answer("ResizePty", &run.resize("e1", 80, 25));
    Ok(())
}

fn exec_id_used_again(run: &mut Run<'_>) -> Outcome {
    run.begin(&shell(SLEEPER))?;
    for status in ["exit 1", "exit 2"] {
        run.see_answer("Exec", &run.exec("e1", &shell(status), Uris::default()));
        run.see_answer("Start", &run.start("e1"));
        run.see("Wait", said_status(&run.wait("e1")));
        run.see("Delete", said_status(&run.delete_exec("e1")));
    }
    Ok(())
}

fn exec_odd_ids(run: &mut Run<'_>) -> Outcome {
    run.begin(&shell(SLEEPER))?;
    for id in ["", "../e", "a b"] {
        let answer = run.exec(id, &shell("true"), Uris::default());
        run.see_answer(&format!("Exec of id `{id}`"), &answer);
    }
    // The name of the container is one that a process may have.
    let own = run.id().to_owned();
    run.see_answer("Exec of the container's id", &run.exec(&own, &shell("true"), Uris::default()));
    Ok(())
}

fn exec_in_created(run: &mut Run<'_>) -> Outcome {
    run.create(&shell(SLEEPER));
    run.see_answer("Exec", &run.exec("e1", &shell("exit 3"), Uris::default()));
    let started = run.start("e1");
    run.see_answer("Start before the init", &started);
    if started.is_ok() {
        drop(run.wait("e1"));
    }
    run.see("State afterwards", run.state("e1"));
    run.see_answer("Start of the init", &run.start(INIT));
    Ok(())
}

fn exec_in_paused(run: &mut Run<'_>) -> Outcome {
    run.begin(&shell(SLEEPER))?;
    run.see_answer("Exec", &run.exec("e1", &shell("exit 3"), Uris::default()));
    run.see_answer("Pause", &run.pause());
    run.see_answer("Start", &run.start("e1"));
    run.see_answer("Exec when paused", &run.exec("e2", &shell("exit 3"), Uris::default()));
    run.see_answer("Resume", &run.resume());
    Ok(())
}

fn exec_in_stopped(run: &mut Run<'_>) -> Outcome {
    run.begin(&shell("exit 0"))?;
    drop(run.wait(INIT));
    run.see_answer("Exec", &run.exec("e1", &shell("true"), Uris::default()));
    Ok(())
}

/// The init ends while another process runs: both ends are told, the init's last.
fn exec_outlives_init(run: &mut Run<'_>) -> Outcome {
    run.begin(&shell(SLEEPER))?;
    run.exec_started("e1", &shell(SLEEPER))?;
    drop(run.kill9());
    run.see("Wait", said_status(&run.wait(INIT)));
    run.see("Wait for the exec", said_status(&run.wait("e1")));
    run.see("State of the exec", run.state("e1"));
    run.see("Delete of the exec", said_status(&run.delete_exec("e1")));
    run.see("Delete", said_status(&run.delete()));
    run.see_events();
    Ok(())
}

fn exec_not_started_when_init_ends(run: &mut Run<'_>) -> Outcome {
    run.begin(&shell(SLEEPER))?;
    run.see_answer("Exec", &run.exec("e1", &shell("true"), Uris::default()));
    drop(run.kill9());
    drop(run.wait(INIT));
    run.see_answer("Start", &run.start("e1"));
    run.see("Delete", said_status(&run.delete()));
    run.see_events();
    Ok(())
}

fn exec_as_user(run: &mut Run<'_>) -> Outcome {
    run.begin(&shell(SLEEPER))?;
    let mut process =
        shell("id -u; id -G; pwd; umask; echo $HOME $A; grep CapEff /proc/self/status");
    set(&mut process, "/user", json!({"uid": 65534, "gid": 65534, "additionalGids": [100]}));
    set(&mut process, "/cwd", "/tmp".into());
    set(&mut process, "/env", json!(["PATH=/bin", "A=b"]));
    let found = printed(run, "e1", &process)?;
    run.see("who and where", found);
    Ok(())
}

fn exec_with_more_capabilities(run: &mut Run<'_>) -> Outcome {
    run.begin(&shell(SLEEPER))?;
    let mut process = shell("grep CapEff /proc/self/status");
    let all = json!(["CAP_SYS_ADMIN", "CAP_KILL"]);
    set(
        &mut process,
        "/capabilities",
        json!({"bounding": all, "effective": all, "permitted": all}),
    );
    let found = printed(run, "e1", &process)?;
    run.see("with CAP_SYS_ADMIN, which the container has not", found);
    Ok(())
}

fn exec_spec_not_json(run: &mut Run<'_>) -> Outcome {
    run.begin(&shell(SLEEPER))?;
    let answer = run.exec("e1", &json!("no process"), Uris::default());
    run.see_answer("Exec of a text", &answer);
    Ok(())
}

/// Delete waits for the end of the output, but not for ever; what was printed is kept.
fn exec_grandchild_keeps_stdout(run: &mut Run<'_>) -> Outcome {
    run.begin(&shell(SLEEPER))?;
    let (uris, output, _errors) = run.outputs("e1")?;
    run.see_answer("Exec", &run.exec("e1", &shell("sleep 600 & echo first; exit 3"), uris));
    run.see_answer("Start", &run.start("e1"));
    run.see("Wait", said_status(&run.wait("e1")));
    until("the grandchild to be the init's", || {
        Ok((run.processes() == "process, process").then_some(()))
    })?;
    run.see("Delete", said_status(&run.delete_exec("e1")));
    run.see("State afterwards", run.state("e1"));
    run.see("output", output.end().text);
    Ok(())
}

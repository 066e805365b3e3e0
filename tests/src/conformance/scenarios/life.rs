//! Create, Start, Wait, State, Delete, in their order and out of it.

use std::time::Duration;

use super::{Scenario, scenarios};
use crate::Outcome;
use crate::conformance::run::{INIT, Run, TERM, said, said_status};
use crate::conformance::spec::{process, shell, specification};
use crate::conformance::streams::Uris;
use crate::wait::until_within;

const SLEEPER: &str = "exec sleep 600";
/// Longer than a process that was killed takes to end.
const MOMENT: Duration = Duration::from_secs(2);

pub(super) fn scenarios() -> Vec<Scenario> {
    scenarios!["Life of a container";
        exit_zero, exit_seven, exit_by_signal, created_only, start_twice, create_twice,
        delete_created, delete_running, delete_twice, wait_by_many, wait_after_exit, unknown_task,
        program_missing, program_not_executable, no_arguments,
    ]
}

/// The whole life of a container that ends by itself.
fn life(run: &mut Run<'_>, script: &str) -> Outcome {
    if !run.create(&shell(script)) {
        return Ok(());
    }
    run.see("State after Create", run.state(INIT));
    let started = run.start(INIT);
    run.see_answer("Start", &started);
    let ended = run.wait(INIT);
    run.see("Wait", said_status(&ended));
    run.see("State after the exit", run.state(INIT));
    let deleted = run.delete();
    run.see("Delete", said_status(&deleted));
    run.see("State after Delete", run.state(INIT));
    run.see_events();
    Ok(())
}

fn exit_zero(run: &mut Run<'_>) -> Outcome {
    life(run, "exit 0")
}

fn exit_seven(run: &mut Run<'_>) -> Outcome {
    life(run, "exit 7")
}

fn exit_by_signal(run: &mut Run<'_>) -> Outcome {
    run.begin(&process(&["/bin/sh", "-c", "trap - TERM; exec sleep 600"]))?;
    // Without a handler the init of a pid namespace does not hear a signal but from outside: SIGKILL.
    let killed = run.kill9();
    run.see_answer("Kill", &killed);
    run.see("Wait", said_status(&run.wait(INIT)));
    run.see("Delete", said_status(&run.delete()));
    run.see_events();
    Ok(())
}

fn created_only(run: &mut Run<'_>) -> Outcome {
    run.create(&shell("exit 3"));
    run.see("processes", run.processes());
    run.see("Pause", said(&run.pause()));
    run.see("Resume", said(&run.resume()));
    run.see("Kill with SIGTERM", said(&run.kill(INIT, TERM, false)));
    // It ends a moment later, if it does.
    let ended = until_within("the end", MOMENT, || {
        Ok(run.state(INIT).starts_with("stopped").then_some(()))
    });
    run.see("it ends", if ended.is_ok() { "yes" } else { "no" });
    run.see("Start afterwards", said(&run.start(INIT)));
    Ok(())
}

fn start_twice(run: &mut Run<'_>) -> Outcome {
    run.begin(&shell(SLEEPER))?;
    let again = run.start(INIT);
    run.see_answer("second Start", &again);
    run.see("State afterwards", run.state(INIT));
    drop(run.kill9());
    run.see("Wait", said_status(&run.wait(INIT)));
    let again = run.start(INIT);
    run.see_answer("Start after the exit", &again);
    Ok(())
}

fn create_twice(run: &mut Run<'_>) -> Outcome {
    run.begin(&shell(SLEEPER))?;
    let again = run.make_task(Uris::default());
    run.see_answer("second Create", &again);
    run.see("State afterwards", run.state(INIT));
    drop(run.kill9());
    drop(run.wait(INIT));
    drop(run.delete());
    let again = run.make_task(Uris::default());
    run.see_answer("Create after Delete", &again);
    run.see_answer("Start of that", &run.start(INIT));
    run.see("State of that", run.state(INIT));
    Ok(())
}

fn delete_created(run: &mut Run<'_>) -> Outcome {
    run.create(&shell("exit 3"));
    let deleted = run.delete();
    run.see("Delete", said_status(&deleted));
    run.see("State afterwards", run.state(INIT));
    run.see_events();
    Ok(())
}

fn delete_running(run: &mut Run<'_>) -> Outcome {
    run.begin(&shell(SLEEPER))?;
    let deleted = run.delete();
    run.see("Delete", said_status(&deleted));
    run.see("State afterwards", run.state(INIT));
    Ok(())
}

fn delete_twice(run: &mut Run<'_>) -> Outcome {
    run.begin(&shell("exit 0"))?;
    drop(run.wait(INIT));
    run.see("Delete", said_status(&run.delete()));
    run.see("second Delete", said_status(&run.delete()));
    Ok(())
}

fn wait_by_many(run: &mut Run<'_>) -> Outcome {
    run.create(&shell("exit 5"));
    let early = [run.waiter(INIT), run.waiter(INIT)];
    run.see_answer("Start", &run.start(INIT));
    let late = run.waiter(INIT);
    for (number, waiter) in early.into_iter().chain([late]).enumerate() {
        let ended = run.ground().finish(waiter).map(|ended| ended.exit_status);
        run.see(&format!("Wait {}", number + 1), said_status(&ended));
    }
    Ok(())
}

fn wait_after_exit(run: &mut Run<'_>) -> Outcome {
    run.begin(&shell("exit 6"))?;
    drop(run.wait(INIT));
    run.see("Wait once more", said_status(&run.wait(INIT)));
    drop(run.delete());
    run.see("Wait after Delete", said_status(&run.wait(INIT)));
    Ok(())
}

fn unknown_task(run: &mut Run<'_>) -> Outcome {
    run.see("State", run.state(INIT));
    run.see_answer("Start", &run.start(INIT));
    run.see_answer("Kill", &run.kill9());
    run.see("Wait", said_status(&run.wait(INIT)));
    run.see("Delete", said_status(&run.delete()));
    run.see("processes", run.processes());
    Ok(())
}

/// Create, and Start if that is good; which of the two says no is compared too.
fn does_not_run(run: &mut Run<'_>, args: &[&str]) -> Outcome {
    let spec = specification(run.id(), &process(args));
    if run.create_with(&spec, Uris::default()) {
        run.see_answer("Start", &run.start(INIT));
        run.see("State afterwards", run.state(INIT));
        run.see("Delete", said_status(&run.delete()));
    } else {
        run.see("State afterwards", run.state(INIT));
    }
    Ok(())
}

fn program_missing(run: &mut Run<'_>) -> Outcome {
    does_not_run(run, &["/bin/none"])
}

fn program_not_executable(run: &mut Run<'_>) -> Outcome {
    does_not_run(run, &["/etc/passwd"])
}

fn no_arguments(run: &mut Run<'_>) -> Outcome {
    does_not_run(run, &[])
}

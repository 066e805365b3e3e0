//! Kill, Pause and Resume.

use super::{Scenario, scenarios};
use crate::Outcome;
use crate::conformance::run::{INIT, KILL, Run, TERM, said_status};
use crate::conformance::spec::shell;
use crate::wait::until;

const SLEEPER: &str = "exec sleep 600";
/// Says on which signal it ended, and has a child.
const LISTENER: &str = "trap 'exit 9' TERM; sleep 600 & while :; do wait; done";

pub(super) fn scenarios() -> Vec<Scenario> {
    scenarios!["Signals, Pause and Resume";
        kill_handled, kill_unhandled, kill_unknown_signal, kill_signal_zero, kill_after_exit, kill_all,
        kill_all_after_exit, pause_and_resume, pause_wrongly, kill_paused, delete_paused,
    ]
}

/// Until the script has set its trap and has its child.
fn wait_two(run: &mut Run<'_>) -> Outcome {
    until("both processes to run", || Ok((run.processes() == "process, process").then_some(())))
}

fn kill_handled(run: &mut Run<'_>) -> Outcome {
    run.begin(&shell(LISTENER))?;
    wait_two(run)?;
    run.see_answer("Kill with SIGTERM", &run.kill(INIT, TERM, false));
    run.see("Wait", said_status(&run.wait(INIT)));
    run.see("processes afterwards", run.processes());
    Ok(())
}

fn kill_unhandled(run: &mut Run<'_>) -> Outcome {
    run.begin(&shell(SLEEPER))?;
    run.see_answer("Kill with SIGTERM", &run.kill(INIT, TERM, false));
    run.see("State afterwards", run.state(INIT));
    Ok(())
}

fn kill_unknown_signal(run: &mut Run<'_>) -> Outcome {
    run.begin(&shell(SLEEPER))?;
    run.see_answer("Kill with 1000", &run.kill(INIT, 1000, false));
    run.see("State afterwards", run.state(INIT));
    Ok(())
}

fn kill_signal_zero(run: &mut Run<'_>) -> Outcome {
    run.begin(&shell(SLEEPER))?;
    run.see_answer("Kill with 0", &run.kill(INIT, 0, false));
    run.see("State afterwards", run.state(INIT));
    Ok(())
}

fn kill_after_exit(run: &mut Run<'_>) -> Outcome {
    run.begin(&shell("exit 0"))?;
    drop(run.wait(INIT));
    run.see_answer("Kill", &run.kill9());
    run.see("State afterwards", run.state(INIT));
    Ok(())
}

fn kill_all(run: &mut Run<'_>) -> Outcome {
    run.begin(&shell(LISTENER))?;
    wait_two(run)?;
    run.exec_started("e1", &shell(SLEEPER))?;
    run.see_answer("Kill everybody", &run.kill(INIT, KILL, true));
    run.see("Wait", said_status(&run.wait(INIT)));
    run.see("Wait for an exec", said_status(&run.wait("e1")));
    run.see("processes afterwards", run.processes());
    run.see("Delete", said_status(&run.delete()));
    run.see_events();
    Ok(())
}

fn kill_all_after_exit(run: &mut Run<'_>) -> Outcome {
    run.begin(&shell("exit 0"))?;
    drop(run.wait(INIT));
    run.see_answer("Kill everybody", &run.kill(INIT, KILL, true));
    Ok(())
}

fn pause_and_resume(run: &mut Run<'_>) -> Outcome {
    run.begin(&shell(LISTENER))?;
    wait_two(run)?;
    run.see_answer("Pause", &run.pause());
    run.see("State when paused", run.state(INIT));
    run.see("processes when paused", run.processes());
    run.see_answer("Kill with SIGTERM when paused", &run.kill(INIT, TERM, false));
    run.see("State after that", run.state(INIT));
    run.see_answer("Resume", &run.resume());
    run.see("Wait", said_status(&run.wait(INIT)));
    run.see("Delete", said_status(&run.delete()));
    run.see_events();
    Ok(())
}

fn pause_wrongly(run: &mut Run<'_>) -> Outcome {
    run.begin(&shell(SLEEPER))?;
    run.see_answer("Resume of what runs", &run.resume());
    run.see("State after that", run.state(INIT));
    run.see_answer("Pause", &run.pause());
    run.see_answer("second Pause", &run.pause());
    run.see("State after that", run.state(INIT));
    run.see_answer("Resume", &run.resume());
    run.see_answer("Kill", &run.kill9());
    drop(run.wait(INIT));
    run.see_answer("Pause after the exit", &run.pause());
    run.see_answer("Resume after the exit", &run.resume());
    run.see("State after the exit", run.state(INIT));
    Ok(())
}

fn kill_paused(run: &mut Run<'_>) -> Outcome {
    run.begin(&shell(SLEEPER))?;
    run.see_answer("Pause", &run.pause());
    run.see_answer("Kill with SIGKILL", &run.kill9());
    let ended = run.told("exit");
    run.see("it ends", if ended { "yes" } else { "not before it is resumed" });
    run.see("State afterwards", run.state(INIT));
    Ok(())
}

fn delete_paused(run: &mut Run<'_>) -> Outcome {
    run.begin(&shell(SLEEPER))?;
    run.see_answer("Pause", &run.pause());
    run.see("Delete", said_status(&run.delete()));
    run.see("State afterwards", run.state(INIT));
    Ok(())
}

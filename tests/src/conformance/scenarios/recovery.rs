//! containerd and shims that are killed.

use super::{Scenario, scenarios};
use crate::Outcome;
use crate::conformance::run::{INIT, Run, said, said_status};
use crate::conformance::spec::shell;
use crate::conformance::streams::Uris;
use crate::wait::until;

const SLEEPER: &str = "exec sleep 600";

pub(super) fn scenarios() -> Vec<Scenario> {
    scenarios!["After containerd or a shim was killed";
        containerd_restarts, container_ends_while_containerd_is_down, created_over_a_restart,
        paused_over_a_restart, shim_killed, shim_killed_before_start, shim_killed_after_exit,
    ]
}

fn restart(run: &mut Run<'_>) -> Outcome {
    run.ground_mut().kill_containerd()?;
    run.ground_mut().start_containerd()
}

fn containerd_restarts(run: &mut Run<'_>) -> Outcome {
    run.begin(&shell(SLEEPER))?;
    run.exec_started("e1", &shell(SLEEPER))?;
    restart(run)?;
    run.see("State", run.state(INIT));
    run.see("State of an exec", run.state("e1"));
    run.see("processes", run.processes());
    run.exec_started("e2", &shell("exit 5"))?;
    run.see("Wait for a new exec", said_status(&run.wait("e2")));
    run.see_answer("Kill", &run.kill9());
    run.see("Wait", said_status(&run.wait(INIT)));
    run.see("Delete", said_status(&run.delete()));
    run.see("State afterwards", run.state(INIT));
    run.see_events();
    Ok(())
}

fn container_ends_while_containerd_is_down(run: &mut Run<'_>) -> Outcome {
    run.begin(&shell("sleep 0.5; exit 9"))?;
    run.ground_mut().kill_containerd()?;
    // It ends meanwhile, or soon after: what is seen is the same.
    std::thread::sleep(std::time::Duration::from_millis(700));
    run.ground_mut().start_containerd()?;
    run.see("Wait", said_status(&run.wait(INIT)));
    run.see("State", run.state(INIT));
    run.see("Delete", said_status(&run.delete()));
    Ok(())
}

fn created_over_a_restart(run: &mut Run<'_>) -> Outcome {
    run.create(&shell("exit 4"));
    restart(run)?;
    run.see("State", run.state(INIT));
    run.see_answer("Start", &run.start(INIT));
    run.see("Wait", said_status(&run.wait(INIT)));
    run.see("Delete", said_status(&run.delete()));
    Ok(())
}

fn paused_over_a_restart(run: &mut Run<'_>) -> Outcome {
    run.begin(&shell(SLEEPER))?;
    run.see_answer("Pause", &run.pause());
    restart(run)?;
    run.see("State", run.state(INIT));
    run.see_answer("Resume", &run.resume());
    run.see("State after Resume", run.state(INIT));
    Ok(())
}

/// containerd notices, cleans up by the shim's `delete`, and tells an exit itself.
fn cleaned_up(run: &mut Run<'_>) -> Outcome {
    let id = run.id().to_owned();
    run.ground().kill_shim(&id)?;
    until("containerd to notice", || Ok((run.state(INIT) == "NotFound").then_some(())))?;
    run.see_events();
    run.see("Create afterwards", said(&run.make_task(Uris::default())));
    run.see_answer("Start of that", &run.start(INIT));
    Ok(())
}

fn shim_killed(run: &mut Run<'_>) -> Outcome {
    run.begin(&shell(SLEEPER))?;
    let waiter = run.waiter(INIT);
    cleaned_up(run)?;
    let ended = run.ground().finish(waiter).map(|ended| ended.exit_status);
    run.see("a Wait that was under way", said_status(&ended));
    Ok(())
}

fn shim_killed_before_start(run: &mut Run<'_>) -> Outcome {
    run.create(&shell("exit 4"));
    cleaned_up(run)
}

fn shim_killed_after_exit(run: &mut Run<'_>) -> Outcome {
    run.begin(&shell("exit 4"))?;
    drop(run.wait(INIT));
    cleaned_up(run)
}

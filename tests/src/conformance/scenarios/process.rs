//! What a process finds itself to be: user, directory, environment, limits, root.

use serde_json::{Value, json};

use super::{Scenario, scenarios};
use crate::Outcome;
use crate::conformance::run::{INIT, Run, said, said_status};
use crate::conformance::spec::{set, shell, specification};

pub(super) fn scenarios() -> Vec<Scenario> {
    scenarios!["What a process finds";
        user, working_directory, working_directory_missing, environment, environment_without_home,
        hostname, umask, capabilities, no_new_privileges, descriptors, session, root_writable,
        root_read_only, mounts, devices, masked, resource_limits, oom_score,
    ]
}

/// Runs a script and sees its exit status and what it printed, or what was in the way.
fn finds(run: &mut Run<'_>, script: &str, change: impl FnOnce(&mut Value)) -> Outcome {
    let (uris, output, _errors) = run.outputs("init")?;
    // Through one descriptor: two are copied beside each other, in no order.
    let mut spec = specification(run.id(), &shell(&format!("exec 2>&1; {script}")));
    change(&mut spec);
    let started = run.make(&spec, uris).and_then(|()| run.start(INIT));
    if started.is_err() {
        run.see("exit; output", said(&started));
        return Ok(());
    }
    let ended = run.wait(INIT);
    let deleted = run.delete();
    run.see("exit; output", format!("{}; {}", said_status(&ended), output.end().text));
    run.see("Delete", said_status(&deleted));
    Ok(())
}

fn user(run: &mut Run<'_>) -> Outcome {
    finds(run, "id -u; id -g; id -G; touch /tmp/a; ls -ln /tmp", |spec| {
        set(spec, "/process/user", json!({"uid": 65534, "gid": 65534, "additionalGids": [5, 100]}));
    })
}

fn working_directory(run: &mut Run<'_>) -> Outcome {
    finds(run, "pwd", |spec| set(spec, "/process/cwd", "/tmp".into()))
}

fn working_directory_missing(run: &mut Run<'_>) -> Outcome {
    finds(run, "pwd", |spec| set(spec, "/process/cwd", "/not/there".into()))
}

fn environment(run: &mut Run<'_>) -> Outcome {
    finds(run, "env | sort", |spec| {
        set(spec, "/process/env", json!(["PATH=/bin", "A=b", "A=c", "EMPTY=", "HOME=/root"]));
    })
}

fn environment_without_home(run: &mut Run<'_>) -> Outcome {
    finds(run, "echo $HOME", |spec| {
        set(spec, "/process/env", json!(["PATH=/bin"]));
        set(spec, "/process/user", json!({"uid": 65534, "gid": 65534}));
    })
}

fn hostname(run: &mut Run<'_>) -> Outcome {
    finds(run, "hostname", |_spec| ())
}

fn umask(run: &mut Run<'_>) -> Outcome {
    finds(run, "umask", |spec| set(spec, "/process/user/umask", 0o027.into()))
}

fn capabilities(run: &mut Run<'_>) -> Outcome {
    finds(run, "grep ^Cap /proc/self/status | tr '\\t\\n' '  '", |_spec| ())
}

fn no_new_privileges(run: &mut Run<'_>) -> Outcome {
    let script = "grep ^NoNewPrivs /proc/self/status | tr '\\t' ' '";
    finds(run, script, |spec| set(spec, "/process/noNewPrivileges", false.into()))
}

fn descriptors(run: &mut Run<'_>) -> Outcome {
    finds(run, "ls /proc/self/fd", |_spec| ())
}

fn session(run: &mut Run<'_>) -> Outcome {
    finds(run, "cut -d' ' -f1,4-7 /proc/1/stat", |_spec| ())
}

fn root_writable(run: &mut Run<'_>) -> Outcome {
    finds(run, "echo kept >/written && cat /written", |_spec| ())
}

fn root_read_only(run: &mut Run<'_>) -> Outcome {
    finds(run, "touch /written && echo written", |spec| set(spec, "/root/readonly", true.into()))
}

fn mounts(run: &mut Run<'_>) -> Outcome {
    // Destination and type of each.
    finds(run, "cut -d' ' -f2,3 /proc/self/mounts | sort", |_spec| ())
}

fn devices(run: &mut Run<'_>) -> Outcome {
    finds(run, "ls /dev | tr '\\n' ' '; head -c 1 /dev/urandom | wc -c", |_spec| ())
}

fn masked(run: &mut Run<'_>) -> Outcome {
    finds(run, "head -c 1 /proc/kcore | wc -c; echo 1 >/proc/sys/kernel/domainname", |_spec| ())
}

fn resource_limits(run: &mut Run<'_>) -> Outcome {
    finds(run, "ulimit -n", |spec| {
        let limit = json!([{"type": "RLIMIT_NOFILE", "soft": 128, "hard": 256}]);
        set(spec, "/process/rlimits", limit);
    })
}

fn oom_score(run: &mut Run<'_>) -> Outcome {
    finds(run, "cat /proc/self/oom_score_adj", |spec| {
        set(spec, "/process/oomScoreAdj", 500.into());
    })
}

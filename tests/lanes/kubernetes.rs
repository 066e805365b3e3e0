//! Lane `kubernetes`: pods through containerd's CRI plugin, by the calls that kubelet makes.
//!
//! Every scenario is a promise that is kept with the handler `runc`, which shows that the scenario is
//! sound, and then with ours, where what was seen must also be the same. Attacks are for ours only.
//!
//! The whole lane lives in a network namespace of its own: the bridge, addresses and rules that the CNI
//! plugins make end with it.
#![forbid(unsafe_code)]

#[path = "kubernetes/attacks.rs"]
mod attacks;
#[path = "kubernetes/exec.rs"]
mod exec;
#[path = "kubernetes/figures.rs"]
mod figures;
#[path = "kubernetes/life.rs"]
mod life;
#[path = "kubernetes/logs.rs"]
mod logs;
#[path = "kubernetes/network.rs"]
mod network;
#[path = "kubernetes/process.rs"]
mod process;
#[path = "kubernetes/streams.rs"]
mod streams;
#[path = "kubernetes/volumes.rs"]
mod volumes;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::process::ExitCode;
use std::rc::Rc;

use nimbus_tests::cri::network::enter_own;
use nimbus_tests::cri::{Handler, Seen};
use nimbus_tests::demo::complain;
use nimbus_tests::lane::{self, Case};
use nimbus_tests::{Failure, Lab, Setting};

/// A promise to be kept by every handler; what it saw.
type Scenario = fn(&mut Lab, Handler) -> Result<Seen, Failure>;
/// What the reference saw, by scenario.
type References = Rc<RefCell<BTreeMap<&'static str, Seen>>>;

/// Scenarios named after their functions.
macro_rules! scenarios {
    ($($run:ident),* $(,)?) => {
        vec![$((stringify!($run), $run as crate::Scenario)),*]
    };
}
use scenarios;

fn main() -> ExitCode {
    let mut scenarios = life::scenarios();
    scenarios.extend(process::scenarios());
    scenarios.extend(logs::scenarios());
    scenarios.extend(exec::scenarios());
    scenarios.extend(streams::scenarios());
    scenarios.extend(volumes::scenarios());
    scenarios.extend(network::scenarios());
    scenarios.extend(figures::scenarios());
    let references = References::default();
    let mut all: Vec<_> =
        scenarios.iter().map(|scenario| with_runc(scenario, &references)).collect();
    all.extend(scenarios.iter().map(|scenario| with_nimbus(scenario, &references)));
    all.extend(attacks::cases());
    let setting = Setting { cri: true, ..Setting::default() };
    let list = std::env::args().any(|arg| arg == "--list");
    // Before there is a second thread; everything that is started is in it too.
    if !list
        && nix::unistd::Uid::effective().is_root()
        && let Err(failure) = enter_own()
    {
        complain(&format!("kubernetes: {}", failure.text()));
        return ExitCode::FAILURE;
    }
    lane::main_with("kubernetes", &setting, &all)
}

fn with_runc(&(name, run): &(&'static str, Scenario), references: &References) -> Case {
    let references = Rc::clone(references);
    Case::shared(&format!("runc::{name}"), move |lab| {
        let seen = run(lab, Handler::Runc)?;
        references.borrow_mut().insert(name, seen);
        Ok(())
    })
}

fn with_nimbus(&(name, run): &(&'static str, Scenario), references: &References) -> Case {
    let references = Rc::clone(references);
    Case::shared(&format!("nimbus::{name}"), move |lab| {
        let ours = run(lab, Handler::Nimbus)?;
        let known = references.borrow().get(name).cloned();
        let theirs = match known {
            Some(seen) => seen,
            None => run(lab, Handler::Runc)?,
        };
        ours.same_as(&theirs)
    })
}
